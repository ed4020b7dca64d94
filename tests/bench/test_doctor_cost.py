"""What the benchmark of the doctor computes: ratios of rounds, for both models, and a table of them."""

from __future__ import annotations

import json

import pytest

from normkit.bench.doctor import print_table, run, to_json
from normkit.errors import InputError


def test_a_small_run(capsys: pytest.CaptureFixture[str]) -> None:
    costs = run(rounds=2, batches=1, size=(2, 3, 32, 32))
    assert [cost.trained for cost in costs] == [True, False]
    for cost in costs:
        assert cost.ratios() == [cost.probed[i] / cost.plain[i] for i in range(2)]
    print_table(costs)
    assert "1 of 2x3x32x32" in capsys.readouterr().out
    assert json.loads(to_json(costs))[0]["size"] == [2, 3, 32, 32]


def test_one_round_has_no_spread() -> None:
    with pytest.raises(InputError, match="rounds=1"):
        run(rounds=1)
