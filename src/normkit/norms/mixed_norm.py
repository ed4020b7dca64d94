"""What the norms that mix a batch's statistics with those of its samples share: the call, and the layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from normkit import kernels, processes
from normkit.kernels.recomputation import recomputing
from normkit.norms import inputs, mixing
from normkit.norms.batch_moments import BatchMoments, outside_of_graphs
from normkit.norms.mixing import Affine
from normkit.norms.scope import scope
from normkit.norms.sharing import Sharing
from normkit.norms.tracing import one_node
from normkit.norms.tracking import Place, Tracked, Tracking, check_momentum
from normkit.statistics import update_running_

_Running = tuple[Tensor | None, Tensor | None]


class Mixture(NamedTuple):
    """How statistics are mixed: a rule of torch operations, and the name under which kernels have it.

        rule(mean, var, batch_mean, batch_var, *learned, weight, bias) -> mean, var, weight, bias

    mean and var are (N, C), of the batch (1, C) or (C).
    """

    name: str
    rule: Callable[..., tuple[Tensor, Tensor, Tensor | None, Tensor | None]]


def mix(
    input: Tensor,
    mixture: Mixture,
    learned: dict[str, Tensor],
    running: _Running,
    training: bool,
    affine: Affine,
    group: processes.Group,
    layer: processes.Layer,
) -> tuple[Tensor, Tensor, int | Tensor]:
    """Normalize by what is mixed of the moments of samples and of the batch: output, the batch's, their count.

    Out of training the running statistics stand in for the batch's.
    """
    if not processes.several(group) and not affine.each:
        combine = partial(_combine, mixture.rule, BatchMoments(input, None, layer))
        known = (None, None) if training else running
        found = kernels.mixed(input, mixture.name, combine, known, tuple(learned.values()), *affine)
        if found is not None:
            return found
    return outside_of_graphs(_mix, group)(input, mixture, learned, running, training, affine, group, layer)


def _mix(
    input: Tensor,
    mixture: Mixture,
    learned: dict[str, Tensor],
    running: _Running,
    training: bool,
    affine: Affine,
    group: processes.Group,
    layer: processes.Layer,
) -> tuple[Tensor, Tensor, int | Tensor]:
    batch = BatchMoments(input, group, layer)

    def combine(mean: Tensor, var: Tensor, count: int | Tensor, **tensors: Tensor | None) -> Any:
        return _combine(mixture.rule, batch, mean, var, count, *tensors.values())

    known_mean, known_var = (None, None) if training else running
    tensors = {"known_mean": known_mean, "known_var": known_var, **learned}
    y, stats, count = mixing.mix(input, combine, tensors, affine)
    return y, *batch.measured(stats, count)


def _combine(
    rule: Callable[..., Any],
    batch: BatchMoments,
    mean: Tensor,
    var: Tensor,
    count: int | Tensor,
    known_mean: Tensor | None,
    known_var: Tensor | None,
    *tensors: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """From the moments of samples to what normalizes them, by a rule that takes those of the batch too."""
    if known_mean is None or known_var is None:
        of_batch = batch.of(mean, var, count)
    else:
        of_batch = known_mean.to(mean.dtype), known_var.to(var.dtype)
    used_mean, used_var, weight, bias = rule(mean, var, *of_batch, *tensors)
    return used_mean.expand_as(mean), used_var.expand_as(var), weight, bias


def move(
    running: _Running, stats: Tensor, count: int | Tensor, momentum: float | None, batches: Tensor | None
) -> None:
    """Move running statistics, where there are any, towards those of a batch."""
    mean, var = running
    check_momentum(momentum, mean, batches)
    if mean is not None and var is not None and not recomputing():
        update_running_(mean, var, stats, count, momentum, batches)


class MixedNorm(Sharing, Tracked, torch.nn.modules.batchnorm._NormBase, ABC):  # pyright: ignore[reportPrivateUsage]
    """A norm with running statistics that is no batch norm, so that nothing fuses or converts it as one."""

    activation: str | None = None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
        process_group: processes.Group = None,
        guard: Literal["nonfinite"] | None = None,
    ) -> None:
        inputs.check_arguments(eps, momentum, num_features=num_features)
        inputs.check_activation(activation)
        switches = Tracking(guard=guard)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        for name, size in self._shares().items():
            ones = torch.ones(size, device=device, dtype=dtype)
            self.register_parameter(name, torch.nn.Parameter(ones))
        self.activation = activation
        self._share_with(process_group, num_features)
        self._follow(switches)

    @abstractmethod
    def _shares(self) -> dict[str, int]:
        """The parameters that say how much of which statistic is taken, and their lengths; they start at one."""

    @abstractmethod
    def _mix(
        self, input: Tensor, running: _Running, training: bool, affine: Affine, group: processes.Group
    ) -> tuple[Tensor, Tensor, int | Tensor]:
        """Output, the moments of the batch, their count."""

    def reset_parameters(self) -> None:
        """Weights, biases and running statistics as they start, the shares too."""
        super().reset_parameters()
        for name in self._shares():
            if name in self._parameters:  # not yet there when torch's constructor calls this
                torch.nn.init.ones_(self.get_parameter(name))

    @one_node
    def forward(self, input: Tensor, *, residual: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Normalize, add the residual, activate; see the function of the same name in `normkit.functional`."""
        self._check_input_dim(input)
        training, moves = self._statistics() == "batch", self._moves()
        group = self._sharing(measures=training)
        running = (None, None)
        if moves or not training:
            running = self._running(Place(scope.domain))[:2]
        affine = Affine(*inputs.own_affine(self), self.eps, self.activation, residual, mask)
        y, stats, count = self._mix(input, running, training, affine, group)
        if moves:
            self._track(stats, count)
        return y

    def extra_repr(self) -> str:
        """The arguments, activation and process group where there are any."""
        return super().extra_repr() + inputs.repr_activation(self.activation) + self._repr_group()
