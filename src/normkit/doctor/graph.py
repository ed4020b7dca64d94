"""Which step of a model feeds which: read off torch.fx without data, or recorded while a batch runs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from normkit.doctor.kinds import is_leaf, kind_of_function, kind_of_module
from normkit.errors import InputError


@dataclass(frozen=True)
class Node:
    """One step: a module by its name, or a function; `inputs` are the steps whose results it takes.

    kind is "input", or as `kinds.kind_of_module` and `kind_of_function` say; `dropped` the probability of a dropout.
    """

    op: str
    kind: str
    module: str
    inputs: tuple[int, ...]
    dropped: float = 0.0


@dataclass(frozen=True)
class Graph:
    """The steps in the order in which they ran, and which of them give the model's output."""

    nodes: tuple[Node, ...]
    outputs: frozenset[int]

    @cached_property
    def consumers(self) -> dict[int, list[int]]:
        """For each step, those that take its result."""
        taken: dict[int, list[int]] = {i: [] for i in range(len(self.nodes))}
        for i, node in enumerate(self.nodes):
            for source in dict.fromkeys(node.inputs):
                taken[source].append(i)
        return taken

    def calls(self, module: str) -> list[int]:
        """The steps at which a module ran."""
        return [i for i, node in enumerate(self.nodes) if node.module == module]

    def of_kind(self, kind: str) -> Iterator[tuple[int, Node]]:
        """All steps of a kind."""
        return ((i, node) for i, node in enumerate(self.nodes) if node.kind == kind)

    def before(self, i: int, through: tuple[str, ...] = ("view",)) -> int | None:
        """The step whose result arrives at step i, steps of some kinds being looked through; None for an input."""
        while self.nodes[i].inputs:
            i = self.nodes[i].inputs[0]
            if self.nodes[i].kind not in through:
                return i
        return None

    def after(self, i: int, through: tuple[str, ...] = ("view", "axes")) -> int | None:
        """The only step that takes the result of step i, likewise; None where there are several, or none."""
        while len(self.consumers[i]) == 1 and i not in self.outputs:
            (i,) = self.consumers[i]
            if self.nodes[i].kind not in through:
                return i
        return None

    def ancestors(self, i: int, stop: Callable[[Node], bool] = lambda node: False) -> set[int]:
        """The steps that step i depends on; what lies before a step with stop(step) is not followed."""
        found: set[int] = set()
        open_ends = list(self.nodes[i].inputs)
        while open_ends:
            source = open_ends.pop()
            if source not in found:
                found.add(source)
                if not stop(self.nodes[source]):
                    open_ends += self.nodes[source].inputs
        return found


def trace(model: nn.Module) -> Graph | None:
    """By torch.fx; None for a model that it cannot trace, whose control flow depends on values."""
    names = {module: name for name, module in model.named_modules()}
    tracer = _Tracer()
    try:
        traced = tracer.trace(model)
    except Exception:  # whatever a model does with a proxy in place of a tensor
        return None
    index: dict[fx.Node, int] = {}
    nodes: list[Node] = []
    outputs: frozenset[int] = frozenset()
    for step in traced.nodes:
        inputs = tuple(index[source] for source in step.all_input_nodes if source in index)
        if step.op == "output":
            outputs = frozenset(inputs)
            continue
        if step.op == "get_attr":
            continue
        index[step] = len(nodes)
        if step.op == "placeholder":
            nodes.append(Node(str(step.target), "input", "", ()))
        elif step.op == "call_module":
            module = model.get_submodule(str(step.target))
            nodes.append(_of_module(module, names[module], inputs))
        else:
            name = step.target if isinstance(step.target, str) else getattr(step.target, "__name__", "")
            nodes.append(_of_function(name, inputs, step.kwargs))
    return Graph(tuple(nodes), outputs)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m) or super().is_leaf_module(m, module_qualified_name)


@contextmanager
def recorded(model: nn.Module) -> Generator[Callable[[Any], Graph]]:
    """Record what runs inside; given the model's output, the value is the graph."""
    recorder = _Recorder()
    handles = [
        hook
        for name, module in model.named_modules()
        if is_leaf(module)
        for hook in recorder.watch(name, module)
    ]
    entered = model.module if isinstance(model, DistributedDataParallel) else model
    handles.append(entered.register_forward_pre_hook(recorder.start, with_kwargs=True, prepend=True))
    try:
        with recorder:
            yield recorder.graph
    finally:
        for handle in handles:
            handle.remove()


class _Recorder(TorchFunctionMode):
    """Knows which step made which tensor, as long as the tensor lives."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.made_by: Any = WeakTensorKeyDictionary()
        self.inside = 0

    def watch(self, name: str, module: nn.Module) -> Iterator[Any]:
        """Take a module as one step."""

        def enter(*_: Any) -> None:
            self.inside += 1

        def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self.inside -= 1
            if not self.inside:
                self._note(_of_module(module, name, self._sources((args, kwargs))), output)

        yield module.register_forward_pre_hook(enter, prepend=True)
        yield module.register_forward_hook(leave, with_kwargs=True)

    def start(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        """The model's inputs are the first steps."""
        for tensor in tensors_in((args, kwargs)):
            self._note(Node("input", "input", "", ()), tensor)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if not self.inside and any(True for _ in tensors_in(output)):
            inputs = self._sources((args, kwargs))
            if inputs:
                self._note(_of_function(getattr(func, "__name__", ""), inputs, kwargs or {}), output)
        return output

    def graph(self, output: Any) -> Graph:
        """What was recorded."""
        return Graph(tuple(self.nodes), frozenset(self._sources(output)))

    def _sources(self, values: Any) -> tuple[int, ...]:
        found = (self.made_by.get(tensor) for tensor in tensors_in(values))
        return tuple(source for source in found if source is not None)

    def _note(self, node: Node, output: Any) -> None:
        for tensor in tensors_in(output):
            self.made_by[tensor] = len(self.nodes)
        self.nodes.append(node)


def _of_module(module: nn.Module, name: str, inputs: tuple[int, ...]) -> Node:
    kind = kind_of_module(module)
    dropped = float(getattr(module, "p", 0.0)) if kind == "dropout" else 0.0
    return Node(type(module).__name__, kind, name, inputs, dropped)


def _of_function(name: str, inputs: tuple[int, ...], kwargs: dict[str, Any]) -> Node:
    op = name.strip("_")
    kind = kind_of_function(op)
    dropped = float(kwargs.get("p", 0.5)) if kind == "dropout" else 0.0
    return Node(op, kind, "", inputs, dropped)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in what a module takes or gives, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors_in(part)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name))


def first_tensor(output: Any) -> Tensor:
    """The floating tensor that stands for a model's output: the first one in it, and no loss that comes along.

    Raises:
        InputError: there is none.
    """
    floating = [tensor for tensor in tensors_in(output) if torch.is_floating_point(tensor)]
    if floating:
        return next((tensor for tensor in floating if tensor.dim()), floating[0])
    raise InputError(
        f"a model must give a floating tensor, alone or in a structure, got {type(output).__name__}"
    )
