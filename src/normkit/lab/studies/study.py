"""What a study is: a claim, the trials that bear on it, and a verdict by a rule fixed before the first trial."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

from normkit.errors import InputError
from normkit.lab.intervals import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Verdict = Literal["supported", "contradicted", "undecided"]
Scale = Literal["quick", "full"]
Level: TypeAlias = str | int | float | bool
Result: TypeAlias = Mapping[
    str, object
]  # what JSON holds: numbers, strings, lists; None for what has no finite value


@dataclass(frozen=True)
class Subject:
    """What the trials of a study work on; by default what the study was designed with."""

    data: str = "digits"  # a data set's name or an .npz file; see `data.load`
    model: str | None = None  # FILE.py:NAME of a function that returns a network; `own.network` sets its norm

    def located(self) -> Subject:
        """The same by absolute paths, which hold in other processes and folders too."""
        data = str(Path(self.data).resolve()) if self.data.endswith(".npz") else self.data
        if self.model is None:
            return Subject(data)
        where, _, name = self.model.rpartition(":")
        return Subject(data, f"{Path(where).resolve()}:{name}" if where.endswith(".py") else self.model)


@dataclass(frozen=True)
class Trial:
    """One measurement to take: a level of each factor, and the seed that pairs it with the other levels."""

    levels: Mapping[str, Level]
    seed: int

    def key(self, study: Study, subject: Subject, fingerprint: str, versions: str) -> str:
        """The trial's name in the store: a digest of all that decides what it measures."""
        parts = [
            study.name,
            study.revision,
            vars(subject),
            fingerprint,
            versions,
            dict(self.levels),
            self.seed,
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Effect:
    """One contrast that bears on the claim, as an estimate over paired seeds."""

    label: str  # what is compared with what, for a person: "batch / none, steps to 90%"
    estimate: Estimate  # of `normkit.lab.bootstrap`: bootstrap_difference, bootstrap_ratio
    no_effect: float  # 0 for a difference, 1 for a ratio
    claimed: Literal["below", "above"]  # the side of `no_effect` on which the claim holds
    unit: str = ""  # of the estimate: "x", "points", "nats"

    @property
    def verdict(self) -> Verdict:
        """Supported or contradicted where the whole interval lies on one side."""
        below, above = self.estimate.below(self.no_effect), self.estimate.above(self.no_effect)
        if not (below or above):
            return "undecided"
        return "supported" if (self.claimed == "below") == below else "contradicted"


@dataclass(frozen=True)
class Finding:
    """What the trials of a study showed."""

    verdict: Verdict
    effects: tuple[Effect, ...]
    sentence: str  # one line with the figures, fit for the table
    counted: int | None = None  # of the effects, so many decide, and the others are shown; None: all


class Results:
    """What the trials of a study measured."""

    def __init__(self, measured: Iterable[tuple[Trial, Result]]) -> None:
        self.measured = tuple(measured)
        # for each set of factors that was asked for: their levels, and the trials there
        self._tables: dict[tuple[str, ...], dict[tuple[Level, ...], list[tuple[int, Result]]]] = {}

    def of(self, **levels: Level) -> dict[int, Result]:
        """By seed, the results of the trials at these levels, which must name one trial a seed."""
        found = self._at(levels)
        if not found:
            raise KeyError(f"no trial at {levels}")
        chosen = dict(found)
        if len(chosen) < len(found):
            raise KeyError(f"{levels} are those of several trials of a seed")
        return chosen

    def has(self, **levels: Level) -> bool:
        """Whether there is a trial at these levels."""
        return bool(self._at(levels))

    def _at(self, levels: Mapping[str, Level]) -> list[tuple[int, Result]]:
        names = tuple(sorted(levels))
        if names not in self._tables:
            table = self._tables[names] = {}
            for trial, result in self.measured:
                if all(name in trial.levels for name in names):
                    at = tuple(trial.levels[name] for name in names)
                    table.setdefault(at, []).append((trial.seed, result))
        return self._tables[names].get(tuple(levels[name] for name in names), [])

    def levels(self, name: str) -> list[Level]:
        """The levels of a factor, in the order of the trials."""
        return list(dict.fromkeys(t.levels[name] for t, _ in self.measured if name in t.levels))

    def paired(
        self, value: str, a: Mapping[str, Level], b: Mapping[str, Level]
    ) -> tuple[list[float], list[float]]:
        """A value at levels `a` and at levels `b`, over the seeds where both have one."""
        pairs = self.pairs(value, a, b).values()
        return [of_a for of_a, _ in pairs], [of_b for _, of_b in pairs]

    def pairs(
        self, value: str, a: Mapping[str, Level], b: Mapping[str, Level]
    ) -> dict[int, tuple[float, float]]:
        """By seed, a value at levels `a` and at levels `b`, where both have one."""
        of_a, of_b = self.of(**a), self.of(**b)
        both = [s for s in of_a if s in of_b and None not in (of_a[s][value], of_b[s][value])]
        return {s: (_number(of_a[s][value]), _number(of_b[s][value])) for s in both}


def _number(value: object) -> float:
    if not isinstance(value, (int, float)):
        raise TypeError(f"a paired value must be a number, got {value!r}")
    return float(value)


class Study(ABC):
    """A question, its design, its measurement, its rule and its figure. One subclass a file, its instance `STUDY`.

    `measure` runs in a process of its own with one thread and generators at 0, and depends on nothing but its
    arguments: equal trials measure the same to the bit. It never writes; the process that owns the store does.
    An instance has no state: workers are sent it by the name of its class.
    """

    name: ClassVar[str]  # as in `normkit study NAME`: lower case, hyphens
    claim: ClassVar[str]  # C1 to C20
    statement: ClassVar[str]  # the claim in our words
    source: ClassVar[str]  # the articles that make it
    question: ClassVar[str]  # what is measured, as a question
    design: ClassVar[str]  # network, data, factors, what is held fixed, in two or three sentences
    rule: ClassVar[str]  # of the verdict, in words; `judge` is its code
    literature: ClassVar[str]  # what published work found, with authors and years
    takes_data: ClassVar[bool] = True  # whether `--data` makes sense
    takes_model: ClassVar[bool] = False  # whether `--model` does
    alone: ClassVar[bool] = (
        False  # measures time: one trial at a time, and they repeat within noise, not to the bit
    )
    revision: ClassVar[int] = 1  # counts changes to `measure`: results of earlier ones are not mixed in

    @abstractmethod
    def trials(self, scale: Scale) -> Sequence[Trial]:
        """The trials of a quick or a full run, seeds outermost. Those of the quick run are among the full one's."""

    def check(self, subject: Subject) -> None:
        """Refuse a subject that does not fit the design: an InputError that says which property is missing."""
        if subject.data != Subject.data and not self.takes_data:
            raise InputError(f"{self.name} makes its own data: run it without --data")
        if subject.model is not None and not self.takes_model:
            raise InputError(f"{self.name} has its own networks: run it without --model")

    @abstractmethod
    def measure(self, trial: Trial, subject: Subject) -> Result:
        """Take one measurement: a number or a string under each name, or a list of numbers for a curve."""

    @abstractmethod
    def judge(self, results: Results) -> Finding:
        """Apply the rule; a NoValuesError of an interval, where an arm has no value, stands for undecided."""

    @abstractmethod
    def figure(self, results: Results) -> Figure:
        """Draw what was measured, with direct labels and intervals as bands: by `normkit.lab.drawing`."""
