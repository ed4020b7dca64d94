"""The arguments of a case, norm by norm: our layer, torch's, the function of the specification."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import magnitudes
import numpy as np
import torch
from torch import Tensor, nn

import normkit as nk
from normkit import reference
from normkit.norms.tracing import one_node


def _layer(ndim: int) -> Callable[..., tuple[np.ndarray, reference.Cache]]:
    return lambda x, weight, bias: reference.layer_norm(x, ndim, weight, bias)


def rms(x: np.ndarray, weight: np.ndarray | None, bias: None) -> tuple[np.ndarray, reference.Cache]:
    return reference.rms_norm(x, 1, weight, eps=1e-5)


def _group(groups: int) -> Callable[..., tuple[np.ndarray, reference.Cache]]:
    return lambda x, weight, bias: reference.group_norm(x, groups, weight, bias)


def batch(dim: int, **kwargs: Any) -> dict[str, Any]:
    ours = (nk.BatchNorm1d, nk.BatchNorm2d, nk.BatchNorm3d)[dim - 1]
    twin = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dim - 1]
    return {"ours": partial(ours, 6), "twin": partial(twin, 6), "forward": reference.batch_norm, **kwargs}


def instance(dim: int, **kwargs: Any) -> dict[str, Any]:
    ours = (nk.InstanceNorm1d, nk.InstanceNorm2d, nk.InstanceNorm3d)[dim - 1]
    twin = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[dim - 1]
    return {"ours": partial(ours, 6), "twin": partial(twin, 6), "forward": reference.instance_norm, **kwargs}


def layer(*shape: int, **kwargs: Any) -> dict[str, Any]:
    return {
        "ours": partial(nk.LayerNorm, shape),
        "twin": partial(nn.LayerNorm, shape),
        "forward": _layer(len(shape)),
        "feature_axis": -1,
        **kwargs,
    }


def group(groups: int, **kwargs: Any) -> dict[str, Any]:
    return {
        "ours": partial(nk.GroupNorm, groups, 6),
        "twin": partial(nn.GroupNorm, groups, 6),
        "forward": _group(groups),
        **kwargs,
    }


def filter_response(**kwargs: Any) -> dict[str, Any]:
    return {
        "ours": partial(nk.FilterResponseNorm, 6),
        "forward": reference.filter_response_norm,
        "centered": False,
        "magnitudes": magnitudes.of_filter_response,
        **kwargs,
    }


def switch(dim: int, **kwargs: Any) -> dict[str, Any]:
    ours = (nk.SwitchNorm1d, nk.SwitchNorm2d, nk.SwitchNorm3d)[dim - 1]
    return {
        "ours": partial(ours, 6),
        "forward": reference.switch_norm,
        "magnitudes": magnitudes.of_mixture,
        **kwargs,
    }


class AtStep(nk.RecurrentBatchNorm):
    """The contract calls a layer with its input alone."""

    def forward(self, input: Tensor, *, step: int = 1) -> Tensor:
        return super().forward(input, step=step)


def dynamic_tanh(**kwargs: Any) -> dict[str, Any]:
    return {
        "ours": partial(nk.DynamicTanh, 12),
        "forward": reference.dynamic_tanh,
        "magnitudes": magnitudes.of_tanh,
        "centered": False,
        "feature_axis": -1,
        **kwargs,
    }


def batch_instance(dim: int, **kwargs: Any) -> dict[str, Any]:
    ours = (nk.BatchInstanceNorm1d, nk.BatchInstanceNorm2d, nk.BatchInstanceNorm3d)[dim - 1]
    return {
        "ours": partial(ours, 6),
        "forward": reference.batch_instance_norm,
        "magnitudes": magnitudes.of_interpolation,
        "span": {"rho": (0.0, 1.0)},
        **kwargs,
    }


def ghost(dim: int, size: int, **kwargs: Any) -> dict[str, Any]:
    return {
        "ours": partial((nk.GhostBatchNorm1d, nk.GhostBatchNorm2d, nk.GhostBatchNorm3d)[dim - 1], 6),
        "forward": lambda x, weight, bias: reference.ghost_batch_norm(x, size, weight, bias),
        "magnitudes": _ghost_magnitudes,
        "options": {"ghost_size": size},
        "least_batch": size + 1,
        **kwargs,
    }


def adaptive(dim: int, **kwargs: Any) -> dict[str, Any]:
    ours = (nk.AdaptiveBatchNorm1d, nk.AdaptiveBatchNorm2d, nk.AdaptiveBatchNorm3d)[dim - 1]
    return {"ours": partial(ours, 6), "forward": reference.batch_norm, **kwargs}


# Of a reference batch of two samples, whose statistics every dtype holds exactly: mean ± √variance.
_MEAN, _VAR = np.array([0.5, -1, 2, 0, -0.25, 1]), np.array([1.0, 4, 0.25, 1, 4, 0.0625])


def _virtual(layer: type[nn.Module], dim: int, **kwargs: Any) -> nn.Module:
    """A layer with its reference set."""
    made = layer(6, **kwargs)
    pair = torch.tensor(np.stack([_MEAN - np.sqrt(_VAR), _MEAN + np.sqrt(_VAR)]))
    made.set_reference(pair.view(2, 6, *[1] * dim).to(made.reference_mean))
    return made


def virtual(dim: int, **kwargs: Any) -> dict[str, Any]:
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


def renorm(dim: int, **kwargs: Any) -> dict[str, Any]:
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


def conditional(
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


def by_running(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, reference.Cache]:
    """By what a new layer's running statistics are."""
    return reference.batch_norm_inference(x, np.zeros(6), np.ones(6), weight, bias)


def frozen(**kwargs: Any) -> nn.Module:
    return nk.BatchNorm2d(6, **kwargs).freeze()
