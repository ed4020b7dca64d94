"""What runs after what in a model: torch.fx's graph of it, in which every call knows whose forward made it."""

from __future__ import annotations

import copy
import inspect
import operator
from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from normkit.surgery.passes import hooked, mode, undisturbed, without_hooks
from normkit.surgery.restore import Snapshot
from normkit.surgery.walk import for_quantization


class UntraceableError(Exception):
    """torch.fx cannot follow a forward; the message says where it stopped."""


class Flow:
    """The calls of a model's forward, in their order, in one mode.

    Args:
        model: it stays as it is.
        kinds: layers of these are seen; a module without any of them is one node, whatever it does inside, and so
            is one of torch's, as a transformer's layer.
        training: the mode.

    Raises:
        UntraceableError: torch.fx cannot follow the model.
    """

    def __init__(self, model: nn.Module, kinds: tuple[type[nn.Module], ...], *, training: bool) -> None:
        def opaque(module: nn.Module) -> bool:
            torchs = type(module).__module__.startswith("torch.nn.") and type(module) is not nn.Sequential
            return (
                torchs or isinstance(module, kinds) or not any(isinstance(m, kinds) for m in module.modules())
            )

        self.opaque = opaque
        self.for_quantization = for_quantization(model)
        self.model = model
        self.graph = trace(model, opaque, training=training)
        self._modules = {
            node: model.get_submodule(str(node.target))
            for node in self.graph.nodes
            if node.op == "call_module"
        }
        called = self._modules.values()
        self._calls = Counter(id(inner) for module in called for inner in module.modules())
        self._tensors = {str(n.target): n.meta["tensor"] for n in self.graph.nodes if n.op == "get_attr"}
        self._read = {id(tensor) for tensor in self._tensors.values()}

    def module(self, node: fx.Node | None) -> nn.Module | None:
        """The module that a node calls, or called when the graph was made; None where it calls something else."""
        return None if node is None else self._modules.get(node)

    def calls(self, kinds: tuple[type[nn.Module], ...]) -> list[fx.Node]:
        """The calls of layers of these kinds."""
        return [node for node in self.graph.nodes if isinstance(self.module(node), kinds)]

    def times(self, module: nn.Module) -> int:
        """How often a module is called, if only by one that is not looked into."""
        return self._calls[id(module)]

    def reads(self, module: nn.Module) -> bool:
        """Whether a forward takes a parameter or buffer of a module without calling it."""
        held = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        return any(id(tensor) in self._read for tensor in held)

    def body(self, owner: str) -> list[fx.Node]:
        """What a module's own forward does, without what modules inside it do."""
        return [node for node in calls_in(self.graph) if owner_of(node) == owner]

    def find_shapes(self, batch: Any) -> None:
        """Note the shape of every tensor between the calls, for an example."""
        bound = inspect.signature(self.model.forward)
        if isinstance(batch, dict):
            args = bound.bind(**batch).args
        else:
            args = bound.bind(*(batch if isinstance(batch, (tuple, list)) else (batch,))).args
        with undisturbed(self.model):
            modules = {str(node.target): module for node, module in self._modules.items()}
            _Shapes(fx.GraphModule({**modules, **self._tensors}, self.graph)).run(*copy.deepcopy(args))

    def take_shapes(self, other: Flow) -> None:
        """Take over the shapes of the other mode, where it makes the same calls."""
        mine, others = list(self.graph.nodes), list(other.graph.nodes)
        if [(node.op, node.target) for node in mine] == [(node.op, node.target) for node in others]:
            for node, twin in zip(mine, others, strict=True):
                node.meta.update({key: twin.meta[key] for key in ("shape", "dtype") if key in twin.meta})

    def between(self, a: fx.Node, b: fx.Node) -> list[fx.Node]:
        """The calls after one and before another."""
        calls = calls_in(self.graph)
        return calls[calls.index(a) + 1 : calls.index(b)]

    def hooks_between(self, a: fx.Node, b: fx.Node) -> bool:
        """Whether hooks see what passes from one call to another: those of modules whose forward makes only one."""
        ways = [
            {owner_of(node).rsplit(".", n)[0] for n in range(owner_of(node).count(".") + 1)}
            for node in (a, b)
        ]
        return any(hooked(self.model.get_submodule(path)) for path in ways[0] ^ ways[1] if path)


def calls_in(graph: fx.Graph) -> list[fx.Node]:
    """What a graph does, in order."""
    return [node for node in graph.nodes if node.op in ("call_module", "call_function", "call_method")]


def owner_of(node: fx.Node) -> str:
    """The name of the module whose forward made a call."""
    return node.meta["owner"]


def consumer(node: fx.Node) -> fx.Node | None:
    """The one call that takes a result, where it is one and takes it once."""
    if len(node.users) != 1:
        return None
    (user,) = node.users
    taken: list[fx.Node] = []
    fx.map_arg((user.args, user.kwargs), taken.append)  # pyright: ignore[reportArgumentType]
    return user if taken.count(node) == 1 and user.op != "output" else None


def first_input(node: fx.Node) -> fx.Node | None:
    """What a call takes first."""
    given = node.args[0] if node.args else next(iter(node.kwargs.values()), None)
    return given if isinstance(given, fx.Node) else None


def trace(model: nn.Module, opaque: Callable[[nn.Module], bool], *, training: bool) -> fx.Graph:
    """The graph of a forward, in which opaque modules are one node each; the model is not changed.

    Raises:
        UntraceableError: torch.fx cannot follow the forward, or there are others, for optional arguments.
    """
    if "forward" in vars(model):
        raise UntraceableError("its forward was replaced in this one object")
    for parameter in inspect.signature(type(model).forward).parameters.values():
        if parameter.default is not parameter.empty or parameter.kind not in _PLAIN:
            raise UntraceableError(f"its forward may do other things where {parameter.name} is given")
    before = Snapshot(model)  # a forward may count its calls, and torch.fx leaves constants behind
    try:
        with mode(model, training=training), without_hooks(model):
            graph = _Tracer(opaque).trace(model)
            for node in graph.nodes:
                if node.op == "get_attr":
                    path, _, name = str(node.target).rpartition(".")
                    node.meta["tensor"] = getattr(model.get_submodule(path), name)
            return graph
    except Exception as failure:  # whatever a forward does with what is no tensor
        message = str(failure).strip().partition("\n")[0]
        raise UntraceableError(f"torch.fx cannot follow its forward: {message}") from failure
    finally:
        before.restore()


_PLAIN = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # a forward that changes buffers shall not do so while it is traced

    def __init__(self, opaque: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self._opaque = opaque
        self._owners = [""]

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


class _Shapes(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            n.meta.update(shape=tuple(result.shape), dtype=result.dtype)
        return result
