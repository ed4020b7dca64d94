"""NK7: where a model runs."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from normkit.doctor.checks.check import Check
from normkit.doctor.checks.readers import tracked
from normkit.doctor.diagnosis import Finding
from normkit.doctor.readings import Readings

_LOCAL = 16  # samples of a process


class Unfolded(
    Check,
    code="NK701",
    severity="note",
    remedy="fold it into the layer before it: nk.fold(model)",
):
    """A batch norm that could be part of the layer before it.

    ## What it does
    In a model that is in evaluation mode throughout, looks for batch norms that alone take what a convolution or
    linear layer gives.

    ## Why is this bad
    In evaluation such a norm is an affine map by constants. Folded into the weights it costs nothing; beside them it
    costs a pass over memory.

    ## Example
    ```python
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    model(torch.randn(4, 3, 8, 8))
    model.eval()
    ```

    ## Remedy
    `nk.fold(model)`, which follows the data and says what it left.

    ## Fix safety
    Not fixed: the layers and the keys of the state_dict change.
    """

    def check(self, seen: Readings) -> Iterator[Finding]:
        if seen.graph is None or not seen.evaluates:
            return
        for norm, _ in tracked(seen):
            for step in seen.graph.calls(norm.module):
                source = seen.graph.before(step)
                if source is not None and seen.graph.nodes[source].kind == "weight":
                    layer = seen.graph.nodes[source].module
                    if layer and seen.graph.after(source) == step and len(seen.graph.calls(layer)) == 1:
                        yield self.finding(
                            norm.module, f"could be folded into {layer!r}, which alone feeds it"
                        )


class Unsynchronized(
    Check,
    code="NK702",
    severity="warning",
    remedy="nk.synchronize(model) in every process, before it is wrapped",
):
    """Several processes, each with statistics of its own few samples.

    ## What it does
    Where torch.distributed runs more than one process, looks for batch norms without a process group; nothing where
    batches show that each process has plenty.

    ## Why is this bad
    Each process normalizes by its own share of the batch. With a few samples on each, statistics are noise, however
    large the batch is together.

    ## Example
    `DistributedDataParallel(model)` with 4 images per process and `nn.BatchNorm2d`.

    ## Remedy
    `nk.synchronize(model)` before wrapping.

    ## Fix safety
    Not fixed: it has to happen in every process.
    """

    def check(self, seen: Readings) -> Iterator[Finding]:
        if seen.others.processes < 2 or (seen.run is not None and seen.run.least >= _LOCAL):
            return
        for norm in seen.norms:
            if norm.by_batch and not norm.synchronized and norm.trains and not norm.frozen:
                local = f", {seen.run.least} samples each" if seen.run else ""
                yield self.finding(
                    norm.module,
                    f"{seen.others.processes} processes{local}, and statistics of each alone",
                    processes=seen.others.processes,
                )


class SmallEps(
    Check,
    code="NK703",
    severity="warning",
    remedy="set eps to 1e-5, and train or recalibrate with it",
):
    """An eps that its dtype does not know.

    ## What it does
    Looks for an eps of 0, below the least number of the dtype, or so small that one over its root overflows it.

    ## Why is this bad
    A channel that is constant has variance 0; what is divided by the root of eps then becomes infinite, and NaN
    behind it. 1e-12 is 0 in float16.

    ## Example
    ```python
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, eps=1e-12), nn.ReLU(), nn.Linear(8, 2)).half()
    ```

    ## Remedy
    1e-5, torch's default; for float16 not below 1e-7.

    ## Fix safety
    Not fixed: eps is part of what was trained.
    """

    def check(self, seen: Readings) -> Iterator[Finding]:
        for norm in seen.norms:
            if norm.kind == "other":
                continue
            dtypes = (norm.dtype or torch.float32, norm.traffic.dtype if norm.traffic else torch.float32)
            dtype = min(dtypes, key=lambda dtype: torch.finfo(dtype).max)
            limits = torch.finfo(dtype)
            if norm.eps < limits.smallest_normal * limits.eps or norm.eps**-0.5 > limits.max:
                yield self.finding(
                    norm.module,
                    f"eps={norm.eps:g} is too small for {str(dtype).removeprefix('torch.')}, whose least number is "
                    f"{limits.smallest_normal * limits.eps:.1g}",
                    eps=norm.eps,
                )


CHECKS = (Unfolded, Unsynchronized, SmallEps)
