"""What all checks are: readings in, findings out."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

from normkit.doctor.diagnosis import Finding, Severity
from normkit.doctor.readings import Readings


class Check(ABC):
    """One illness. Its docstring is what `--explain` prints, and a section of its page in docs/doctor.

    Args:
        code: its name, by which it is chosen.
        severity: of its findings.
        remedy: what to do, one line.
        also: the other severity that a finding may have; its docstring says when.
        fixable: whether `--fix` can do it.
    """

    code: ClassVar[str]
    severity: ClassVar[Severity]
    remedy: ClassVar[str]
    also: ClassVar[Severity | None]
    fixable: ClassVar[bool]

    def __init_subclass__(
        cls,
        *,
        code: str,
        severity: Severity,
        remedy: str,
        also: Severity | None = None,
        fixable: bool = False,
        **others: Any,
    ) -> None:
        super().__init_subclass__(**others)
        cls.code, cls.severity, cls.remedy, cls.also, cls.fixable = code, severity, remedy, also, fixable

    @abstractmethod
    def check(self, seen: Readings) -> Iterator[Finding]:
        """The findings of this code."""

    def finding(
        self, module: str, message: str, severity: Severity | None = None, **evidence: float
    ) -> Finding:
        """A finding at a module, of the usual severity or the other one."""
        assert severity in (None, self.severity, self.also), (
            f"{self.code} does not say that it may be {severity}"
        )
        return Finding(
            self.code, severity or self.severity, module, message, evidence, self.remedy, self.fixable
        )

    @classmethod
    def title(cls) -> str:
        """The first line of the docstring, without its stop."""
        return (inspect.getdoc(cls) or "").partition("\n")[0].rstrip(".")

    @classmethod
    def severities(cls) -> str:
        """Those that its findings may have, the usual one first."""
        return cls.severity if cls.also is None else f"{cls.severity} or {cls.also}"
