"""Norms that inherit nothing of torch's, as published models write them; and modules that only look like such."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import normkit as nk


class LlamaRMSNorm(nn.Module):
    """Statistics in float32, the weight in its own dtype."""

    def __init__(self, size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.variance_epsilon = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.promote_types(dtype, torch.float32))
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        return self.weight * hidden_states.to(dtype)


class GemmaRMSNorm(nn.Module):
    """Of a weight that begins at 0."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(size))
        self.eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return normed * (1 + self.scale)


class LayerNorm2d(nn.Module):
    """Over the channels at each position, as Segment Anything and ConvNeXt have it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        x = (x - u) / torch.sqrt(s + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class FrozenBatchNorm2d(nn.Module):
    """Of buffers alone, as detection models have it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))
        self.eps = 1e-5

    def forward(self, x: Tensor) -> Tensor:
        w, b, rv, rm = (
            t.reshape(1, -1, 1, 1) for t in (self.weight, self.bias, self.running_var, self.running_mean)
        )
        scale = w * (rv + self.eps).rsqrt()
        return x * scale + (b - rm * scale)


class Swapped(LlamaRMSNorm):
    """A name that says nothing: a layer norm of the last axis, with its shift first."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.shift = self.weight
        del self.weight
        self.gain = nn.Parameter(torch.ones(size))

    def forward(self, hidden_states: Tensor) -> Tensor:
        d = hidden_states - hidden_states.mean(-1, keepdim=True)
        return self.shift + self.gain * d / (d.square().mean(-1, keepdim=True) + self.variance_epsilon).sqrt()


NORMS = {
    "llama": (LlamaRMSNorm, (3, 7, 12), "rms_norm"),
    "gemma": (GemmaRMSNorm, (3, 7, 12), "rms_norm"),
    "layer2d": (LayerNorm2d, (3, 12, 5, 4), "layer_norm"),
    "frozen": (FrozenBatchNorm2d, (3, 12, 5, 4), "batch_norm"),
    "swapped": (Swapped, (3, 7, 12), "layer_norm"),
}


def filled(layer: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for tensor in layer.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return layer


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_they_become_ours(name: str, dtype: torch.dtype) -> None:
    kind, shape, function = NORMS[name]
    new = nn.Sequential(filled(kind(12)).to(dtype))
    old, layer, keys = copy.deepcopy(new), new[0], list(new.state_dict())
    random = torch.get_rng_state()
    outcome = nk.accelerate(new)
    assert outcome.done == {"0": f"{kind.__name__} by our {function}"}
    assert torch.equal(torch.get_rng_state(), random)
    assert new[0] is layer
    assert isinstance(layer, kind)
    assert list(new.state_dict()) == keys
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 2 + 1).to(dtype)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    for other in (new, copy.deepcopy(new), pickle.loads(pickle.dumps(new))):
        y, expected = other(leaves[0]), old(leaves[1])
        u = torch.finfo(dtype).eps
        # The old ones round at each step, ours once; values are below 10.
        torch.testing.assert_close(y, expected, rtol=8 * u, atol=40 * u)
        for model, leaf in ((other, leaves[0]), (old, leaves[1])):
            leaf.grad = None
            model(leaf).square().mean().backward()
        torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=32 * u, atol=40 * u)
    assert nk.accelerate(new).done == {}


def test_the_dtype_of_half_input_stays() -> None:
    """That of the float32 weight, where this multiplies last."""
    model = nn.Sequential(LlamaRMSNorm(12), FrozenBatchNorm2d(12))
    nk.accelerate(model)
    assert model[0](torch.ones(2, 12, dtype=torch.bfloat16)).dtype == torch.float32
    assert model[1](torch.ones(2, 12, 3, 3, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("name", NORMS)
def test_they_compile_and_export(name: str) -> None:
    kind, shape, _ = NORMS[name]
    layer, x = filled(kind(12)).eval(), torch.randn(shape, generator=torch.Generator().manual_seed(1))
    assert list(nk.accelerate(layer).done) == [""]
    y = layer(x)
    torch.testing.assert_close(torch.compile(layer, backend="eager", fullgraph=True)(x), y)
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), y)


def test_it_is_our_kernel_that_runs() -> None:
    """At a mean of a million, float32 leaves the old one no digit, and ours all but one."""
    layer = LayerNorm2d(16)
    x = torch.randint(0, 2, (4, 16, 3, 3), generator=torch.Generator().manual_seed(0)).float() + 1e6
    exact = copy.deepcopy(layer).double()(x.double()).float()
    nk.accelerate(model := nn.Sequential(layer))
    torch.testing.assert_close(model(x), exact, rtol=1e-5, atol=1e-5)


class Lookalike(LlamaRMSNorm):
    """The same tensors; what it computes is given."""

    def __init__(self, size: int, way: object) -> None:
        super().__init__(size)
        self.way = way

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.way(self, hidden_states, super().forward)


@pytest.mark.parametrize(
    "way",
    [
        lambda m, x, norm: x * m.weight,
        lambda m, x, norm: norm(x) + x,
        lambda m, x, norm: norm(x) if m.training else x,
        lambda m, x, norm: norm(x.detach()) + 0 * x,
        lambda m, x, norm: m.weight * x / (x.norm(dim=-1, keepdim=True) + m.variance_epsilon),
        lambda m, x, norm: m.weight * x * (x.pow(2).mean(-1, keepdim=True) + 10 * m.variance_epsilon).rsqrt(),
    ],
    ids=["scale", "residual", "training", "gradient", "length", "eps"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_only_looks_like_one_is_left(way: object, dtype: torch.dtype) -> None:
    model = nn.Sequential(Lookalike(12, way)).to(dtype)
    before = vars(model[0]).keys()
    outcome = nk.accelerate(model)
    assert outcome.done == {}
    assert outcome.left["0"] == "Lookalike has the parts of a norm, and none of ours computes what it does"
    assert type(model[0]) is Lookalike
    assert vars(model[0]).keys() == before


def test_other_modules_are_not_even_tried() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError

    model = nn.Sequential(Scale(), nn.Linear(4, 4))
    assert repr(nk.accelerate(model)) == "accelerate: 0 changed, 0 left: the model has no norm that is known"
