"""Norms as other norms of the family, fitted to what they were: `convert`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from normkit.errors import InputError
from normkit.norms.tracking import Tracked
from normkit.surgery.dataflow import Flow
from normkit.surgery.dtypes import telling_dtypes
from normkit.surgery.feed import each, feeder, first_of
from normkit.surgery.freeze import Frozen
from normkit.surgery.handwritten import handwritten
from normkit.surgery.least_squares import Comoments
from normkit.surgery.ours import NORMS, has_known_forward, introduce
from normkit.surgery.outcome import Outcome, check_model
from normkit.surgery.passes import undisturbed
from normkit.surgery.restore import whole_or_nothing
from normkit.surgery.targets import BATCH, MIXED, TAKE, Seen, build, check_to, is_of_rows
from normkit.surgery.trace import UntraceableError
from normkit.surgery.walk import become_like, layers_of


def convert(
    model: nn.Module,
    to: str,
    batches: Iterable[Any] | None = None,
    *,
    forward: Callable[[Any], Any] | None = None,
    **options: Any,
) -> Outcome:
    r"""Let the norms of a model be norms of another kind, as near as can be to what they were.

    .. math:: \gamma, \beta = \arg\min \sum \left(y - \gamma z - \beta\right)^2

    for each channel, over the values in the batches: y is what the old layer gives in evaluation, z what the new one
    normalizes to. Without batches, weight and bias stay as they are.

    In place: layers remain the objects that they are, wherever they stand, with hooks and flags; weight and bias
    remain the same Parameter objects where the new layer has them. Activations of ours stay. A batch norm made of a
    norm without running statistics gets those of the batches, and starts from mean 0 and variance 1 without any.

    Batch, instance and group norm become `batch`, `sync`, `ghost`, `renorm`, `adaptive`, `switch`, `batch_instance`,
    `virtual` (whose reference is the first batch), `group` (32 groups, or the most below that divide the channels into
    groups of two or more, which is told), `layer` (group norm with one group, over channels and space), `instance`,
    `rms` (over the channels at each position) or `frn` (whose threshold is there where ReLU was fused). Layer and RMS
    norm become `layer`, `rms` or `dynamic_tanh`. Group norms stay as they are under `group`, unless num_groups= asks
    for others.

    Args:
        model: any module.
        to: one of these names.
        batches: a pass over data, each as data loaders give it: a tensor, a mapping of arguments by name, or a tuple
            whose first is one of these.
        forward: a function of one batch that runs the model on it; None: as above.
        options: arguments of the new layers beyond the old ones', such as num_groups=8 or ghost_size=16.

    Returns:
        What each layer is now; what was left, and why: layers that the kind makes no sense for, above all groups of
        one value, which a norm would turn into 0. With batches, `errors` has the root mean square of what the fit
        does not reach, relative to that of the old output, for each layer by itself: what errors become further on
        in the model is not in it.

    Raises:
        InputError: no module, an unknown name, no batch in batches, or no batches for `virtual`; ghost without
            ghost_size=.
        TypeError: an option that the new layers do not have.
        Exception: what the model raises on a batch; the model is as it was.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    >>> convert(model, "group", num_groups=2)
    convert: 1 changed, 0 left
      1  GroupNorm(2, 8, eps=1e-05, affine=True, bias=True)
    """
    check_to(to, options, fitted=batches is not None)
    check_model(model)
    outcome = Outcome("convert", model)
    fits = [_Fit(name, layer, to, options) for name, layer in layers_of(model, NORMS)]
    for fit, given in zip(fits, _given(model, fits), strict=True):
        fit.refuse(_why_not(model, fit.layer, to, given, fitted=batches is not None))
        fit.refuse(_why_not_again(fit.layer, to, options))
    for name, layer in handwritten(model):
        outcome.left[name] = (
            f"{type(layer).__name__} has the parts of a norm, and inherits none: put torch's or normkit's in its place"
        )
    if not fits and not outcome.left:
        outcome.note = "the model has no norm that is known"
    with whole_or_nothing(model):
        if batches is None:
            for fit in fits:
                fit.build(Seen.by_class(fit.layer))
        else:
            _observe(model, fits, batches, feeder(model, forward))
        for fit in fits:
            if fit.new is None:
                outcome.left[fit.name] = fit.why or "no batch reached it"
                continue
            if batches is not None:
                outcome.errors[fit.name] = fit.solve()
            fit.finish()
            outcome.done[fit.name] = repr(fit.layer).partition("\n")[0] + _regrouped(fit.layer, options)
    return outcome


class _Fit:
    """One layer on its way: what it is to become, and how its old output goes with the new one."""

    def __init__(self, name: str, layer: Any, to: str, options: dict[str, Any]) -> None:
        self.name, self.layer, self.to, self.options = name, layer, to, options
        self.new: Any = None
        self._plain: Any = None  # the same without affine map and activation
        self.why: str | None = None
        self._seen: Seen | None = None
        self._comoments: Comoments | None = None
        self._values: dict[str, Tensor] = {}
        self._reference: Any = None  # of virtual batch norm

    def refuse(self, why: str | None) -> None:
        """Leave the layer, for the first reason there is."""
        if why is not None:
            self.why, self.new = self.why or why, None

    def build(self, seen: Seen, *, fitted: bool = False) -> None:
        """Make the new layer, which is not in the model yet, and the same without affine map and activation."""
        if self.why is not None:
            return
        activation = getattr(self.layer, "activation", None)
        affine = fitted or any(True for _ in self.layer.parameters(recurse=False))
        bias = fitted or getattr(self.layer, "bias", True) is not None
        given = self.layer, self.to, seen, self.options
        try:
            made = build(*given, affine=affine, bias=bias, activation=activation), build(*given, affine=False)
        except InputError as why:
            self.refuse(str(why))
            return
        self.new, self._plain = made
        if self.to == "frn":
            self._plain.register_parameter("threshold", None)
        if self.running:
            _copy_running(self.layer, self.new)
            _copy_running(self.layer, self._plain)
        elif self.to in MIXED:
            self.refuse(
                "it has no running statistics, of which the new norm takes a part: convert it to batch first"
            )

    @property
    def running(self) -> bool:
        """Whether the old layer's running statistics are to be the new one's."""
        return self.to in {**BATCH, **MIXED} and getattr(self.layer, "running_mean", None) is not None

    @torch.no_grad()
    def observe(self, x: Tensor, given: set[str]) -> None:
        """Take in one input of the old layer, in evaluation, and what it is called with beside it."""
        for name in sorted(given - {*signature(type(self.new or self.layer).forward).parameters}):
            self.refuse(_not_taken(name))
        seen = Seen.of(x)
        if self._seen is None or seen.positions < self._seen.positions:
            self._seen = seen
            self.build(seen, fitted=True)
        if self.why is not None:
            return
        if self.to == "virtual":
            self._refer(x)
        if self.to in BATCH and self.running:
            return
        old = copy.copy(self.layer)
        old.activation = None
        y = type(old).forward(old, x)
        z = x if self.to in BATCH else self._plain.eval()(x)
        features = range(x.dim())[-len(self.layer.normalized_shape) :] if is_of_rows(self.layer) else [1]
        chunk = Comoments.of(z, y, [axis for axis in range(x.dim()) if axis not in features])
        self._comoments = chunk if self._comoments is None else self._comoments.merge(chunk)

    def _refer(self, x: Tensor) -> None:
        """Give the new layer its reference: of the first batch, however often it is built."""
        if self._reference is None:
            self._plain.set_reference(x)
            self._reference = self._plain.saved_reference()
        for layer in (self.new, self._plain):
            layer.restore_reference(*self._reference)

    def solve(self) -> float:
        """Find the new layer's values; the error, which is 0 where the old ones go on to hold."""
        if self.to in BATCH and self.running:
            return 0.0
        assert self._comoments is not None
        line = (
            self._comoments.line()
            if getattr(self.new, "bias", None) is not None
            else self._comoments.line_through_zero()
        )
        weight, bias = line.slope, line.intercept
        if self.to in BATCH:  # a line of x, and not of what is normalized
            mean, var = self._comoments.x, self._comoments.xx / max(self._comoments.count - 1, 1)
            self.new.running_mean.copy_(mean)
            self.new.running_var.copy_(var)
            weight, bias = (
                weight * (self.new.running_var.double() + self.new.eps).sqrt(),
                bias + weight * mean,
            )
        self._values = {"weight": weight, "bias": bias}
        return line.error

    def finish(self) -> None:
        """Make the old layer the new one, with its Parameter objects where both have them."""
        learns = [parameter.requires_grad for parameter in self.layer.parameters(recurse=False)]
        if learns:
            self.new.requires_grad_(any(learns))
        for name in ("weight", "bias"):
            old, new = getattr(self.layer, name, None), getattr(self.new, name, None)
            if new is None:
                continue
            if old is not None:
                setattr(self.new, name, old)
            parameter = getattr(self.new, name)
            if name in self._values:
                parameter.data = self._values[name].to(parameter.dtype).view_as(parameter)
        become_like(self.layer, self.new)
        introduce(self.name, self.layer)


