"""Checks of what a norm is given, in the order in which torch makes them and with its exception types."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from normkit import kernels
from normkit.errors import unknown


def check_dtype(name: str, x: Tensor) -> None:
    """Norms take real floating-point numbers."""
    if not x.is_floating_point():
        raise NotImplementedError(
            f"{name} takes floating-point input, got {x.dtype}: convert it with .float() or .to(dtype)"
        )


def check_channels(x: Tensor, **parameters: Tensor | None) -> None:
    """Parameters and buffers have one element per channel, and fit the input in device and dtype."""
    shape, dtype, device = x.shape[1:2], x.dtype, x.device
    for name, parameter in parameters.items():
        if parameter is None:
            continue
        if parameter.shape != shape:
            raise RuntimeError(
                f"{name} should contain {x.shape[1]} elements, one per channel of an input of shape "
                f"{list(x.shape)}, but has shape {list(parameter.shape)}: the layer was made for another number "
                "of channels"
            )
        if parameter.device != device:
            check_device(name, parameter, x)
        if parameter.dtype != dtype:
            check_mixed(name, parameter, x)


def check_last_axes(
    name: str, x: Tensor, normalized_shape: Sequence[int], **parameters: Tensor | None
) -> None:
    """The input ends in the axes that share a statistic, and parameters have their shape."""
    shape = tuple(normalized_shape)
    if not shape:
        raise RuntimeError("Expected normalized_shape to be at least 1-dimensional, got []")
    if x.shape[-len(shape) :] != shape:
        sizes = ", ".join(["*", *map(str, shape)])
        raise RuntimeError(
            f"Given normalized_shape={list(shape)}, expected input with shape [{sizes}], "
            f"but got input of size {list(x.shape)}"
        )
    check_dtype(name, x)
    for parameter_name, parameter in parameters.items():
        if parameter is not None:
            if parameter.shape != shape:
                raise RuntimeError(
                    f"Expected {parameter_name} to be of same shape as normalized_shape {list(shape)}, "
                    f"but got {list(parameter.shape)}"
                )
            check_device(parameter_name, parameter, x)


def check_device(name: str, parameter: Tensor, x: Tensor) -> None:
    """A parameter or buffer is where the input is."""
    if parameter.device != x.device:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but input is on {x.device} and {name} is on "
            f"{parameter.device}: move one with .to(device)"
        )


def check_mixed(name: str, parameter: Tensor | None, x: Tensor) -> None:
    """A parameter or buffer has the dtype of the input, or float32 under half input."""
    if parameter is None or parameter.dtype == x.dtype:
        return
    if parameter.dtype != torch.float32 or x.dtype.itemsize != 2:
        raise RuntimeError(
            f"mixed dtype: {name} must have the dtype of the input, or float32 under half input, "
            f"but input is {x.dtype} and {name} is {parameter.dtype}: convert one with .to(dtype)"
        )


def check_running(running_mean: Tensor | None, running_var: Tensor | None, *, needed: bool) -> None:
    """Running statistics come in pairs, and are there where nothing else can normalize."""
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var must either both be None or neither be None")
    if needed and running_mean is None:
        raise RuntimeError("running_mean must be defined in evaluation mode: pass it, or use the input's own")
    if not needed:
        check_written(running_mean=running_mean, running_var=running_var)


def check_written(**buffers: Tensor | None) -> None:
    """What is changed in place has memory of its own for each element."""
    for name, buffer in buffers.items():
        if buffer is None:
            continue
        expanded = buffer.dim() == 1 and buffer.shape[0] > 1 and buffer.stride(0) == 0
        if expanded or (not torch.compiler.is_compiling() and buffer.is_neg()):
            raise RuntimeError(
                f"{name} is changed in place, so its elements need memory of their own, got "
                f"{'an expanded tensor' if expanded else 'a negated view'} of shape {list(buffer.shape)}: pass "
                f"{name}.clone()"
            )


def count(sizes: Sequence[int]) -> int:
    """How many values axes of these sizes hold; `math.prod` would not take the symbolic sizes of a trace."""
    total = 1
    for size in sizes:
        total = total * size
    return total


def check_arguments(eps: object, momentum: object = None, **counts: object) -> None:
    """What layers are made with are numbers; torch's constructors do not ask, and fail in the first forward pass."""
    check_whole(**counts)
    check_real(eps=eps)
    if momentum is not None:
        check_real(momentum=momentum)


def check_whole(**arguments: object) -> None:
    """Arguments that count something are whole numbers, of Python, NumPy or torch."""
    for name, value in arguments.items():
        if not hasattr(type(value), "__index__"):
            raise TypeError(f"{name} must be a whole number, got {value!r}: pass an int")


def check_real(**arguments: object) -> None:
    """Arguments that measure something are numbers, of Python, NumPy or torch."""
    for name, value in arguments.items():
        if not hasattr(type(value), "__float__"):
            raise TypeError(f"{name} must be a number, got {value!r}: pass a float")


def sizes_of(normalized_shape: object) -> tuple[int, ...]:
    """The sizes of the last axes, as one whole number or several say them."""
    sizes: Any = (normalized_shape,) if isinstance(normalized_shape, Integral) else normalized_shape
    if isinstance(sizes, str) or not isinstance(sizes, Iterable):
        raise TypeError(
            f"normalized_shape must be a whole number or several, got {normalized_shape!r}: pass an int or a tuple"
        )
    sizes = tuple(sizes)
    for size in sizes:
        check_whole(**{"each size of normalized_shape": size})
    return sizes


