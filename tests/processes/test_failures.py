"""Processes that disagree, or do not come: an error that names them, in each process, within the timeout."""

from __future__ import annotations

import os
import re
import signal
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import TIMEOUT, Ranks
from torch import Tensor, nn

import normkit as nk
from normkit.errors import ProcessError


def layers(group: Any, *channels: int) -> list[nk.SyncBatchNorm]:
    return [nk.SyncBatchNorm(c, process_group=group) for c in channels]


def batch(channels: int) -> Tensor:
    return torch.randn(4, channels, requires_grad=True)


def outcome(action: Any, layer: nn.Module) -> tuple[str, float, bool]:
    """The error's message, the seconds it took, and whether the layer's state is as before."""
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    start = time.monotonic()
    with pytest.raises(ProcessError) as caught:
        action()
    took = time.monotonic() - start
    unchanged = all(torch.equal(before[key], value) for key, value in layer.state_dict().items())
    return str(caught.value), took, unchanged


def assert_named(outcomes: list[Any], *patterns: str, within: float = TIMEOUT + 1) -> None:
    for result in outcomes:
        if isinstance(result, Exception):
            raise result
        message, took, unchanged = result
        assert "\n" not in message
        assert unchanged
        assert took < within
        for pattern in patterns:
            assert re.search(pattern, message), message


def other_channels(rank: int, group: Any) -> Any:
    (layer,) = layers(group, 5 + 100 * rank)
    return outcome(lambda: layer(batch(5 + 100 * rank)), layer)


def test_another_channel_count(two: Ranks) -> None:
    assert_named(
        two(other_channels),
        r"rank 0 is in the forward pass of SyncBatchNorm\(5\) \(5 channels",
        r"rank 1 is in the forward pass of SyncBatchNorm\(105\) \(105 channels",
        within=1,
    )


def other_order(rank: int, group: Any, step: int) -> Any:
    """The same layers, of the same size, in the other order from a certain step on."""
    found = layers(group, 3, 3)
    for _ in range(step):
        for layer in found:
            layer(batch(3))
    first, second = found if rank == 0 else reversed(found)

    def forward() -> None:
        first(batch(3))
        dist.barrier(group)  # whatever the first call let through, the second does not
        second(batch(3))

    message, took, _ = outcome(forward, first)
    return message, took, True


@pytest.mark.parametrize("step", [0, 1, 2])
def test_another_layer_order(two: Ranks, step: int) -> None:
    assert_named(two(other_order, step), r"rank 0 is .* layer \d\.\d .*; rank 1 is .* layer", within=1)


def other_mode(rank: int, group: Any) -> Any:
    """The rank in evaluation learns of it once the other has given up: evaluation alone is no mistake."""
    (layer,) = layers(group, 3)
    layer(batch(3))
    layer.train(rank == 0)

    def forward() -> None:
        for _ in range(100):
            layer(batch(3)).sum().backward()
            time.sleep(0.1)

    return outcome(forward, layer)


def test_another_mode(two: Ranks) -> None:
    waiting, evaluating = two(other_mode)
    assert_named([waiting], r"rank 0 .* in the forward pass .* in vain: rank 1 runs .* in evaluation mode")
    assert_named([evaluating], r"rank 1 .* in evaluation mode, but rank 0 gave up", within=TIMEOUT + 2)


def absent(rank: int, group: Any) -> Any:
    (layer,) = layers(group, 3)
    return outcome(lambda: layer(batch(3)), layer) if rank == 0 else None


def test_absent(two: Ranks) -> None:
    assert_named(two(absent)[:1], r"in vain: no word from rank 1")


def backward_against_forward(rank: int, group: Any) -> Any:
    """Known to be a deadlock as soon as both have waited a little: nobody waits for the timeout."""
    (layer,) = layers(group, 3)
    y = layer(batch(3))
    return outcome(y.sum().backward if rank == 0 else lambda: layer(batch(3)), layer)


def test_backward_against_forward(two: Ranks) -> None:
    assert_named(two(backward_against_forward, timeout=30), "backward pass", "forward pass", within=5)


def other_backward(rank: int, group: Any) -> Any:
    small, large = layers(group, 3, 70)
    losses = [layer(batch(layer.num_features)).square().sum() for layer in (small, large)]
    return outcome(losses[rank].backward, small)


def test_another_order_backward(two: Ranks) -> None:
    assert_named(two(other_backward), r"rank 0 is in the backward pass of SyncBatchNorm\(3\)", within=1)


def backward_alone(rank: int, group: Any) -> Any:
    (layer,) = layers(group, 3)
    y = layer(batch(3))
    return outcome(y.sum().backward, layer) if rank == 0 else None


def test_backward_alone(two: Ranks) -> None:
    assert_named(two(backward_alone)[:1], r"backward pass .* in vain: no word from rank 1")


def gradients_on_one(rank: int, group: Any) -> Any:
    (layer,) = layers(group, 3)
    return outcome(lambda: layer(batch(3).requires_grad_(rank == 0)), layer)


def test_gradients_on_one(two: Ranks) -> None:
    """That backward pass would wait for the other process."""
    assert_named(two(gradients_on_one), "without gradients", within=1)


def recovers(rank: int, group: Any) -> Any:
    wrong, right = nk.SyncBatchNorm(3 + rank, process_group=group), nk.SyncBatchNorm(4, process_group=group)
    with pytest.raises(ProcessError):
        wrong(batch(3 + rank))
    right(batch(4)).sum().backward()
    return right.running_mean


def test_goes_on_after_a_disagreement(two: Ranks) -> None:
    first, second = two(recovers)
    assert torch.equal(first, second)


def one_value(rank: int, group: Any) -> Any:
    (layer,) = layers(group, 3)
    before = layer.running_var.clone()
    with pytest.raises(ValueError, match="got 1 in all processes together"):
        layer(torch.randn(1 - rank, 3, requires_grad=True))
    return torch.equal(before, layer.running_var)


def test_one_value_in_all(two: Ranks) -> None:
    assert two(one_value) == [True, True]


def one_dies(rank: int, group: Any, where: str, victim: int) -> Any:
    (layer,) = layers(group, 3)
    y = layer(batch(3))
    if where == "backward":
        action = y.sum().backward
    else:
        y.sum().backward()
        action = lambda: layer(batch(3))  # noqa: E731
    if rank == victim:
        os.kill(os.getpid(), signal.SIGKILL)
    return outcome(action, layer)


@pytest.mark.parametrize(("where", "victim"), [("forward", 1), ("backward", 1), ("forward", 0)])
def test_a_process_that_dies(where: str, victim: int) -> None:
    """A real kill -9; rank 0 takes the store along."""
    ranks = Ranks(3)
    try:
        results = ranks(one_dies, where, victim)
    finally:
        ranks.close()
    assert results.pop(victim) is None
    assert_named(results, rf"{where} pass .* in vain: .*no word from ranks? .*{victim}")


def one_stops(rank: int, group: Any) -> Any:
    (layer,) = layers(group, 3)
    layer(batch(3))
    if rank == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
    return outcome(lambda: layer(batch(3)), layer)


def test_a_process_that_stands_still() -> None:
    """With the store in it, which then answers nobody."""
    ranks = Ranks(3)
    try:
        for pipe in ranks.pipes:
            pipe.send((one_stops, (), TIMEOUT))
        results = [ranks.answer(rank) for rank in (1, 2)]
    finally:
        ranks.close()
    assert_named(results, r"in vain: .*no word from ranks? .*0", within=TIMEOUT + 6)
