"""`kernels.combined`: statistics that are made of the batch's own, on both backends."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import normkit as nk
from normkit import kernels
from normkit.kernels import composed

EPS = 1e-5
ENGINES = ["compiled", "composed"]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def as_they_are(mean: Tensor, var: Tensor, count: object, weight: Tensor, bias: Tensor):
    return mean, var, weight, bias


def mixed(mean: Tensor, var: Tensor, count: object, weight: Tensor, bias: Tensor, rho: Tensor):
    """Towards statistics that all sets share: each element's mean and variance depend on every other element."""
    shared = mean.mean()
    return (
        rho * mean + (1 - rho) * shared,
        rho * var + (1 - rho) * (var.mean() + (mean - shared).square().mean()),
        weight * (1 + var),
        bias * mean,
    )


def run(
    engine: str,
    x: Tensor,
    combine,
    parameters,
    *,
    per_sample=False,
    activation=None,
    residual=None,
    mask=None,
):
    if engine == "composed":
        return composed.combined(x, combine, parameters, EPS, per_sample, activation, residual, mask)
    return kernels.combined(
        x,
        combine,
        parameters,
        EPS,
        per_sample=per_sample,
        activation=activation,
        residual=residual,
        mask=mask,
    )


def inputs(dtype: torch.dtype, layout: torch.memory_format = torch.contiguous_format) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = [
        torch.randn(size, generator=generator, dtype=torch.float64)
        for size in ((3, 4, 5, 3), (3, 4, 5, 3), 4, 4)
    ]
    made[:2] = [t.to(memory_format=layout) for t in made[:2]]
    return [t.to(dtype).requires_grad_() for t in made]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_moments_as_they_are_make_batch_norm(engine: str, layout: torch.memory_format) -> None:
    """Forward the same passes; backward the same sums take another way through float64."""
    x, residual, weight, bias = inputs(torch.float32, layout)
    y, stats, count = run(engine, x, as_they_are, (weight, bias), activation="silu", residual=residual)
    want = nk.functional.batch_norm(
        x, None, None, weight, bias, training=True, activation="silu", residual=residual
    )
    assert count == 45
    torch.testing.assert_close(y, want, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        stats[:2], torch.stack((x.double().mean((0, 2, 3)), x.double().var((0, 2, 3), False)))
    )
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    for got, expected in zip(
        torch.autograd.grad(y, (x, residual, weight, bias), dy),
        torch.autograd.grad(want, (x, residual, weight, bias), dy),
        strict=True,
    ):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_per_sample_makes_instance_norm(engine: str, layout: torch.memory_format) -> None:
    x, _, weight, bias = inputs(torch.float64, layout)
    y, _, count = run(engine, x, as_they_are, (weight, bias), per_sample=True)
    assert count == 15
    torch.testing.assert_close(y, torch.nn.functional.instance_norm(x, None, None, weight, bias))


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_everything(per_sample: bool, masked: bool) -> None:
    """Against finite differences, in float64; and those of the gradients."""
    x, residual, weight, bias = inputs(torch.float64)
    rho = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(3, 5, 3, generator=torch.Generator().manual_seed(2)) > 0.3 if masked else None

    def y(x: Tensor, residual: Tensor, *parameters: Tensor) -> Tensor:
        options = {"per_sample": per_sample, "activation": "tanh", "residual": residual, "mask": mask}
        return run("compiled", x, mixed, parameters, **options)[0]

    assert torch.autograd.gradcheck(y, (x, residual, weight, bias, rho))
    assert torch.autograd.gradgradcheck(y, (x, residual, weight, bias, rho))


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_backends_agree(dtype: torch.dtype, per_sample: bool) -> None:
    """Both compute in float32 or wider and round once, so they differ by units of the largest value."""
    x, residual, weight, bias = inputs(dtype)
    rho = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    results = []
    for engine in ENGINES:
        y, stats, _ = run(engine, x, mixed, (weight, bias, rho), per_sample=per_sample, residual=residual)
        gradients = torch.autograd.grad(y.float().square().sum(), (x, residual, weight, bias, rho))
        results.append((y, stats[:2], *gradients))
    unit = torch.finfo(dtype).eps
    for a, b in zip(*results, strict=True):
        assert (a - b).abs().max() <= 32 * unit * b.abs().max()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("per_sample", [False, True])
def test_padding_is_not_there(engine: str, per_sample: bool) -> None:
    """NaN behind the mask changes nothing; a sample with nothing but padding is counted as nothing."""
    x, _, weight, bias = inputs(torch.float32)
    mask = torch.ones(3, 5, 3, dtype=torch.bool)
    mask[:, 2] = False
    mask[1] = False
    holes = torch.where(mask[:, None], x, torch.nan).detach().requires_grad_()
    y, _, count = run(engine, holes, as_they_are, (weight, bias), per_sample=per_sample, mask=mask)
    assert torch.equal(y.isfinite(), torch.ones_like(y, dtype=torch.bool))
    assert not y.masked_select(~mask[:, None].expand_as(y)).any()
    kept = x.detach()[[0, 2]][:, :, [0, 1, 3, 4]].requires_grad_()
    alone, _, n = run(engine, kept, as_they_are, (weight, bias), per_sample=per_sample)
    torch.testing.assert_close(y[[0, 2]][:, :, [0, 1, 3, 4]], alone)
    assert torch.as_tensor(count).flatten().tolist() == ([n, 0, n] if per_sample else [n])
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    dx, dw = torch.autograd.grad(y, (holes, weight), dy)
    dkept, dw_alone = torch.autograd.grad(alone, (kept, weight), dy[[0, 2]][:, :, [0, 1, 3, 4]])
    torch.testing.assert_close(dx[[0, 2]][:, :, [0, 1, 3, 4]], dkept, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(dw, dw_alone, rtol=1e-5, atol=1e-6)
    assert not dx.masked_select(~mask[:, None].expand_as(dx)).any()


@pytest.mark.parametrize("engine", ENGINES)
def test_an_empty_batch_has_moments_that_count_nothing(engine: str) -> None:
    _, _, weight, bias = inputs(torch.float32)
    y, stats, count = run(engine, torch.empty(0, 4, 5, 3), as_they_are, (weight, bias))
    assert (y.shape, count) == ((0, 4, 5, 3), 0)
    assert not stats.any()


def test_a_mean_far_away_costs_no_digits() -> None:
    """Against float64: 4 units in the last place of the output, as the norms themselves."""
    x = torch.randn(8, 4, 16, 16) + 1e6
    weight, bias = torch.ones(4), torch.zeros(4)
    y, _, _ = run("compiled", x, as_they_are, (weight, bias))
    exact = x.double() - x.double().mean((0, 2, 3), keepdim=True)
    exact = exact / (exact.square().mean((0, 2, 3), keepdim=True) + EPS).sqrt()
    assert ((y - exact).abs() <= 4 * 2.0**-24 * exact.abs()).all()


def test_under_compile_it_is_torch_operations() -> None:
    x, _, weight, bias = inputs(torch.float32)
    compiled = torch.compile(
        lambda x: run("compiled", x, as_they_are, (weight, bias))[0], backend="aot_eager", fullgraph=True
    )
    torch.testing.assert_close(compiled(x), run("composed", x, as_they_are, (weight, bias))[0])
