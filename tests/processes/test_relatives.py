"""The relatives of batch norm over several processes, against one process over the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ranks import Ranks
from test_values import assert_equals_whole, cut, step, whole
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import normkit as nk
from normkit.errors import ProcessError
from normkit.processes.line import line_of

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SIZES = [(6, 6), (1, 11), (12, 0), (0, 12)]


class AtStep(nk.RecurrentBatchNorm):
    """Called with its input alone, at the second step."""

    def forward(self, input: Tensor, **options: Any) -> Tensor:
        return super().forward(input, step=1, **options)


MAKERS: dict[str, Callable[..., nn.Module]] = {
    "renorm": lambda **o: nk.BatchRenorm2d(5, warmup=0, r_steps=0, d_steps=0, r_max=1.2, d_max=0.3, **o),
    "renorm in warm-up": lambda **o: nk.BatchRenorm2d(5, **o),
    "switch": lambda **o: nk.SwitchNorm2d(5, **o),
    "batch-instance": lambda **o: nk.BatchInstanceNorm2d(5, **o),
    "recurrent": lambda **o: AtStep(5, max_length=2, **o),
    "by running": lambda **o: nk.BatchNorm2d(5, training_statistics="running", **o),
    "guarded": lambda **o: nk.BatchNorm2d(5, guard="nonfinite", momentum=None, **o),
    "ghost": lambda **o: nk.GhostBatchNorm2d(5, 2, **o),
}


def layer_of(kind: str, dtype: torch.dtype = torch.float32, **options: Any) -> nn.Module:
    """Its parameters away from one and zero, its running statistics too."""
    layer = MAKERS[kind](**options)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.1)
        layer.running_mean += torch.rand(5, generator=generator)
        layer.running_var += torch.rand(5, generator=generator)
    return layer.to(dtype if dtype == torch.float64 else torch.float32)


def one_step(
    rank: int, group: Any, kind: str, sizes: tuple[int, ...], dtype: torch.dtype, mask: bool
) -> dict[str, Tensor]:
    batch = whole(rows=sum(sizes), dtype=dtype)
    if group is not None:
        batch = cut(batch, sizes, rank)
    return step(layer_of(kind, dtype, process_group=group), batch, residual=mask, mask=mask)


@pytest.mark.parametrize("mask", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("kind", [kind for kind in MAKERS if kind != "ghost"])
def test_two_are_one(two: Ranks, kind: str, sizes: tuple[int, ...], dtype: torch.dtype, mask: bool) -> None:
    expected = one_step(0, None, kind, sizes, dtype, mask)
    # Gradients of gates and of a corrected weight are differences of sums over batch and space, one per channel.
    sums = (whole(dtype=dtype)["dy"] * expected["y"]).double().abs().sum((0, 2, 3))
    terms = float(sums.max()) if kind in ("renorm", "switch", "batch-instance") else 0.0
    assert_equals_whole(two(one_step, kind, sizes, dtype, mask), expected, terms=terms)


@pytest.mark.parametrize("mask", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [(6, 6), (2, 10), (8, 3), (12, 0), (0, 12)], ids=str)
def test_ghosts_within_processes(two: Ranks, sizes: tuple[int, ...], dtype: torch.dtype, mask: bool) -> None:
    """Where the parts are multiples of the sub-batch, these are those of one process."""
    expected = one_step(0, None, "ghost", sizes, dtype, mask)
    assert_equals_whole(two(one_step, "ghost", sizes, dtype, mask), expected)


def ghost_steps(rank: int, group: Any, sizes: tuple[int, ...], bad: bool) -> tuple[nn.Module, list[int]]:
    """Four steps, and how many exchanges each took; in the second rank 1 has a bad sub-batch."""
    layer = nk.GhostBatchNorm2d(5, 4, guard="nonfinite", process_group=group)
    exchanges = []
    for i in range(4):
        x = cut(whole(rows=sum(sizes), offset=i), sizes, rank)["x"].clone()
        if bad and i == 1 and rank == 1:
            x[0] = float("inf")
        before = line_of(group)._number
        layer(x)
        exchanges.append(line_of(group)._number - before)
    layer.process_group = None
    return layer, exchanges


@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize("sizes", [(5, 7), (12, 2), (0, 9)], ids=str)
def test_ghosts_move_running_statistics_in_the_order_of_ranks(
    two: Ranks, sizes: tuple[int, ...], bad: bool
) -> None:
    """Whatever number each process has, in one exchange once the lengths are known; none that is bad."""
    alone = nk.BatchNorm2d(5, guard="nonfinite")
    for i in range(4):
        x = whole(rows=sum(sizes), offset=i)["x"].clone()
        if bad and i == 1:
            x[sizes[0]] = float("inf")
        for part in x.split(sizes):
            for ghost in part.split(4) if len(part) else ():
                alone(ghost)
    for layer, exchanges in two(ghost_steps, sizes, bad):
        for key, value in alone.state_dict().items():
            # Between sub-batches the layer keeps float64, where batch norm rounds to float32: 4 steps of 3.
            torch.testing.assert_close(layer.state_dict()[key], value, rtol=12 * 2.0**-24, atol=12 * 2.0**-24)
        assert exchanges[2:] == [1, 1]
    assert alone.num_batches_skipped == bad


def gathered(rank: int, group: Any, kind: str, sizes: tuple[int, ...]) -> dict[str, Tensor]:
    """Two micro-batches in a domain."""
    layer = layer_of(kind, process_group=group)
    with nk.accumulate(layer), nk.domain("photo"):
        for offset in (0.0, 2.0):
            batch = whole(rows=sum(sizes), offset=offset)
            layer((batch if group is None else cut(batch, sizes, rank))["x"])
    return layer.state_dict()


@pytest.mark.parametrize("kind", MAKERS)
def test_accumulation_in_a_domain(two: Ranks, kind: str) -> None:
    sizes = (4, 8)
    expected = gathered(0, None, kind, sizes)
    assert expected["running_mean@photo"].any()
    assert_equals_whole(two(gathered, kind, sizes), expected)


def checkpointed(rank: int, group: Any, kind: str, sizes: tuple[int, ...]) -> list[bool]:
    """A step with its forward pass repeated, and one without."""
    plain, other = (layer_of(kind, process_group=group) for _ in range(2))
    x, dy = (cut(whole(), sizes, rank)[name] for name in ("x", "dy"))
    gradients = []
    for run in (plain, lambda x: checkpoint(other, x, use_reentrant=False)):
        z = x.clone().requires_grad_()
        run(z).backward(dy)
        gradients.append(z.grad)
    other_state = other.state_dict()
    return [torch.equal(*gradients)] + [torch.equal(v, other_state[k]) for k, v in plain.state_dict().items()]


@pytest.mark.parametrize("sizes", [(4, 8), (12, 0), (0, 12)], ids=str)
@pytest.mark.parametrize("kind", MAKERS)
def test_checkpoints_move_once(two: Ranks, kind: str, sizes: tuple[int, ...]) -> None:
    """Each process repeats a forward pass once, whichever backend took its part: repeating it is a collective."""
    for same in two(checkpointed, kind, sizes):
        assert all(same)


def sequences(rank: int, group: Any, sizes: tuple[int, ...]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    layer = nk.BatchNormLSTM(4, 3, max_length=3, dtype=torch.float64, process_group=group)
    generator = torch.Generator().manual_seed(1)
    x, dy = (
        torch.randn(5, sum(sizes), n, generator=generator, dtype=torch.float64).transpose(0, 1)
        for n in (4, 3)
    )
    mask = torch.arange(5) < torch.randint(1, 6, [sum(sizes), 1], generator=generator)
    batch = {"x": x, "dy": dy, "mask": mask}
    if group is not None:
        batch = cut(batch, sizes, rank)
    x = batch["x"].clone().requires_grad_()
    y, _ = layer(x.transpose(0, 1), mask=batch["mask"].T)
    y.backward(batch["dy"].transpose(0, 1))
    gradients = {f"d{name}": parameter.grad for name, parameter in layer.named_parameters()}
    return {"y": y.detach().transpose(0, 1), "dx": x.grad, **gradients, **layer.state_dict()}


@pytest.mark.parametrize("sizes", [(3, 5), (8, 0)], ids=str)
def test_lstm(two: Ranks, sizes: tuple[int, ...]) -> None:
    """In float64; roundings grow from step to step, so the bound is no unit in the last place."""
    expected, ranks = sequences(0, None, sizes), two(sequences, sizes)
    for key, value in expected.items():
        parts = [rank[key] for rank in ranks]
        got = torch.cat(parts) if key in ("y", "dx") else sum(parts) if key.startswith("d") else parts[0]
        torch.testing.assert_close(got, value, rtol=1e-9, atol=1e-11)


def steps_apart(rank: int, group: Any) -> None:
    nk.RecurrentBatchNorm(3, max_length=4, process_group=group)(torch.randn(4, 3), step=rank)


def test_processes_at_other_steps_disagree(two: Ranks) -> None:
    for error in two(steps_apart):
        assert isinstance(error, ProcessError)
        assert "step 0" in str(error)
        assert "step 1" in str(error)


def by_reference(rank: int, group: Any, sizes: tuple[int, ...], dtype: torch.dtype, mask: bool) -> Any:
    """A step on the reference batch, then one on another batch: their results, and the layer's state."""
    layer = nk.VirtualBatchNorm2d(
        5, dtype=torch.float64 if dtype == torch.float64 else None, process_group=group
    )
    results = {}
    for offset, name in ((3.0, "reference"), (5.0, "other")):
        batch = whole(rows=sum(sizes), dtype=dtype, offset=offset)
        batch = batch if group is None else cut(batch, sizes, rank)
        layer.taking_reference = name == "reference"
        layer.zero_grad()
        results[name] = step(layer, batch, residual=True, mask=mask)
    return results


@pytest.mark.parametrize("mask", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [(6, 6), (1, 11), (12, 0)], ids=str)
def test_a_reference_batch_of_all(two: Ranks, sizes: tuple[int, ...], dtype: torch.dtype, mask: bool) -> None:
    """Its size counts the samples of all processes, those of padding alone apart; what follows is local."""
    expected, ranks = by_reference(0, None, sizes, dtype, mask), two(by_reference, sizes, dtype, mask)
    for name, found in expected.items():
        assert_equals_whole([rank[name] for rank in ranks], found)


def without_samples(rank: int, group: Any) -> bool:
    layer = nk.VirtualBatchNorm2d(5, process_group=group)
    with pytest.raises(ValueError, match="a reference batch needs samples"):
        layer.set_reference(torch.empty(0, 5, 2, 2))
    return layer.has_reference


def test_a_reference_batch_of_nothing_is_refused(two: Ranks) -> None:
    assert two(without_samples) == [False, False]
