"""The accuracy benchmark: how far outputs and statistics are from float64, ours beside torch's and Keras's.

The oracle is the two-pass formula in float64 on the input as it is after rounding to its dtype, so that the
error is the layer's alone. Layers are as constructed: scale 1, shift 0, and eps 1e-5 in all.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

import normkit as nk
from normkit.bench import keras_peer
from normkit.bench.cases import groups_of, layer
from normkit.bench.machine import Machine

EPS = 1e-5
NORMS = {"batch": "BN", "layer": "LN", "group": "GN", "instance": "IN", "rms": "RMS"}
DTYPES = (torch.float32, torch.bfloat16)
SIZE = (32, 8, 28, 28)
LARGE = (2048, 4, 64, 64)  # batch norm alone: what is lost here is lost in long sums
OURS, OURS_LAST = "normkit", "normkit channels_last"
TORCH, TORCH_LAST = "torch", "torch channels_last"
KERAS = "Keras on torch"


@dataclass(frozen=True)
class Values:
    """A distribution of inputs: normal with this mean and deviation, or uniform between two bounds."""

    name: str
    mean: float = 0.0
    deviation: float = 1.0
    uniform: bool = False  # from mean to mean + deviation

    def draw(self, size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An input of this size, rounded once from float64."""
        generator = torch.Generator().manual_seed(0)
        random = torch.rand if self.uniform else torch.randn
        x = random(size, generator=generator, dtype=torch.float64)
        return x.mul_(self.deviation).add_(self.mean).to(dtype)


VALUES = (
    Values("0 ± 1"),
    Values("1e3 ± 1", 1e3),
    Values("1e4 ± 0.1", 1e4, 0.1),
    Values("1e6 ± 1", 1e6),
    Values("0 ± 1e30", deviation=1e30),
    Values("0 ± 1e-40", deviation=1e-40),  # subnormal
)
LARGE_VALUES = Values("5 to 6", 5.0, uniform=True)


@dataclass(frozen=True)
class Output:
    """What a layer computes: y, and in batch norm the batch's mean and biased variance in float64."""

    y: Tensor
    mean: Tensor | None = None
    var: Tensor | None = None


@dataclass(frozen=True)
class Errors:
    """The largest errors of one contender on one input; None for statistics that it does not give.

    Of y the error is absolute. Of the mean it is relative to the root of the mean square, of the variance to
    the variance; no figure where that is outside the normal range of float32, in which layers store them.
    """

    norm: str
    dtype: str
    values: str
    size: tuple[int, ...]
    contender: str
    y: float
    mean: float | None = None
    var: float | None = None


@dataclass(frozen=True)
class Accuracy:
    """A whole run."""

    machine: Machine
    backend: str
    absent: dict[str, str]  # peers that could not run, and why
    errors: list[Errors]


