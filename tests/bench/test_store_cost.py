"""The benchmark of the store does the same work with it and without, and compares within rounds."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from normkit.bench import store
from normkit.cli.terminal import bar
from normkit.errors import InputError
from normkit.lab.grid import Grid


def test_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[int, int, str]] = []

    @contextmanager
    def shown() -> Generator[Callable[[int, int, str], None]]:
        with bar("", console=Console(file=io.StringIO(), force_terminal=True)) as move:

            def both(done: int, total: int, what: str) -> None:
                told.append((done, total, what))
                move(done, total, what)

            yield both

    results = store.run(tmp_path, shown, 2, Grid(model="mlp", norms=("batch",), seeds=1, epochs=2), trials=3)
    assert [one.what for one in results] == [
        "mlp on digits, 2 epochs",
        "3 trials of parameter-scale",
    ]
    for one in results:
        for values in (one.bare, one.kept, one.bare_processor, one.kept_processor):
            assert len(values) == 2
            assert min(values) > 0
    epochs, trials = ([done for done, total, _ in told if total == whole] for whole in (2, 3))
    assert epochs == 3 * [0, 1, 2]  # each round keeps all, in a store of its own
    assert trials == 3 * [0, 1, 2, 3]
    assert [*tmp_path.iterdir()] == []
    store.print_table(results)
    assert "3 trials of parameter-scale" in capsys.readouterr().out
    assert json.loads(store.to_json(results))[0]["what"] == "mlp on digits, 2 epochs"


def test_ratios_are_of_one_round() -> None:
    one = store.Keeping("", [1.0, 2.0], [2.0, 3.0], [4.0, 5.0], [5.0, 10.0])
    assert one.cost() == [2.0, 1.5]
    assert one.processor_cost() == [1.25, 2.0]


def test_one_round_has_no_spread(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 rounds or more, got rounds=1"):
        store.run(tmp_path, lambda: bar(""), rounds=1)
