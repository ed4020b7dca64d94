"""The speed benchmark on a GPU: `run` measures, for `normkit bench --device cuda`.

How it is measured. CUDA events around the forward and the backward pass of every iteration, on the GPU's own clock.
Each contender goes through several sets of inputs, as many as exceed the second-level cache twice, so that none finds
in it what it left there. All contenders of a case take turns within one process, a sample each per round, and ratios
are formed within a round; they are given as the median over the rounds with its quartiles. The floor is the least
bytes over the rate of a copy, which takes its turn like everybody else.

Who runs. normkit, torch eager (batch norm with cuDNN where torch takes it, and once without), torch.compile, and
apex, Liger and QuACK where they are installed and have the operation.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

import normkit as nk
from normkit.bench.cases import Case
from normkit.bench.contenders import COMPILED, COPY, EAGER, OURS
from normkit.bench.cuda_peers import APEX, LIGER, QUACK, absent, peers
from normkit.bench.machine import Machine
from normkit.bench.result import Measured, Result
from normkit.bench.rows import BF16, F32, Row
from normkit.bench.shapes import Shape
from normkit.bench.timing import Times
from normkit.errors import InputError, unknown

NATIVE = "torch without cuDNN"
PEERS = (EAGER, NATIVE, COMPILED, APEX, LIGER, QUACK)
ROUNDS, QUICK_ROUNDS = 21, 7
_SAMPLE = 20  # iterations
_WARM = 5
_SETS = range(2, 33)  # of inputs, in turn

_LAYERS = ((64, 112), (64, 56), (256, 56), (512, 28), (1024, 14), (2048, 7))
_QUICK = (56, 28, 7)
IMAGES = tuple(Shape("ResNet-50", (256, C, side, side), side in _QUICK and C != 256) for C, side in _LAYERS)
ON_CHIP = tuple(
    Shape("up to 16 MB", (32, C, side, side), True) for C, side in ((64, 56), (256, 14), (512, 7))
)
TOKENS = tuple(
    Shape("hidden", (8192, hidden), hidden in (1024, 16384)) for hidden in (1024, 4096, 8192, 16384)
)


@dataclass(frozen=True)
class GpuRow(Row):
    """A row and the shapes that it takes on a GPU; `geomean` and `worst` are the speed that it must reach."""

    inputs: tuple[Shape, ...] = ()

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Those of `inputs`."""
        return self.inputs


ROWS = (
    GpuRow("bn-small", "BN bf16, 16 MB", "batch", BF16, 2.0, 1.0, inputs=ON_CHIP),
    GpuRow("bn-last", "BN bf16 channels_last", "batch", BF16, 1.5, 1.0, channels_last=True, inputs=IMAGES),
    GpuRow("bn", "BN bf16 contiguous", "batch", BF16, 2.0, 1.0, inputs=IMAGES),
    GpuRow("bn-relu", "BN+ReLU bf16", "batch", BF16, 2.5, 1.0, True, activation="relu", inputs=IMAGES),
    GpuRow("bn-add-relu", "BN+add+ReLU bf16", "batch", BF16, 2.5, 1.0, True, False, "relu", True, IMAGES),
    GpuRow("gn-last", "GN bf16 channels_last", "group", BF16, 3.0, 1.0, channels_last=True, inputs=IMAGES),
    GpuRow("in-last", "IN bf16 channels_last", "instance", BF16, 3.0, 1.0, channels_last=True, inputs=IMAGES),
    GpuRow("ln", "LN bf16", "layer", BF16, 1.0, 1.0, inputs=TOKENS),
    GpuRow("rms", "RMS bf16", "rms", BF16, 1.0, 1.0, inputs=TOKENS),
    GpuRow("ln-f32", "LN f32", "layer", F32, 1.0, 1.0, inputs=TOKENS),
)
KEYS = tuple(row.key for row in ROWS)


@dataclass(frozen=True)
class Inputs:
    """What one iteration works on."""

    x: Tensor
    dy: Tensor
    residual: Tensor | None


