"""What a model gives when one norm alone goes by the batch: several norms in one pass, each in rows of its own.

In evaluation mode a sample's output does not depend on the others. So a pass takes copies of a part of a batch, one for
each norm, and in its copy a norm gives what it gave for these samples when it normalized the whole batch by the batch's
statistics. What comes into it is as in evaluation, so one pass over the whole batch tells that, of whatever kind the
norm is. For these samples, the result is that of switching the norm on the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from normkit.errors import InputError

_ROUNDING = 0.01  # kernels differ by less, and other samples by more
_FEW = 64  # values of a row, by which it is known again
Output = Callable[[Sequence[int]], Tensor]


@dataclass
class _Held:
    """What a norm gave for the part: a few values by running statistics, and all by those of the batch."""

    evaluated: Tensor
    trained: Tensor


class Part:
    """Samples of a batch, evenly spaced: it may be in order of classes."""

    def __init__(self, count: int, samples: int) -> None:
        self.samples = samples
        self.rows = [i * samples // count for i in range(count)]
        self.held: dict[str, _Held] = {}

    def of(self, x: Tensor) -> Tensor | None:
        """Its rows along the first axis, those of a sample one after another; None where this is no axis of samples."""
        if not x.dim() or not len(x) or len(x) % self.samples:
            return None
        return x.unflatten(0, (self.samples, -1))[self.rows].flatten(0, 1)

    @contextmanager
    def holding(self, layers: Mapping[str, nn.Module]) -> Generator[None]:
        """Hold what norms give while the model evaluates the whole batch.

        One that runs several times changes its own input, and is left out; so is one whose rows are no samples.
        """
        given: dict[str, tuple[Any, Any]] = {}
        seen: set[str] = set()

        def before(name: str, layer: nn.Module, args: Any, kwargs: Any) -> None:
            if not layer.training:
                given[name] = args, kwargs  # before the hooks of others

        def after(name: str, layer: nn.Module, _: Any, output: Any) -> None:
            if layer.training:  # the call below
                return
            args, kwargs = given.pop(name)
            some = self.of(output) if isinstance(output, Tensor) and name not in seen else None
            seen.add(name)
            if some is None:
                self.held.pop(name, None)
                return
            buffers = {key: buffer.clone() for key, buffer in layer.named_buffers()}
            layer.training = True
            try:
                trained = self.of(functional_call(layer, buffers, args, kwargs))
            finally:
                layer.training = False
            if trained is not None:
                self.held[name] = _Held(_few(some), trained)

        with ExitStack() as stack:
            for name, layer in layers.items():
                hook = layer.register_forward_pre_hook(partial(before, name), prepend=True, with_kwargs=True)
                stack.callback(hook.remove)
                stack.callback(layer.register_forward_hook(partial(after, name)).remove)
            yield

    def switched(
        self, layers: Mapping[str, nn.Module], base: Tensor, output: Output
    ) -> Iterator[tuple[str, Tensor]]:
        """The output for the part with each norm switched alone, of the norms for which this can be had.

        There are none where the model does not give samples what it gives them in another batch.

        Args:
            layers: in evaluation mode.
            base: the output in evaluation mode, for the part.
            output: of a batch made of these rows.
        """
        copies = self.samples // len(self.rows)
        names = ["", *self.held]  # the first copy, with nothing switched, shows whether it is the base
        for start in range(0, len(names), copies):
            some = names[start : start + copies]
            switches = {name: _Switch(self.held[name], i, len(some)) for i, name in enumerate(some) if name}
            try:
                with ExitStack() as stack:
                    for name, switch in switches.items():
                        stack.callback(layers[name].register_forward_hook(switch).remove)
                    result = output(self.rows * len(some))
            except InputError:
                return
            if result.shape != (len(base) * len(some), *base.shape[1:]):
                return
            if not start and not _same(result[: len(base)], base):
                return
            parts = result.split(len(base))
            yield from ((name, parts[some.index(name)]) for name in switches if switches[name].calls == 1)


class _Switch:
    """A hook on a norm that puts what is held in the place of one copy."""

    def __init__(self, held: _Held, place: int, copies: int) -> None:
        self.held, self.place, self.copies = held, place, copies
        self.calls = 0

    def __call__(self, layer: nn.Module, args: Any, output: Any) -> Tensor | None:
        new = self.held.trained
        if not isinstance(output, Tensor) or output.shape != (len(new) * self.copies, *new.shape[1:]):
            return None
        output = output.clone()  # a norm may give a view of what others still use
        copy = output.unflatten(0, (self.copies, -1))[self.place]
        if not _same(_few(copy), self.held.evaluated):
            return None
        self.calls += 1
        copy.copy_(new)
        return output


def _few(x: Tensor) -> Tensor:
    """Values of every row."""
    x = x.reshape(len(x), -1)
    return x[:, :: max(1, x.shape[1] // _FEW)].clone()


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(torch.linalg.vector_norm(a - b) <= _ROUNDING * torch.linalg.vector_norm(b))
