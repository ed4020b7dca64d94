"""Norms that inherit none of torch's, recognized by the tensors that they hold and by what they compute."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from normkit import functional
from normkit.errors import InputError
from normkit.surgery.ours import NORMS
from normkit.surgery.outcome import difference, tolerance_of
from normkit.surgery.passes import mode, without_hooks
from normkit.surgery.rewrite import rewrite
from normkit.surgery.walk import for_quantization

_FROZEN = ("running_mean", "running_var", "weight", "bias")


class _Held(NamedTuple):
    """What a module holds that may be a norm.

    Attributes:
        names: of its tensors, (C) each.
        eps: numbers that may be what is added to the variance.
        size: C.
    """

    names: tuple[str, ...]
    eps: tuple[float, ...]
    size: int


Made = Callable[[fx.Graph, fx.Node], fx.Node]  # from a graph and its input to what a forward returns


def handwritten(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a model that have the parts of a norm, and no others, and a forward that is not torch's."""
    quantized = for_quantization(model)
    for name, module in model.named_modules():
        known = type(module).__module__.startswith(("torch.", "normkit.")) or isinstance(module, NORMS)
        if not known and module not in quantized and _held(module) is not None:
            yield name, module


def imitate(layer: nn.Module) -> str:
    """Let such a module compute by our functions, in place; what it computes is compared on random values.

    In evaluation and in training, at several sizes, so that eps shows, with gradients, and for half input too. Where
    its weights are half ones, with float32 ones as well: half precision shows little, and loses small squares.

    Returns:
        The name of our function.

    Raises:
        InputError: none of ours computes what it does; it is as it was.
    """
    held = _held(layer)
    assert held is not None
    (name, _), *others = list(inspect.signature(layer.forward).parameters.items())
    if not others:
        probes = _probes(layer, held)
        for function, made in _candidates(held):
            graph = _graph(name, made)
            if all(_same(probe, _rewritten(probe, graph), held) for probe in probes):
                rewrite(layer, graph)
                return function
    raise InputError(
        f"{type(layer).__name__} has the parts of a norm, and none of ours computes what it does"
    )


def _held(module: nn.Module) -> _Held | None:
    tensors = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    eps = tuple(dict.fromkeys(v for v in vars(module).values() if isinstance(v, float) and 0 < v < 1e-1))
    first = next(iter(tensors.values()), torch.empty(0))
    alike = all(t.shape == first.shape and t.dtype == first.dtype for t in tensors.values())
    several = set(tensors) == set(_FROZEN) or (
        len(tensors) in (1, 2) and all(isinstance(t, nn.Parameter) for t in tensors.values())
    )
    odd = first.dim() != 1 or len(first) < 2 or not first.is_floating_point() or first.is_meta
    if (
        any(True for _ in module.children())
        or not (alike and several and eps)
        or odd
        or "forward" in vars(module)
    ):
        return None
    return _Held(tuple(tensors), eps, len(first))


def _candidates(held: _Held) -> Iterator[tuple[str, Made]]:
    """What it may compute, the likeliest first; with its result in the input's dtype, or in that of the weight."""
    kinds: list[tuple[str, Made]] = []
    for eps in held.eps:
        if set(held.names) == set(_FROZEN):
            kinds.append(("batch_norm", _frozen(eps)))
            continue
        for names in itertools.permutations(held.names):
            for axis in (-1, 1):
                if len(names) == 1:
                    kinds += [
                        ("rms_norm", _rows(functional.rms_norm, held.size, names, eps, axis, added=added))
                        for added in (0, 1)
                    ]
                kinds.append(
                    ("layer_norm", _rows(functional.layer_norm, held.size, names, eps, axis, added=0))
                )
    for function, made in kinds:
        yield function, made
        yield function, _promoted(made, held.names[0])


def _rows(
    function: Callable[..., Tensor], size: int, names: tuple[str, ...], eps: float, axis: int, *, added: int
) -> Made:
    """Over the features along the last axis, or the second one; with weights that are near 0 where 1 is added."""

    def made(graph: fx.Graph, x: fx.Node) -> fx.Node:
        held = [graph.get_attr(name) for name in names]
        if added:
            held[0] = graph.call_function(torch.add, (held[0], added))
        if function is functional.layer_norm and len(held) == 1:
            held.append(None)  # pyright: ignore[reportArgumentType]
        x = x if axis == -1 else graph.call_method("movedim", (x, 1, -1))
        y = graph.call_function(function, (x, [size], *held, eps))
        return y if axis == -1 else graph.call_method("movedim", (y, -1, 1))

    return made


