"""What a layer cannot take is told when it is made, in its own words and under its own name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import normkit as nk

WHOLE: dict[str, Callable[[object], object]] = {
    "ghost_size": lambda n: nk.GhostBatchNorm2d(4, ghost_size=n),
    "num_groups": lambda n: nk.GroupNorm(n, 32),
    "num_channels": lambda n: nk.GroupNorm(2, n),
    "max_length": lambda n: nk.RecurrentBatchNorm(4, n),
    "num_features": lambda n: nk.RecurrentBatchNorm(n, 4),
    "hidden_size": lambda n: nk.BatchNormLSTM(4, n, 4),
    "warmup": lambda n: nk.BatchRenorm2d(4, warmup=n),
    "num_classes": lambda n: nk.Conditional(nk.BatchNorm2d(4, affine=False), n),
}


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("value", [16.0, "16", None], ids=repr)
def test_counts_are_whole_numbers(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"^{name} must be a whole number, got {value!r}: pass an int$"):
        WHOLE[name](value)


@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers_of_numpy_are_fine(name: str) -> None:
    assert isinstance(WHOLE[name](np.int64(16)), nn.Module)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (nk.BatchNorm2d, "BatchNorm"),
        (nk.GhostBatchNorm3d, "GhostBatchNorm"),
        (nk.BatchRenorm1d, "BatchRenorm"),
        (nk.AdaptiveBatchNorm1d, "AdaptiveBatchNorm"),
        (nk.VirtualBatchNorm2d, "VirtualBatchNorm"),
        (nk.InstanceNorm2d, "InstanceNorm"),
    ],
)
def test_a_missing_argument_is_that_of_the_layer(kind: type[nn.Module], name: str) -> None:
    with pytest.raises(TypeError, match=rf"^{name}\.__init__\(\) missing 1 required .*'num_features'"):
        kind() if "Ghost" not in name else kind(ghost_size=4)
    layer = kind(4, 4) if "Ghost" in name else kind(4)
    with pytest.raises(TypeError, match=r"^[A-Z]\w+\.forward\(\) missing 1 required .*'input'"):
        layer()


def test_swish_is_silu() -> None:
    with pytest.raises(ValueError, match=r"unknown activation 'swish': .*; did you mean 'silu'\?$"):
        nk.BatchNorm2d(3, activation="swish")


@pytest.mark.parametrize("layer", [nk.BatchNorm1d(4), nk.LayerNorm(4), nk.GroupNorm(2, 4)], ids=repr)
def test_masks_that_are_no_tensors(layer: nn.Module) -> None:
    x = torch.randn(5, 4)
    with pytest.raises(TypeError, match=r"got ndarray: torch\.from_numpy\(mask\)$"):
        layer(x, mask=np.ones(5, dtype=bool))
    with pytest.raises(TypeError, match=r"got list: torch\.tensor\(mask\)$"):
        layer(x, mask=[True] * 5)


@pytest.mark.parametrize("valid", [0, 1])
def test_a_mask_of_no_value_or_of_one(valid: int) -> None:
    """Zeros, and where there is one the bias; nothing moves, so that the next batch is the first."""
    layer, mask = nk.BatchNorm1d(4, momentum=None), torch.arange(5) < valid
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([1.0, -2.0, 3.0, 4.0]))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    y = layer(torch.randn(5, 4) + 7, mask=mask)
    assert torch.equal(y, torch.where(mask[:, None], layer.bias, 0.0))
    torch.testing.assert_close(dict(layer.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", [3, None, b"sketch"])
def test_the_name_of_a_domain_is_a_string(name: object) -> None:
    with pytest.raises(TypeError, match=r"^the name of a domain is a string, got "), nk.domain(name):
        pass


def test_a_domain_is_for_layers_of_ours() -> None:
    """As the page says: torch's go on with their ordinary statistics until `accelerate`."""
    model, x = nn.Sequential(nn.BatchNorm1d(3)), torch.randn(8, 3) + 5
    with nk.domain("photo"):
        model(x)
    assert model[0].num_batches_tracked == 1
    nk.accelerate(model)
    with nk.domain("photo"):
        model(x)
    assert model[0].num_batches_tracked == 1
    assert model[0].domains == ("photo",)


ELSEWHERE: dict[str, Callable[..., object]] = {
    "mask": lambda x, t: nk.BatchNorm1d(3)(x, mask=t[:, 0].bool()),
    "residual": lambda x, t: nk.BatchNorm1d(3)(x, residual=t),
    "rho": lambda x, t: nk.functional.batch_instance_norm(x, None, None, t[0, :, 0], training=True),
    "mean_weight": lambda x, t: nk.functional.switch_norm(
        x, None, None, t[0, :, 0], x[0, :, 0], training=True
    ),
    "var_weight": lambda x, t: nk.functional.switch_norm(
        x, None, None, x[0, :, 0], t[0, :, 0], training=True
    ),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_tensors_on_another_device_are_named(name: str) -> None:
    """Kernels would read where this process has nothing."""
    x = torch.randn(3, 3, 3)
    with pytest.raises(
        RuntimeError, match=f"^Expected all tensors .* on cpu and {name} is on meta: move one"
    ):
        ELSEWHERE[name](x, x.to("meta"))


def test_a_residual_is_a_tensor() -> None:
    with pytest.raises(TypeError, match=r"^residual must be a tensor of the input's shape, got float$"):
        nk.BatchNorm1d(3)(torch.randn(4, 3), residual=1.0)
