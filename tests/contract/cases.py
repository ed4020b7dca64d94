"""The layers that the contract holds for. A new norm joins by one line of `CASES`.

A case knows how to make our layer and torch's (its twin, where torch has one), an input, and what
`normkit.reference` says of it. Everything else in this folder runs over all cases and knows no layer by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit import reference

# Unit roundoff of each dtype: half the distance from 1 to the next number.
UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
DTYPES = tuple(UNIT)


@dataclass(frozen=True)
class Case:
    """One layer in one configuration.

    forward is a function of `reference`, (x, weight, bias, **other) -> (y, cache), other being what else the
    layer learns, by name. `reference.backward(dy, cache)` returns the gradients in that order, x first.
    """

    name: str
    ours: Callable[..., nn.Module]
    shape: tuple[int, ...]
    forward: Callable[..., tuple[np.ndarray, Any]]
    twin: Callable[..., nn.Module] | None = None
    activation: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    centered: bool = True  # a constant input comes out as the bias
    feature_axis: int = 1  # its size is fixed by the layer
    least_batch: int = 2  # that an exported program takes
    # (cache, dz, parameters) -> what error bounds refer to, for a cache that `_magnitudes` cannot read
    magnitudes: Callable[..., dict[str, np.ndarray]] | None = None

    def make(self, *, seed: int = 0, **kwargs: Any) -> nn.Module:
        """Our layer, its affine parameters away from one and zero."""
        return _shake(self.ours(**self.options, **self._activation(), **kwargs), seed)

    def make_twin(self, *, seed: int = 0, **kwargs: Any) -> nn.Module:
        """torch's layer with the same parameters; the activation is not part of it."""
        assert self.twin is not None, "for the cases of every_twin"
        return _shake(self.twin(**self.options, **kwargs), seed)

    def input(self, dtype: torch.dtype = torch.float32, *, seed: int = 1, offset: float = 0.0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return (torch.randn(self.shape, generator=generator, dtype=torch.float64) + offset).to(dtype)

    def activate(self, y: Tensor) -> Tensor:
        """What our layer does after what its twin does."""
        return y if self.activation is None else nk.kernels.composed.ACTIVATIONS[self.activation](y)

    def expected(self, layer: nn.Module, x: Tensor, dy: Tensor) -> dict[str, np.ndarray]:
        """Output and gradients by the specification; under "|y|", "|dx|"... what error bounds refer to."""
        names = ["weight", "bias", *(n for n, _ in layer.named_parameters() if n not in ("weight", "bias"))]
        parameters = {name: _array(getattr(layer, name, None)) for name in names}
        z, cache = self.forward(_array(x), **parameters)
        activate, derivative = reference.ACTIVATIONS.get(self.activation, (lambda v: v, np.ones_like))
        dz = _array(dy) * derivative(z)
        dx, *rest = reference.backward(dz, cache)
        gradients = {f"d{name}": gradient for name, gradient in zip(names, rest, strict=True)}
        magnitudes = (self.magnitudes or _magnitudes)(cache, dz, parameters)
        return {"y": activate(z), "dx": dx, **gradients, **magnitudes}

    def _activation(self) -> dict[str, str]:
        return {} if self.activation is None else {"activation": self.activation}


def _magnitudes(
    cache: reference.Cache, dz: np.ndarray, parameters: dict[str, np.ndarray | None]
) -> dict[str, np.ndarray]:
    """What error bounds refer to: the terms of each result, without their signs."""
    shape = [n if i in cache.affine_axes else 1 for i, n in enumerate(dz.shape)]
    weight, bias = parameters["weight"], parameters["bias"]
    gamma = np.ones(shape) if weight is None else np.abs(weight.reshape(shape))
    beta = np.zeros(shape) if bias is None else np.abs(bias.reshape(shape))

    def set_mean(a: np.ndarray) -> np.ndarray:
        """The mean over the elements that share a statistic, at each of them."""
        view = a.reshape(cache.valid.shape)
        return np.broadcast_to(view.mean(cache.axes, keepdims=True), view.shape).reshape(a.shape)

    sigma = np.sqrt(np.expand_dims(cache.var, cache.axes) + cache.eps)
    sigma = np.broadcast_to(sigma, cache.valid.shape).reshape(dz.shape)
    g, xhat = gamma * np.abs(dz), np.abs(cache.xhat)
    return {
        "|y|": gamma * xhat + beta,
        "|gamma|": gamma,
        "|dx|": (g + set_mean(g) + xhat * set_mean(g * xhat)) / sigma,
        "|dweight|": np.abs(dz * xhat).sum(),
        "|dbias|": np.abs(dz).sum(),
    }


def _shake(layer: nn.Module, seed: int) -> nn.Module:
    """Distinct parameters, so that a forgotten or exchanged one shows."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        if not parameter.is_meta:
            noise = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data.copy_(0.5 + noise)
    return layer


def _array(x: Tensor | None) -> np.ndarray | None:
    return None if x is None else x.detach().double().numpy()


def _layer(ndim: int) -> Callable[..., tuple[np.ndarray, reference.Cache]]:
    return lambda x, weight, bias: reference.layer_norm(x, ndim, weight, bias)


def _rms(x: np.ndarray, weight: np.ndarray | None, bias: None) -> tuple[np.ndarray, reference.Cache]:
    return reference.rms_norm(x, 1, weight, eps=1e-5)


def _group(groups: int) -> Callable[..., tuple[np.ndarray, reference.Cache]]:
    return lambda x, weight, bias: reference.group_norm(x, groups, weight, bias)


_batch, _instance = reference.batch_norm, reference.instance_norm


def _bn(dim: int, **kwargs: Any) -> dict[str, Any]:
    ours = (nk.BatchNorm1d, nk.BatchNorm2d, nk.BatchNorm3d)[dim - 1]
    twin = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dim - 1]
    return {"ours": partial(ours, 6), "twin": partial(twin, 6), "forward": _batch, **kwargs}


def _in(dim: int, **kwargs: Any) -> dict[str, Any]:
    ours = (nk.InstanceNorm1d, nk.InstanceNorm2d, nk.InstanceNorm3d)[dim - 1]
    twin = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[dim - 1]
    return {"ours": partial(ours, 6), "twin": partial(twin, 6), "forward": _instance, **kwargs}


def _ln(*shape: int, **kwargs: Any) -> dict[str, Any]:
    return {
        "ours": partial(nk.LayerNorm, shape),
        "twin": partial(nn.LayerNorm, shape),
        "forward": _layer(len(shape)),
        "feature_axis": -1,
        **kwargs,
    }


def _gn(groups: int, **kwargs: Any) -> dict[str, Any]:
    return {
        "ours": partial(nk.GroupNorm, groups, 6),
        "twin": partial(nn.GroupNorm, groups, 6),
        "forward": _group(groups),
        **kwargs,
    }


def _frn(**kwargs: Any) -> dict[str, Any]:
    return {
        "ours": partial(nk.FilterResponseNorm, 6),
        "forward": reference.filter_response_norm,
        "centered": False,
        "magnitudes": _filter_response_magnitudes,
        **kwargs,
    }


def _filter_response_magnitudes(
    cache: reference.FilterResponseCache, dz: np.ndarray, parameters: dict[str, np.ndarray | None]
) -> dict[str, np.ndarray]:
    """The threshold is taken off and put back, so it counts among the terms of y."""
    magnitudes = _magnitudes(cache, dz, parameters)
    slopes = magnitudes["|gamma|"] * np.abs(dz * cache.xhat)
    variance = np.expand_dims(cache.var + cache.eps, cache.axes)
    magnitudes["|dthreshold|"] = np.abs(dz).sum()
    magnitudes["|dlearned_eps|"] = (slopes / (2 * variance)).sum()
    if (threshold := parameters.get("threshold")) is not None:
        shape = [-1 if axis == 1 else 1 for axis in range(dz.ndim)]
        magnitudes["|y|"] = magnitudes["|y|"] + 2 * np.abs(threshold.reshape(shape))
    return magnitudes


def _tanh_magnitudes(
    cache: reference.TanhCache, dy: np.ndarray, parameters: dict[str, np.ndarray | None]
) -> dict[str, np.ndarray]:
    """The slope 1 - tanh² is a difference of numbers of the size of 1."""
    gamma, beta = (0 if p is None else np.abs(p) for p in (parameters["weight"], parameters["bias"]))
    gamma = np.ones(()) if parameters["weight"] is None else gamma
    t = np.abs(np.tanh(cache.alpha * cache.x))
    return {
        "|y|": gamma * t + beta,
        "|gamma|": np.broadcast_to(gamma, t.shape),
        "|dx|": gamma * np.abs(dy) * cache.alpha,
        "|dweight|": np.abs(dy * t).sum(),
        "|dbias|": np.abs(dy).sum(),
        "|dalpha|": (gamma * np.abs(dy * cache.x)).sum(),
    }


class _AtStep(nk.RecurrentBatchNorm):
    """The contract calls a layer with its input alone."""

    def forward(self, input: Tensor, *, step: int = 1) -> Tensor:
        return super().forward(input, step=step)


def _tanh(**kwargs: Any) -> dict[str, Any]:
    return {
        "ours": partial(nk.DynamicTanh, 12),
        "forward": reference.dynamic_tanh,
        "magnitudes": _tanh_magnitudes,
        "centered": False,
        "feature_axis": -1,
        **kwargs,
    }


def _ghost(dim: int, size: int, **kwargs: Any) -> dict[str, Any]:
    return {
        "ours": partial((nk.GhostBatchNorm1d, nk.GhostBatchNorm2d, nk.GhostBatchNorm3d)[dim - 1], 6),
        "forward": lambda x, weight, bias: reference.ghost_batch_norm(x, size, weight, bias),
        "magnitudes": _ghost_magnitudes,
        "options": {"ghost_size": size},
        "least_batch": size + 1,
        **kwargs,
    }


def _ghost_magnitudes(
    cache: reference.Ghosts, dz: np.ndarray, parameters: dict[str, np.ndarray | None]
) -> dict[str, np.ndarray]:
    """Those of each sub-batch; sums over all of them where the parameters are shared."""
    cuts = np.cumsum([len(part.xhat) for part in cache.parts])[:-1]
    parts = [
        _magnitudes(part, piece, parameters)
        for part, piece in zip(cache.parts, np.split(dz, cuts), strict=True)
    ]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in ("|y|", "|dx|")}
    summed = {name: sum(part[name] for part in parts) for name in ("|dweight|", "|dbias|")}
    return {**joined, **summed, "|gamma|": parts[0]["|gamma|"]}


def _renorm(dim: int, **kwargs: Any) -> dict[str, Any]:
    """At the end of its schedule, and so far from the running statistics that r and d stay at their limits.

    There finite differences see them as the gradient does, as constants.
    """
    layer = (nk.BatchRenorm1d, nk.BatchRenorm2d, nk.BatchRenorm3d)[dim - 1]
    mean, var, r_max, d_max = -2.0, 0.25, 1.1, 0.2

    def make(**options: Any) -> nn.Module:
        made = layer(6, r_max=r_max, d_max=d_max, warmup=0, r_steps=0, d_steps=0, **options)
        made.running_mean.fill_(mean)
        made.running_var.fill_(var)
        return made

    known = {"running_mean": np.full(6, mean), "running_var": np.full(6, var)}
    return {
        "ours": make,
        "forward": partial(reference.batch_renorm, **known, r_max=r_max, d_max=d_max),
        "magnitudes": _renorm_magnitudes,
        "centered": False,
        **kwargs,
    }


def _renorm_magnitudes(
    cache: reference.Corrected, dz: np.ndarray, parameters: dict[str, np.ndarray | None]
) -> dict[str, np.ndarray]:
    """Those of batch norm with the weight γ r, and what d adds."""
    gamma = np.ones(6) if cache.weight is None else cache.weight
    inner = _magnitudes(cache.batch, dz, {"weight": gamma * cache.r, "bias": gamma * cache.d})
    shape = [6 if axis == 1 else 1 for axis in range(dz.ndim)]
    beta = 0.0 if cache.bias is None else np.abs(cache.bias).reshape(shape)
    xhat = cache.r.reshape(shape) * np.abs(cache.batch.xhat) + np.abs(cache.d).reshape(shape)
    return {**inner, "|y|": inner["|y|"] + beta, "|dweight|": np.abs(dz * xhat).sum()}


def _by_running(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, reference.Cache]:
    """By what a new layer's running statistics are."""
    return reference.batch_norm_inference(x, np.zeros(6), np.ones(6), weight, bias)


def _frozen(**kwargs: Any) -> nn.Module:
    return nk.BatchNorm2d(6, **kwargs).freeze()


CASES = (
    Case("batch1d", shape=(16, 6), **_bn(1)),
    Case("batch1d-sequence", shape=(5, 6, 7), **_bn(1)),
    Case("batch2d", shape=(4, 6, 5, 3), **_bn(2)),
    Case("batch3d", shape=(3, 6, 2, 3, 4), **_bn(3)),
    Case("batch2d-no-bias", shape=(4, 6, 5, 3), **_bn(2, options={"bias": False})),
    Case("batch2d-plain", shape=(4, 6, 5, 3), **_bn(2, options={"affine": False})),
    Case("batch2d-cumulative", shape=(4, 6, 5, 3), **_bn(2, options={"momentum": None})),
    Case("batch2d-untracked", shape=(4, 6, 5, 3), **_bn(2, options={"track_running_stats": False})),
    *(
        Case(f"batch2d-{name}", shape=(4, 6, 5, 3), **_bn(2, activation=name))
        for name in nk.kernels.ACTIVATIONS
    ),
    Case(
        "batch2d-guarded",
        shape=(4, 6, 5, 3),
        **_bn(2, twin=None, options={"guard": "nonfinite", "momentum": None}),
    ),
    Case(
        "batch2d-by-running",
        shape=(4, 6, 5, 3),
        **_bn(2, twin=None, forward=_by_running, centered=False, options={"training_statistics": "running"}),
    ),
    Case("batch2d-frozen", shape=(4, 6, 5, 3), ours=_frozen, forward=_by_running, centered=False),
    Case("ghost1d", shape=(10, 6), **_ghost(1, 4)),
    Case("ghost1d-sequence", shape=(4, 6, 7), **_ghost(1, 2)),
    Case("ghost2d", shape=(5, 6, 5, 3), **_ghost(2, 2)),
    Case("ghost2d-silu", shape=(5, 6, 5, 3), **_ghost(2, 3, activation="silu")),
    Case("ghost3d", shape=(3, 6, 2, 3, 4), **_ghost(3, 2)),
    Case(
        "ghost2d-plain",
        shape=(5, 6, 5, 3),
        **_ghost(2, 3, options={"ghost_size": 3, "affine": False, "momentum": None}),
    ),
    Case("renorm1d", shape=(16, 6), **_renorm(1)),
    Case("renorm2d", shape=(4, 6, 5, 3), **_renorm(2)),
    Case("renorm2d-silu", shape=(4, 6, 5, 3), **_renorm(2, activation="silu")),
    Case("renorm3d", shape=(3, 6, 2, 3, 4), **_renorm(3)),
    Case("renorm2d-warm-up", shape=(4, 6, 5, 3), ours=partial(nk.BatchRenorm2d, 6), forward=_batch),
    Case("layer", shape=(4, 5, 12), **_ln(12)),
    Case("layer-two-axes", shape=(4, 3, 5, 4), **_ln(5, 4)),
    Case("layer-no-bias", shape=(4, 12), **_ln(12, options={"bias": False})),
    Case("layer-plain", shape=(4, 12), **_ln(12, options={"elementwise_affine": False})),
    Case(
        "rms",
        ours=partial(nk.RMSNorm, 12),
        twin=partial(nn.RMSNorm, 12),
        shape=(4, 5, 12),
        forward=_rms,
        options={"eps": 1e-5},
        centered=False,
        feature_axis=-1,
    ),
    Case("group", shape=(4, 6, 5, 3), **_gn(3)),
    Case("group-flat", shape=(4, 6), **_gn(3)),
    Case("group-plain", shape=(4, 6, 5), **_gn(2, options={"affine": False})),
    Case("group-silu", shape=(4, 6, 5, 3), **_gn(3, activation="silu")),
    Case("instance1d", shape=(4, 6, 7), **_in(1)),
    Case("instance2d", shape=(4, 6, 5, 3), **_in(2)),
    Case("instance3d", shape=(3, 6, 2, 3, 4), **_in(3)),
    Case("instance2d-affine", shape=(4, 6, 5, 3), **_in(2, options={"affine": True})),
    Case(
        "instance2d-tracked",
        shape=(4, 6, 5, 3),
        **_in(2, options={"affine": True, "track_running_stats": True}),
    ),
    Case("instance2d-relu", shape=(4, 6, 5, 3), **_in(2, activation="relu", options={"affine": True})),
    Case("filter-response", shape=(4, 6, 5, 3), **_frn()),
    Case("filter-response-flat", shape=(4, 6), **_frn(options={"learn_eps": True})),
    Case("filter-response-plain", shape=(4, 6, 7), **_frn(options={"affine": False})),
    Case(
        "filter-response-3d", shape=(3, 6, 2, 3, 4), **_frn(options={"learn_eps": True, "threshold": False})
    ),
    Case("dynamic-tanh", shape=(4, 5, 12), **_tanh()),
    Case("dynamic-tanh-no-bias", shape=(4, 12), **_tanh(options={"bias": False})),
    Case("dynamic-tanh-plain", shape=(4, 12), **_tanh(options={"elementwise_affine": False})),
    Case(
        "recurrent",
        ours=partial(_AtStep, 6),
        shape=(16, 6),
        forward=_batch,
        options={"max_length": 3},
    ),
    Case(
        "recurrent-convolution",
        ours=partial(_AtStep, 6),
        shape=(4, 6, 5, 3),
        forward=_batch,
        options={"max_length": 1, "momentum": None},
    ),
)

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_twin = pytest.mark.parametrize("case", [c for c in CASES if c.twin], ids=lambda case: case.name)
every_twinless = pytest.mark.parametrize(
    "case", [c for c in CASES if c.twin is None], ids=lambda case: case.name
)
every_mode = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
