"""What is said to have one shape has it, for inputs of every size."""

from __future__ import annotations

import itertools

import pytest
import torch
from networks import NETWORKS, network
from torch import Tensor, fx, nn

from normkit.surgery.dataflow import Flow
from normkit.surgery.ours import NORMS
from normkit.surgery.shapes import Forms

LAYERS = {
    "convolutions": [
        nn.Conv2d(3, 3, 3, 2, 1), nn.Conv2d(3, 3, 1, 2), nn.Conv2d(3, 3, 2, 2), nn.Conv2d(3, 3, 5, 2, 2),
        nn.Conv2d(3, 3, 3, padding="same", dilation=2), nn.Conv2d(3, 3, 3, (1, 2), 1), nn.Conv2d(3, 4, 1),
    ],
    "pools": [
        nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2), nn.AvgPool2d(2, ceil_mode=True), nn.AvgPool2d(3, 1, 1),
        nn.MaxPool2d(4, 2, 2, dilation=2), nn.AdaptiveAvgPool2d(5), nn.LPPool2d(2, 2),
    ],
    "others": [nn.ReLU(), nn.BatchNorm2d(3), nn.Dropout(), nn.PixelUnshuffle(1), nn.Flatten(2), nn.GLU(3)],
}  # fmt: skip


class Chains(nn.Module):
    """Every layer alone, and after every other."""

    def __init__(self, first: list[nn.Module], then: list[nn.Module]) -> None:
        super().__init__()
        self.first, self.then = nn.ModuleList(first), nn.ModuleList(then)

    def forward(self, x: Tensor) -> list[Tensor]:
        ones = [layer(x) for layer in self.first]
        return [*ones, *(layer(y) for y in ones[:6] if y is not None for layer in self.then)]


def sizes_of(flow: Flow, *inputs: Tensor) -> dict[fx.Node, tuple[object, ...]]:
    """Of every node, the shapes that it has for some inputs."""
    found: dict[fx.Node, tuple[object, ...]] = {}
    for x in inputs:
        flow.find_shapes(x)
        for node in flow.graph.nodes:
            found[node] = (*found.get(node, ()), node.meta.pop("shape", None))
    return {node: shapes for node, shapes in found.items() if None not in shapes}


def check(flow: Flow, *inputs: Tensor) -> int:
    """How many pairs are said to have one shape; all have it."""
    forms, shapes = Forms(flow), sizes_of(flow, *inputs)
    said = [(a, b) for a, b in itertools.combinations(shapes, 2) if forms.same(a, b)]
    assert all(shapes[a] == shapes[b] for a, b in said)
    return len(said)


@pytest.mark.parametrize("name", NETWORKS)
def test_in_networks(name: str) -> None:
    shape = NETWORKS[name][1]
    inputs = [torch.randn(shape[0] + n, *shape[1:], dtype=torch.float64) for n in (0, 1)]
    if len(shape) == 4 and name != "unet":
        inputs += [torch.randn(2, shape[1], height, 15, dtype=torch.float64) for height in (11, 13, 16)]
    check(Flow(network(name).eval(), NORMS, training=False), *inputs)


@pytest.mark.parametrize("kind", LAYERS)
def test_of_layers(kind: str) -> None:
    model = Chains(
        LAYERS["convolutions"], LAYERS[kind][:-1] if kind == "convolutions" else LAYERS[kind][:5]
    ).eval()
    flow = Flow(model, (nn.ReLU, nn.BatchNorm2d, nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d), training=False)
    inputs = [torch.randn(2, 3, height, width) for height, width in ((13, 14), (14, 17), (15, 16), (20, 13))]
    assert check(flow, *inputs) > 10


def test_what_is_the_same_is_found() -> None:
    pairs = [
        (nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(3, 4, 1, 2)),
        (nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.MaxPool2d(2)), nn.Conv2d(3, 4, 1, 4, bias=False)),
    ]

    class Sum(nn.Module):
        def __init__(self, a: nn.Module, b: nn.Module) -> None:
            super().__init__()
            self.a, self.b, self.norm = a, b, nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.a(x)) + self.b(x)

    told = []
    for a, b in pairs:
        flow = Flow(Sum(a, b), (nn.BatchNorm2d, nn.Conv2d, nn.MaxPool2d), training=False)
        (total,) = (node for node in flow.graph.nodes if node.op == "call_function")
        told.append(Forms(flow).same(*total.args))
    # floor((floor((L + 1) / 2)) / 2) = floor((L + 1) / 4), and the other is floor((L + 3) / 4).
    assert told == [True, False]
