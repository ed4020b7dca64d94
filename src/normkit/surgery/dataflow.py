"""What runs after what in a model: torch.fx's graph of it, in which every call knows whose forward made it."""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn

from normkit.surgery.passes import hooked, undisturbed
from normkit.surgery.trace import GIVEN, UntraceableError, defaults, trace, ways
from normkit.surgery.walk import for_quantization


class Flow:
    """The calls of a model's forward, in their order, in one mode.

    Args:
        model: it stays as it is.
        kinds: layers of these are seen; a module without any of them is one node, whatever it does inside, and so
            is one of torch's, as a transformer's layer.
        training: the mode.
        way: what the optional arguments of the forward are; None: the defaults.

    Raises:
        UntraceableError: torch.fx cannot follow the model.
    """

    def __init__(
        self,
        model: nn.Module,
        kinds: tuple[type[nn.Module], ...],
        *,
        training: bool,
        way: Mapping[str, Any] | None = None,
    ) -> None:
        def opaque(module: nn.Module) -> bool:
            torchs = type(module).__module__.startswith("torch.nn.") and not isinstance(module, nn.Sequential)
            return (
                torchs or isinstance(module, kinds) or not any(isinstance(m, kinds) for m in module.modules())
            )

        self.opaque = opaque
        self.for_quantization = for_quantization(model)
        self.model = model
        self.graph = trace(model, opaque, training=training, way=way)
        self._way = defaults(model) if way is None else way
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
        """Note the shape of every tensor between the calls, for an example that is called in this way."""
        args = self._arguments(batch)
        if args is None:
            return
        with undisturbed(self.model):
            modules = {str(node.target): module for node, module in self._modules.items()}
            _Shapes(fx.GraphModule({**modules, **self._tensors}, self.graph)).run(*copy.deepcopy(args))

    def _arguments(self, batch: Any) -> list[Any] | None:
        """What an example gives for the inputs of the graph; None where it is called in another way."""
        signature = inspect.signature(self.model.forward)
        if isinstance(batch, dict):
            bound = signature.bind(**batch)
        else:
            bound = signature.bind(*(batch if isinstance(batch, (tuple, list)) else (batch,)))
        bound.apply_defaults()
        for name, value in self._way.items():
            default = signature.parameters[name].default
            same = bound.arguments[name] is not default if value is GIVEN else bound.arguments[name] is value
            if not same:
                return None
        return [bound.arguments[str(node.target)] for node in self.graph.find_nodes(op="placeholder")]

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


class _Shapes(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            n.meta.update(shape=tuple(result.shape), dtype=result.dtype)
        return result


def flows_of(
    model: nn.Module, kinds: tuple[type[nn.Module], ...], modes: tuple[bool, ...]
) -> tuple[list[Flow], UntraceableError | None]:
    """A flow for each mode and each way to call a model; and why it has others that cannot be followed.

    Raises:
        UntraceableError: not even the call without optional arguments can be followed.
    """
    flows = [Flow(model, kinds, training=training) for training in modes]
    try:
        others = [
            Flow(model, kinds, training=training, way=way) for way in ways(model)[1:] for training in modes
        ]
    except UntraceableError as why:
        return flows, why
    return [*flows, *others], None
