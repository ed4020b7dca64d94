"""Arguments of a wrong type are told when a layer is made, whichever it is; those of NumPy and torch are right ones."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import normkit as nk

MAKERS: dict[str, Callable[..., nn.Module]] = {
    **{
        name: partial(getattr(nk, name), num_features=4)
        for name in (
            "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm", "BatchRenorm2d", "AdaptiveBatchNorm2d",
            "VirtualBatchNorm2d", "SwitchNorm2d", "BatchInstanceNorm2d", "InstanceNorm1d", "InstanceNorm2d",
            "InstanceNorm3d", "FilterResponseNorm",
        )
    },
    "GhostBatchNorm2d": partial(nk.GhostBatchNorm2d, num_features=4, ghost_size=2),
    "GroupNorm": partial(nk.GroupNorm, num_groups=2, num_channels=4),
    "LayerNorm": partial(nk.LayerNorm, normalized_shape=4),
    "RMSNorm": partial(nk.RMSNorm, normalized_shape=4),
    "DynamicTanh": partial(nk.DynamicTanh, normalized_shape=4),
    "RecurrentBatchNorm": partial(nk.RecurrentBatchNorm, num_features=4, max_length=3),
    "BatchNormLSTM": partial(nk.BatchNormLSTM, input_size=4, hidden_size=4, max_length=3),
    "BatchNormLSTMCell": partial(nk.BatchNormLSTMCell, input_size=4, hidden_size=4, max_length=3),
    "Conditional": lambda **given: nk.Conditional(
        **{"norm": nk.BatchNorm2d(4, affine=False), "num_classes": 3, **given}
    ),
    "weight_standardization": lambda **given: nk.weight_standardization(nn.Linear(4, 4), **given),
    "spectral_norm": lambda **given: nk.spectral_norm(nn.Linear(4, 4), **given),
}  # fmt: skip
COUNTS = (
    "num_features", "num_groups", "num_channels", "ghost_size", "max_length", "input_size", "hidden_size",
    "num_classes", "warmup", "r_steps", "d_steps", "n_power_iterations",
)  # fmt: skip
MEASURES = ("eps", "momentum", "prior", "r_max", "d_max", "alpha_init_value")


def arguments(names: tuple[str, ...]) -> list[tuple[str, str]]:
    """Each layer with each of these that it takes."""
    taken = {name: inspect.signature(getattr(nk, name)).parameters for name in MAKERS}
    return [(name, argument) for name in MAKERS for argument in names if argument in taken[name]]


def test_no_layer_is_missing() -> None:
    """Those of other dimensions have the constructor of the one that is here."""
    made = {re.sub(r"\dd$", "", name) for name in MAKERS}
    layers = [
        name for name, value in vars(nk).items() if inspect.isclass(value) and issubclass(value, nn.Module)
    ]
    assert {re.sub(r"\dd$", "", name) for name in layers} <= made


@pytest.mark.parametrize(("layer", "argument"), arguments(COUNTS))
@pytest.mark.parametrize("value", ["16", 16.0, [1], None], ids=repr)
def test_counts(layer: str, argument: str, value: object) -> None:
    expected = f"{argument} must be a whole number, got {value!r}: pass an int"
    with pytest.raises(TypeError, match=f"^{re.escape(expected)}$"):
        MAKERS[layer](**{argument: value})


@pytest.mark.parametrize(("layer", "argument"), arguments(MEASURES))
@pytest.mark.parametrize("value", ["16", [1], {}, None], ids=repr)
def test_measures(layer: str, argument: str, value: object) -> None:
    if value is None and (argument == "momentum" or (layer, argument) == ("RMSNorm", "eps")):
        assert isinstance(MAKERS[layer](**{argument: None}), nn.Module)  # as torch takes it
        return
    expected = f"{argument} must be a number, got {value!r}: pass a float"
    with pytest.raises(TypeError, match=f"^{re.escape(expected)}$"):
        MAKERS[layer](**{argument: value})


@pytest.mark.parametrize("layer", ["LayerNorm", "RMSNorm", "DynamicTanh"])
@pytest.mark.parametrize("value", ["16", None, 4.0, [4.0], ["4"]], ids=repr)
def test_shapes(layer: str, value: object) -> None:
    with pytest.raises(
        TypeError, match=r"normalized_shape must be a whole number( or several)?, got .*: pass an int"
    ):
        MAKERS[layer](normalized_shape=value)


@pytest.mark.parametrize(
    ("layer", "argument"), arguments(("num_features", "num_groups", "max_length", "eps", "momentum"))
)
def test_numbers_of_other_kinds(layer: str, argument: str) -> None:
    """What torch takes: NumPy's numbers, tensors of one."""
    whole = argument not in MEASURES
    for value in (np.int64(2), torch.tensor(2)) if whole else (np.float32(0.1), torch.tensor(0.1)):
        assert isinstance(MAKERS[layer](**{argument: value}), nn.Module)


@pytest.mark.parametrize("size", [4, np.int64(4), (4,), [4], torch.Size([4]), np.array([4])], ids=repr)
@pytest.mark.parametrize("layer", ["LayerNorm", "RMSNorm", "DynamicTanh"])
def test_shapes_of_other_kinds(layer: str, size: object) -> None:
    made = MAKERS[layer](normalized_shape=size)
    assert made.normalized_shape == (4,)
    assert made(torch.randn(3, 4)).shape == (3, 4)


@pytest.mark.parametrize(
    "kind", [nk.SwitchNorm1d, nk.SwitchNorm2d, nk.BatchInstanceNorm1d, nk.BatchInstanceNorm3d]
)
def test_errors_of_python_name_the_layer(kind: type[nn.Module]) -> None:
    name = kind.__name__[:-2]
    with pytest.raises(TypeError, match=rf"^{name}\.__init__\(\) missing 1 required .*'num_features'"):
        kind()
    with pytest.raises(TypeError, match=rf"^{name}\.__init__\(\) got an unexpected keyword argument 'gamma'"):
        kind(4, gamma=1)
    with pytest.raises(TypeError, match=rf"^{name}\.forward\(\) missing 1 required .*'input'"):
        kind(4)()
    with pytest.raises(TypeError, match=rf"^{name}\.forward\(\) got an unexpected keyword argument 'masks'"):
        kind(4)(torch.randn(2, 4), masks=None)


def test_what_they_share_is_no_layer() -> None:
    from normkit.norms.mixed_norm import MixedNorm

    with pytest.raises(TypeError, match="abstract"):
        MixedNorm(4)  # pyright: ignore
