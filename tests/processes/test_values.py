"""Processes that share statistics compute what one process computes over the whole batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import Ranks
from torch import Tensor, nn

import normkit as nk

U32 = 2.0**-24


def whole(*, rows: int = 12, dtype: torch.dtype = torch.float32, offset: float = 3.0) -> dict[str, Tensor]:
    """A batch, the gradient of its output, a residual and a mask."""
    generator = torch.Generator().manual_seed(1)
    x, dy, residual = (
        torch.randn(rows, 5, 4, 3, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3)
    )
    mask = torch.rand(rows, 4, 3, generator=generator) < 0.7
    return {"x": x * 2 + offset, "dy": dy, "residual": residual, "mask": mask}


def layer_of(dtype: torch.dtype = torch.float32, **options: Any) -> nk.BatchNorm2d:
    layer = nk.BatchNorm2d(5, **options)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.5, 1.5, -2.0, 1.0, 0.7]))
        layer.bias.copy_(torch.tensor([0.1, -0.2, 0.3, 0.0, 1.0]))
    return layer.to(dtype if dtype == torch.float64 else torch.float32)


def step(layer: nn.Module, batch: dict[str, Tensor], *, residual: bool, mask: bool) -> dict[str, Tensor]:
    """Outputs, gradients and state of one training step."""
    x = batch["x"].clone().requires_grad_()
    options = {name: batch[name] for name, used in (("residual", residual), ("mask", mask)) if used}
    if residual:
        options["residual"] = options["residual"].clone().requires_grad_()
    y = layer(x, **options)
    y.backward(batch["dy"])
    gradients = {"dresidual": options["residual"].grad} if residual else {}
    return {
        "y": y.detach(),
        "dx": x.grad,
        **gradients,
        **{f"d{name}": parameter.grad for name, parameter in layer.named_parameters()},
        **{key: value.clone() for key, value in layer.state_dict().items()},
    }


def cut(batch: dict[str, Tensor], sizes: tuple[int, ...], rank: int) -> dict[str, Tensor]:
    start = sum(sizes[:rank])
    return {key: value[start : start + sizes[rank]] for key, value in batch.items()}


def synchronized_step(
    rank: int,
    group: Any,
    sizes: tuple[int, ...],
    dtype: torch.dtype,
    options: dict[str, Any],
    used: dict[str, bool],
) -> dict[str, Tensor]:
    batch = cut(whole(rows=sum(sizes), dtype=dtype), sizes, rank)
    return step(layer_of(dtype, process_group=group, **options), batch, **used)


@pytest.mark.parametrize(
    "used", [{"residual": False, "mask": False}, {"residual": True, "mask": True}], ids=["plain", "masked"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("sizes", [(6, 6), (1, 11), (12, 0), (0, 12)], ids=str)
def test_two_are_one(two: Ranks, sizes: tuple[int, ...], dtype: torch.dtype, used: dict[str, bool]) -> None:
    options = {"activation": "silu"} if used["residual"] else {}
    expected = step(layer_of(dtype, **options), whole(dtype=dtype), **used)
    assert_equals_whole(two(synchronized_step, sizes, dtype, options, used), expected)


def assert_equals_whole(
    ranks: list[Any],
    expected: dict[str, Tensor],
    cut_up: tuple[str, ...] = ("y", "dx", "dresidual"),
    terms: float = 0.0,
) -> None:
    """Equal to one process; terms: how large the sums are of which a gradient is the rest that did not cancel."""
    for rank in ranks:
        if isinstance(rank, Exception):
            raise rank
    for key, value in expected.items():
        parts = [rank[key].double() for rank in ranks]
        scale = value.double().abs().max()
        if key in cut_up:
            got = torch.cat(parts)
        elif key.startswith("d"):
            got = torch.stack(parts).sum(0)
            # Each part was rounded at its own size.
            scale = max(torch.stack(parts).abs().sum(0).max(), torch.tensor(terms))
        else:
            got = parts[0]
            assert all(torch.equal(got, part) for part in parts), "all ranks hold the same bits"
        u = torch.finfo(value.dtype).eps / 2 if value.is_floating_point() else 0
        # Two units in the last place of the largest value: what remains where terms cancel is rounded at theirs.
        # A merged mean is one float64, of 3 +- 2 here: its rounding is that of float64 input, which sums take along.
        # Gradients of parameters under half input are float32, of sums in short runs of it.
        half = key.startswith("d") and value.dtype != expected.get("y", value).dtype
        units = 8 if value.dtype == torch.float64 else 4 if half else 2
        error = (got - value.double()).abs().max()
        assert error <= units * u * scale, f"{key}: {error / (u * scale):.2f} u"


def given_weights(rank: int, group: Any) -> Tensor:
    """The gradient of one process's part, with a weight that the others do not have."""
    part = cut(whole(dtype=torch.float64), (5, 7), rank)
    x = part["x"].clone().requires_grad_()
    nk.BatchNorm2d(5, process_group=group).double()(x, weight=weights()[rank]).backward(part["dy"])
    assert x.grad is not None
    return x.grad


def weights() -> Tensor:
    return torch.tensor([[1.0, 2.0, -1.0, 0.0, 0.5], [3.0, -0.5, 0.0, 1.0, 1.0]], dtype=torch.float64)


def test_processes_may_have_weights_of_their_own(two: Ranks) -> None:
    """As in one process whose samples have weights of their own."""
    batch = whole(dtype=torch.float64)
    x = batch["x"].clone().requires_grad_()
    each = weights().repeat_interleave(torch.tensor([5, 7]), dim=0)
    nk.BatchNorm2d(5).double()(x, weight=each).backward(batch["dy"])
    torch.testing.assert_close(torch.cat(two(given_weights)), x.grad, rtol=1e-12, atol=1e-13)
