"""The benchmark of shared statistics measures in two real processes and compares within rounds."""

from __future__ import annotations

import json

import pytest

from normkit.bench import sync
from normkit.errors import InputError


def test_runs() -> None:
    results = sync.run([(4, 3, 2, 2)], rounds=2)
    assert [result.channels_last for result in results] == [False, True]
    for result in results:
        assert set(result.times) == {sync.LOCAL, sync.SYNC, sync.ALONE, sync.BARE}
        assert all(len(times) == 2 and min(times) > 0 for times in result.times.values())
    assert len(json.loads(sync.to_json(results))) == 2


def test_ratios_are_of_one_round() -> None:
    times = {
        sync.LOCAL: [1.0, 3.0],
        sync.BARE: [2.0, 4.0],
        sync.SYNC: [3.0, 6.0],
        sync.ALONE: [1.5, 3.0],
    }
    result = sync.Sharing((1,), False, times)
    assert result.cost() == [1.5, 1.5]
    assert result.cost_alone() == [1.5, 1.0]


def test_one_round_has_no_spread() -> None:
    with pytest.raises(InputError, match="2 rounds or more, got rounds=1"):
        sync.run(rounds=1)