def check_several_values(count: int, x: Tensor, *, what: str) -> None:
    """One value alone has no variance. No value at all, an empty batch, is let through as torch does."""
    if count == 1:
        raise ValueError(
            f"Expected more than 1 {what} when training, got input size {list(x.shape)}: "
            "use a larger batch, or .eval() to normalize by running statistics"
        )


_OTHER_NAMES = {"swish": "silu", "hswish": "hardswish", "hard_swish": "hardswish", "logistic": "sigmoid"}


def check_activation(activation: str | None) -> None:
    """An activation is one of the names that the kernels know; of a function or class, the hint tells its name."""
    if activation is not None and activation not in kernels.ACTIVATIONS:
        name = getattr(activation, "__name__", activation)
        raise unknown("activation", name, kernels.ACTIVATIONS, _OTHER_NAMES)


def check_residual(residual: Tensor | None, x: Tensor) -> None:
    """A residual is added element by element, so it has the input's shape."""
    if residual is None:
        return
    if not isinstance(residual, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"residual must be a tensor of the input's shape, got {type(residual).__name__}")
    if residual.shape != x.shape:
        raise ValueError(
            f"residual must have the input's shape, {list(x.shape)}, got {list(residual.shape)}: expand it"
        )
    check_dtype("residual", residual)
    check_device("residual", residual, x)


def expand_mask(mask: Tensor | None, x: Tensor, *, features: int = 1) -> Tensor | None:
    """The mask as a view of the input's shape without its channels, the axis `features`."""
    if mask is None:
        return None
    axis = features % x.dim()
    if not isinstance(mask, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        made = "torch.from_numpy(mask)" if type(mask).__name__ == "ndarray" else "torch.tensor(mask)"
        raise TypeError(
            f"mask must be a bool tensor, true where x is valid, got {type(mask).__name__}: {made}"
        )
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be a bool tensor, true where x is valid, got {mask.dtype}: mask.bool()")
    shape = [*x.shape[:axis], *x.shape[axis + 1 :]]
    # Compared one by one: a compiler does not see a symbolic size in a tuple.
    fits = mask.dim() <= len(shape) and all(
        m == 1 or m == s for m, s in zip(reversed(mask.shape), reversed(shape), strict=False)
    )
    if not fits:
        raise ValueError(
            f"mask must broadcast to the input without channels, {shape}, got {list(mask.shape)}: "
            "all channels share it, so drop their axis, or add missing ones with mask[:, None]"
        )
    check_device("mask", mask, x)
    return mask.expand(shape)


# A layer's tensors, from where torch.nn.Module holds them: as attributes they are slow to find, 0.4 us each. What
# stands in for a parameter, as parametrizations and pruning have it, is an attribute alone.


def own_weight(layer: torch.nn.Module) -> Tensor | None:
    """The layer's weight."""
    held = layer._parameters  # pyright: ignore[reportPrivateUsage]
    if "weight" in held:
        return held["weight"]
    return layer.weight  # pyright: ignore[reportReturnType]


def own_affine(layer: torch.nn.Module) -> tuple[Tensor | None, Tensor | None]:
    """The layer's weight and bias."""
    held = layer._parameters  # pyright: ignore[reportPrivateUsage]
    if "weight" in held and "bias" in held:
        return held["weight"], held["bias"]
    return layer.weight, layer.bias  # pyright: ignore[reportReturnType]


def own_running(layer: torch.nn.Module) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The layer's running_mean, running_var and num_batches_tracked."""
    held = layer._buffers  # pyright: ignore[reportPrivateUsage]
    if "running_mean" in held and "running_var" in held and "num_batches_tracked" in held:
        return held["running_mean"], held["running_var"], held["num_batches_tracked"]
    return layer.running_mean, layer.running_var, layer.num_batches_tracked  # pyright: ignore[reportReturnType]


def repr_activation(activation: str | None) -> str:
    """What an activation adds to a layer's repr."""
    return f", activation={activation!r}" if activation else ""


def per_sample(weight: Tensor | None, bias: Tensor | None, ndim: int = 1) -> bool:
    """Whether an affine map of ndim axes is given for each sample."""
    return (weight is not None and weight.dim() == ndim + 1) or (bias is not None and bias.dim() == ndim + 1)


def _same(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two shapes are one; size by size, for a compiler does not see a symbolic size in a tuple."""
    return len(one) == len(other) and all(a == b for a, b in zip(one, other, strict=True))


def check_per_sample(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, *, any_dtype: bool = False
) -> None:
    """Parameters have a shape, or that shape for each sample, and fit the input in device and dtype."""
    row, each = list(shape), [x.shape[0], *shape]
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is None:
            continue
        if not (_same(parameter.shape, row) or _same(parameter.shape, each)):
            raise RuntimeError(
                f"{name} must have shape {row}, or {each} for one per sample, for an input of shape "
                f"{list(x.shape)}, got {list(parameter.shape)}"
            )
        check_device(name, parameter, x)
        if not any_dtype:
            check_mixed(name, parameter, x)
