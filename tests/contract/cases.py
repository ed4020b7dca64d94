"""The layers that the contract holds for. A new norm joins by one line of `CASES`.

A case knows how to make our layer and torch's (its twin, where torch has one), an input, and what
`normkit.reference` says of it. Everything else in this folder runs over all cases and knows no layer by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import magnitudes
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit import reference
from normkit.norms.tracing import one_node

# Unit roundoff of each dtype: half the distance from 1 to the next number.
UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
DTYPES = tuple(UNIT)


@dataclass(frozen=True)
class Case:
    """One layer in one configuration.

    forward is a function of `reference`, (x, weight=, bias=, **other) -> (y, cache), other being what else the
    layer learns, by name. `reference.backward(dy, cache)` returns the gradients in that order, x first.
    """

    name: str
    ours: Callable[..., nn.Module]
    shape: tuple[int, ...]
    forward: Callable[..., tuple[np.ndarray, Any]]
    twin: Callable[..., nn.Module] | None = None
    activation: str | None = None
    base: type | None = None  # of torch, what it is an instance of, where that is not the twin's class
    options: dict[str, Any] = field(default_factory=dict)
    centered: bool = True  # a constant input comes out as the bias
    feature_axis: int = 1  # its size is fixed by the layer
    span: dict[str, tuple[float, float]] = field(default_factory=dict)  # of parameters, where not [0.5, 1.5]
    least_batch: int = 2  # that an exported program takes
    # (cache, dz, parameters) -> what error bounds refer to, for a cache that `magnitudes.of_norm` cannot read
    magnitudes: Callable[..., dict[str, np.ndarray]] | None = None

    def make(self, *, seed: int = 0, **kwargs: Any) -> nn.Module:
        """Our layer, its affine parameters away from one and zero."""
        return _shake(self.ours(**self.options, **self._activation(), **kwargs), seed, self.span)

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
        terms = (self.magnitudes or magnitudes.of_norm)(cache, dz, parameters)
        return {"y": activate(z), "dx": dx, **gradients, **terms}

    def _activation(self) -> dict[str, str]:
        return {} if self.activation is None else {"activation": self.activation}


def _shake(layer: nn.Module, seed: int, span: dict[str, tuple[float, float]] | None = None) -> nn.Module:
    """Distinct parameters, so that a forgotten or exchanged one shows."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in layer.named_parameters():
        if not parameter.is_meta:
            noise = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
            low, high = (span or {}).get(name, (0.5, 1.5))
            parameter.data.copy_(low + (high - low) * noise)
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
        "magnitudes": magnitudes.of_filter_response,
        **kwargs,
    }


def _sn(dim: int, **kwargs: Any) -> dict[str, Any]:
    ours = (nk.SwitchNorm1d, nk.SwitchNorm2d, nk.SwitchNorm3d)[dim - 1]
    return {
        "ours": partial(ours, 6),
        "forward": reference.switch_norm,
        "magnitudes": magnitudes.of_mixture,
        **kwargs,
    }


class _AtStep(nk.RecurrentBatchNorm):
    """The contract calls a layer with its input alone."""

    def forward(self, input: Tensor, *, step: int = 1) -> Tensor:
        return super().forward(input, step=step)


def _tanh(**kwargs: Any) -> dict[str, Any]:
    return {
        "ours": partial(nk.DynamicTanh, 12),
        "forward": reference.dynamic_tanh,
        "magnitudes": magnitudes.of_tanh,
        "centered": False,
        "feature_axis": -1,
        **kwargs,
    }


def _bin(dim: int, **kwargs: Any) -> dict[str, Any]:
    ours = (nk.BatchInstanceNorm1d, nk.BatchInstanceNorm2d, nk.BatchInstanceNorm3d)[dim - 1]
    return {
        "ours": partial(ours, 6),
        "forward": reference.batch_instance_norm,
        "magnitudes": magnitudes.of_interpolation,
        "span": {"rho": (0.0, 1.0)},
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


def _abn(dim: int, **kwargs: Any) -> dict[str, Any]:
    ours = (nk.AdaptiveBatchNorm1d, nk.AdaptiveBatchNorm2d, nk.AdaptiveBatchNorm3d)[dim - 1]
    return {"ours": partial(ours, 6), "forward": _batch, **kwargs}


# Of a reference batch of two samples, whose statistics every dtype holds exactly: mean ± √variance.
_MEAN, _VAR = np.array([0.5, -1, 2, 0, -0.25, 1]), np.array([1.0, 4, 0.25, 1, 4, 0.0625])


def _virtual(layer: type[nn.Module], dim: int, **kwargs: Any) -> nn.Module:
    """A layer with its reference set."""
    made = layer(6, **kwargs)
    pair = torch.tensor(np.stack([_MEAN - np.sqrt(_VAR), _MEAN + np.sqrt(_VAR)]))
    made.set_reference(pair.view(2, 6, *[1] * dim).to(made.reference_mean))
    return made


def _vbn(dim: int, **kwargs: Any) -> dict[str, Any]:
    layer = (nk.VirtualBatchNorm1d, nk.VirtualBatchNorm2d, nk.VirtualBatchNorm3d)[dim - 1]
    return {
        "ours": partial(_virtual, layer, dim),
        "forward": partial(
            reference.virtual_batch_norm,
            reference_mean=_MEAN,
            reference_var=_VAR,
            reference_size=2,
        ),
        "magnitudes": magnitudes.of_mixture,
        "centered": False,
        **kwargs,
    }


def _ghost_magnitudes(
    cache: reference.Ghosts, dz: np.ndarray, parameters: dict[str, np.ndarray | None]
) -> dict[str, np.ndarray]:
    """Those of each sub-batch; sums over all of them where the parameters are shared."""
    cuts = np.cumsum([len(part.xhat) for part in cache.parts])[:-1]
    parts = [
        magnitudes.of_norm(part, piece, parameters)
        for part, piece in zip(cache.parts, np.split(dz, cuts), strict=True)
    ]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in ("|y|", "|dx|")}
    summed = {name: sum(part[name] for part in parts) for name in ("|dweight|", "|dbias|")}
    return {**joined, **summed, "|far y|": parts[0]["|far y|"]}


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


