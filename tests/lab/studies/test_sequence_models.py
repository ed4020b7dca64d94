"""C15: padding changes nothing, the LSTM is torch's, the verdict on made results, a real run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from made_results import conclude, measured_twice
from torch import nn

from normkit.lab.studies.sequence_models import ARMS, STUDY, sequences
from normkit.lab.studies.sequence_networks import Recurrent, Transformer
from normkit.lab.tasks.sequences import VARIANCE


def networks() -> list[tuple[str, str]]:
    return [(network, norm) for network, norms in ARMS.items() for norm in norms]


@pytest.mark.parametrize(("network", "norm"), networks())
def test_what_stands_in_the_padding_changes_nothing(network: str, norm: str) -> None:
    """In training, where batch statistics see all of a batch: neither outputs nor gradients move."""
    x = sequences().x[:32]
    padded = x.clone()
    padded[..., :2][x[..., 2] == 0] = 7.0
    found = []
    for steps in (x, padded):
        torch.manual_seed(0)
        net = (Recurrent if network == "recurrent" else Transformer)(norm, longest=12)
        outputs = net(steps)
        outputs.square().sum().backward()
        found.append((outputs.detach(), [p.grad for p in net.parameters()]))
    (a, of_a), (b, of_b) = found
    # Equal sums, but a padded row may be added to them as 0 in another order: a few units in the last place.
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(of_a, of_b, rtol=1e-4, atol=1e-5)


def test_without_a_norm_it_is_the_lstm_of_torch() -> None:
    torch.manual_seed(0)
    mine, theirs = Recurrent("none", units=8, longest=12).double(), nn.LSTM(2, 8, batch_first=True).double()
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(mine.inputs.weight)
        theirs.weight_hh_l0.copy_(mine.states.weight)
        theirs.bias_ih_l0.copy_(mine.inputs.bias)
        theirs.bias_hh_l0.zero_()
    x = sequences().x[:16].double()
    lengths = x[..., 2].sum(1).long()
    packed = nn.utils.rnn.pack_padded_sequence(x[..., :2], lengths, batch_first=True, enforce_sorted=False)
    _, (h, _) = theirs(packed)
    torch.testing.assert_close(mine(x), mine.output(h[0])[:, 0], rtol=1e-12, atol=1e-12)


def test_every_step_has_several_sequences_of_a_batch() -> None:
    """Statistics of a step are of those that still run: a third of a batch at the end."""
    real = sequences().x[..., 2].sum(0)
    np.testing.assert_allclose(real[-1] / real[0], 1 / 3, atol=4 * (2 / 9 / 4096) ** 0.5)
    assert float(real[0]) == len(sequences().x)


def test_the_first_error_is_a_share_of_the_variance() -> None:
    y = sequences().y_val
    assert float((y - y.mean()).square().mean()) / VARIANCE == pytest.approx(1, abs=0.2)  # 512 values


def errors(recurrent: float, transformer: float) -> Any:
    """Batch norm's error over layer norm's in each network; layer norm's is a tenth."""

    def value(shared: float, network: str, norm: str, lr: float) -> dict[str, float]:
        ratio = recurrent if network == "recurrent" else transformer
        return {"error": 0.1 * shared * (ratio if norm == "batch" else 1) * (5 if lr == 0.01 else 1)}

    return value


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [((4.0, 2.0), "supported"), ((4.0, 1.0), "undecided"), ((4.0, 0.5), "contradicted")],
)
def test_verdict(ratios: tuple[float, float], verdict: str) -> None:
    finding = conclude(STUDY, errors(*ratios))
    assert finding.verdict == verdict
    assert [e.estimate.mean for e in finding.effects[:2]] == pytest.approx(list(ratios), rel=0.02)


def test_learns_the_same_twice() -> None:
    assert measured_twice(STUDY, network="recurrent", norm="layer", lr=0.01)["error"] < 0.1
