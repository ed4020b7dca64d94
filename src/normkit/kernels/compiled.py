"""The five functions of a backend on compiled kernels: autograd around the primitives of a `family`.

Two ways lead to the same primitives. Plain tensors take an autograd function, the cheapest call there is.
Where somebody watches the dispatcher (torch.compile, torch.export, a dispatch mode) they take the custom
operators `normkit::normalize` and `normkit::normalize_backward`, which show in the graph. A backward pass
that must itself be differentiable recomputes through `composed`.

Each norm is one `kind` of the same call: which statistic is taken, or that it is given.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, is_grad_enabled
from torch._C import _has_storage, _len_torch_dispatch_stack  # pyright: ignore
from torch.autograd.graph import increment_version
from torch.compiler import is_compiling

from normkit.kernels import composed
from normkit.kernels.again import gradients_of
from normkit.kernels.codes import ACTIVATIONS
from normkit.kernels.families import family
from normkit.kernels.functions import applied

Kind = Literal["channels", "ghosts", "given", "groups", "filters", "layer", "rms"]


def channels(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, int | Tensor]:
    """Batch norm of x (N, C, *) by its own statistics: y; mean and biased variance in rows (3, C); count."""
    x = native(x)
    y, stats = _normalize("channels", x, weight, bias, residual, mask, None, None, 0, eps, activation)
    return y, stats, x.numel() // x.shape[1] if mask is None else mask.sum()


def ghosts(
    x: Tensor,
    size: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Batch norm of each run of `size` samples of x: y; mean and biased variance in rows (3, runs, C)."""
    return _normalize("ghosts", native(x), weight, bias, residual, mask, None, None, size, eps, activation)


def blended(
    x: Tensor,
    known_mean: Tensor,
    known_var: Tensor,
    share: float,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
    mask: Tensor | None,
    per_sample: bool,
) -> tuple[Tensor, Tensor, int | Tensor]:
    """Batch norm by statistics between known ones and those at hand, without a graph: y; moments at hand; count."""
    x = native(x)
    residual = None if residual is None else like(residual, x)
    weight, bias, mask = contiguous(weight), contiguous(bias), contiguous(mask)
    known = contiguous(known_mean), contiguous(known_var.to(known_mean.dtype))
    code = ACTIVATIONS[activation]
    y, stats = family(x).blend_forward(x, *known, share, per_sample, weight, bias, eps, code, residual, mask)
    values = x.numel() // (x.shape[1] * (x.shape[0] if per_sample else 1))
    return y, stats, values if mask is None else mask.sum().double()