class _Labelled(nk.Conditional):
    """The class of a sample is its place in the batch, modulo three."""

    def __init__(self, norm: Callable[..., Any], **kwargs: Any) -> None:
        super().__init__(norm(**kwargs), 3, **kwargs)

    @one_node
    def forward(self, input: Tensor) -> Tensor:
        samples = input.shape[0] if input.dim() else 1
        return super().forward(input, torch.arange(samples, device=input.device) % 3)


def _conditional(
    norm: Callable[..., nn.Module], forward: Callable[..., Any], **options: Any
) -> dict[str, Any]:
    return {
        "ours": partial(_Labelled, partial(norm, affine=False)),
        "forward": lambda x, weight, bias: reference.conditional_norm(
            forward, x, np.arange(len(x)) % 3, weight, bias, **options
        ),
        "magnitudes": magnitudes.of_conditional,
    }


def _renorm_magnitudes(
    cache: reference.Corrected, dz: np.ndarray, parameters: dict[str, np.ndarray | None]
) -> dict[str, np.ndarray]:
    """Those of batch norm with the weight γ r, and what d adds."""
    gamma = np.ones(6) if cache.weight is None else cache.weight
    inner = magnitudes.of_one_mean(cache.batch, dz, {"weight": gamma * cache.r, "bias": gamma * cache.d})
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
        "sync",
        ours=partial(nk.SyncBatchNorm, 6),
        twin=partial(nn.SyncBatchNorm, 6),
        shape=(4, 6, 5, 3),
        forward=_batch,
        base=nn.modules.batchnorm._BatchNorm,  # DistributedDataParallel refuses nn.SyncBatchNorm on the CPU
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
    Case(
        "renorm2d-warm-up",
        shape=(4, 6, 5, 3),
        ours=partial(nk.BatchRenorm2d, 6),
        forward=_batch,
        magnitudes=magnitudes.of_one_mean,
    ),
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
    Case("switch1d", shape=(16, 6), **_sn(1)),
    Case("switch1d-sequence", shape=(5, 6, 7), **_sn(1, options={"momentum": None})),
    Case("switch2d", shape=(4, 6, 5, 3), **_sn(2)),
    Case("switch2d-no-bias", shape=(4, 6, 5, 3), **_sn(2, options={"bias": False})),
    Case("switch2d-untracked", shape=(4, 6, 5, 3), **_sn(2, options={"track_running_stats": False})),
    Case("switch2d-silu", shape=(4, 6, 5, 3), **_sn(2, activation="silu")),
    Case("switch3d", shape=(3, 6, 2, 3, 4), **_sn(3, options={"affine": False})),
    Case("batch-instance1d", shape=(5, 6, 7), **_bin(1, options={"affine": False})),
    Case("batch-instance2d", shape=(4, 6, 5, 3), **_bin(2)),
    Case("batch-instance2d-relu", shape=(4, 6, 5, 3), **_bin(2, activation="relu")),
    Case("batch-instance3d", shape=(3, 6, 2, 3, 4), **_bin(3)),
    Case("virtual1d", shape=(16, 6), **_vbn(1)),
    Case("virtual1d-sequence", shape=(5, 6, 7), **_vbn(1, options={"bias": False})),
    Case("virtual2d", shape=(4, 6, 5, 3), **_vbn(2)),
    Case("virtual2d-relu", shape=(4, 6, 5, 3), **_vbn(2, activation="relu")),
    Case("virtual3d", shape=(3, 6, 2, 3, 4), **_vbn(3, options={"affine": False})),
    Case("adaptive1d", shape=(16, 6), **_abn(1)),
    Case("adaptive1d-sample", shape=(5, 6, 7), **_abn(1, options={"prior": 2.0, "per_sample": True})),
    Case("adaptive2d", shape=(4, 6, 5, 3), **_abn(2)),
    Case("adaptive2d-relu", shape=(4, 6, 5, 3), **_abn(2, activation="relu", options={"per_sample": True})),
    Case("adaptive2d-untracked", shape=(4, 6, 5, 3), **_abn(2, options={"track_running_stats": False})),
    Case("adaptive3d", shape=(3, 6, 2, 3, 4), **_abn(3, options={"affine": False, "prior": 0.0})),
    Case("conditional-batch2d", shape=(4, 6, 5, 3), **_conditional(partial(nk.BatchNorm2d, 6), _batch)),
    Case("conditional-instance1d", shape=(4, 6, 7), **_conditional(partial(nk.InstanceNorm1d, 6), _instance)),
    Case(
        "conditional-group",
        shape=(4, 6, 5, 3),
        **_conditional(partial(nk.GroupNorm, 3, 6), reference.group_norm, num_groups=3),
    ),
)

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_twin = pytest.mark.parametrize("case", [c for c in CASES if c.twin], ids=lambda case: case.name)
every_twinless = pytest.mark.parametrize(
    "case", [c for c in CASES if c.twin is None], ids=lambda case: case.name
)
every_mode = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
