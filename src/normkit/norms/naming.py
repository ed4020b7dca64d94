"""Names in errors that Python writes."""

from __future__ import annotations

from typing import TypeVar

_Class = TypeVar("_Class", bound=type)


def for_all_dimensions(shared: _Class) -> _Class:
    """Let a class that the layers of all dimensions inherit go by their name without the dimension.

    Python names a function by where it was written, so a missing argument of GhostBatchNorm2d would be one of
    _GhostBatchNorm.
    """
    for name in ("__init__", "forward"):
        function = vars(shared).get(name)
        if function is not None:
            function.__qualname__ = f"{shared.__name__.lstrip('_')}.{name}"
            inner = getattr(function, "__wrapped__", function)
            inner.__qualname__ = function.__qualname__
    return shared
