"""What is compared is the same operation on both sides, and the floor counts the bytes that it must move."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

from normkit.bench.cases import Case, groups_of
from normkit.bench.contenders import COMPILED, COPY, JAX, contenders, of_module
from normkit.bench.rows import ROWS, Row
from normkit.bench.shapes import IMAGES, TABLES, TOKENS, Shape

every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.key)
ABSENT = {COMPILED: "runs in test_speed", JAX: "runs in test_speed"}


def tiny(row: Row) -> Case:
    (size,) = {shape.size for shape in row.shapes if shape.network == "tiny" and len(shape.size) > 2}
    return Case(row, Shape("tiny", size))


@every_row
def test_ours_and_theirs_are_the_same_operation(row: Row) -> None:
    case = tiny(row)
    # Values and gradients stay below 8, where floats are 4 eps apart; two such steps for each of the two.
    tolerance = 4 * 4 * torch.finfo(row.dtype).eps
    for ours, theirs in zip(
        one_iteration(case, case.ours()), one_iteration(case, case.theirs()), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
        assert ours.dtype == row.dtype
        assert ours.is_contiguous(memory_format=case.memory_format)


def one_iteration(case: Case, module: nn.Module) -> list[torch.Tensor]:
    """Output and gradients of an iteration of the contender, after which the gradients are dropped."""
    x, dy, residual = (case.tensor(seed) for seed in (0, 1, 2))
    contender = of_module("either", module, x, dy, residual if case.row.residual else None)
    y = contender.forward()
    if case.row.evaluation:
        assert contender.backward is None
        return [y.detach()]
    contender.backward(y)
    leaves = [x, residual] if case.row.residual else [x]
    gradients = [leaf.grad for leaf in leaves]
    contender.release()
    assert all(leaf.grad is None for leaf in (*leaves, *module.parameters()))
    return [y.detach(), *gradients]


@pytest.mark.parametrize(
    ("key", "forward", "backward"),
    [
        ("bn-f32", 2 * 480, 3 * 480),  # reads x, writes y; reads x and dy, writes dx
        ("bn-bf16", 2 * 240, 3 * 240),
        ("bn-relu", 2 * 480, 3 * 480),  # the mask follows from x
        ("bn-add-relu", 3 * 480, 4 * 480),  # reads the residual too; writes its gradient too
        ("bn-eval", 2 * 480, 0),
        ("in-f32", 2 * 480, 3 * 480),
    ],
)
def test_least_bytes(key: str, forward: int, backward: int) -> None:
    (row,) = (row for row in ROWS if row.key == key)
    assert Case(row, Shape("hand", (2, 3, 4, 5))).least_bytes() == (forward, backward)


def test_the_copy_copies_one_tensor_of_the_input() -> None:
    (row,) = (row for row in ROWS if row.key == "bn-bf16-last")
    case = tiny(row)
    (copy,) = (one for one in contenders(case, ABSENT) if one.name == COPY)
    target = copy.forward()
    assert torch.equal(target, case.tensor(seed=0))
    assert target.is_contiguous(memory_format=torch.channels_last)
    assert target.numel() * target.element_size() == case.tensor_bytes


@every_row
def test_layout_dtype_and_mode(row: Row) -> None:
    for shape in row.shapes:
        case = Case(row, dataclasses.replace(shape, size=(2, *shape.size[1:2], *[2] * (len(shape.size) - 2))))
        x = case.tensor(seed=0)
        assert x.dtype == row.dtype
        assert x.is_contiguous(memory_format=case.memory_format)
        for module in (case.ours(), case.theirs()):
            assert module.training is not row.evaluation
            assert module(x).shape == x.shape


@pytest.mark.parametrize("shape", [*IMAGES, *TABLES, *TOKENS], ids=str)
def test_shapes_are_of_1_to_100_megabytes_or_tiny(shape: Shape) -> None:
    megabytes = math.prod(shape.size) * 4 / 1e6
    assert megabytes < 0.1 if shape.network == "tiny" else 1 <= megabytes <= 105


@every_row
def test_every_row_has_real_networks_and_a_quick_selection(row: Row) -> None:
    networks = {shape.network for shape in row.shapes}
    if row.norm in {"layer", "rms"}:
        assert {"ViT-B/16", "tiny"} <= networks
    else:
        assert {"ResNet-50", "VGG-16", "MobileNetV2", "DenseNet-121", "3-D U-Net", "tiny"} <= networks
    assert 2 <= sum(shape.quick for shape in row.shapes) < len(row.shapes)


def test_groups_share_channels_evenly() -> None:
    for channels in range(1, 200):
        groups = groups_of(channels)
        assert channels % groups == 0
        assert groups == 1 or channels // groups >= 2
