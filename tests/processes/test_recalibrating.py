"""Processes that recalibrate together hold the statistics of all their batches, the same to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import Ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import normkit as nk
from normkit.errors import ProcessError


def part(rank: int) -> list[Tensor]:
    """As many batches as the rank's number says, and one more: they differ, in size too."""
    generator = torch.Generator().manual_seed(rank)
    return [
        torch.randn(3 + i + rank, 4, generator=generator) * (1 + rank) + 3 * rank for i in range(rank + 1)
    ]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4), nk.BatchNorm1d(4)).double()


def together(rank: int, group: Any, wrapped: bool) -> dict[str, Tensor]:
    net = network()
    model = DistributedDataParallel(net, process_group=group) if wrapped else net
    result = nk.recalibrate(model, [x.double() for x in part(rank)], process_group=group)
    assert result.batches == 6
    return net.state_dict()


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "ddp"])
def test_three_processes_as_one(wrapped: bool, three: Ranks) -> None:
    found = three(together, wrapped)
    alone = network()
    nk.recalibrate(alone, [x.double() for rank in range(3) for x in part(rank)])
    for state in found:
        assert isinstance(state, dict), state
        for key, value in alone.state_dict().items():
            assert torch.equal(state[key], found[0][key])
            # The order of merging moves some last bits.
            torch.testing.assert_close(state[key], value, rtol=1e-13, atol=1e-13)


def one_fails(rank: int, group: Any) -> tuple[str, bool]:
    net = network()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    batches = part(2) if rank else [torch.full((4, 4), torch.nan)]
    try:
        nk.recalibrate(net, [x.double() for x in batches], process_group=group)
    except (ProcessError, ValueError) as error:
        said = f"{type(error).__name__}: {error}"
        return said, all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    return "", False


def test_all_stop_where_one_fails(two: Ranks) -> None:
    (own, first_kept), (other, second_kept) = two(one_fails)
    assert own.startswith("InputError: values must be finite, but batch 1")
    assert other.startswith(
        "ProcessError: statistics of all processes take all of them, but rank 0 failed: InputErr"
    )
    assert first_kept
    assert second_kept


def nothing_to_bring(rank: int, group: Any) -> Tensor:
    net = network()
    nk.recalibrate(net, [x.double() for x in part(2)] if rank else [], process_group=group)
    return net[0].running_mean


def test_a_process_without_batches_learns_from_others(two: Ranks) -> None:
    first, second = two(nothing_to_bring)
    assert isinstance(first, Tensor), first
    assert torch.equal(first, second)
    torch.testing.assert_close(first, torch.cat(part(2)).double().mean(0))


def by(rank: int, group: Any, estimator: str, seed: int) -> dict[str, Tensor]:
    net = network()
    draw = torch.Generator().manual_seed(seed + 7 * rank)  # which differs between processes, as it may
    batches = [x.double() for x in part(rank)]
    nk.recalibrate(net, batches, estimator=estimator, process_group=group, generator=draw)
    return net.state_dict()


def test_the_average_is_over_all_batches_of_all_processes(three: Ranks) -> None:
    found = three(by, "cumulative", 0)
    alone = network()
    nk.recalibrate(alone, [x.double() for rank in range(3) for x in part(rank)], estimator="cumulative")
    for state in found:
        assert isinstance(state, dict), state
        for key, value in alone.state_dict().items():
            assert torch.equal(state[key], found[0][key])
            torch.testing.assert_close(state[key], value, rtol=1e-13, atol=1e-13)  # the order of averaging


def test_one_batch_of_all_processes_is_drawn_for_all_layers(three: Ranks) -> None:
    batches = [x.double() for rank in range(3) for x in part(rank)]
    expected = [network() for _ in batches]
    for net, x in zip(expected, batches, strict=True):
        nk.recalibrate(net, [x])
    drawn = set()
    for seed in range(6):
        states = three(by, "random", seed)
        for state in states[1:]:
            assert all(torch.equal(value, states[0][key]) for key, value in state.items())
        running = {key: value for key, value in states[0].items() if "running" in key}
        (match,) = (
            i
            for i, net in enumerate(expected)
            if all(torch.allclose(net.state_dict()[key], value) for key, value in running.items())
        )
        drawn.add(match)
    assert len(drawn) > 2  # of six; the seeds are fixed
