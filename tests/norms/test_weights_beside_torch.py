"""Norms of weights beside torch's own parametrizations, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import weight_norm as old_weight_norm
from weighted import OURS, TORCH, every_module, every_norm, every_twin, made, output

import normkit as nk


class TestBesideTorch:
    @every_module
    @every_twin
    def test_trains_and_evaluates_as_torch(self, kind: str, norm: str) -> None:
        """Output, gradients and buffers over three steps from the same seed, then evaluation."""
        ours, twin = made(kind, OURS[norm]), made(kind, TORCH[norm])
        for step in range(3):
            results = []
            for module in (ours, twin):
                module.zero_grad()
                y = output(module, kind, seed=step)
                y.square().sum().backward()
                results.append({"y": y.detach(), **{n: p.grad for n, p in module.named_parameters()}})
            assert list(results[0]) == list(results[1])
            for key, expected in results[1].items():
                torch.testing.assert_close(results[0][key], expected, rtol=1e-4, atol=1e-5)
        ours.eval(), twin.eval()
        torch.testing.assert_close(output(ours, kind), output(twin, kind), rtol=1e-5, atol=1e-5)
        for key, expected in twin.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[key], expected, rtol=1e-5, atol=1e-6)

    @every_module
    @every_twin
    def test_state_dict_both_ways(self, kind: str, norm: str) -> None:
        ours, twin = made(kind, OURS[norm], seed=1), made(kind, TORCH[norm], seed=2)
        assert list(ours.state_dict()) == list(twin.state_dict())
        into_ours, into_twin = made(kind, OURS[norm], seed=3), made(kind, TORCH[norm], seed=3)
        into_ours.load_state_dict(twin.state_dict())
        into_twin.load_state_dict(ours.state_dict())
        for a, b in ((ours, into_twin), (into_ours, twin)):
            a.eval(), b.eval()
            torch.testing.assert_close(output(a, kind), output(b, kind), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("dim", [None, -1, -2, 1])
    def test_other_axes_of_weight_norm(self, dim: int | None) -> None:
        """-1 is one length for the whole weight, in torch and so here."""
        torch.manual_seed(0)
        twin = parametrizations.weight_norm(nn.Linear(3, 4), dim=dim)
        ours = nk.weight_norm(nn.Linear(3, 4), dim=dim)
        ours.load_state_dict(twin.state_dict())
        torch.testing.assert_close(ours.weight, twin.weight, rtol=1e-6, atol=1e-6)
        assert ours.parametrizations.weight.original0.shape == twin.parametrizations.weight.original0.shape

    @pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
    def test_takes_checkpoints_of_the_older_weight_norm(self) -> None:
        old = old_weight_norm(nn.Conv1d(3, 4, 2))
        model, older = nn.Sequential(nk.weight_norm(nn.Conv1d(3, 4, 2))), nn.Sequential(old)
        model.load_state_dict(older.state_dict())
        x = torch.randn(2, 3, 5)
        torch.testing.assert_close(model(x), older(x), rtol=1e-5, atol=1e-6)

    def test_spectral_norm_of_a_vector(self) -> None:
        torch.manual_seed(0)
        ours, twin = nk.spectral_norm(nn.Linear(3, 4), "bias"), nn.Linear(3, 4)
        with torch.no_grad():
            twin.bias.copy_(ours.parametrizations.bias.original)
        parametrizations.spectral_norm(twin, "bias")
        torch.testing.assert_close(ours.bias, twin.bias, rtol=1e-6, atol=0)


class TestMisuse:
    @every_norm
    def test_no_such_tensor(self, norm: str) -> None:
        layer = nn.Sequential(nn.Linear(3, 4), nn.Linear(3, 4))
        with pytest.raises(ValueError, match=r"^Sequential has no parameter or buffer with name 'weight'.*$"):
            OURS[norm](layer, "weight", 0)

    @every_norm
    def test_lazy_and_integer_weights(self, norm: str) -> None:
        with pytest.raises(ValueError, match="no shape yet: run a batch"):
            OURS[norm](nn.LazyLinear(3), "weight", 0)
        module = nn.Module()
        module.weight = nn.Buffer(torch.ones(3, 4, dtype=torch.long))
        with pytest.raises(ValueError, match=r"floating-point, 'weight' of Module is torch.int64"):
            OURS[norm](module, "weight", 0)

    @pytest.mark.parametrize(
        "put",
        [
            lambda m: nk.weight_norm(m, dim=2),
            lambda m: nk.weight_standardization(m, dim=-3),
            lambda m: nk.spectral_norm(m, dim=2),
        ],
    )
    def test_no_such_axis(self, put: Callable[[nn.Module], nn.Module]) -> None:
        layer = nn.Linear(3, 4)
        with pytest.raises(IndexError, match=r"range of \[-2, 1\]"):
            put(layer)
        assert not parametrize.is_parametrized(layer)
        assert type(layer) is nn.Linear

    def test_too_few_iterations(self) -> None:
        with pytest.raises(ValueError, match="n_power_iterations=0"):
            nk.spectral_norm(nn.Linear(3, 4), n_power_iterations=0)

    def test_one_value_per_filter(self) -> None:
        layer = nn.Conv1d(1, 4, 1)
        with pytest.raises(ValueError, match=r"more than one value .* shape \[4, 1, 1\]"):
            nk.weight_standardization(layer)
        assert type(layer) is nn.Conv1d

    def test_weight_norm_comes_first(self) -> None:
        layer = nk.spectral_norm(nn.Linear(3, 4))
        with pytest.raises(
            ValueError, match="first parametrization of a weight: 'weight' of ParametrizedLinear"
        ):
            nk.weight_norm(layer)
        both = nk.spectral_norm(nk.weight_norm(nn.Linear(3, 4)), n_power_iterations=30)
        torch.testing.assert_close(torch.linalg.matrix_norm(both.weight, 2).item(), 1.0, rtol=1e-3, atol=0)
