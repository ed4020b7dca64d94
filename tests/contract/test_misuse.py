"""Misuse raises what torch raises, in a message that names what was received; and changes nothing."""

from __future__ import annotations

import re

import pytest
import torch
from case import Case
from cases import CASES, every_case, every_mode, every_twin, every_twinless
from torch import Tensor, nn

import normkit as nk


def misuses(case: Case) -> dict[str, Tensor]:
    x = case.input()
    return {
        "another size": torch.cat([x, x], dim=case.feature_axis),
        "no batch": torch.randn(()),
        "integers": torch.ones(case.shape, dtype=torch.long),
        "complex": torch.ones(case.shape, dtype=torch.complex64),
        "wider": case.input(torch.float64),
    }


def outcome(layer: nn.Module, x: Tensor) -> BaseException | None:
    try:
        layer(x)
    except Exception as error:
        return error
    return None


every_misuse = pytest.mark.parametrize("misuse", list(misuses(CASES[0])))


@every_twin
@every_mode
@every_misuse
@pytest.mark.filterwarnings("ignore:.*num_features:UserWarning")
def test_raises_as_the_twin(case: Case, training: bool, misuse: str) -> None:
    x = misuses(case)[misuse]
    expected = outcome(case.make_twin().train(training), x)
    error = outcome(case.make().train(training), x)
    if expected is None:
        if x.is_floating_point():
            assert error is None
    else:
        # Where torch's type is an accident of its kernels (an index error), a plainer one is right.
        assert isinstance(error, (type(expected), ValueError, RuntimeError))


@every_twinless
@every_mode
@every_misuse
def test_raises_where_there_is_no_twin(case: Case, training: bool, misuse: str) -> None:
    """The types that torch's layers raise; RuntimeError covers NotImplementedError."""
    error = outcome(case.make().train(training), misuses(case)[misuse])
    assert isinstance(error, (TypeError, ValueError, RuntimeError))


@every_case
@every_mode
@every_misuse
@pytest.mark.filterwarnings("ignore:.*num_features:UserWarning")
def test_an_error_is_one_line_and_changes_nothing(case: Case, training: bool, misuse: str) -> None:
    layer = case.make().train(training)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    error = outcome(layer, misuses(case)[misuse])
    if error is not None:
        assert str(error).strip()
        assert "\n" not in str(error)
        for key, value in layer.state_dict().items():
            assert torch.equal(value, before[key])


@pytest.mark.parametrize(
    ("ours", "twin", "shape"),
    [
        (nk.BatchNorm1d(6), nn.BatchNorm1d(6), (1, 6)),
        (nk.BatchNorm2d(6), nn.BatchNorm2d(6), (1, 6, 1, 1)),
        (nk.InstanceNorm2d(6), nn.InstanceNorm2d(6), (4, 6, 1, 1)),
        (nk.GroupNorm(6, 6), nn.GroupNorm(6, 6), (1, 6)),
    ],
)
def test_statistics_of_one_value(ours: nn.Module, twin: nn.Module, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="Expected more than 1"):
        twin(torch.randn(shape))
    with pytest.raises(ValueError, match=r"Expected more than 1 .*" + re.escape(str(list(shape)))):
        ours(torch.randn(shape))


@every_case
def test_another_device_is_named(case: Case) -> None:
    layer = case.make()
    if not list(layer.parameters()) and not list(layer.buffers()):
        assert layer(case.input().to("meta")).is_meta
        return
    with pytest.raises(RuntimeError, match=r"input is on meta and .* is on cpu"):
        layer(case.input().to("meta"))


@pytest.mark.parametrize("case", [c for c in CASES if c.activation], ids=lambda c: c.name)
def test_unknown_activation(case: Case) -> None:
    with pytest.raises(
        ValueError, match=r"unknown activation 'rellu': choose from relu.*; did you mean 'relu'"
    ):
        case.ours(**case.options, activation="rellu")
