"""What all checks are: readings in, findings out."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from normkit.doctor.diagnosis import Finding, Severity
from normkit.doctor.readings import Readings


class Check(ABC):
    """One illness. Its docstring is what `--explain` prints, and a section of its page in docs/doctor."""

    code: ClassVar[str]
    severity: ClassVar[Severity]
    remedy: ClassVar[str]
    fixable: ClassVar[bool] = False

    @abstractmethod
    def check(self, seen: Readings) -> Iterator[Finding]:
        """The findings of this code."""

    def finding(
        self, module: str, message: str, severity: Severity | None = None, **evidence: float
    ) -> Finding:
        """A finding at a module, of the usual severity or another."""
        return Finding(
            self.code, severity or self.severity, module, message, evidence, self.remedy, self.fixable
        )

    @classmethod
    def title(cls) -> str:
        """The first line of the docstring, without its stop."""
        return (inspect.getdoc(cls) or "").partition("\n")[0].rstrip(".")
