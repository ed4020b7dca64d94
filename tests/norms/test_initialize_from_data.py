"""The first batch sets the lengths and biases of weight norm, or nothing is set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import normkit as nk

ATOL = 1e-5  # float32 moments of some hundred values of the size of 1


def network() -> nn.Sequential:
    """Weight norm on everything, tanh between: a layer sees what the one before puts out once it is set."""
    torch.manual_seed(0)
    return nn.Sequential(
        nk.weight_norm(nn.Conv2d(3, 8, 3)),
        nn.Tanh(),
        nk.weight_norm(nn.ConvTranspose2d(8, 4, 3), dim=1),
        nn.Tanh(),
        nn.Flatten(),
        nk.weight_norm(nn.Linear(4 * 7 * 7, 5)),
    )


def batch(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 3 + 2


def before_activations(model: nn.Sequential, x: Tensor) -> list[Tensor]:
    outputs = []
    for layer in model:
        x = layer(x)
        if hasattr(layer, "weight"):
            outputs.append(x)
    return outputs


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_every_output_has_mean_0_and_variance_1() -> None:
    model, x = network(), batch(64, 3, 7, 7)
    directions = [p.clone() for n, p in model.named_parameters() if n.endswith("original1")]
    with nk.initialize_from_data(model):
        inside = model(x)
    for y in before_activations(model, x):
        dims = [d for d in range(y.dim()) if d != 1]
        torch.testing.assert_close(y.mean(dims), torch.zeros(y.shape[1]), rtol=0, atol=ATOL)
        torch.testing.assert_close(y.var(dims, correction=0), torch.ones(y.shape[1]), rtol=0, atol=10 * ATOL)
    torch.testing.assert_close(model(x), inside, rtol=1e-4, atol=1e-4)
    after = [p for n, p in model.named_parameters() if n.endswith("original1")]
    assert all(torch.equal(a, b) for a, b in zip(directions, after, strict=True))


def test_as_the_paper_says() -> None:
    """g = 1 / σ and b = -μ / σ, of t = v x / ‖v‖."""
    layer = nk.weight_norm(nn.Linear(4, 3))
    x = batch(50, 4)
    v = layer.parametrizations.weight.original1.detach().double()
    t = x.double() @ (v / v.norm(dim=1, keepdim=True)).T
    with nk.initialize_from_data(layer):
        layer(x)
    sigma = t.std(0, correction=0)
    g = layer.parametrizations.weight.original0.detach().flatten().double()
    torch.testing.assert_close(g, 1 / sigma, rtol=1e-5, atol=0)
    torch.testing.assert_close(layer.bias.detach().double(), -t.mean(0) / sigma, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(4,), (6, 4), (5, 6, 4)])
def test_linear_over_any_leading_axes(shape: tuple[int, ...]) -> None:
    layer, x = nk.weight_norm(nn.Linear(4, 3)), batch(*shape)
    if len(shape) == 1:
        with pytest.raises(ValueError, match="variance is 0"), nk.initialize_from_data(layer):
            layer(x)
        return
    with nk.initialize_from_data(layer):
        layer(x)
    torch.testing.assert_close(layer(x).flatten(0, -2).mean(0), torch.zeros(3), rtol=0, atol=ATOL)


def test_a_convolution_of_one_sample_without_a_batch_axis() -> None:
    layer, x = nk.weight_norm(nn.Conv1d(2, 3, 3)), batch(2, 40)
    with nk.initialize_from_data(layer):
        layer(x)
    torch.testing.assert_close(layer(x).mean(1), torch.zeros(3), rtol=0, atol=ATOL)


def test_without_a_bias_the_mean_stays() -> None:
    layer, x = nk.weight_norm(nn.Linear(4, 3, bias=False)), batch(100, 4)
    with nk.initialize_from_data(layer):
        layer(x)
    torch.testing.assert_close(layer(x).var(0, correction=0), torch.ones(3), rtol=0, atol=10 * ATOL)
    assert (layer(x).mean(0).abs() > 0.1).any()


def test_a_layer_that_runs_twice_goes_by_the_first_time() -> None:
    once, twice = (nk.weight_norm(nn.Linear(4, 4)) for _ in range(2))
    twice.load_state_dict(once.state_dict())
    x = batch(20, 4)
    with nk.initialize_from_data(once):
        once(x)
    with nk.initialize_from_data(twice):
        inside = twice(twice(x).tanh())
    assert unchanged(twice, state_of(once))
    torch.testing.assert_close(inside, once(once(x).tanh()), rtol=1e-4, atol=1e-5)


def test_parameters_stay_the_optimizers() -> None:
    layer = nk.weight_norm(nn.Linear(4, 3))
    before = list(layer.parameters())
    with nk.initialize_from_data(layer):
        layer(batch(20, 4))
    assert all(a is b for a, b in zip(before, layer.parameters(), strict=True))
    assert all(p.grad_fn is None for p in layer.parameters())


def test_hooks_are_gone_after_it() -> None:
    model = network()
    with nk.initialize_from_data(model):
        model(batch(64, 3, 7, 7))
    assert not any(module._forward_hooks for module in model.modules())


class TestNothingIsSet:
    def test_where_the_context_fails(self) -> None:
        model = network()
        model.append(nn.Linear(6, 6))  # of five outputs
        before = state_of(model)
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), nk.initialize_from_data(model):
            model(batch(64, 3, 7, 7))
        assert unchanged(model, before)
        assert not any(module._forward_hooks for module in model.modules())

    def test_where_an_output_is_constant(self) -> None:
        model = nn.Sequential(nk.weight_norm(nn.Linear(4, 3)), nn.ReLU(), nk.weight_norm(nn.Linear(3, 2)))
        before = state_of(model)
        with (
            pytest.raises(ValueError, match=r"0 has outputs whose variance is 0 .* larger batch"),
            nk.initialize_from_data(model),
        ):
            model(batch(1, 4))
        assert unchanged(model, before)

    def test_where_the_batch_is_not_finite(self) -> None:
        layer = nk.weight_norm(nn.Linear(4, 3))
        with pytest.raises(ValueError, match="not finite"), nk.initialize_from_data(layer):
            layer(torch.full((5, 4), float("nan")))

    def test_where_a_layer_was_not_reached(self) -> None:
        model = network()
        before = state_of(model)
        with (
            pytest.raises(RuntimeError, match="did not reach 2, 5: run one"),
            nk.initialize_from_data(model),
        ):
            model[0](batch(64, 3, 7, 7))
        assert unchanged(model, before)

    @pytest.mark.parametrize(
        ("model", "message"),
        [
            (nn.Linear(3, 4), "no layer has weight norm"),
            (nk.weight_norm(nn.LSTM(3, 4), "weight_hh_l0"), "not the model .*LSTM.weight_hh_l0"),
            (nn.Sequential(nk.weight_norm(nn.Linear(3, 4), dim=None)), r"0 .* has dim=-1: use .*dim=0"),
            (nn.Sequential(nk.weight_norm(nn.ConvTranspose1d(3, 4, 2))), r"has dim=0: use .*dim=1"),
            (nk.spectral_norm(nk.weight_norm(nn.Linear(3, 4))), "nothing but weight norm"),
        ],
        ids=["none", "recurrent", "whole", "transposed", "spectral"],
    )
    def test_what_data_cannot_initialize(self, model: nn.Module, message: str) -> None:
        with pytest.raises(ValueError, match=message), nk.initialize_from_data(model):
            raise AssertionError("the context must not begin")
