"""The moments of what comes into norms with running statistics, in the order in which it comes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from normkit import kernels
from normkit.errors import InputError
from normkit.norms import inputs
from normkit.norms.mixed_norm import MixedNorm
from normkit.norms.mixing import samples
from normkit.norms.recurrent_batch_norm import RecurrentBatchNorm
from normkit.norms.scope import scope
from normkit.norms.tracking import Place, Running, Tracked, moments_of
from normkit.statistics import Moments
from normkit.surgery.freeze import is_frozen
from normkit.surgery.walk import RunningNorm, tracking_layers


class Site(NamedTuple):
    """One set of running statistics: that of a layer, or of a time step of a recurrent one."""

    name: str
    layer: RunningNorm
    step: int | None = None

    def __str__(self) -> str:
        name = self.name or type(self.layer).__name__
        return name if self.step is None else f"{name}[{self.step}]"

    @property
    def running(self) -> Running:
        """The statistics themselves, of the domain that is chosen; what is copied into them stays."""
        layer = self.layer
        if isinstance(layer, Tracked):
            return layer._running(Place(scope.domain, self.step))  # pyright: ignore[reportPrivateUsage]
        return Running(layer.running_mean, layer.running_var, layer.num_batches_tracked)  # pyright: ignore


class Observation(NamedTuple):
    """What one forward pass of a layer brought."""

    site: Site
    moments: Moments
    samples: int | Tensor


class Gathering:
    """What is gathered batch by batch, as long as it is finite."""

    def __init__(self) -> None:
        self.batches = 0
        self.reached: set[str] = set()
        self._finite: dict[Site, Tensor] = {}

    def take(self, observation: Observation) -> None:
        """Take in what one forward pass of a layer brought."""
        site, moments, _ = observation
        self.reached.add(site.name)
        self._finite[site] = moments.mean.isfinite().all() & moments.m2.isfinite().all()

    def end_batch(self) -> None:
        """Judge what a batch brought, for all layers at once.

        Raises:
            InputError: values that are not finite.
        """
        self.batches += 1
        if self._finite and not torch.stack(list(self._finite.values())).all():
            site = next(site for site, finite in self._finite.items() if not finite)
            raise InputError(
                f"values must be finite, but batch {self.batches} brings {site} some that are not: leave it out"
            )
        self._finite.clear()

    def check(self) -> None:
        """Whether there is anything to estimate from.

        Raises:
            InputError: no batch, or none that reached a layer.
        """
        if self.batches == 0:
            raise InputError("statistics take one batch or more, got none: an iterator may have been used up")
        if not self.reached:
            raise InputError("the model must run its batch norms, but the batches reached none of them")


def observable_layers(model: nn.Module) -> tuple[dict[str, RunningNorm], dict[str, str]]:
    """The layers whose running statistics stand for those of their inputs, and why others are left alone."""
    found: dict[str, RunningNorm] = {}
    left: dict[str, str] = {}
    for name, layer in tracking_layers(model):
        reason = _against(layer)
        if reason is None:
            found[name] = layer
        elif isinstance(layer, _BatchNorm) or layer.running_mean is not None:  # pyright: ignore[reportUnnecessaryComparison]
            left[name or type(layer).__name__] = reason
    if not found:
        why = "; ".join(f"{name}: {reason}" for name, reason in left.items())
        raise InputError(
            f"the model must have a batch norm with running statistics, and has none ({why or 'no norm'})"
        )
    return found, left


def _against(layer: RunningNorm) -> str | None:
    if is_frozen(layer):
        return "frozen"
    if not isinstance(layer, (_BatchNorm, MixedNorm, RecurrentBatchNorm)):
        return "its statistics are of single samples"
    if layer.running_mean is None:  # pyright: ignore[reportUnnecessaryComparison]
        return "no running statistics"
    if scope.domain is not None and not (isinstance(layer, Tracked) and scope.domain in layer.domains):
        return f"no statistics of domain {scope.domain!r}"
    return None


@contextmanager
def observed(
    layers: Mapping[str, RunningNorm], tell: Callable[[Observation], None]
) -> Generator[None, None, None]:
    """Tell what each layer is given, before it computes; layers that were compiled run as they were written."""

    def watch(name: str, layer: RunningNorm) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            observation = _observe(name, layer, args, kwargs)
            if observation is not None:
                tell(observation)

        return layer.register_forward_pre_hook(hook, with_kwargs=True)

    hooks = [watch(name, layer) for name, layer in layers.items()]
    compiled = "torch._dynamo" in sys.modules  # else nothing is, and the import takes seconds
    try:
        with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
            yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def _observe(
    name: str, layer: RunningNorm, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Observation | None:
    x = args[0] if args else kwargs.get("input")
    if not isinstance(x, Tensor) or x.dim() < 2:
        return None  # which the layer refuses
    mask = inputs.expand_mask(kwargs.get("mask"), x)
    _, stats, count = kernels.channels(x.detach(), None, None, 1.0, mask=mask)
    step = min(kwargs.get("step", 0), layer.max_length - 1) if isinstance(layer, RecurrentBatchNorm) else None
    (moments,) = moments_of(stats, count)
    return Observation(Site(name, layer, step), moments, samples(x, mask))
