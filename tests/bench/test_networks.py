"""The networks are the published ones, and differ in nothing but their norm."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import normkit as nk
from normkit.bench.networks import NETWORKS
from normkit.bench.steps import build

PARAMETERS = {"MobileNetV2": 3_504_872, "DenseNet-121": 7_978_856, "ResNet-18": 11_689_512}
NORM_LAYERS = {"MobileNetV2": 52, "DenseNet-121": 121, "ResNet-18": 20}  # of the published networks

every_network = pytest.mark.parametrize("name", NETWORKS)


@every_network
def test_parameters_and_layers_are_as_published(name: str) -> None:
    network = NETWORKS[name](nn.BatchNorm2d)
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[name]
    assert sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) == NORM_LAYERS[name]


@every_network
def test_strides_leave_a_thirty_second_of_the_image(name: str) -> None:
    network = NETWORKS[name](nn.BatchNorm2d).eval()
    seen = []
    (pool,) = (module for module in network.modules() if isinstance(module, nn.AdaptiveAvgPool2d))
    pool.register_forward_hook(lambda module, args, y: seen.append(args[0].shape[2:]))
    with torch.no_grad():
        assert network(torch.randn(2, 3, 96, 96)).shape == (2, 1000)
    assert seen == [(3, 3)]


@every_network
def test_ours_is_the_same_network(name: str) -> None:
    """Same weights from the start, so the same function; float64, where the two agree closely."""
    ours, theirs = build(name, nk.BatchNorm2d), build(name, nn.BatchNorm2d)
    assert not any(type(module) is nn.BatchNorm2d for module in ours.modules())
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y, expected = ours.double()(x), theirs.double()(x)
    # 1e-16 of rounding, which over 20 to 121 batch norms of few values (2x2x4) grows by orders of magnitude
    torch.testing.assert_close(y, expected, rtol=1e-8, atol=1e-8)
