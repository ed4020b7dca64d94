"""Norms of weights as parts of a module."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from weighted import MODULES, OURS, TORCH, U32, every_module, every_norm, made, output, state_of

import normkit as nk


class TestOnModules:
    @every_module
    def test_weight_norm_leaves_the_weight_what_it_was(self, kind: str) -> None:
        name = MODULES[kind][1]
        plain, normed = made(kind), made(kind, OURS["weight_norm"])
        torch.testing.assert_close(getattr(normed, name), getattr(plain, name), rtol=8 * U32, atol=0)
        torch.testing.assert_close(output(normed, kind), output(plain, kind), rtol=1e-5, atol=1e-6)

    @every_module
    def test_weight_standardization_by_output(self, kind: str) -> None:
        """Each output's filter has mean 0 and variance 1, which the outputs of impulses tell."""
        _, name, dim, _ = MODULES[kind]
        weight = getattr(made(kind, OURS["weight_standardization"]), name)
        filters = weight.movedim(dim, 0).flatten(1)
        torch.testing.assert_close(filters.mean(1), torch.zeros(len(filters)), rtol=0, atol=1e-6)
        variance = filters.var(1, correction=0)
        torch.testing.assert_close(variance, torch.ones(len(filters)), rtol=1e-5, atol=0)

    def test_weight_standardization_tells_the_groups_of_a_transposed_convolution_apart(self) -> None:
        """Two groups are two convolutions side by side."""
        torch.manual_seed(0)
        whole = nk.weight_standardization(nn.ConvTranspose1d(4, 6, 3, groups=2, bias=False))
        halves = [nk.weight_standardization(nn.ConvTranspose1d(2, 3, 3, bias=False)) for _ in range(2)]
        weight = whole.parametrizations.weight.original
        for half, part in zip(halves, weight.chunk(2), strict=True):
            half.parametrizations.weight.original.data.copy_(part)
        x = torch.randn(2, 4, 5)
        parts = [half(part) for half, part in zip(halves, x.chunk(2, 1), strict=True)]
        torch.testing.assert_close(whole(x), torch.cat(parts, 1), rtol=1e-5, atol=1e-6)

    @every_module
    @every_norm
    def test_removing_leaves_a_plain_module(self, kind: str, norm: str) -> None:
        module = made(kind, OURS[norm]).eval()
        name, expected = MODULES[kind][1], output(module, kind)
        parametrize.remove_parametrizations(module, name)
        assert type(module) is type(made(kind))
        assert isinstance(getattr(module, name), nn.Parameter)
        assert list(module.state_dict()) == list(made(kind).state_dict()) or set(module.state_dict()) == set(
            made(kind).state_dict()
        )
        torch.testing.assert_close(output(module, kind), expected, rtol=1e-6, atol=1e-6)
        again = pickle.loads(pickle.dumps(module))
        assert torch.equal(output(again, kind), output(module, kind))

    @every_module
    @every_norm
    def test_deepcopies_are_equal_and_independent(self, kind: str, norm: str) -> None:
        module = made(kind, OURS[norm])
        other, before = copy.deepcopy(module), state_of(module)
        assert repr(other) == repr(module)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.mul_(1.5).add_(0.1)
        output(other, kind)
        assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())

    @every_norm
    def test_assigning_a_weight(self, norm: str) -> None:
        layer, weight = OURS[norm](nn.Linear(3, 4), "weight", 0), torch.randn(4, 3)
        layer.weight = weight
        plain = nn.Linear(3, 4)
        plain.weight.data.copy_(weight)
        expected = weight if norm == "weight_norm" else OURS[norm](plain, "weight", 0).eval().weight
        if norm != "spectral_norm":
            torch.testing.assert_close(layer.weight, expected, rtol=8 * U32, atol=1e-6)

    @pytest.mark.parametrize("kind", ["linear", "conv2d", "transposed2d"])
    @every_norm
    @pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
    def test_compiles(self, kind: str, norm: str, backend: str) -> None:
        torch._dynamo.reset()
        plain, other = made(kind, OURS[norm]), made(kind, OURS[norm])
        compiled = torch.compile(other, fullgraph=True, backend=backend)
        for module, call in ((plain, plain), (other, compiled)):
            output(call, kind).sin().sum().backward()
            module.grads = [p.grad for p in module.parameters()]
        torch.testing.assert_close(other.grads, plain.grads, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("kind", ["linear", "conv2d"])
    @every_norm
    def test_exports(self, kind: str, norm: str) -> None:
        module = made(kind, OURS[norm]).eval()
        x = torch.randn(MODULES[kind][3])
        exported = torch.export.export(module, (x,)).module()
        torch.testing.assert_close(exported(x), module(x), rtol=1e-5, atol=1e-6)

    @every_norm
    def test_functional_call_and_vmap(self, norm: str) -> None:
        layer = OURS[norm](nn.Linear(3, 4), "weight", 0).eval()
        layers = [copy.deepcopy(layer) for _ in range(3)]
        for scale, other in enumerate(layers):
            for parameter in other.parameters():
                parameter.data.add_(torch.randn(parameter.shape) * 0.1 * scale)
        parameters, buffers = torch.func.stack_module_state(layers)
        x = torch.randn(5, 3)
        got = torch.func.vmap(
            lambda p, b: torch.func.functional_call(layers[0], {**p, **b}, (x,)), randomness="error"
        )(parameters, buffers)
        expected = torch.stack([layer(x) for layer in layers])
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)

    @every_norm
    def test_optimizing(self, norm: str) -> None:
        """The weight moves, and stays what the norm makes of it."""
        torch.manual_seed(0)
        layer = OURS[norm](nn.Linear(6, 4), "weight", 0)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        x, target = torch.randn(20, 6), torch.randn(20, 4)
        losses = []
        for _ in range(20):
            optimizer.zero_grad()
            loss = (layer(x) - target).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]

    def test_spectral_norm_in_evaluation_changes_nothing(self) -> None:
        layer = nk.spectral_norm(nn.Linear(3, 4)).eval()
        before = state_of(layer)
        layer(torch.randn(2, 3))
        assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
        with torch.no_grad():
            layer.parametrizations.weight.original.copy_(torch.randn(4, 3))
        layer.train()(torch.randn(2, 3))
        assert not torch.equal(layer.parametrizations.weight[0]._u, before["parametrizations.weight.0._u"])

    def test_spectral_norm_backward_after_another_forward(self) -> None:
        """As a discriminator is used: on real data, on generated data, then the gradient of both."""
        ours, twin = made("linear", OURS["spectral_norm"]), made("linear", TORCH["spectral_norm"])
        for layer in (ours, twin):
            (
                output(layer, "linear", seed=1).sum() - output(layer, "linear", seed=2).square().sum()
            ).backward()
        for a, b in zip(ours.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
    @every_norm
    def test_moves_between_dtypes(self, norm: str, dtype: torch.dtype) -> None:
        layer = OURS[norm](nn.Linear(6, 4), "weight", 0).to(dtype)
        assert layer.weight.dtype == dtype
        assert layer(torch.randn(3, 6, dtype=dtype)).dtype == dtype