def run(
    large: tuple[int, ...] | None = None,
    on_progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Accuracy:
    """Measure the errors of every norm, dtype and distribution.

    Args:
        large: size of the large input of batch norm; None for `LARGE`, or as much of it as memory holds.
        on_progress: called before each input with how many are done, of how many, and the next in words.
    """
    inputs = [(norm, dtype, values, SIZE) for dtype in DTYPES for norm in NORMS for values in VALUES]
    inputs += [("batch", dtype, LARGE_VALUES, large or _as_memory_holds(LARGE)) for dtype in DTYPES]
    reason = keras_peer.absent()
    errors: list[Errors] = []
    for done, (norm, dtype, values, size) in enumerate(inputs):
        on_progress(done, len(inputs), f"{NORMS[norm]} {values.name}")
        errors += measure(norm, values.draw(size, dtype), values.name, with_keras=reason is None)
    machine = Machine.here(torch.get_num_threads())
    without = {} if reason is None else {KERAS: reason}
    return Accuracy(machine, nk.kernels.explain(torch.ones(SIZE)), without, errors)


def measure(norm: str, x: Tensor, name: str, with_keras: bool) -> list[Errors]:
    """The errors of every contender on x (N, C, H, W), which layer and RMS norm take as N rows."""
    size = tuple(x.shape)
    x = x.flatten(1) if norm in {"layer", "rms"} else x
    truth = oracle(norm, x)
    outputs = {OURS: _forward(nk, norm, x), TORCH: _forward(nn, norm, x)}
    if x.dim() == 4:
        last = x.contiguous(memory_format=torch.channels_last)
        outputs |= {OURS_LAST: _forward(nk, norm, last), TORCH_LAST: _forward(nn, norm, last)}
    if with_keras:
        outputs[KERAS] = Output(*keras_peer.forward(norm, x, EPS))
    dtype = str(x.dtype).removeprefix("torch.")
    return [
        Errors(norm, dtype, name, size, contender, *errors(output, truth))
        for contender, output in outputs.items()
    ]


def oracle(norm: str, x: Tensor) -> Output:
    """What the layer of this norm shall compute, by the two-pass formula in float64."""
    wide = x.double()
    if norm in {"group", "instance"}:
        sets = groups_of(x.shape[1]) if norm == "group" else x.shape[1]
        wide = wide.view(x.shape[0], sets, -1)
    axes = [0, *range(2, wide.dim())] if norm == "batch" else [-1]
    mean = torch.zeros(()) if norm == "rms" else wide.mean(axes, keepdim=True)
    centered = wide - mean
    var = centered.square().mean(axes, keepdim=True)
    return Output((centered / (var + EPS).sqrt()).view(x.shape), mean.flatten(), var.flatten())


def _forward(library: ModuleType, norm: str, x: Tensor) -> Output:
    """The library's layer in training; with momentum 1 its running statistics are those of the batch."""
    options = {"momentum": 1.0} if norm == "batch" else {}
    module = layer(library, norm, tuple(x.shape), x.dtype, eps=EPS, **options)
    with torch.no_grad():
        y = module(x)
    if norm != "batch":
        return Output(y)
    count = x.numel() // x.shape[1]
    mean, unbiased = (module.get_buffer(f"running_{name}").double() for name in ("mean", "var"))
    return Output(y, mean, unbiased * ((count - 1) / count))


def errors(output: Output, truth: Output) -> tuple[float, float | None, float | None]:
    """The largest error of y, absolute, and of mean and variance, relative: see `Errors`."""
    y = (output.y.double() - truth.y).abs().max().item()
    if output.mean is None or output.var is None or truth.mean is None or truth.var is None:
        return y, None, None
    scale = (truth.mean.square() + truth.var).sqrt()
    return y, _relative(output.mean, truth.mean, scale), _relative(output.var, truth.var, truth.var)


def _relative(value: Tensor, truth: Tensor, scale: Tensor) -> float | None:
    limits = torch.finfo(torch.float32)
    if not torch.all((scale == 0) | ((scale >= limits.tiny) & (scale <= limits.max))):
        return None
    error = (value - truth).abs()
    return torch.where(error == 0, 0.0, error / scale).max().item()


def _as_memory_holds(size: tuple[int, ...]) -> tuple[int, ...]:
    """The size with its batch halved until a dozen float64 tensors of it fit in the memory that is free."""
    meminfo = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s*(\d+) kB", meminfo.read_text()) if meminfo.exists() else None
    while found and size[0] > 1 and 12 * 8 * math.prod(size) > 1024 * int(found[1]):
        size = (size[0] // 2, *size[1:])
    return size


def to_json(accuracy: Accuracy) -> str:
    """Every figure; one that is not finite as the string "nan" or "inf", as JSON has no number for it."""
    plain = asdict(accuracy)
    for one in plain["errors"]:
        one |= {key: str(v) for key, v in one.items() if isinstance(v, float) and not math.isfinite(v)}
    return json.dumps(plain, indent=1, allow_nan=False)
