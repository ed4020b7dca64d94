"""What all studies have in common: they say what they are, and their designs are of pairs."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from normkit.errors import InputError
from normkit.lab.studies import NAMES, find
from normkit.lab.studies.study import Subject

TEXTS = ("statement", "source", "question", "design", "rule", "literature")


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_is(name: str) -> None:
    study = find(name)
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", name)
    assert int(study.claim.removeprefix("C")) in range(1, 21)
    assert study.question.endswith("?")
    for text in TEXTS:
        assert getattr(study, text).strip()
        assert "  " not in getattr(study, text)
    assert re.search(r"\(\d{4}|\d{4}\)", study.literature), "authors with their years"


@pytest.mark.parametrize("name", NAMES)
def test_its_trials_are_pairs(name: str) -> None:
    """The same levels for every seed, seeds outermost, and what is quick is part of what is full."""
    study = find(name)
    quick, full = (list(study.trials(scale)) for scale in ("quick", "full"))
    of_seed: dict[int, list[object]] = {}
    for trial in quick:
        of_seed.setdefault(trial.seed, []).append(dict(trial.levels))
    assert len(of_seed) >= 6
    assert [trial.seed for trial in quick] == sorted(trial.seed for trial in quick)
    assert all(levels == of_seed[0] for levels in of_seed.values())
    assert all(trial in full for trial in quick)
    keys = {trial.key(study, Subject(), "data", "versions") for trial in full}
    assert len(keys) == len(full)


@pytest.mark.parametrize("name", NAMES)
def test_what_it_does_not_take_is_refused(name: str) -> None:
    study = find(name)
    study.check(Subject())
    if not study.takes_data:
        with pytest.raises(InputError, match=f"{name} makes its own data"):
            study.check(Subject(data="mnist"))
    if not study.takes_model:
        with pytest.raises(InputError, match=f"{name} has its own networks"):
            study.check(Subject(model="net.py:build"))


def test_the_list_says_which_take_your_data_and_your_network() -> None:
    command = [sys.executable, "-m", "normkit", "study", "list"]
    environment = {**os.environ, "COLUMNS": "160"}
    listed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    head, *lines = [line for line in listed.stdout.splitlines() if line.strip()]
    for name in NAMES:
        (line,) = [line for line in lines if f" {name} " in line]
        says = [line[head.index(option) :].startswith("yes") for option in ("--data", "--model")]
        assert says == [find(name).takes_data, find(name).takes_model], name