def _observe(model: nn.Module, fits: list[_Fit], batches: Iterable[Any], run: Callable[[Any], Any]) -> None:
    """One pass over the batches, in evaluation, past the user's hooks."""

    def hook(fit: _Fit) -> Callable[..., None]:
        def see(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            fit.observe(x, {name for name in TAKE if kwargs.get(name) is not None})

        return see

    count = 0
    with undisturbed(model):
        for fit in fits:
            fit.layer.register_forward_pre_hook(hook(fit), with_kwargs=True)
        for number, batch in enumerate(each(batches), 1):
            with telling_dtypes(model, first_of(batch), f"batch {number}"):
                run(batch)
            count = number
    if count == 0:
        raise InputError("batches must hold one batch or more, and held none")


def _why_not(model: nn.Module, layer: nn.Module, to: str, given: set[str], *, fitted: bool) -> str | None:
    """Why a layer cannot become another, whatever that is."""
    own = {id(p) for p in layer.parameters()}
    shared = sum(id(p) in own for m in model.modules() for p in vars(m)["_parameters"].values()) > len(own)
    refusals = {
        "it must know its channels: run a batch first": isinstance(layer, LazyModuleMixin),
        f"{type(layer).__name__} has a forward of its own": not has_known_forward(layer),
        "it is frozen: nk.unfreeze(model) first": isinstance(layer, Frozen),
        "its parameters are computed": parametrize.is_parametrized(layer),
        "its parameters are another layer's too, which no fit can serve": fitted and shared,
        "its switches or its domains have no place in another norm": isinstance(layer, Tracked)
        and (not layer.tracking.plain or bool(layer.domains)),
        **{_not_taken(name): name in given and to not in kinds for name, kinds in TAKE.items()},
    }
    return next((why for why, holds in refusals.items() if holds), None)


def _why_not_again(layer: Any, to: str, options: dict[str, Any]) -> str | None:
    """Why a group norm stays as it is."""
    if to != "group" or not isinstance(layer, nn.GroupNorm):
        return None
    asked = options.get("num_groups", layer.num_groups)
    return f"it is a group norm already, of {layer.num_groups} groups" if asked == layer.num_groups else None


def _regrouped(layer: Any, options: dict[str, Any]) -> str:
    """A word on a number of groups that is not the one that was asked for."""
    asked = options.get("num_groups")
    if asked is None or not isinstance(layer, nn.GroupNorm) or layer.num_groups == asked:
        return ""
    return f", for {asked} groups of two or more do not divide its channels"


def _not_taken(name: str) -> str:
    article = "an" if name[0] in "aeiou" else "a"
    return (
        f"it is called with {article} {name}, which the new norm does not take: convert before nk.accelerate, which "
        f"fuses {'sums' if name == 'residual' else 'activations'}"
    )


def _given(model: nn.Module, fits: list[_Fit]) -> list[set[str]]:
    """For each layer what it is called with beside its input, as far as torch.fx can tell."""
    if isinstance(model, NORMS):
        return [set[str]() for _ in fits]
    try:
        calls = (flow := Flow(model, NORMS, training=False)).calls(NORMS)
    except UntraceableError:
        return [set[str]() for _ in fits]
    given = {
        (flow.module(node), name) for node in calls for name in TAKE if node.kwargs.get(name) is not None
    }
    return [{name for name in TAKE if (fit.layer, name) in given} for fit in fits]


def _copy_running(old: Any, new: Any) -> None:
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        if getattr(old, name, None) is not None and name in vars(new)["_buffers"]:
            setattr(new, name, getattr(old, name))
