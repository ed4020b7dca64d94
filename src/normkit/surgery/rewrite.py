"""A module's forward written anew from a graph, in place: the class of the module gets a subclass with it."""

from __future__ import annotations

import inspect
import linecache
import re
from collections.abc import Callable
from functools import cache
from importlib import import_module
from itertools import count
from types import ModuleType
from typing import Any

from torch import fx, nn

from normkit.surgery.dataflow import Flow, calls_in
from normkit.surgery.trace import UntraceableError, check_plain, ignored, trace
from normkit.surgery.walk import become

_Names = tuple[tuple[str, Any], ...]
_files = count()
_OVER = "_written_over"  # attribute of a class that was made here: the one before


def own_graph(module: nn.Module) -> fx.Graph:
    """What a module's own forward does, other modules being one node each, where that is all that it ever does.

    Raises:
        UntraceableError: it cannot be followed, or does other things for other arguments or modes.
    """
    check_plain(module)
    graph, evaluating = (trace(module, lambda m: True, training=training) for training in (True, False))
    if str(graph) != str(evaluating):
        raise UntraceableError("its forward does other things in training than in evaluation")
    if any(node.op == "get_attr" and not _has(module, str(node.target)) for node in graph.nodes):
        raise UntraceableError("its forward makes tensors of constants")
    for parameter in ignored(module):
        _also_take(graph, parameter)
    return graph


def _also_take(graph: fx.Graph, parameter: inspect.Parameter) -> None:
    """Let a graph take any number of arguments too, of which it makes nothing."""
    last = list(graph.find_nodes(op="placeholder"))[-1:]
    stars = "*" if parameter.kind is parameter.VAR_POSITIONAL else "**"
    with graph.inserting_after(last[0]) if last else graph.inserting_before():
        graph.placeholder(f"{stars}{parameter.name}")


def own_calls(graph: fx.Graph, module: nn.Module, owner: str, *flows: Flow) -> list[fx.Node]:
    """The calls of a module's own graph, one for each of `flow.body(owner)`.

    Raises:
        UntraceableError: as part of the model, the module does something else.
    """
    called = {
        node: module.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"
    }
    calls: list[fx.Node] = []
    for flow in flows:
        calls = [node for node in calls_in(graph) if node not in called or flow.opaque(called[node])]
        whole = [_described(node, flow.module(node)) for node in flow.body(owner)]
        if [_described(node, called.get(node)) for node in calls] != whole:
            raise UntraceableError("its forward depends on more than its input")
    return calls


def _described(node: fx.Node, called: nn.Module | None) -> tuple[Any, ...]:
    """A call without where its inputs come from."""
    given = fx.map_arg((node.args, node.kwargs), lambda n: "a result")  # pyright: ignore[reportArgumentType]
    return node.op, node.target if called is None else id(called), repr(given)


def rewrite(module: nn.Module, graph: fx.Graph) -> None:
    """Let a module's forward be what a graph does.

    It stays the same object and an instance of its class; copies and pickles have the new forward too. Numbers that
    the forward took from attributes are those of when the graph was made.
    """
    graph.lint()
    code = graph.python_code("self")
    used = {name: value for name, value in code.globals.items() if re.search(rf"\b{name}\b", code.src)}
    modules = tuple((name, value.__name__) for name, value in used.items() if isinstance(value, ModuleType))
    values = tuple((name, value) for name, value in used.items() if not isinstance(value, ModuleType))
    kind = vars(type(module)).get(_OVER, type(module))
    become(module, _with_forward(kind, code.src, modules, values))


def is_written(module: nn.Module) -> bool:
    """Whether a module's forward was written anew."""
    return _OVER in vars(type(module))


def _has(module: nn.Module, target: str) -> bool:
    path, _, name = target.rpartition(".")
    return hasattr(module.get_submodule(path), name)


@cache
def _with_forward(kind: type[nn.Module], source: str, modules: _Names, values: _Names) -> type[nn.Module]:
    """A class with another forward, under the same name."""
    body: dict[str, Any] = {
        "__doc__": kind.__doc__,
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        _OVER: kind,
        "takes_handed": True,  # for it had no optional arguments of its own
        "forward": _compiled(source, {**{k: import_module(v) for k, v in modules}, **dict(values)}),
        # By its name, a copy or pickle would find the class before.
        "__reduce__": lambda self: (_blank, (kind, source, modules, values), self.__dict__),
    }
    return type(kind.__name__, (kind,), body)


def _compiled(source: str, names: dict[str, Any]) -> Callable[..., Any]:
    """The forward of a source, whose lines tracebacks can show."""
    file = f"<normkit.surgery.rewrite {next(_files)}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    exec(compile(source, file, "exec"), names)
    return names["forward"]


def _blank(kind: type[nn.Module], source: str, modules: _Names, values: _Names) -> nn.Module:
    """A module without attributes, for copies and pickles to fill."""
    rewritten = _with_forward(kind, source, modules, values)
    return rewritten.__new__(rewritten)
