"""The short way of ordinary calls: the same bits as the long one, and closed to whatever is not ordinary."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from normkit import kernels

C = 5


def tensors(**changed: Any) -> dict[str, Any]:
    """An ordinary call."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, C, 4, 2, generator=generator)
    ordinary = {
        "x": x,
        "weight": torch.nn.Parameter(torch.rand(C, generator=generator)),
        "bias": torch.randn(C, generator=generator),
        "eps": 1e-5,
        "activation": "relu",
        "residual": torch.randn(x.shape, generator=generator),
        "running": (torch.zeros(C), torch.ones(C), 0.1, torch.tensor(3)),
        "training": True,
    }
    return {**ordinary, **changed}


def last(x: Tensor) -> Tensor:
    return x.to(memory_format=torch.channels_last)


X = tensors()["x"]
ORDINARY = {
    "contiguous": {},
    "channels last": {"x": last(X), "residual": last(X * 2)},
    "3-D channels last": {"x": X[..., None].to(memory_format=torch.channels_last_3d), "residual": None},
    "table": {"x": X[:, :, 0, 0], "residual": None},
    "half": {"x": X.bfloat16(), "residual": None},
    "all half": {
        "x": X.half(), "residual": None, "weight": None, "bias": torch.zeros(C).half(),
        "running": (torch.zeros(C).half(), torch.ones(C).half(), 0.1, None),
    },
    "float64": {
        "x": X.double(), "residual": None, "weight": torch.ones(C).double(), "bias": None,
        "running": (torch.zeros(C).double(), torch.ones(C).double(), 0.1, None),
    },
    "nothing but x": {"weight": None, "bias": None, "residual": None, "running": None, "activation": None},
    "cumulative": {"running": (torch.zeros(C), torch.ones(C), None, torch.tensor(3))},
    "size 1": {"x": X[:, :, :1, :1].contiguous(), "residual": None},
}  # fmt: skip


def copy(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(copy, value))
    if not isinstance(value, Tensor):
        return value
    copied = value.detach().clone()
    return copied.requires_grad_() if value.dim() > 1 or isinstance(value, torch.nn.Parameter) else copied


def long_way(call: dict[str, Any]) -> Tensor:
    call = dict(call)
    if call.pop("training"):
        return kernels.channels(**call)[0]
    mean, var, *_ = call.pop("running")
    return kernels.channels_given(mean=mean, var=var, **call)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("changed", ORDINARY.values(), ids=ORDINARY)
def test_the_same_bits_both_ways(changed: dict[str, Any], training: bool) -> None:
    call = tensors(**changed, training=training)
    if not training and call["running"] is None:
        assert kernels.straight_channels(**call) is None, "there is nothing to evaluate with"
        return
    short, long = ({name: copy(value) for name, value in call.items()} for _ in range(2))
    y, expected = kernels.straight_channels(**short), long_way(long)
    assert y is not None
    assert torch.equal(y, expected)
    assert y.stride() == expected.stride()
    dy = torch.ones_like(y).cumsum(0)
    y.backward(dy)
    expected.backward(dy)
    for name in ("x", "weight", "bias", "residual"):
        if isinstance(short[name], Tensor) and short[name].requires_grad:
            assert torch.equal(short[name].grad, long[name].grad), name
    for moved, meant in zip(short["running"] or (), long["running"] or (), strict=True):
        assert torch.equal(moved, meant) if isinstance(moved, Tensor) else moved == meant


def swapped(x: Tensor) -> Tensor:
    """The same values, in memory that is neither contiguous nor channels last."""
    return x.transpose(0, 1).contiguous().transpose(0, 1)


class Derived(Tensor):
    pass


EXTRAORDINARY = {
    "strides": {"x": swapped(X)},
    "strides of the residual": {"residual": swapped(X)},
    "layout of the residual": {"residual": last(X)},
    "shape of the residual": {"residual": X[:1]},
    "dtype of the residual": {"residual": X.double()},
    "strides of a parameter": {"weight": torch.ones(2 * C)[::2]},
    "length of a parameter": {"weight": torch.ones(C + 1)},
    "parameter for each sample": {"weight": torch.ones(3, C)},
    "dtype of parameters": {"weight": torch.ones(C).double(), "bias": None},
    "two dtypes of parameters": {"x": X.half(), "residual": None, "weight": torch.ones(C).half()},
    "length of a buffer": {"running": (torch.zeros(C + 1), torch.ones(C + 1), 0.1, None)},
    "dtypes of buffers": {"running": (torch.zeros(C), torch.ones(C).double(), 0.1, None)},
    "strides of a buffer": {"running": (torch.zeros(2 * C)[::2], torch.ones(C), 0.1, None)},
    "average without a count": {"running": (torch.zeros(C), torch.ones(C), None, None)},
    "integers": {"x": X.long(), "residual": None},
    "complex numbers": {"x": X.cfloat(), "residual": None},
    "no element": {"x": X[:0], "residual": None},
    "no channel": {"x": X[:, :0], "residual": None, "weight": None, "bias": None, "running": None},
    "one value per channel": {"x": X[:1, :, :1, :1], "residual": None},
    "one axis": {"x": X[0, :, 0, 0], "residual": None},
    "sparse": {"x": X.to_sparse(), "residual": None},
    "negated by a flag": {"x": torch._neg_view(X), "residual": None},
    "another device": {"x": X.to("meta"), "residual": None},
    "parameter on another device": {"weight": torch.ones(C, device="meta")},
    "derived class": {"x": X.as_subclass(Derived)},
    "eps of 0": {"eps": 0.0},
    "activation": {"activation": "swish"},
}  # fmt: skip