def channels_given(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    """Batch norm of x (N, C, *) by given statistics (C), which are constants."""
    settled = contiguous(mean), contiguous(var)
    return _normalize("given", native(x), weight, bias, residual, mask, *settled, 0, eps, activation)[0]


def rows(
    x: Tensor, ndim: int, weight: Tensor | None, bias: Tensor | None, eps: float, centered: bool
) -> Tensor:
    """Layer norm over the last ndim axes of x; RMS norm where it is not centered."""
    kind = "layer" if centered else "rms"
    return _normalize(kind, x.contiguous(), weight, bias, None, None, None, None, ndim, eps, None)[0]


def groups(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    centered: bool,
) -> tuple[Tensor, Tensor]:
    """Group norm of x (N, C, *): y; mean and biased variance in rows (3, N, num_groups)."""
    kind = "groups" if centered else "filters"
    return _normalize(kind, native(x), weight, bias, None, None, None, None, num_groups, eps, activation)


def update_running(
    running_mean: Tensor,
    running_var: Tensor,
    stats: Tensor,
    count: int | Tensor,
    momentum: float | None,
    num_batches_tracked: Tensor | None,
    num_batches_skipped: Tensor | None,
) -> None:
    """Move running statistics (C) towards stats (2 or more, C) or (2 or more, K, C), rounded once."""
    arguments = (momentum, num_batches_tracked, num_batches_skipped)
    if isinstance(count, Tensor) and count.dim() == stats.dim() - 2:
        count = count.to(torch.int64)
    elif isinstance(count, Tensor):
        return composed.update_running(running_mean, running_var, stats, count, *arguments)
    if (
        type(running_mean) is not Tensor
        or running_mean.dtype != running_var.dtype
        or not (running_mean.is_contiguous() and running_var.is_contiguous() and stats.is_contiguous())
    ):
        return composed.update_running(running_mean, running_var, stats, count, *arguments)
    family(running_mean).update_running(running_mean, running_var, stats, count, *arguments)
    changed = (running_mean, running_var, num_batches_tracked, num_batches_skipped)
    increment_version([b for b in changed if b is not None])  # autograd must see what happened in place
    return None


def _normalize(
    kind: Kind,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    size: int,
    eps: float,
    activation: str | None,
) -> tuple[Tensor, Tensor]:
    """The call by one of its ways; what they have in common is said at `forward`."""
    weight, bias, mask = contiguous(weight), contiguous(bias), contiguous(mask)
    if residual is not None:
        residual = like(residual, x)
    if is_watched():
        return torch.ops.normkit.normalize(
            kind, x, weight, bias, residual, mask, mean, var, size, eps, activation
        )
    return run(x, weight, bias, residual, (kind, mask, mean, var, size, eps, activation))


def run(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, rest: tuple[Any, ...]
) -> tuple[Tensor, Tensor]:
    """The kernels themselves, with a graph where one is asked for; `rest` as `_Normalize.forward` takes it."""
    if is_grad_enabled() and (
        x.requires_grad
        or (weight is not None and weight.requires_grad)
        or (bias is not None and bias.requires_grad)
        or (residual is not None and residual.requires_grad)
    ):
        return _apply(x, weight, bias, residual, rest)
    kind, mask, mean, var, size, eps, activation = rest
    return forward(kind, x, weight, bias, residual, mask, mean, var, size, eps, activation)


def is_watched() -> bool:
    """Whether a compiler or a dispatch mode must see the call."""
    return is_compiling() or _len_torch_dispatch_stack() > 0


# The primitives, under one signature.


def forward(
    kind: Kind,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    size: int,
    eps: float,
    activation: str | None,
) -> tuple[Tensor, Tensor]:
    """The output and the statistics (3, sets), empty where they were given.

    `size` is the number of groups, of axes in a row, or of samples that share statistics.
    """
    code = ACTIVATIONS[activation]
    if kind == "channels":
        return family(x).channels_forward(x, weight, bias, eps, code, residual, mask)[:2]
    if kind == "given":
        assert mean is not None
        assert var is not None
        y = family(x).channels_normalize(x, mean, var, weight, bias, eps, code, residual, mask)
        return y, x.new_empty(0)
    if kind == "ghosts":
        return family(x).ghosts_forward(x, size, weight, bias, eps, code, residual, mask)
    if kind in ("groups", "filters"):
        return family(x).groups_forward(x, size, weight, bias, eps, code, kind == "groups")
    return family(x).rows_forward(x, _row(x, size), weight, bias, eps, kind == "layer")


def _backward(
    dy: Tensor,
    stats: Tensor,
    kind: Kind,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    size: int,
    eps: float,
    activation: str | None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight, bias and residual; dy lies in memory as x does."""
    code = ACTIVATIONS[activation]
    if kind == "channels":
        return family(x).channels_backward(x, dy, stats, weight, bias, eps, code, residual, mask)
    if kind == "given":
        assert mean is not None
        assert var is not None
        return family(x).channels_backward_evaluation(
            x, dy, mean, var, weight, bias, eps, code, residual, mask
        )
    if kind == "ghosts":
        return family(x).ghosts_backward(x, dy, stats, size, weight, bias, eps, code, residual, mask)
    if kind in ("groups", "filters"):
        return *family(x).groups_backward(x, dy, stats, weight, bias, eps, code, kind == "groups"), None
    return *family(x).rows_backward(x, dy, stats, weight, bias, eps, kind == "layer"), None


def _composed(
    kind: Kind,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    size: int,
    eps: float,
    activation: str | None,
) -> Tensor:
    """The same output by torch operations, for a graph that can be differentiated again."""
    if kind == "channels":
        return composed.channels(x, weight, bias, eps, activation, residual, mask)[0]
    if kind == "given":
        assert mean is not None
        assert var is not None
        return composed.channels_given(x, mean, var, weight, bias, eps, activation, residual, mask)
    if kind == "ghosts":
        return composed.ghosts(x, size, weight, bias, eps, activation, residual, mask)[0]
    if kind in ("groups", "filters"):
        return composed.groups(x, size, weight, bias, eps, activation, kind == "groups")[0]
    return composed.rows(x, size, weight, bias, eps, kind == "layer")


# Autograd, for both ways.


def _save(ctx: Any, tensors: tuple[Tensor | None, ...], rest: tuple[Any, ...]) -> None:
    """Of the call and its statistics, which come first, what `_differentiate` needs."""
    ctx.save_for_backward(*tensors)
    ctx.rest = rest
    ctx.mark_non_differentiable(tensors[0])
    ctx.set_materialize_grads(False)


def gradients(
    dy: Tensor | None,
    stats: Tensor,
    kind: Kind,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    size: int,
    eps: float,
    activation: str | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight, bias and residual, by the kernels or, where these do not do, as operations of torch."""
    if dy is None:
        return None, None, None, None
    if is_grad_enabled() or not _has_storage(dy):
        rest = mask, mean, var, size, eps, activation

        def y(x: Tensor, *others: Tensor | None) -> Tensor:
            return _composed(kind, x, *others, *rest)  # pyright: ignore[reportCallIssue]

        dx, dweight, dbias, dresidual = gradients_of(y, (x, weight, bias, residual), dy)
        return dx, dweight, dbias, dresidual
    dy = like(dy, x)
    if is_watched():
        found = torch.ops.normkit.normalize_backward(
            dy, stats, kind, x, weight, bias, residual, mask, mean, var, size, eps, activation
        )
        dx, dweight, dbias, dresidual = (
            g if t is not None else None for g, t in zip(found, (x, weight, bias, residual), strict=True)
        )
        return dx, dweight, dbias, dresidual
    return _backward(dy, stats, kind, x, weight, bias, residual, mask, mean, var, size, eps, activation)


def _differentiate(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
    stats, x, weight, bias, residual, mask, mean, var = ctx.saved_tensors
    kind, size, eps, activation = ctx.rest
    return gradients(dy, stats, kind, x, weight, bias, residual, mask, mean, var, size, eps, activation)


class _Normalize(torch.autograd.Function):
    """Of what can be differentiated, and the rest in one tuple: each input of its own costs 0.1 us."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        rest: tuple[Any, ...],
    ) -> tuple[Tensor, Tensor]:
        kind, mask, mean, var, size, eps, activation = rest
        y, stats = forward(kind, x, weight, bias, residual, mask, mean, var, size, eps, activation)
        _save(ctx, (stats, x, weight, bias, residual, mask, mean, var), (kind, size, eps, activation))
        return y, stats

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dy: Tensor | None, _: None
    ) -> tuple[Tensor | None, ...]:
        dx, dweight, dbias, dresidual = _differentiate(ctx, dy)
        return dx, dweight, dbias, dresidual, None


_apply = applied(_Normalize)


_ARGUMENTS = (
    "str kind, Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, Tensor? mask, Tensor? mean, "
    "Tensor? var, SymInt size, float eps, str? activation"
)
_operator = torch.library.custom_op(
    "normkit::normalize",
    forward,
    mutates_args=(),
    device_types=("cpu", "cuda"),
    schema=f"({_ARGUMENTS}) -> (Tensor, Tensor)",
)
_operator.register_autograd(
    lambda ctx, dy, _: (None, *_differentiate(ctx, dy), *(None,) * 6),
    setup_context=lambda ctx, inputs, output: _save(ctx, (output[1], *inputs[1:8]), (inputs[0], *inputs[8:])),
)


@_operator.register_fake
def _(kind: Kind, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    size = rest[6]
    sets: dict[Kind, list[int]] = {"channels": [3, x.shape[1]], "given": [0]} if x.dim() > 1 else {}
    if kind in ("groups", "filters"):
        shape = [3, x.shape[0], size]
    elif kind == "ghosts":
        shape = [3, (x.shape[0] + size - 1) // size, x.shape[1]]
    elif kind in sets:
        shape = sets[kind]
    else:
        shape = [3, x.numel() // _row(x, size)]
    dtype = x.dtype if kind == "given" else torch.float64
    return torch.empty_like(x), x.new_empty(shape, dtype=dtype)


@torch.library.custom_op(
    "normkit::normalize_backward",
    mutates_args=(),
    device_types=("cpu", "cuda"),
    schema=f"(Tensor dy, Tensor stats, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _backward_operator(dy: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    # An operator returns tensors; an empty one stands for none.
    return tuple(dy.new_empty(0) if g is None else g for g in _backward(dy, *arguments))


@_backward_operator.register_fake
def _(dy: Tensor, stats: Tensor, kind: Kind, *arguments: Any) -> tuple[Tensor, ...]:
    return tuple(dy.new_empty(0) if t is None else torch.empty_like(t) for t in arguments[:4])


# Layouts.


def native(x: Tensor) -> Tensor:
    """As it lies in memory where the kernels read it so, else a contiguous copy."""
    return x if x.is_contiguous() or x.movedim(1, -1).is_contiguous() else x.contiguous()


def contiguous(t: Tensor | None) -> Tensor | None:
    """Contiguous, where it is there at all."""
    return None if t is None else _in_memory(t).contiguous()


def like(t: Tensor, x: Tensor) -> Tensor:
    """The values of t, laid out in memory as x is, which is contiguous or channels last."""
    t = _in_memory(t)
    if x.is_contiguous():
        return t.contiguous()
    return t if t.stride() == x.stride() else t.movedim(1, -1).contiguous().movedim(-1, 1)


def _in_memory(t: Tensor) -> Tensor:
    """With values that memory holds: torch has negated views, and zeros without memory, where no compiler traces."""
    if is_compiling() or not (t.is_neg() or t._is_zerotensor()):  # pyright: ignore
        return t
    return t.clone()


def _row(x: Tensor, ndim: int) -> int:
    """How many elements a row of the last ndim axes has."""
    if ndim == 1:
        return x.shape[-1]
    elements = 1
    for size in x.shape[x.dim() - ndim :]:
        elements = elements * size
    return elements
