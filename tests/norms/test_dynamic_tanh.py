"""What dynamic tanh has beyond its contract."""

from __future__ import annotations

import pytest
import torch

import normkit as nk


def test_is_the_formula() -> None:
    layer = nk.DynamicTanh((3, 4), alpha_init_value=0.8)
    with torch.no_grad():
        layer.weight.uniform_(0.5, 2), layer.bias.normal_()
    x = torch.randn(5, 3, 4)
    expected = layer.weight * torch.tanh(0.8 * x) + layer.bias
    torch.testing.assert_close(layer(x), expected, rtol=1e-6, atol=1e-6)


def test_loads_checkpoints_of_the_papers_code() -> None:
    """There alpha is of shape (1), and the names are alpha, weight and bias."""
    state = {"alpha": torch.tensor([0.3]), "weight": torch.rand(4), "bias": torch.rand(4)}
    layer = nk.DynamicTanh(4)
    layer.load_state_dict(state)
    x = torch.randn(2, 4)
    expected = state["weight"] * torch.tanh(0.3 * x) + state["bias"]
    torch.testing.assert_close(layer(x), expected, rtol=1e-6, atol=1e-6)


def test_first_values() -> None:
    layer = nk.DynamicTanh(3)
    assert {n: p.tolist() for n, p in layer.named_parameters()} == {
        "alpha": [0.5],
        "weight": [1, 1, 1],
        "bias": [0, 0, 0],
    }


def test_half_types_are_rounded_once() -> None:
    x = torch.linspace(-4, 4, 1000)
    for dtype in (torch.bfloat16, torch.float16):
        half = x.to(dtype)[:, None]
        got = nk.DynamicTanh(1, dtype=dtype)(half).double()
        expected = torch.tanh(0.5 * half.double())
        # Half a unit in the last place, and what float32 adds.
        assert ((got - expected).abs() <= expected.abs() * torch.finfo(dtype).eps / 2 * (1 + 2**-10)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": torch.ones(3)}, r"alpha is one number, got shape \[3\]"),
        ({"alpha": torch.ones(1, dtype=torch.float64)}, "mixed dtype: alpha"),
        ({"alpha": torch.ones(1), "weight": torch.ones(4)}, "weight to be of same shape"),
        ({"alpha": torch.ones(1), "bias": torch.ones(3, dtype=torch.bfloat16)}, "mixed dtype: bias"),
    ],
)
def test_misuse(arguments: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        nk.functional.dynamic_tanh(torch.randn(2, 3), [3], **arguments)