@pytest.mark.parametrize("changed", EXTRAORDINARY.values(), ids=EXTRAORDINARY)
def test_whatever_else_takes_the_long_way(changed: dict[str, Any]) -> None:
    call = tensors(**changed)
    before = copy(call["running"])
    assert kernels.straight_channels(**call) is None
    for left, was in zip(call["running"] or (), before or (), strict=True):
        assert not isinstance(left, Tensor) or torch.equal(left, was)


def test_transforms_take_the_long_way() -> None:
    call = tensors(residual=None)

    def seen(x: Tensor) -> Tensor:
        assert kernels.straight_channels(**{**call, "x": x}) is None
        return x * 2

    torch.func.vmap(seen)(X[None])
    torch.func.grad(lambda x: seen(x).sum())(X)
    with FlopCounterMode(display=False):
        seen(X)
    torch.jit.trace(seen, X, check_trace=False)
    with torch.autograd.forward_ad.dual_level():
        seen(X)


ROWS = {
    "one axis": (torch.randn(6, 7), (7,), torch.float32),
    "two axes": (torch.randn(4, 3, 5), (3, 5), torch.float32),
    "half": (torch.randn(2, 3, 40).bfloat16(), (40,), torch.float32),
    "all half": (torch.randn(2, 3, 40).half(), (40,), torch.float16),
    "float64": (torch.randn(3, 9).double(), (9,), torch.float64),
}


@pytest.mark.parametrize("centered", [True, False], ids=["layer", "rms"])
@pytest.mark.parametrize(("x", "shape", "dtype"), ROWS.values(), ids=ROWS)
def test_rows_have_the_same_bits_both_ways(
    x: Tensor, shape: tuple[int, ...], dtype: torch.dtype, centered: bool
) -> None:
    short, long = ([copy(x), torch.rand(shape).to(dtype), torch.ones(shape).to(dtype)] for _ in range(2))
    long[1] = short[1].clone()
    for tensor in (*short[1:], *long[1:]):
        tensor.requires_grad_()
    y = kernels.straight_rows(short[0], shape, *short[1:], 1e-5, centered)
    expected = kernels.rows(long[0], len(shape), *long[1:], 1e-5, centered)
    assert y is not None
    assert torch.equal(y, expected)
    dy = torch.ones_like(y).cumsum(0)
    y.backward(dy)
    expected.backward(dy)
    for a, b in zip(short, long, strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize(
    ("x", "shape", "weight"),
    [
        (torch.ones(4, 6)[:, ::2], (3,), torch.ones(3)),
        (torch.ones(4, 3), (4,), torch.ones(4)),
        (torch.ones(4, 3), (), None),
        (torch.ones(3), (4, 3), torch.ones(4, 3)),
        (torch.ones(0, 3), (3,), torch.ones(3)),
        (torch.ones(4, 3), (3,), torch.ones(4, 3)),
        (torch.ones(4, 3), (3,), torch.ones(3).double()),
        (torch.ones(4, 3).long(), (3,), None),
        (torch.ones(4, 3), [3], torch.ones(3)),
    ],
)
def test_other_rows_take_the_long_way(x: Tensor, shape: Any, weight: Tensor | None) -> None:
    assert kernels.straight_rows(x, shape, weight, None, 1e-5, True) is None


@pytest.mark.parametrize("x", [X, last(X), X[:, :, 0, 0]], ids=["contiguous", "channels last", "table"])
def test_groups_have_the_same_bits_both_ways(x: Tensor) -> None:
    x = torch.cat([x, x + 1], 1)
    short, long = copy(x), copy(x)
    weight, bias = torch.rand(2, 2 * C)
    y = kernels.straight_groups(short, 2, weight, bias, 1e-5, "silu")
    expected = kernels.groups(long, 2, weight, bias, 1e-5, "silu")[0]
    assert y is not None
    assert torch.equal(y, expected)
    y.sum().backward()
    expected.sum().backward()
    assert torch.equal(short.grad, long.grad)


@pytest.mark.parametrize(
    ("x", "num_groups"),
    [(X, 2), (X, 0), (X, -1), (swapped(X), 1), (X.long(), 1), (X[0], 5), (torch.ones(2, 4), 4)],
)
def test_other_groups_take_the_long_way(x: Tensor, num_groups: int) -> None:
    assert kernels.straight_groups(x, num_groups, None, None, 1e-5, None) is None


def test_the_second_derivative_goes_through_torch_operations() -> None:
    x, weight = X.double().requires_grad_(), torch.rand(C).double().requires_grad_()

    def normalized(x: Tensor, weight: Tensor) -> Tensor:
        y = kernels.straight_channels(x, weight, None, 1e-5, "silu", None, None, True)
        assert y is not None
        return y

    assert torch.autograd.gradgradcheck(normalized, (x, weight))
