"""The figures are those of a direct computation, and the oracle is the specification."""

from __future__ import annotations

import importlib.util
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import normkit as nk
from normkit import reference
from normkit.bench import accuracy
from normkit.bench.accuracy import VALUES, Accuracy, Errors, Values, measure, oracle
from normkit.bench.accuracy_table import print_table, to_markdown
from normkit.bench.machine import Machine

LARGE = (8, 4, 16, 16)  # in place of the 134 MB that the command takes


@pytest.fixture(scope="module")
def whole() -> Accuracy:
    return accuracy.run(large=LARGE)


def specification(norm: str, x: np.ndarray) -> tuple[np.ndarray, reference.Cache]:
    if norm == "batch":
        return reference.batch_norm(x)
    if norm == "group":
        return reference.group_norm(x, 4)
    if norm == "instance":
        return reference.instance_norm(x)
    return reference.layer_norm(x, 1) if norm == "layer" else reference.rms_norm(x, 1, eps=1e-5)


@pytest.mark.parametrize("norm", accuracy.NORMS)
@pytest.mark.parametrize("values", VALUES, ids=lambda values: values.name)
def test_the_oracle_is_the_specification(norm: str, values: Values) -> None:
    x = values.draw((4, 8, 5, 6), torch.float32)
    x = x.flatten(1) if norm in {"layer", "rms"} else x
    y, cache = specification(norm, x.double().numpy())
    truth = oracle(norm, x)
    # float64's own rounding, amplified by mean / deviation, which is up to 1e6
    np.testing.assert_allclose(truth.y.numpy(), y, rtol=1e-8, atol=1e-9 * np.abs(y).max())
    np.testing.assert_allclose(truth.var.numpy(), cache.var.flatten(), rtol=1e-8)
    if norm != "rms":
        np.testing.assert_allclose(truth.mean.numpy(), cache.mean.flatten(), rtol=1e-8, atol=0)


@pytest.mark.parametrize("dtype", accuracy.DTYPES, ids=str)
def test_batch_norm_figures_are_those_of_a_direct_computation(dtype: torch.dtype) -> None:
    x = Values("hand", 1e3, 1.0).draw((6, 8, 5, 7), dtype)
    y, cache = specification("batch", x.double().numpy())
    for one in measure("batch", x, "hand", with_keras=False):
        library = nk if one.contender.startswith("normkit") else nn
        layer = library.BatchNorm2d(8, momentum=1.0)
        last = one.contender.endswith("channels_last")
        output = layer(x.contiguous(memory_format=torch.channels_last) if last else x)
        mean, unbiased = (buffer.double().numpy() for buffer in (layer.running_mean, layer.running_var))
        rms = np.sqrt(cache.mean**2 + cache.var)
        assert one.y == pytest.approx(np.abs(output.detach().double().numpy() - y).max(), rel=1e-6)
        assert one.mean == pytest.approx((np.abs(mean - cache.mean) / rms).max(), rel=1e-6)
        # the comparison of the unbiased ones: the common factor falls out, up to float64's rounding
        error = np.abs(unbiased - cache.unbiased_var) / cache.unbiased_var
        assert one.var == pytest.approx(error.max(), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("norm", ["layer", "group", "instance", "rms"])
def test_figures_of_the_other_norms(norm: str) -> None:
    x = Values("hand", 10.0).draw((6, 8, 5, 7), torch.float32)
    rows = x.flatten(1)
    layers = {
        "layer": (nn.LayerNorm(280), rows),
        "group": (nn.GroupNorm(4, 8), x),
        "instance": (nn.InstanceNorm2d(8), x),
        "rms": (nn.RMSNorm(280, eps=1e-5), rows),
    }
    layer, taken = layers[norm]
    y, _ = specification(norm, taken.double().numpy())
    found = {one.contender: one for one in measure(norm, x, "hand", with_keras=False)}
    error = np.abs(layer(taken).detach().double().numpy() - y).max()
    assert found["torch"].y == pytest.approx(error, rel=1e-6)  # the two oracles differ in float64's rounding
    assert found["torch"].mean is found["torch"].var is None
    assert ("torch channels_last" in found) == (norm in {"group", "instance"})


def test_every_norm_dtype_and_distribution_is_there(whole: Accuracy) -> None:
    expected = {(norm, dtype, values.name) for norm in accuracy.NORMS for dtype in ("float32", "bfloat16")
                for values in VALUES}  # fmt: skip
    expected |= {("batch", dtype, "5 to 6") for dtype in ("float32", "bfloat16")}
    assert {(one.norm, one.dtype, one.values) for one in whole.errors} == expected
    assert {one.size for one in whole.errors if one.values == "5 to 6"} == {LARGE}
    assert importlib.util.find_spec("keras") or whole.absent == {"Keras on torch": "not installed"}


def test_ours_is_exact_where_others_are_not(whole: Accuracy) -> None:
    """4 u (|γ x̂| + |β|), with |x̂| below 6 here; one unit in the last place of bf16, 2^-8 of that."""
    for one in whole.errors:
        if one.contender.startswith("normkit"):
            bound = 4 * 2**-24 * 6 if one.dtype == "float32" else 2**-8 * 6
            assert one.y <= bound, one


def test_statistics_beyond_float32_have_no_figure() -> None:
    x = Values("hand", deviation=1e30).draw((6, 8, 5, 7), torch.float32)
    for one in measure("batch", x, "hand", with_keras=False):
        assert one.mean is not None
        assert one.var is None


def test_json_has_no_number_for_what_is_not_finite() -> None:
    errors = [Errors("batch", "float32", "hand", (1,), "x", math.nan, math.inf, 0.5)]
    text = accuracy.to_json(Accuracy(Machine("0", "0", "hand", 1, None), "hand", {}, errors))
    (one,) = json.loads(text)["errors"]
    assert (one["y"], one["mean"], one["var"]) == ("nan", "inf", 0.5)
    assert math.isnan(float(one["y"]))


def test_tables_have_a_row_per_input(whole: Accuracy, capsys) -> None:
    markdown = to_markdown(whole)
    inputs = 2 * (5 * len(VALUES) + 1)
    statistics = 2 * (len(VALUES) + 1)
    rows = [line for line in markdown.splitlines() if line.startswith("| ")]
    assert len(rows) == inputs + statistics + 2 * 2  # two headers of two lines
    assert "| LN float32 0 ± 1e30, 32x8x28x28 |" in markdown
    print_table(whole)
    printed = capsys.readouterr().out
    for line in rows:
        name = line.split(" | ")[0].removeprefix("| ")
        assert name in printed or set(name) == {"-"}
