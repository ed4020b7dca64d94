"""A forward followed by torch.fx, for each way in which it may be called."""

from __future__ import annotations

import dis
import inspect
import itertools
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from torch import fx, nn

from normkit.surgery.passes import mode, without_hooks
from normkit.surgery.restore import Snapshot

_ANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_LOCALS = {"locals", "vars", "eval", "exec"}  # by which a forward sees arguments that it does not name
GIVEN: Any = object()  # stands for an argument that the caller gives, whatever it is
# What modules are given by those above them alone, where their class says takes_handed.
HANDED = ("residual", "activation")
_MOST = 16  # ways to call that are followed


class UntraceableError(Exception):
    """torch.fx cannot follow a forward; the message says where it stopped."""


def optional(module: nn.Module) -> list[inspect.Parameter]:
    """The arguments that a call of a module may leave out, or take any number of, and that its forward looks at."""
    parameters = inspect.signature(type(module).forward).parameters.values()
    return [
        p for p in parameters if (p.default is not p.empty or p.kind in _ANY) and p not in ignored(module)
    ]


def ignored(module: nn.Module) -> list[inspect.Parameter]:
    """The arguments of any number, *args and **kwargs, that a forward takes and never looks at."""
    forward = type(module).forward
    parameters = inspect.signature(forward).parameters.values()
    if getattr(type(module), "takes_handed", False):  # surgery's own, that never uses them
        return [p for p in parameters if p.kind in _ANY]
    code = getattr(forward, "__code__", None)
    if code is None or hasattr(forward, "__wrapped__") or not _LOCALS.isdisjoint(code.co_names):
        return []
    used = {instruction.argval for instruction in dis.get_instructions(code)}
    return [p for p in parameters if p.kind in _ANY and p.name not in used]


def defaults(module: nn.Module) -> dict[str, Any]:
    """The way to call a module in which everything is left out that may be."""
    return {p.name: p.default for p in optional(module) if p.kind not in _ANY}


def check_plain(module: nn.Module) -> None:
    """Whether a module has one way to be called.

    Raises:
        UntraceableError: there are others, for optional arguments.
    """
    for parameter in optional(module):
        raise UntraceableError(f"its forward may do other things where {parameter.name} is given")


def ways(module: nn.Module) -> list[dict[str, Any]]:
    """How a module may be called: what its optional arguments are, the defaults first.

    A flag is false or true; anything else is left out or `GIVEN`. What surgery hands on is left out: it goes to the
    last norm alone, whatever that becomes.

    Raises:
        UntraceableError: there are too many ways, or no end of them.
    """
    choices: dict[str, list[Any]] = {}
    for p in optional(module):
        if p.kind in _ANY:
            raise UntraceableError(
                f"its forward may do other things where {p.name} is given, whatever that holds"
            )
        handed = p.name in HANDED and getattr(type(module), "takes_handed", False)
        choices[p.name] = (
            [p.default] if handed else [p.default, not p.default if isinstance(p.default, bool) else GIVEN]
        )
    if math.prod(map(len, choices.values())) > _MOST:
        raise UntraceableError(
            f"its forward has {len(choices)} optional arguments, too many to follow all ways"
        )
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


def trace(
    model: nn.Module,
    opaque: Callable[[nn.Module], bool],
    *,
    training: bool,
    way: Mapping[str, Any] | None = None,
) -> fx.Graph:
    """The graph of a forward, in which opaque modules are one node each; the model is not changed.

    Args:
        model: any module.
        opaque: whether a module inside it is one node.
        training: the mode.
        way: what optional arguments are; None: the defaults.

    Raises:
        UntraceableError: torch.fx cannot follow the forward.
    """
    if "forward" in vars(model):
        raise UntraceableError("its forward was replaced in this one object")
    given = defaults(model) if way is None else way
    before = Snapshot(model)  # a forward may count its calls, and torch.fx leaves constants behind
    try:
        with mode(model, training=training), without_hooks(model):
            graph = _Tracer(opaque, given).trace(model)
            for node in graph.nodes:
                if node.op == "get_attr":
                    path, _, name = str(node.target).rpartition(".")
                    node.meta["tensor"] = getattr(model.get_submodule(path), name)
            return graph
    except Exception as failure:  # whatever a forward does with what is no tensor
        message = str(failure).strip().partition("\n")[0]
        raise UntraceableError(f"torch.fx cannot follow its forward{_where(given)}: {message}") from failure
    finally:
        before.restore()


def _where(way: Mapping[str, Any]) -> str:
    told = [
        f"{name} is {'given' if value is GIVEN else value}"
        for name, value in way.items()
        if value is GIVEN or value is True
    ]
    return f" where {' and '.join(told)}" if told else ""


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # a forward that changes buffers shall not do so while it is traced

    def __init__(self, opaque: Callable[[nn.Module], bool], way: Mapping[str, Any]) -> None:
        super().__init__()
        self._opaque, self._way = opaque, way
        self._owners = [""]

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Inputs for what has to be given, and the values of a way for the rest, which leave no node in the graph."""
        args: list[Any] = [self.root]
        kwargs: dict[str, Any] = {}
        for name, p in list(inspect.signature(root_fn).parameters.items())[1:]:
            if p.kind in _ANY:
                continue
            value = self._way.get(name, GIVEN)
            value = self.create_proxy("placeholder", name, (), {}) if value is GIVEN else value
            if p.kind is p.KEYWORD_ONLY:
                kwargs[name] = value
            else:
                args.append(value)
        return lambda *given: root_fn(*given, **kwargs), args

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self._opaque(m)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self._opaque(m):
            return super().call_module(m, forward, args, kwargs)
        self._owners.append(self.path_of_module(m))
        try:
            return super().call_module(m, forward, args, kwargs)
        finally:
            self._owners.pop()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta["owner"] = self._owners[-1]
        return node


def _in_place(operation: Callable[[Any, Any], Any]) -> Callable[[fx.Proxy, Any], Any]:
    return lambda self, other: self.tracer.create_proxy("call_function", operation, (self, other), {})


class _Proxy(fx.Proxy):
    """One that knows x += y from x = x + y: whoever else holds x sees the first."""

    __iadd__ = _in_place(operator.iadd)
    __isub__ = _in_place(operator.isub)
    __imul__ = _in_place(operator.imul)
    __itruediv__ = _in_place(operator.itruediv)
    __ifloordiv__ = _in_place(operator.ifloordiv)
    __imod__ = _in_place(operator.imod)
    __ipow__ = _in_place(operator.ipow)
    __iand__ = _in_place(operator.iand)
    __ior__ = _in_place(operator.ior)
    __ixor__ = _in_place(operator.ixor)
