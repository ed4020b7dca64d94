"""Norms of weights: against the specification, beside torch's own parametrizations, and as parts of a module."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import weight_norm as old_weight_norm

import normkit as nk
from normkit import reference

UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
U32 = UNIT[torch.float32]

# Module, the name of its weight, the axis that counts outputs, an input.
MODULES = {
    "linear": (lambda: nn.Linear(6, 4), "weight", 0, (3, 6)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), "weight", 0, (2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3), "weight", 0, (2, 4, 7, 7)),
    "conv2d-groups": (lambda: nn.Conv2d(4, 6, 3, groups=2), "weight", 0, (2, 4, 7, 7)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), "weight", 0, (2, 2, 4, 4, 4)),
    "transposed1d": (lambda: nn.ConvTranspose1d(4, 6, 3), "weight", 1, (2, 4, 9)),
    "transposed2d": (lambda: nn.ConvTranspose2d(4, 6, 3), "weight", 1, (2, 4, 5, 5)),
    "transposed3d": (lambda: nn.ConvTranspose3d(2, 3, 2), "weight", 1, (2, 2, 3, 3, 3)),
    "lstm": (lambda: nn.LSTM(4, 5), "weight_hh_l0", 0, (3, 2, 4)),
    "gru": (lambda: nn.GRU(4, 5), "weight_ih_l0", 0, (3, 2, 4)),
}
every_module = pytest.mark.parametrize("kind", list(MODULES))

Put = Callable[[nn.Module, str, int], nn.Module]
OURS: dict[str, Put] = {
    "weight_norm": lambda m, name, dim: nk.weight_norm(m, name, dim),
    "weight_standardization": lambda m, name, dim: nk.weight_standardization(m, name),
    "spectral_norm": lambda m, name, dim: nk.spectral_norm(m, name),
}
TORCH: dict[str, Put] = {
    "weight_norm": lambda m, name, dim: parametrizations.weight_norm(m, name, dim),
    "spectral_norm": lambda m, name, dim: parametrizations.spectral_norm(m, name),
}
every_norm = pytest.mark.parametrize("norm", list(OURS))
every_twin = pytest.mark.parametrize("norm", list(TORCH))


def made(kind: str, put: Put | None = None, *, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    make, name, dim, _ = MODULES[kind]
    module = make()
    return module if put is None else put(module, name, dim)


def output(module: nn.Module, kind: str, *, seed: int = 7) -> Tensor:
    x = torch.randn(MODULES[kind][3], generator=torch.Generator().manual_seed(seed))
    y = module(x)
    return y[0] if isinstance(y, tuple) else y


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}


def bound(u: float, size: np.ndarray | float, dtype: torch.dtype, value: np.ndarray) -> np.ndarray:
    """So many roundings of the arithmetic, and for half types the one to storage."""
    smallest = torch.finfo(dtype).smallest_normal * UNIT[dtype]
    return u * size + (dtype.itemsize == 2) * (UNIT[dtype] * np.abs(value) + smallest)


class TestFunctions:
    """Against the specification: 8 u of the terms forward, 16 u of them backward, as for the norms of rows."""

    @pytest.mark.parametrize("dtype", list(UNIT), ids=str)
    @pytest.mark.parametrize(
        ("shape", "dim"), [((5, 7), 0), ((5, 7), 1), ((6, 4, 3, 3), 0), ((6, 4, 3, 3), 1), ((9,), 0)]
    )
    @pytest.mark.parametrize("magnitude", [1.0, 1e-3])
    def test_weight_norm(
        self, dtype: torch.dtype, shape: tuple[int, ...], dim: int, magnitude: float
    ) -> None:
        generator = torch.Generator().manual_seed(1)
        v = (torch.randn(shape, generator=generator) * magnitude).to(dtype).requires_grad_()
        sizes = [n if d == dim else 1 for d, n in enumerate(shape)]
        g = (torch.rand(sizes, generator=generator) + 0.5).to(dtype).requires_grad_()
        dw = torch.randn(shape, generator=generator).to(dtype)
        w = nk.functional.weight_norm(v, g, dim)
        w.backward(dw)
        assert w.dtype == dtype
        exact = [t.detach().double().numpy() for t in (v, g, dw)]
        expected, cache = reference.weight_norm(exact[0], exact[1].ravel(), dim)
        dv, dgamma, _ = reference.backward(exact[2], cache)
        filter_size = v.numel() // shape[dim]
        dg = dgamma.reshape(sizes) / np.sqrt(filter_size)
        # g is divided by a root first, in its own dtype: one rounding more.
        u = max(UNIT[dtype], 0 if dtype == torch.float64 else U32)
        scale = np.abs(cache.weight).reshape(sizes) / np.sqrt(cache.var).reshape(sizes)
        terms = scale * (np.abs(exact[2]) + np.abs(cache.xhat) * np.abs(exact[2] * cache.xhat).mean())
        for name, got, wanted, size in (
            ("w", w, expected, 8 * np.abs(expected)),
            ("dv", v.grad, dv, 16 * terms * filter_size),
            ("dg", g.grad, dg, 16 * np.abs(exact[2] * cache.xhat).sum() / np.sqrt(filter_size)),
        ):
            error = np.abs(got.detach().double().numpy() - wanted)
            assert (error <= bound(u, size, dtype, wanted)).all(), name

    def test_weight_norm_keeps_its_digits_where_squares_leave_float32(self) -> None:
        v = torch.randn(4, 50, generator=torch.Generator().manual_seed(2))
        g = torch.ones(4, 1)
        expected = reference.weight_norm(v.double().numpy(), np.ones(4))[0]
        for magnitude in (2.0**100, 2.0**-100):
            w = nk.functional.weight_norm(v * magnitude, g)
            np.testing.assert_allclose(w, expected, rtol=8 * U32)

    @pytest.mark.parametrize("dtype", list(UNIT), ids=str)
    @pytest.mark.parametrize(("shape", "dim"), [((5, 7), 0), ((6, 4, 3, 3), 0), ((6, 4, 3, 3), 1)])
    @pytest.mark.parametrize("offset", [0.0, 1e3])
    def test_weight_standardization(
        self, dtype: torch.dtype, shape: tuple[int, ...], dim: int, offset: float
    ) -> None:
        generator = torch.Generator().manual_seed(3)
        offset = min(offset, 10.0) if dtype.itemsize == 2 else offset  # bfloat16 counts in fours at 1e3
        weight = (torch.randn(shape, generator=generator) + offset).to(dtype).requires_grad_()
        dw = torch.randn(shape, generator=generator).to(dtype)
        standardized = nk.functional.weight_standardization(weight, dim=dim)
        standardized.backward(dw)
        expected, cache = reference.weight_standardization(weight.detach().double().numpy(), 1e-10, dim)
        dweight = reference.backward(dw.double().numpy(), cache)[0]
        u = UNIT[dtype] if dtype == torch.float64 else U32
        # In float64 the mean cannot be kept in anything wider: the specification has the same error.
        size = np.abs(expected) + (dtype == torch.float64)
        error = np.abs(standardized.detach().double().numpy() - expected)
        assert (error <= bound(8 * u, size, dtype, expected)).all()
        terms = (1 + np.abs(expected)) * np.abs(dw.double().numpy()).max() / np.sqrt(cache.var.min())
        error = np.abs(weight.grad.double().numpy() - dweight)
        assert (error <= bound(16 * u, terms, dtype, dweight)).all()

    def test_spectral_norm_at_the_singular_vectors(self) -> None:
        w = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        dw = torch.randn(w.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        expected, (u, _, v) = reference.spectral_norm(w.flatten(1).numpy())
        w.requires_grad_()
        got = nk.functional.spectral_norm(w, torch.tensor(u), torch.tensor(v))
        got.backward(dw)
        np.testing.assert_allclose(got.detach().flatten(1), expected, rtol=1e-14)
        gradient = reference.spectral_norm_backward(dw.flatten(1).numpy(), w.detach().flatten(1).numpy())
        np.testing.assert_allclose(
            w.grad.flatten(1), gradient, rtol=0, atol=1e-14 * np.abs(gradient).max() * 10
        )

    def test_spectral_norm_iterates_towards_the_singular_vectors(self) -> None:
        w = torch.randn(6, 4, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
        u, v = (nn.functional.normalize(torch.ones(n, dtype=torch.float64), dim=0) for n in (6, 4))
        got = nk.functional.spectral_norm(w, u, v, n_power_iterations=500)
        np.testing.assert_allclose(got, reference.spectral_norm(w.numpy())[0], rtol=1e-10)
        np.testing.assert_allclose(w @ v, torch.linalg.matrix_norm(w, 2) * u, rtol=1e-8)

    @pytest.mark.parametrize("dim", [0, 1])
    def test_derivatives(self, dim: int) -> None:
        generator = torch.Generator().manual_seed(8)
        w = torch.randn(3, 4, 2, generator=generator, dtype=torch.float64).requires_grad_()
        sizes = [n if d == dim else 1 for d, n in enumerate(w.shape)]
        g = (torch.rand(sizes, generator=generator, dtype=torch.float64) + 0.5).requires_grad_()
        u, v = (torch.randn(n, dtype=torch.float64) for n in (w.shape[dim], w.numel() // w.shape[dim]))
        for function, inputs in (
            (lambda w, g: nk.functional.weight_norm(w, g, dim), (w, g)),
            (lambda w: nk.functional.weight_standardization(w, dim=dim), (w,)),
            (lambda w: nk.functional.spectral_norm(w, u, v, dim=dim), (w,)),
        ):
            assert gradcheck(function, inputs, check_forward_ad=True, check_batched_grad=True)
            assert gradgradcheck(function, inputs)

    def test_wrong_arguments(self) -> None:
        w = torch.randn(3, 4)
        for dim in (2, -3):
            for call in (
                lambda d: nk.functional.weight_norm(w, torch.ones(3, 1), d),
                lambda d: nk.functional.weight_standardization(w, dim=d),
                lambda d: nk.functional.spectral_norm(w, torch.ones(3), torch.ones(4), dim=d),
            ):
                with pytest.raises(IndexError, match=r"range of \[-2, 1\], but got"):
                    call(dim)
        with pytest.raises(RuntimeError, match=r"g must have the shape \[3, 1\].* got \[3\]"):
            nk.functional.weight_norm(w, torch.ones(3))
        with pytest.raises(RuntimeError, match=r"one number, got shape \[3, 1\]"):
            nk.functional.weight_norm(w, torch.ones(3, 1), None)
        with pytest.raises(ValueError, match=r"more than one value .* shape \[3, 1\]"):
            nk.functional.weight_standardization(torch.ones(3, 1))
        with pytest.raises(ValueError, match="eps must not be negative, got -1"):
            nk.functional.weight_standardization(w, -1)
        with pytest.raises(RuntimeError, match=r"got \[4\] and \[3\]"):
            nk.functional.spectral_norm(w, torch.ones(4), torch.ones(3))


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
