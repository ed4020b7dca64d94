"""The recurrent network: rows as steps, an LSTM that is torch's without a norm, and what its norms are of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import normkit as nk
from normkit.errors import InputError
from normkit.lab.compare import carry_out, compare, plan
from normkit.lab.comparison import Comparison
from normkit.lab.grid import Grid
from normkit.lab.lstm import NormLSTM, ReadRows
from normkit.lab.models import build
from normkit.lab.records import Epoch, Settings
from normkit.lab.remote import Workers

GRID = Grid(
    model="lstm", norms=("none", "recurrent"), lr=(0.01,), epochs=3, seeds=1, batch_size=32, dropout=0.2
)
U = 2.0**-53


def network(norm: str, shape: tuple[int, ...] = (2, 5, 3)) -> nn.Module:
    torch.manual_seed(0)
    return build("lstm", norm=norm, placement="pre", input_shape=shape, classes=4)


def test_rows_are_steps_and_columns_of_all_channels_their_values() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 2, 5, 3)
    lstm = nn.LSTM(6, 7, batch_first=True)
    steps = torch.stack([torch.cat([x[:, 0, row], x[:, 1, row]], 1) for row in range(5)])
    _, (h, _) = lstm(steps.transpose(0, 1))
    # two ways to lay out one input; the matrix products may sum in another order: float32 of values below 1
    torch.testing.assert_close(ReadRows(lstm)(x), h[0], rtol=0, atol=1e-6)


def test_without_a_norm_it_is_torch_s_lstm() -> None:
    torch.manual_seed(0)
    ours = NormLSTM(6, 7, nn.Identity).double()
    theirs = nn.LSTM(6, 7, batch_first=True).double()
    nn.init.normal_(ours.bias)
    theirs.load_state_dict(
        {
            "weight_ih_l0": ours.weights.weight_ih,
            "weight_hh_l0": ours.weights.weight_hh,
            "bias_ih_l0": ours.bias,
            "bias_hh_l0": torch.zeros_like(ours.bias),
        }
    )
    x = torch.randn(3, 5, 6, dtype=torch.float64)
    output, (h, c) = ours(x)
    expected, (h_n, c_n) = theirs(x)
    for value, right in ((output, expected), (h, h_n), (c, c_n)):
        # sums of 6 + 7 products at each of 5 steps, of values of a few units
        torch.testing.assert_close(value, right, rtol=0, atol=5 * 13 * 4 * U)


def test_layer_norm_stands_where_its_paper_has_it() -> None:
    """Ba et al. (2016), equations 20 to 22, in NumPy float64."""
    torch.manual_seed(0)
    net = NormLSTM(3, 4, nk.LayerNorm).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    with torch.no_grad():
        output, _ = net(x)
    w = {name: value.detach().numpy() for name, value in net.named_parameters()}

    def norm(name: str, a: NDArray[np.float64]) -> NDArray[np.float64]:
        centred = a - a.mean(1, keepdims=True)
        unit = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
        return unit * w[f"{name}.weight"] + w[f"{name}.bias"]

    def sigmoid(a: NDArray[np.float64]) -> NDArray[np.float64]:
        return 1 / (1 + np.exp(-a))

    h = c = np.zeros((2, 4))
    for step in range(5):
        of_input = norm("norm_ih", x[:, step].numpy() @ w["weights.weight_ih"].T)
        gates = of_input + norm("norm_hh", h @ w["weights.weight_hh"].T) + w["bias"]
        i, f, g, o = np.split(gates, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(norm("norm_c", c))
        # a deviation may be small beside its values: 1e-10 is a million units in the last place, a wrong
        # equation shows in the first digits
        np.testing.assert_allclose(output[:, step], h, rtol=0, atol=1e-10)


def test_statistics_for_each_step_or_one_set_for_all() -> None:
    """In training the same to the bit; in evaluation by other running statistics."""
    x = 2 + torch.randn(256, 2, 5, 3, generator=torch.Generator().manual_seed(1))
    x *= torch.tensor([1.0, 4.0, 0.25, 8.0, 0.5])[:, None]  # no two steps alike
    of_steps, of_all = network("recurrent"), network("batch")
    for net, steps in ((of_steps, 5), (of_all, 1)):
        layers = [layer for layer in net.modules() if isinstance(layer, nk.RecurrentBatchNorm)]
        assert {layer.max_length for layer in layers} == {steps}
        for layer in layers:
            layer.momentum = (
                1.0  # running statistics are those of the last batch, of one set those of the last step
            )
    with torch.no_grad():
        trained = of_steps(x)
        assert torch.equal(trained, of_all(x))
        off = [(net.eval()(x) - trained).norm().item() for net in (of_steps, of_all)]
    # what the variance of 256 samples without their bias does is a factor of sqrt(255 / 256), 0.2%, in each norm
    assert off[0] < off[1] / 50


def test_sequences_from_a_file_and_tables(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name, shape in (("steps", (40, 2, 7, 1)), ("table", (40, 7))):
        np.savez(tmp_path / f"{name}.npz", x=random.normal(size=shape), y=np.arange(40) % 2)
    norms = [
        s.norm for s in plan(Grid(data=str(tmp_path / "steps.npz"), model="lstm", batch_size=8)).settings
    ]
    assert set(norms) == {"none", "batch", "layer", "group", "rms", "recurrent"}
    with pytest.raises(InputError, match=r"'lstm' needs images .*, the input's shape is \(7,\)"):
        plan(Grid(data=str(tmp_path / "table.npz"), model="lstm", batch_size=8))


def bits(comparison: Comparison) -> list[object]:
    return [[epoch.measurements for epoch in r.epochs] for row in comparison.rows for r in row.runs]


class StoppedError(Exception):
    pass


def test_it_learns_and_goes_on_to_the_same_bits_here_and_in_workers(tmp_path: Path) -> None:
    the_plan = plan(GRID)
    whole = carry_out(the_plan, tmp_path / "whole")
    for row in whole.rows:
        assert row.accuracy is not None
        assert row.accuracy.mean > 0.7, row.norm  # chance is 0.1

    def stop(done: int, settings: Settings, epoch: Epoch | None) -> None:
        if done == 5:  # in the run with recurrent batch norm
            raise StoppedError

    with pytest.raises(StoppedError):
        compare(GRID, tmp_path / "parts", stop)
    assert bits(compare(GRID, tmp_path / "parts")) == bits(whole)
    assert bits(carry_out(the_plan, tmp_path / "workers", workers=Workers.here(2))) == bits(whole)
