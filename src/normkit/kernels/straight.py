"""The short way of ordinary calls, for inputs so small that the questions take longer than the answer.

`cpu.plain_channels` and `cpu.plain_rows` see in one look that all checks hold and that nothing must be copied; what
follows is the least that autograd asks for. Whatever is out of the ordinary gets None before anything has been done:
the long way, through `compiled` or `composed`, tells what is wrong, or how it goes. Both give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, is_grad_enabled
from torch._C import _current_graph_task_id, _get_tracing_state  # pyright: ignore
from torch._C._functorch import get_dynamic_layer_stack_depth
from torch.autograd import forward_ad
from torch.autograd.graph import increment_version

from normkit.kernels import compiled, cpu
from normkit.kernels.composed import Running
from normkit.kernels.functions import applied
from normkit.kernels.renorm import apply as of_renorm
from normkit.kernels.runs import values_of_runs


def channels(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
    running: Running | None,
    training: bool,
) -> Tensor | None:
    """Batch norm by the batch's statistics, towards which the running ones move, or by the running ones."""
    mean = var = None
    if running is not None:
        mean, var, momentum, batches = running
        if momentum is None and batches is None:
            return None
    elif not training:
        return None
    if not (eps > 0 and activation in cpu.ACTIVATIONS and _undisturbed()):
        return None
    if not cpu.plain_channels(x, residual, weight, bias, mean, var):
        return None
    if not training:
        return compiled.run(x, weight, bias, residual, ("given", None, mean, var, 0, eps, activation))[0]
    if _current_graph_task_id() != -1:  # see `recomputation.recomputing`
        running = None
    return _normalize("channels", x, weight, bias, residual, 0, eps, activation, running)


def ghosts(
    x: Tensor,
    size: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
    running: Running | None,
) -> Tensor | None:
    """Batch norm of each run of `size` samples, towards whose statistics the running ones move in turn."""
    mean = var = None
    if running is not None:
        mean, var, momentum, batches = running
        if momentum is None and batches is None:
            return None
    if not (eps > 0 and activation in cpu.ACTIVATIONS and _undisturbed()):
        return None
    if not cpu.plain_channels(x, residual, weight, bias, mean, var):
        return None
    samples, channels = x.shape[0], x.shape[1]
    if samples % size == 1 and x.numel() == samples * channels:
        return None
    if _current_graph_task_id() != -1:
        running = None
    return _normalize("ghosts", x, weight, bias, residual, size, eps, activation, running)


def renorm(
    x: Tensor,
    known_mean: Tensor,
    known_var: Tensor,
    r_max: float,
    d_max: float,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
    running: Running,
) -> Tensor | None:
    """Batch renorm towards known statistics, like the running ones, which then move."""
    mean, var, momentum, batches = running
    if (momentum is None and batches is None) or not eps > 0:
        return None
    if (
        activation not in cpu.ACTIVATIONS
        or known_mean is not mean
        or known_var is not var
        or not _undisturbed()
    ):
        return None
    if not cpu.plain_channels(x, residual, weight, bias, mean, var):
        return None
    known = known_mean, known_var, r_max, d_max, eps, activation
    y, stats = of_renorm(known, x, weight, bias, residual, None)
    if _current_graph_task_id() == -1:
        _move(running, stats, x, 0)
    return y


def blended(
    x: Tensor,
    known_mean: Tensor,
    known_var: Tensor,
    share: float,
    per_sample: bool,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
) -> Tensor | None:
    """Batch norm by statistics a share of the way from known ones to those at hand, where nothing is recorded."""
    if is_grad_enabled() or not (eps > 0 and activation in cpu.ACTIVATIONS and _undisturbed()):
        return None
    if not cpu.plain_channels(x, residual, weight, bias, known_mean, known_var):
        return None
    code = cpu.ACTIVATIONS[activation]
    return cpu.blend_forward(x, known_mean, known_var, share, per_sample, weight, bias, eps, code, residual)[
        0
    ]


def groups(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
) -> Tensor | None:
    """Group norm."""
    if not (num_groups > 0 and activation in cpu.ACTIVATIONS and _undisturbed()):
        return None
    if not cpu.plain_channels(x, None, weight, bias, None, None) or x.shape[1] % num_groups:
        return None
    if x.numel() == x.shape[0] * num_groups:
        return None
    return _normalize("groups", x, weight, bias, None, num_groups, eps, activation, None)


def rows(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    centered: bool,
) -> Tensor | None:
    """Layer norm over the last axes; RMS norm where it is not centered."""
    if not (
        isinstance(normalized_shape, tuple)
        and _undisturbed()
        and cpu.plain_rows(x, normalized_shape, weight, bias)
    ):
        return None
    kind = "layer" if centered else "rms"
    return _normalize(kind, x, weight, bias, None, len(normalized_shape), eps, None, None)


def _undisturbed() -> bool:
    """Whether nobody transforms, traces or watches what is called."""
    return not (
        get_dynamic_layer_stack_depth()
        or forward_ad._current_level >= 0  # pyright: ignore[reportPrivateUsage]
        or _get_tracing_state()
        or compiled.is_watched()
    )


def _normalize(
    kind: compiled.Kind,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    size: int,
    eps: float,
    activation: str | None,
    running: Running | None,
) -> Tensor:
    if is_grad_enabled() and (
        x.requires_grad
        or (weight is not None and weight.requires_grad)
        or (bias is not None and bias.requires_grad)
        or (residual is not None and residual.requires_grad)
    ):
        return _apply(kind, x, weight, bias, residual, size, eps, activation, running)
    y, stats = compiled.forward(kind, x, weight, bias, residual, None, None, None, size, eps, activation)
    if running is not None:
        _move(running, stats, x, size)
    return y


def _move(running: Running, stats: Tensor, x: Tensor, size: int) -> None:
    mean, var, momentum, batches = running
    count = x.numel() // x.shape[1]
    if stats.dim() > 2:
        count = values_of_runs(x.shape[0], size, count // x.shape[0])
    cpu.update_running(mean, var, stats, count, momentum, batches)
    increment_version((mean, var) if batches is None else (mean, var, batches))


class _Normalize(torch.autograd.Function):
    """As that of `compiled`, for what has no mask and whose statistics nobody asks for."""

    @staticmethod
    def forward(
        ctx: Any,
        kind: compiled.Kind,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        size: int,
        eps: float,
        activation: str | None,
        running: Running | None,
    ) -> Tensor:
        y, stats = compiled.forward(kind, x, weight, bias, residual, None, None, None, size, eps, activation)
        ctx.save_for_backward(stats, x, weight, bias, residual)
        ctx.rest = kind, size, eps, activation
        ctx.set_materialize_grads(False)
        if running is not None:
            _move(running, stats, x, size)
        return y

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dy: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        stats, x, weight, bias, residual = ctx.saved_tensors
        kind, size, eps, activation = ctx.rest
        dx, dweight, dbias, dresidual = compiled.gradients(
            dy, stats, kind, x, weight, bias, residual, None, None, None, size, eps, activation
        )
        return None, dx, dweight, dbias, dresidual, None, None, None, None


_apply = applied(_Normalize)
