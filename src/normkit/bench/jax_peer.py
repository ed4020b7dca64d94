"""The same norms in JAX, as one compiled program per case: forward and backward, or evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax  # pyright: ignore[reportMissingImports]
import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
from torch import Tensor

from normkit.bench.cases import Case, groups_of

_EPS = 1e-5


def step(case: Case, x: Tensor, dy: Tensor, residual: Tensor | None) -> Callable[[], Any]:
    """A function that runs the case once and waits for the result.

    Arithmetic is float32, whatever the input's dtype. In channels_last the array's last axis is the channel.
    """
    axis = _channel_axis(case)
    arrays = [_array(case, tensor) for tensor in (x, dy)]
    extra = None if residual is None else _array(case, residual)
    weight, bias = jnp.ones(arrays[0].shape[axis]), jnp.zeros(arrays[0].shape[axis])

    def forward(x: Any, weight: Any, bias: Any, extra: Any) -> Any:
        y = _norm(case, x.astype(jnp.float32), axis) * _along(weight, x.ndim, axis)
        y = y if case.row.norm == "rms" else y + _along(bias, x.ndim, axis)
        y = y if extra is None else y + extra
        return (jax.nn.relu(y) if case.row.activation else y).astype(x.dtype)

    def both(x: Any, weight: Any, bias: Any, extra: Any, dy: Any) -> Any:
        y, pullback = jax.vjp(forward, x, weight, bias, extra)
        return y, pullback(dy)

    inputs = [arrays[0], weight, bias, extra]
    if case.row.evaluation:
        program = jax.jit(forward)
    else:
        program, inputs = jax.jit(both), [*inputs, arrays[1]]
    return lambda: jax.block_until_ready(program(*inputs))


def _channel_axis(case: Case) -> int:
    return -1 if case.row.channels_last or case.row.norm in {"layer", "rms"} else 1


def _array(case: Case, tensor: Tensor) -> Any:
    tensor = tensor.detach().float()
    if case.row.channels_last:
        tensor = tensor.movedim(1, -1)
    return jnp.asarray(tensor.contiguous().numpy(), dtype=str(case.row.dtype).removeprefix("torch."))


def _norm(case: Case, x: Any, axis: int) -> Any:
    """Standardized x; in evaluation by running statistics as they are at the start, 0 and 1."""
    if case.row.evaluation:
        return x * jax.lax.rsqrt(jnp.float32(1 + _EPS))
    if case.row.norm == "rms":
        return x * jax.lax.rsqrt(jnp.square(x).mean(axis, keepdims=True) + _EPS)
    if case.row.norm in {"group", "instance"}:
        groups = groups_of(x.shape[1]) if case.row.norm == "group" else x.shape[1]
        return _standardize(x.reshape(x.shape[0], groups, -1), (2,)).reshape(x.shape)
    if case.row.norm == "layer":
        return _standardize(x, (axis,))
    return _standardize(x, tuple(i for i in range(x.ndim) if i != axis % x.ndim))


def _standardize(x: Any, axes: tuple[int, ...]) -> Any:
    centered = x - x.mean(axes, keepdims=True)
    return centered * jax.lax.rsqrt(jnp.square(centered).mean(axes, keepdims=True) + _EPS)


def _along(parameter: Any, ndim: int, axis: int) -> Any:
    shape = [1] * ndim
    shape[axis] = -1
    return parameter.reshape(shape)
