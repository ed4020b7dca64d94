"""Statistics for each time step, and the LSTM that has them."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit import reference


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}


class TestLayer:
    def test_each_step_has_statistics_of_its_own(self) -> None:
        """As a batch norm for each step does, bit for bit; parameters are shared."""
        layer = nk.RecurrentBatchNorm(3, max_length=4)
        steps = [nk.BatchNorm1d(3) for _ in range(4)]
        for step in steps:
            step.weight.data.fill_(0.1)
        for epoch in range(3):
            for t, step in enumerate(steps):
                x = torch.randn(8, 3, generator=torch.Generator().manual_seed(10 * epoch + t)) * (t + 1) + t
                assert torch.equal(layer(x, step=t), step(x))
        layer.eval()
        for t, step in enumerate(steps):
            assert torch.equal(layer.running_mean[t], step.running_mean)
            assert torch.equal(layer.running_var[t], step.running_var)
            x = torch.randn(8, 3)
            assert torch.equal(layer(x, step=t), step.eval()(x))
        assert layer.num_batches_tracked.tolist() == [3, 3, 3, 3]

    def test_later_steps_share_the_last(self) -> None:
        layer = nk.RecurrentBatchNorm(3, max_length=2)
        layer(torch.randn(8, 3) + 5, step=7)
        assert layer.num_batches_tracked.tolist() == [0, 1]
        assert torch.equal(layer.running_mean[0], torch.zeros(3))
        layer.eval()
        x = torch.randn(8, 3)
        assert torch.equal(layer(x, step=1), layer(x, step=100))

    def test_starts_at_a_tenth(self) -> None:
        layer = nk.RecurrentBatchNorm(3, max_length=2)
        assert layer.weight.tolist() == [pytest.approx(0.1)] * 3
        assert layer.bias.tolist() == [0, 0, 0]
        torch.testing.assert_close(
            layer(torch.randn(1000, 3), step=0).std(0), torch.full((3,), 0.1), rtol=0.01, atol=0
        )

    def test_mask_leaves_out_what_has_ended(self) -> None:
        x = torch.randn(6, 3)
        mask = torch.tensor([True, True, False, True, False, True])
        masked, packed = nk.RecurrentBatchNorm(3, 2), nk.RecurrentBatchNorm(3, 2)
        y = masked(x.masked_fill(~mask[:, None], float("nan")), step=0, mask=mask)
        torch.testing.assert_close(y[mask], packed(x[mask], step=0), rtol=0, atol=1e-6)
        assert torch.equal(y[~mask], torch.zeros(2, 3))
        torch.testing.assert_close(masked.running_mean, packed.running_mean)

    def test_residual_is_added(self) -> None:
        x, residual = torch.randn(6, 3), torch.randn(6, 3)
        one, other = nk.RecurrentBatchNorm(3, 2), nk.RecurrentBatchNorm(3, 2)
        torch.testing.assert_close(one(x, step=0, residual=residual), other(x, step=0) + residual)

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: nk.RecurrentBatchNorm(3, 0), "max_length must be 1 or more steps, got 0"),
            (lambda: nk.RecurrentBatchNorm(3, 2)(torch.randn(4, 3), step=-1), "step counts from 0, got -1"),
            (lambda: nk.RecurrentBatchNorm(3, 2)(torch.randn(1, 3), step=0), "more than 1 value per channel"),
            (
                lambda: nk.functional.recurrent_batch_norm(
                    torch.randn(4, 3), torch.zeros(3), torch.ones(3), step=0
                ),
                r"a row per step, \(T, C\), got \[3\]",
            ),
        ],
    )
    def test_misuse(self, call: object, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            call()


def sequence(length: int = 5, batch: int = 6, size: int = 3) -> Tensor:
    return torch.randn(length, batch, size, generator=torch.Generator().manual_seed(3))


def by_hand(cell: nk.BatchNormLSTMCell, x: Tensor) -> np.ndarray:
    """The hidden states by the equations of the paper and the specification of batch norm, in float64."""
    w = {name: p.detach().double().numpy() for name, p in cell.named_parameters()}

    def sigmoid(a: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-a))

    h = c = np.zeros((x.shape[1], cell.hidden_size))
    states = []
    for x_t in x.double().numpy():
        of_x = reference.batch_norm(x_t @ w["weight_ih"].T, w["norm_ih.weight"], w["norm_ih.bias"])[0]
        of_h = reference.batch_norm(h @ w["weight_hh"].T, w["norm_hh.weight"])[0]
        i, f, g, o = np.split(of_h + of_x, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(reference.batch_norm(c, w["norm_c.weight"], w["norm_c.bias"])[0])
        states.append(h)
    return np.stack(states)


class TestLSTM:
    def test_is_what_the_paper_says(self) -> None:
        torch.manual_seed(0)
        lstm, x = nk.BatchNormLSTM(3, 4, max_length=5), sequence()
        with torch.no_grad():
            for parameter in lstm.parameters():
                parameter.uniform_(0.2, 1.0)
        output, (h, _) = lstm(x)
        # Normalized states of the size of 1, through five steps of float32.
        np.testing.assert_allclose(output.detach(), by_hand(lstm.cell, x), rtol=0, atol=1e-5)
        assert torch.equal(h[0], output[-1])

    def test_cell_and_layer_agree(self) -> None:
        lstm, x = nk.BatchNormLSTM(3, 4, max_length=5), sequence()
        cell, states = copy.deepcopy(lstm.cell), None
        outputs = []
        for step, x_t in enumerate(x):
            states = cell(x_t, states, step=step)
            outputs.append(states[0])
        output, (h, c) = lstm(x)
        torch.testing.assert_close(output, torch.stack(outputs), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close((h[0], c[0]), states, rtol=1e-5, atol=1e-6)
        for key, value in cell.state_dict().items():
            torch.testing.assert_close(lstm.cell.state_dict()[key], value)

    def test_batch_first(self) -> None:
        lstm = nk.BatchNormLSTM(3, 4, max_length=5)
        other = nk.BatchNormLSTM(3, 4, max_length=5, batch_first=True)
        other.load_state_dict(lstm.state_dict())
        x = sequence()
        mask = torch.arange(5)[:, None] < torch.tensor([5, 4, 3, 3, 2, 5])
        for m in (None, mask):
            output, states = lstm(x, mask=m)
            batched, others = other(x.transpose(0, 1), mask=None if m is None else m.T)
            torch.testing.assert_close(batched.transpose(0, 1), output)
            torch.testing.assert_close(others, states)

    @pytest.mark.parametrize("training", [True, False])
    def test_mask(self, training: bool) -> None:
        """What lies behind the end of a sequence changes nothing; its last states are the ones returned."""
        lstm = nk.BatchNormLSTM(3, 4, max_length=5)
        lengths = torch.tensor([5, 4, 3, 3, 2, 5])
        x, mask = sequence(), torch.arange(5)[:, None] < lengths
        lstm(x)
        lstm.train(training)
        results = []
        for padding in (0.0, 1e3, float("nan")):
            other = copy.deepcopy(lstm)
            filled = x.masked_fill(~mask[..., None], padding).requires_grad_()
            output, (h, c) = other(filled, mask=mask)
            (output.square().sum() + h.sum() + c.sum()).backward()
            results.append([output, h, c, filled.grad, *(p.grad for p in other.parameters())])
            assert torch.equal(output[~mask], torch.zeros(int((~mask).sum()), 4))
            last = output[lengths - 1, torch.arange(6)]
            torch.testing.assert_close(h[0], last)
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                assert torch.equal(a, b)

    def test_states_go_on(self) -> None:
        """Two halves in evaluation are the whole, where the steps' statistics are those of the last."""
        lstm = nk.BatchNormLSTM(3, 4, max_length=1)
        lstm(sequence())
        lstm.eval()
        x = sequence()
        whole, _ = lstm(x)
        first, states = lstm(x[:2])
        second, _ = lstm(x[2:], states)
        torch.testing.assert_close(torch.cat([first, second]), whole)

    def test_learns(self) -> None:
        """Which of two halves of a sequence holds the larger sum."""
        torch.manual_seed(0)
        x = torch.randn(64, 8, 1)
        label = (x[:, :4].sum((1, 2)) > x[:, 4:].sum((1, 2))).long()
        lstm, head = nk.BatchNormLSTM(1, 16, max_length=8, batch_first=True), nn.Linear(16, 2)
        optimizer = torch.optim.Adam([*lstm.parameters(), *head.parameters()], lr=0.02)
        for _ in range(120):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(head(lstm(x)[0][:, -1]), label)
            loss.backward()
            optimizer.step()
        assert loss.item() < np.log(2) / 2  # half of what guessing gives

    def test_copies_and_checkpoints(self) -> None:
        lstm = nk.BatchNormLSTM(3, 4, max_length=5)
        lstm(sequence())
        for other in (copy.deepcopy(lstm), pickle.loads(pickle.dumps(lstm))):
            assert repr(other) == repr(lstm)
            assert torch.equal(other.eval()(sequence())[0], copy.deepcopy(lstm).eval()(sequence())[0])
        fresh = nk.BatchNormLSTM(3, 4, max_length=5)
        fresh.load_state_dict(lstm.state_dict())
        assert torch.equal(fresh.eval()(sequence())[0], lstm.eval()(sequence())[0])

    def test_compiles(self) -> None:
        torch._dynamo.reset()
        lstm = nk.BatchNormLSTM(3, 4, max_length=3)
        other = copy.deepcopy(lstm)
        x = sequence(3)
        compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x)[0], lstm(x)[0], rtol=1e-5, atol=1e-6)
        for key, value in lstm.state_dict().items():
            torch.testing.assert_close(other.state_dict()[key], value)

    @pytest.mark.parametrize(
        ("x", "kwargs", "message"),
        [
            (torch.randn(5, 3), {}, r"input must be \(T, N, 3\), got \[5, 3\]"),
            (torch.randn(5, 6, 4), {}, r"input must be \(T, N, 3\), got \[5, 6, 4\]"),
            (torch.randn(0, 6, 3), {}, r"a step and a sample or more, got input size \[0, 6, 3\]"),
            (
                sequence(),
                {"mask": torch.ones(6, 5, dtype=torch.bool)},
                r"mask must be \[5, 6\], got \[6, 5\]",
            ),
            (sequence(batch=1), {}, "more than 1 value per channel"),
        ],
    )
    def test_misuse_changes_nothing(self, x: Tensor, kwargs: dict[str, Tensor], message: str) -> None:
        lstm = nk.BatchNormLSTM(3, 4, max_length=5)
        before = state_of(lstm)
        with pytest.raises(ValueError, match=message):
            lstm(x, **kwargs)
        assert all(torch.equal(value, before[key]) for key, value in lstm.state_dict().items())
        with pytest.raises(ValueError, match=r"input must be \(N, 3\), got \[5, 6, 3\]"):
            lstm.cell(sequence(), step=0)
        with pytest.raises(TypeError, match=r"bool tensor.*got torch.float32"):
            lstm(sequence(), mask=torch.ones(5, 6))
