"""The speed benchmark: `run` measures, `print_table` of `normkit.bench.table` shows, `to_json` keeps.

How it is measured. All contenders of a case take turns within one process, one sample each per round, and
ratios are formed within a round: what else the machine does hits both sides. A sample is as many iterations
as take 2 ms. Ratios are given as the median over the rounds with its quartiles.

What is measured. One layer within a training step: forward through the module, with its graph, and backward
from a given gradient into input and parameters; or the forward pass in evaluation, without gradients. Every
contender works on the same input in every iteration, so what fits the last-level cache is found there, by
the copy as well. Outputs and gradients are allocated anew each time, as they are in training; the copy's
target is not, so the floor pays for no fresh pages. A case is beyond the cache where the two tensors of the
copy are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

import normkit as nk
from normkit.bench import family, steps
from normkit.bench.cases import Case
from normkit.bench.contenders import absent, contenders
from normkit.bench.machine import Machine
from normkit.bench.networks import NETWORKS
from normkit.bench.result import Measured, Result
from normkit.bench.rows import ROWS, Row
from normkit.bench.shapes import Shape
from normkit.bench.timing import interleave, torch_threads
from normkit.errors import InputError, unknown

KEYS = (*(row.key for row in ROWS), *(member.key for member in family.MEMBERS), steps.STEPS)
SHAPES_OF = tuple(dict.fromkeys(shape.network for row in ROWS for shape in row.shapes))

# Called before each measurement: how many are done, of how many, and the next one in words.
OnProgress = Callable[[int, int, str], None]


def run(
    rows: Sequence[str] = KEYS,
    networks: Sequence[str] = SHAPES_OF,
    threads: int | None = None,
    repeats: int | None = None,
    quick: bool = False,
    on_progress: OnProgress = lambda done, total, what: None,
) -> Result:
    """Measure normkit beside its peers and the memory bus.

    Args:
        rows: keys of `KEYS`: rows of the table of `normkit.bench.rows`, members of the family, and `steps`.
        networks: names of `SHAPES_OF`: the networks whose layers are taken as shapes.
        threads: of torch; None for torch's own number.
        repeats: rounds, 2 or more; None for 11, in a quick run 5.
        quick: few shapes per row.
        on_progress: called before each measurement.

    Raises:
        InputError: an unknown row or network, nothing selected, fewer than 2 rounds or 1 thread.
    """
    _check_names(rows, networks)
    cases = [Case(row, shape) for row in ROWS for shape in _shapes(row, rows, networks, quick)]
    members = [
        (member, shape) for member in family.MEMBERS for shape in _shapes(member, rows, networks, quick)
    ]
    nets = list(NETWORKS) if steps.STEPS in rows else []
    total = len(cases) + len(members) + len(nets)
    if not total:
        raise InputError(f"no shape of {', '.join(networks)} belongs to {', '.join(rows)}: choose other ones")
    repeats = (5 if quick else 11) if repeats is None else repeats
    if repeats < 2:
        raise InputError(f"a spread takes 2 rounds or more, got repeats={repeats}")
    if threads is not None and threads < 1:
        raise InputError(f"threads must be 1 or more, got {threads}")
    measured: list[Measured] = []
    with torch_threads(threads) as count:
        machine, without = Machine.here(count), absent(count)
        for case in cases:
            on_progress(len(measured), total, f"{case.row.title}, {case.shape}")
            measured.append(measure(case, repeats, without, machine.last_level_cache))
        for member, shape in members:
            on_progress(len(measured), total, f"{member.title}, {shape}")
            measured.append(family.measure(member, shape, repeats))
        for network in nets:
            on_progress(len(measured), total, f"training step of {network}")
            measured.append(steps.measure(network, repeats))
    return Result(machine, without, measured)


def _check_names(rows: Sequence[str], networks: Sequence[str]) -> None:
    for key in rows:
        if key not in KEYS:
            raise unknown("row", key, KEYS)
    for network in networks:
        if network not in SHAPES_OF:
            raise unknown("network", network, SHAPES_OF)


def _shapes(
    row: Row | family.Member, rows: Sequence[str], networks: Sequence[str], quick: bool
) -> list[Shape]:
    """The shapes of a row that are asked for."""
    if row.key not in rows:
        return []
    return [shape for shape in row.shapes if shape.network in networks and (shape.quick or not quick)]


def measure(case: Case, repeats: int, without: dict[str, str], cache: int | None) -> Measured:
    """Time all contenders of a case; `cache` is the last level's size in bytes."""
    with torch.set_grad_enabled(not case.row.evaluation):
        times = interleave(contenders(case, without), repeats)
    forward, backward = case.least_bytes()
    return Measured(
        row=case.row.key,
        network=case.shape.network,
        size=case.shape.size,
        backend=nk.kernels.explain(case.tensor(seed=0)),
        tensor_bytes=case.tensor_bytes,
        forward_bytes=forward,
        backward_bytes=backward,
        beyond_cache=cache is not None and 2 * case.tensor_bytes > cache,
        times=times,
    )