def _frozen(eps: float) -> Made:
    """By statistics that never move."""

    def made(graph: fx.Graph, x: fx.Node) -> fx.Node:
        held = [graph.get_attr(name) for name in _FROZEN]
        return graph.call_function(functional.batch_norm, (x, *held, False, 0.0, eps))

    return made


def _promoted(made: Made, name: str) -> Made:
    """With the result in the dtype of the weight, which multiplies half input last."""

    def promoted(graph: fx.Graph, x: fx.Node) -> fx.Node:
        return graph.call_method("type_as", (made(graph, x), graph.get_attr(name)))

    return promoted


def _graph(name: str, made: Made) -> fx.Graph:
    graph = fx.Graph()
    graph.output(made(graph, graph.placeholder(name)))
    return graph


def _probes(layer: nn.Module, held: _Held) -> list[nn.Module]:
    """Copies on the CPU with values of every size, so that each tensor shows; the precise one first."""
    own = getattr(layer, held.names[0]).dtype
    dtypes = [own] if own.itemsize > 2 else [torch.float32, own]
    return [_probe(copy.deepcopy(layer).to("cpu", dtype), held) for dtype in dtypes]


def _probe(probe: nn.Module, held: _Held) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for name in held.names:
        tensor = getattr(probe, name)
        tensor.data = (torch.rand(held.size, generator=generator) + 0.5).to(tensor.dtype)
    return probe


def _rewritten(probe: nn.Module, graph: fx.Graph) -> nn.Module:
    new = copy.deepcopy(probe)
    rewrite(new, graph)
    return new


def _same(old: nn.Module, new: nn.Module, held: _Held) -> bool:
    """Whether two modules agree wherever the old one computes anything."""
    agreed = [
        _agree(old, new, x, training=training)
        for x in _inputs(held, getattr(old, held.names[0]).dtype)
        for training in (False, True)
    ]
    known = [agreement for agreement in agreed if agreement is not None]
    return len(known) >= 6 and all(known)


def _inputs(held: _Held, dtype: torch.dtype) -> Iterator[Tensor]:
    """Values about 0 and about 3, small and large; of the weight's dtype, and half ones for a weight that is not."""
    generator = torch.Generator().manual_seed(1)
    other = 5 if held.size != 5 else 7
    for kind in (dtype, *([torch.bfloat16] if dtype == torch.float32 else [])):
        for shape in ([4, held.size], [2, other, held.size], [2, held.size, 3, other], [3, held.size, 1, 2]):
            for scale, mean in ((1.0, 0.0), (1e-3, 0.0), (30.0, 3.0)):
                if kind == torch.float16 and scale < 1:
                    continue  # it does not hold squares of these, so the old layer is wrong there
                yield (torch.randn(shape, generator=generator) * scale + mean).to(kind)


def _agree(old: nn.Module, new: nn.Module, x: Tensor, *, training: bool) -> bool | None:
    """Whether values and gradients are the same; None where the old one is for no such input."""
    expected = _values(old, x, training)
    if expected is None:
        return None
    got = _values(new, x, training)
    if got is None or [t.dtype for t in got] != [t.dtype for t in expected]:
        return False
    return all(difference(a, b) <= 4 * tolerance_of(x) for a, b in zip(expected, got, strict=True))


def _values(layer: nn.Module, x: Tensor, training: bool) -> list[Tensor] | None:
    """The output, and the gradients of input and parameters."""
    x = x.clone().requires_grad_()
    with (
        torch.enable_grad(),
        torch.random.fork_rng(devices=[]),
        mode(layer, training=training),
        without_hooks(layer),
    ):
        try:
            y = layer(x)
            if y.shape != x.shape:  # which it was broadcast to, as no input that it is meant for is
                return None
            wrt = [x, *(p for p in layer.parameters() if p.requires_grad)]
            ramp = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
            return [y.detach(), *torch.autograd.grad((y * ramp).sum(), wrt, materialize_grads=True)]
        except Exception:  # whatever it says of such an input
            return None
