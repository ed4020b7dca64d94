"""Names in errors that Python writes."""

from __future__ import annotations

from types import FunctionType
from typing import Any, TypeVar

from normkit.norms.tracing import one_node

_Class = TypeVar("_Class", bound=type)
_CALLED = ("__init__", "forward")  # by users, who may forget an argument


def for_all_dimensions(shared: _Class) -> _Class:
    """Let a class that the layers of all dimensions inherit go by their name without the dimension.

    Python names a function by where it was written, so a missing argument of GhostBatchNorm2d would be one of
    _GhostBatchNorm.
    """
    for name in _CALLED:
        function = vars(shared).get(name)
        if function is not None:
            function.__qualname__ = f"{shared.__name__.lstrip('_')}.{name}"
            inner = getattr(function, "__wrapped__", function)
            inner.__qualname__ = function.__qualname__
    return shared


def as_its_own(shared: _Class) -> _Class:
    """Give a class copies of the constructor and forward that it inherits, which can go by its name."""
    for name in _CALLED:
        inherited: Any = getattr(shared, name)
        inner = getattr(inherited, "__wrapped__", None)
        setattr(shared, name, _copied(inherited) if inner is None else one_node(_copied(inner)))
    return shared


def _copied(function: FunctionType) -> Any:
    copied = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copied.__kwdefaults__ = function.__kwdefaults__
    copied.__annotations__ = function.__annotations__
    copied.__doc__ = function.__doc__
    copied.__module__ = function.__module__
    return copied