def sets_needed(bytes_of_one: int, cache: int) -> int:
    """How many sets of inputs exceed the cache twice: at least two, so that no iteration repeats the one before.

    >>> sets_needed(bytes_of_one=60 << 20, cache=50 << 20), sets_needed(1 << 20, 50 << 20)
    (2, 32)
    """
    return min(max(-(-2 * cache // bytes_of_one), _SETS.start), _SETS.stop - 1)


def run(
    rows: Sequence[str] = KEYS,
    repeats: int | None = None,
    quick: bool = False,
    on_progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Result:
    """Measure normkit beside its peers on the current CUDA device.

    Args:
        rows: of `KEYS`.
        repeats: rounds, 2 or more; None for 21, in a quick run 7.
        quick: few shapes per row.
        on_progress: called before each measurement.

    Raises:
        InputError: no CUDA device, an unknown row, fewer than 2 rounds.
    """
    for key in rows:
        if key not in KEYS:
            raise unknown("row", key, KEYS)
    repeats = (QUICK_ROUNDS if quick else ROUNDS) if repeats is None else repeats
    if repeats < 2:
        raise InputError(f"a spread takes 2 rounds or more, got repeats={repeats}")
    if not torch.cuda.is_available():
        raise InputError(
            f"a CUDA device is needed, torch {torch.__version__} sees none: leave out --device cuda"
        )
    cases = [Case(row, s) for row in ROWS if row.key in rows for s in row.shapes if s.quick or not quick]
    measured: list[Measured] = []
    for case in cases:
        on_progress(len(measured), len(cases), f"{case.row.title}, {case.shape}")
        measured.append(measure(case, repeats))
        torch.cuda.empty_cache()
    return Result(_machine(), absent(), measured)


def _machine() -> Machine:
    """The GPU in the processor's place."""
    device = torch.cuda.get_device_properties()
    return Machine(
        nk.__version__, torch.__version__, device.name, torch.get_num_threads(), device.L2_cache_size
    )


def measure(case: Case, repeats: int) -> Measured:
    """Time all contenders of a case, in turn, on inputs in turn."""
    cache = torch.cuda.get_device_properties().L2_cache_size
    inputs = [_inputs(case, seed) for seed in range(sets_needed(3 * case.tensor_bytes, cache))]
    turns = [(name, step, count()) for name, step in _steps(case)]
    times = {name: Times() for name, _, _ in turns}
    order = random.Random(0)
    for _, step, turn in turns:
        sample(step, inputs, turn, _WARM)
    for _ in range(repeats):
        order.shuffle(turns)
        for name, step, turn in turns:
            forward, backward = sample(step, inputs, turn, _SAMPLE)
            times[name].total.append(forward + backward)
            if name != COPY:
                times[name].forward.append(forward)
                times[name].backward.append(backward)
    forward_bytes, backward_bytes = case.least_bytes()
    return Measured(
        row=case.row.key,
        network=case.shape.network,
        size=case.shape.size,
        backend=nk.kernels.explain(inputs[0].x),
        tensor_bytes=case.tensor_bytes,
        forward_bytes=forward_bytes,
        backward_bytes=backward_bytes,
        beyond_cache=2 * case.tensor_bytes > cache,
        times=times,
    )


# One iteration on given inputs, which calls back between its forward and its backward pass.
Step = Callable[[Inputs, Callable[[], None]], object]


def sample(step: Step, inputs: Sequence[Inputs], turn: Any, iterations: int) -> tuple[float, float]:
    """Seconds of an iteration's forward and backward pass; `turn` counts, so that samples continue with the inputs."""
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(3)] for _ in range(iterations)]
    torch.cuda.synchronize()
    for before, between, after in events:
        chosen = inputs[next(turn) % len(inputs)]
        before.record()
        step(chosen, between.record)
        after.record()
    torch.cuda.synchronize()
    forward = sum(before.elapsed_time(between) for before, between, _ in events)
    backward = sum(between.elapsed_time(after) for _, between, after in events)
    return forward / iterations / 1e3, backward / iterations / 1e3


def of_module(module: nn.Module | Callable[..., Tensor], leaves: Sequence[Tensor]) -> Step:
    """A training step of one layer: gradients reach the inputs and the leaves, and are dropped."""

    def step(given: Inputs, between: Callable[[], None]) -> None:
        tensors = [t for t in (given.x, given.residual) if t is not None]
        y = module(given.x) if given.residual is None else module(given.x, residual=given.residual)
        between()
        torch.autograd.grad(y, [*tensors, *leaves], given.dy)

    return step


def _inputs(case: Case, seed: int) -> Inputs:
    x, dy = case.tensor(2 * seed).cuda().requires_grad_(), case.tensor(2 * seed + 1).cuda()
    residual = case.tensor(1000 + seed).cuda().requires_grad_() if case.row.residual else None
    return Inputs(x, dy, residual)


def _steps(case: Case) -> list[tuple[str, Step]]:
    """Every contender by name."""
    ours, theirs, compiled = case.ours().cuda(), case.theirs().cuda(), case.theirs().cuda()
    torch.compiler.reset()  # each case is compiled for its own sizes, and none counts against a limit
    compiled.compile(dynamic=False)
    steps = [
        (name, of_module(module, list(module.parameters())))
        for name, module in ((OURS, ours), (EAGER, theirs), (COMPILED, compiled))
    ]
    if case.row.norm == "batch":
        steps.append((NATIVE, _without_cudnn(of_module(theirs, list(theirs.parameters())))))
    steps += [(name, of_module(module, list(module.parameters()))) for name, module in peers(case)]
    target = torch.empty_like(case.tensor(0), device="cuda")

    def copy(given: Inputs, between: Callable[[], None]) -> None:
        target.copy_(given.x.detach())
        between()

    return [*steps, (COPY, copy)]


def _without_cudnn(step: Step) -> Step:
    def native(given: Inputs, between: Callable[[], None]) -> None:
        with torch.backends.cudnn.flags(enabled=False):
            step(given, between)

    return native
