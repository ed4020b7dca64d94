"""C13: bytes against counts made by hand, interleaved times, the verdict on made results."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from made_results import conclude, one_thread
from torch import nn

import normkit as nk
from normkit.lab.studies.cost_of_training import NORMS, ROUNDS, STUDY, WARM_UP, bytes_kept, interleaved
from normkit.lab.studies.study import Subject, Trial

N, FEATURES, CLASSES = 32, 10, 4


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(N, FEATURES), torch.randint(CLASSES, (N,))


def of_loss() -> int:
    """What the loss keeps: the logarithms of probabilities and the labels, and the total weight, one float32."""
    return N * CLASSES * 4 + N * 8 + 4


def test_bytes_of_a_linear_layer_are_its_input() -> None:
    assert bytes_kept(nn.Linear(FEATURES, CLASSES), *batch()) == N * FEATURES * 4 + of_loss()


def test_bytes_of_an_output_that_two_layers_keep_count_once() -> None:
    """ReLU keeps its output, and the layer behind it the same tensor as its input."""
    net = nn.Sequential(nn.Linear(FEATURES, 7), nn.ReLU(), nn.Linear(7, CLASSES))
    assert bytes_kept(net, *batch()) == N * FEATURES * 4 + N * 7 * 4 + of_loss()


def test_bytes_of_batch_norm_are_its_input_and_two_statistics() -> None:
    """Beyond what is kept without it: x (N, 7), and two numbers for each of 7 channels, of 4 or 8 bytes."""
    plain = nn.Sequential(nn.Linear(FEATURES, 7), nn.ReLU(), nn.Linear(7, CLASSES))
    normed = nn.Sequential(nn.Linear(FEATURES, 7), nk.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, CLASSES))
    more = bytes_kept(normed, *batch()) - bytes_kept(plain, *batch())
    assert N * 7 * 4 + 2 * 7 * 4 <= more <= N * 7 * 4 + 4 * 7 * 8


def test_steps_are_interleaved_and_each_comes_first_as_often() -> None:
    """So that what the machine does meanwhile falls on all alike: no step is taken twice in a row."""
    taken: list[str] = []
    names = ("a", "b", "c", "d", "e")
    times = interleaved({name: partial(taken.append, name) for name in names})
    assert set(times) == set(names)
    rounds = [taken[start : start + 5] for start in range(0, len(taken), 5)]
    assert len(rounds) == WARM_UP + ROUNDS
    assert all(sorted(order) == list(names) for order in rounds)
    firsts = [order[0] for order in rounds]
    assert {firsts.count(name) for name in names} == {len(rounds) // 5}


def costs(time: float, memory: float, elsewhere: float = 1.5) -> Any:
    """With batch norm over without: in the CNN, and in the other two networks."""

    def value(shared: float, network: str) -> dict[str, float]:
        ratios = (time, memory) if network == "cnn" else (elsewhere, elsewhere)
        result = {f"{norm} seconds": 0.001 * shared for norm in NORMS}
        result |= {f"{norm} bytes": 1000.0 for norm in NORMS}
        result["batch seconds"] *= ratios[0] * shared
        result["batch bytes"] *= ratios[1]
        return result

    return value


@pytest.mark.parametrize(
    ("time", "memory", "verdict"),
    [(1.3, 1.7, "supported"), (1.0, 1.7, "undecided"), (1.3, 0.9, "contradicted")],
)
def test_verdict(time: float, memory: float, verdict: str) -> None:
    assert conclude(STUDY, costs(time, memory)).verdict == verdict


def test_bytes_are_those_of_any_seed_and_times_are_there() -> None:
    with one_thread():
        first, other = (STUDY.measure(Trial({"network": "mlp"}, seed), Subject()) for seed in range(2))
    assert all(first[f"{norm} bytes"] == other[f"{norm} bytes"] for norm in NORMS)
    assert all(float(str(first[f"{norm} seconds"])) > 0 for norm in NORMS)
    assert STUDY.alone
