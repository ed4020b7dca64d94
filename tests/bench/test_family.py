"""The family beside batch norm: the same values on both sides, and ratios and verdicts against computation by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from normkit.bench import family, speed
from normkit.bench.machine import Machine
from normkit.bench.result import Measured, Result
from normkit.bench.rows import ROWS
from normkit.bench.shapes import Shape
from normkit.bench.table import family_markdown, print_table
from normkit.bench.timing import Times

every_member = pytest.mark.parametrize("member", family.MEMBERS, ids=lambda member: member.key)


def tiny(member: family.Member) -> Shape:
    (shape,) = (shape for shape in member.shapes if shape.network == "tiny")
    return shape


@every_member
def test_both_do_an_iteration_on_the_same_values(member: family.Member) -> None:
    shape = tiny(member)
    with torch.set_grad_enabled(not member.evaluation):
        outputs = {one.name: one.forward() for one in family.contenders(member, shape)}
    ours, batch = outputs[family.MEMBER], outputs[family.BATCH]
    if member.shapes is family.CONVOLUTIONS:
        assert ours.shape == (shape.size[1], shape.size[1], 3, 3)
    else:
        assert ours.shape == shape.size
        assert ours.numel() == batch.numel()
    assert batch.mean().abs() < 1e-6  # by the batch's own statistics, also beside what evaluates
    for output in outputs.values():
        assert output.requires_grad is not member.evaluation


@every_member
def test_backward_reaches_input_and_parameters_and_is_released(member: family.Member) -> None:
    for one in family.contenders(member, tiny(member)):
        if member.evaluation:
            assert one.backward is None
            continue
        y = one.forward()
        one.backward(y)
        assert y.grad_fn is not None
        one.release()


@every_member
def test_every_shape_can_be_built(member: family.Member) -> None:
    with torch.device("meta"):
        for shape in member.shapes:
            assert member.build(shape.size).training


def measured(key: str, member: list[float], batch: list[float], network: str = "A") -> Measured:
    return Measured(
        row=key,
        network=network,
        size=(2, 3),
        backend="by hand",
        tensor_bytes=24,
        forward_bytes=0,
        backward_bytes=0,
        beyond_cache=False,
        times={family.MEMBER: Times(member), family.BATCH: Times(batch)},
    )


def cost(member: family.Member, *found: Measured, monkeypatch: pytest.MonkeyPatch) -> family.Cost:
    monkeypatch.setattr(family, "MEMBERS", (member,))
    (one,) = family.costs(Result(Machine("0", "0", "by hand", 1, None), {}, list(found)))
    return one


@pytest.mark.parametrize(("bound", "verdict"), [(None, "—"), (4.0, "met"), (3.9, "missed")])
def test_the_worst_shape_decides(bound: float | None, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    member = dataclasses.replace(family.MEMBERS[0], bound=bound)
    found = [
        measured(member.key, [1.0, 3.0, 9.0], [1.0, 3.0, 9.0]),  # once as long in every round
        measured(member.key, [4.0, 8.0, 1.0], [1.0, 2.0, 1.0], "B"),  # 4, 4 and 1 times
    ]
    one = cost(member, *found, monkeypatch=monkeypatch)
    assert (one.mean, one.worst, one.where) == (pytest.approx(2.0), 4.0, "B 2x3")
    assert one.verdict == verdict


def test_it_is_run_beside_the_rows_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    result = speed.run(rows=("group", "rms"), networks=("tiny",), threads=1, repeats=2)
    assert [one.row for one in result.measured] == ["rms", "group"]
    for one in result.measured:
        assert set(one.times) == {family.MEMBER, family.BATCH}
        assert family.ratio(one).median > 0
    print_table(result)
    text = capsys.readouterr().out
    for words in ("tiny 1x32x64", "tiny 8x16x4x4", "Group norm", "geometric mean"):
        assert words in text
    group = family.costs(result)[1]
    row = f"| Group norm | {group.mean:.2f} | {group.worst:.2f}, tiny 8x16x4x4 | — | — |"
    assert row in family_markdown(result).splitlines()


def test_keys_are_told_apart() -> None:
    keys = [row.key for row in ROWS] + [member.key for member in family.MEMBERS]
    assert len(set(keys)) == len(keys)
