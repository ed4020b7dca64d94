"""What filter response norm has beyond its contract: masks, the threshold, activations of one position."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import normkit as nk
from normkit import reference

U32 = 2.0**-24


def padded() -> tuple[Tensor, Tensor]:
    """A batch of sequences (N, C, L) whose padding is NaN, and its mask (N, L)."""
    x = torch.randn(5, 3, 9, generator=torch.Generator().manual_seed(0)) * 2 + 1
    mask = torch.arange(9) < torch.tensor([9, 4, 1, 0, 6])[:, None]
    return x.masked_fill(~mask[:, None], float("nan")), mask


def layer(**options: bool) -> nk.FilterResponseNorm:
    made = nk.FilterResponseNorm(3, **options)
    for name, parameter in made.named_parameters():
        values = {"weight": [0.5, 1.5, -2.0], "bias": [0.1, -0.2, 0.3], "threshold": [-0.4, 0.2, 0.0]}
        parameter.data.copy_(torch.tensor(values.get(name, [-0.3])))
    return made


@pytest.mark.parametrize("learn_eps", [False, True])
@pytest.mark.parametrize("threshold", [False, True])
def test_mask_matches_the_specification(learn_eps: bool, threshold: bool) -> None:
    x, mask = padded()
    x.requires_grad_()
    norm = layer(learn_eps=learn_eps, threshold=threshold)
    dz = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    z = norm(x, mask=mask)
    z.backward(dz)
    parameters = {n: p.detach().numpy() for n, p in norm.named_parameters()}
    valid = mask.numpy()
    expected, cache = reference.filter_response_norm(
        np.where(valid[:, None], x.detach(), 0), mask=valid, **parameters
    )
    dx, *rest = reference.backward(dz.numpy(), cache)
    got = [z, x.grad, *(p.grad for p in norm.parameters())]
    for value, wanted in zip(got, [expected, dx, *rest], strict=True):
        # A few roundings of float32 at the magnitude of the terms, which are below 10.
        np.testing.assert_allclose(value.detach().numpy(), wanted, rtol=0, atol=40 * U32 * 10)
    assert torch.equal(z.movedim(1, -1)[~mask], torch.zeros(int((~mask).sum()), 3))


def test_a_full_mask_changes_nothing_but_roundings() -> None:
    x = torch.randn(4, 3, 5, 5)
    full = torch.ones(4, 5, 5, dtype=torch.bool)
    torch.testing.assert_close(layer()(x, mask=full), layer()(x), rtol=0, atol=8 * U32 * 4)


def test_no_sample_meets_another() -> None:
    x = torch.randn(4, 3, 5, 5)
    whole, alone = layer()(x), torch.cat([layer()(one) for one in x.split(1)])
    assert torch.equal(whole, alone)


def test_the_threshold_cuts_off_below() -> None:
    x, norm = torch.randn(4, 3, 5, 5), layer()
    threshold = norm.threshold.detach().view(3, 1, 1)
    z, plain = norm(x), layer(threshold=False)(x)
    assert (z >= threshold).all()
    torch.testing.assert_close(z, torch.maximum(plain, threshold), rtol=0, atol=4 * U32 * 10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_rounded_once(dtype: torch.dtype) -> None:
    """Where it cuts off the result is the threshold, to the bit."""
    x = torch.randn(4, 3, 50).to(dtype)
    norm = layer().to(dtype)
    z = norm(x)
    cut = z == norm.threshold.view(3, 1)
    y, _ = reference.filter_response_norm(
        x.double().numpy(), *(p.detach().double().numpy() for p in (norm.weight, norm.bias))
    )
    below = torch.from_numpy(y) < norm.threshold.detach().double().view(3, 1) - 1e-3
    assert below.any()
    assert cut[below].all()


def test_activations_of_one_position() -> None:
    """Without the learned eps what is left is the sign; with it large values count for more."""
    x = torch.tensor([[0.01, 1.0, -100.0]])
    torch.testing.assert_close(
        nk.FilterResponseNorm(3, threshold=False)(x), torch.tensor([[0.995, 1.0, -1.0]]), rtol=1e-3, atol=0
    )
    norm = nk.FilterResponseNorm(3, threshold=False, learn_eps=True)
    torch.testing.assert_close(norm.learned_eps.detach(), torch.tensor([1e-4]))
    assert norm(x)[0, 0] < 0.75


def test_first_values() -> None:
    norm = nk.FilterResponseNorm(2, learn_eps=True)
    values = {name: p.tolist() for name, p in norm.named_parameters()}
    assert values == {
        "weight": [1, 1],
        "bias": [0, 0],
        "threshold": [0, 0],
        "learned_eps": [pytest.approx(1e-4)],
    }


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"eps": -1.0}, ValueError, "eps must not be negative, got -1"),
        ({"learned_eps": torch.ones(2)}, RuntimeError, r"one number, got shape \[2\]"),
        ({"threshold": torch.ones(2)}, RuntimeError, "threshold should contain 3 elements"),
        ({"mask": torch.ones(4, 5)}, TypeError, "bool tensor"),
        ({"mask": torch.ones(4, 3, dtype=torch.bool)}, ValueError, r"without channels, \[4, 5\]"),
    ],
)
def test_misuse(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        nk.functional.filter_response_norm(torch.randn(4, 3, 5), **arguments)


def test_in_training_of_a_network() -> None:
    """In-place work on the output is safe: gradients are those of torch operations."""
    x = torch.randn(4, 3, 6, 6)
    ours = layer()
    nu = x.square().mean((2, 3), keepdim=True)
    by = {n: p.detach().clone().requires_grad_() for n, p in ours.named_parameters()}
    w, b, t = (by[n].view(3, 1, 1) for n in ("weight", "bias", "threshold"))
    expected = torch.maximum(w * x * torch.rsqrt(nu + 1e-6) + b, t)
    expected.sin().sum().backward()
    ours(x).sin().sum().backward()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, by[name].grad, rtol=1e-4, atol=1e-4)
