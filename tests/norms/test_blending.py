"""Blends in one call of the kernels, which no graph records, are those that are recorded, and what NumPy says."""

from __future__ import annotations

import pytest
import torch

import normkit as nk


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("shape", [(8, 5, 3, 4), (16, 64, 28, 28)], ids=str)
@pytest.mark.parametrize("per_sample", [False, True], ids=["batch", "sample"])
def test_without_a_graph_it_is_the_same(
    per_sample: bool, shape: tuple[int, ...], layout: torch.memory_format, masked: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(shape, generator=generator) + 1).to(memory_format=layout)
    mask = torch.rand(shape[0], *shape[2:], generator=generator) > 0.3 if masked else None
    layer = nk.AdaptiveBatchNorm2d(shape[1], per_sample=per_sample, activation="relu").eval()
    state = {
        name: torch.rand(shape[1], generator=generator) + 0.5
        for name in ("running_mean", "running_var", "weight", "bias")
    }
    layer.load_state_dict(state, strict=False)
    recorded = layer(x, mask=mask)
    assert recorded.requires_grad
    with torch.no_grad():
        y = layer(x, mask=mask)
    assert y.is_contiguous(memory_format=layout)
    # Both blend the same float64 moments by the same formula.
    torch.testing.assert_close(y, recorded.detach(), rtol=2**-23, atol=2**-23)


def test_it_is_what_the_equation_says() -> None:
    generator = torch.Generator().manual_seed(1)
    x = 2 * torch.randn(12, 3, 5, generator=generator) - 1
    known_mean, known_var = (torch.rand(3, generator=generator) + 0.5 for _ in range(2))
    layer = nk.BatchNorm1d(3, evaluation_statistics="blend", prior=6.0).eval()
    layer.load_state_dict({"running_mean": known_mean, "running_var": known_var}, strict=False)
    with torch.no_grad():
        y = layer(x)
    values, share = x.double().movedim(1, 0).flatten(1), 12 / (12 + 6.0)
    mean = known_mean.double() + share * (values.mean(1) - known_mean.double())
    var = known_var.double() + share * (values.var(1, unbiased=False) - known_var.double())
    expected = (x.double() - mean.view(-1, 1)) / (var.view(-1, 1) + layer.eps).sqrt()
    # Four roundings of float32, as of batch norm.
    assert ((y - expected).abs() <= 4 * 2**-24 * expected.abs()).all()
