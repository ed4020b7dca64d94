"""NK1, from 105 on: what shares a statistic: places, steps, groups, axes."""

from __future__ import annotations

from collections.abc import Iterator

from normkit.doctor.checks.check import Check
from normkit.doctor.checks.readers import norms_at_calls
from normkit.doctor.diagnosis import Finding
from normkit.doctor.graph import Graph
from normkit.doctor.readings import Norm, Readings


def _calls_depend(graph: Graph, calls: list[int]) -> bool:
    """Whether a later call takes what an earlier one gave: the norm stands in a loop."""
    return any(first in graph.ancestors(later) for first in calls for later in calls if later > first)


class SharedNorm(
    Check,
    code="NK105",
    severity="warning",
    remedy="give each place a norm of its own",
):
    """One norm serves several places.

    ## What it does
    Counts in how many places of one forward pass a batch norm runs.

    ## Why is this bad
    Its running statistics are a mixture of all places, and in evaluation right for none; its momentum works several
    times per step.

    ## Example
    ```python
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(4, 8), nn.Linear(4, 8)
            self.norm = nn.BatchNorm1d(8)
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.norm(self.left(x)) + self.norm(self.right(x)))


    model = Shared()
    ```

    ## Remedy
    A norm for each place; layers with weights may stay shared.

    ## Fix safety
    Not fixed: each place needs statistics of its own, which training has to give.
    """

    def check(self, seen: Readings) -> Iterator[Finding]:
        for norm in seen.norms:
            calls = seen.graph.calls(norm.module) if seen.graph and norm.by_batch else []
            if seen.graph and len(calls) > 1 and not _calls_depend(seen.graph, calls):
                yield self.finding(
                    norm.module, f"runs in {len(calls)} places and mixes their statistics", calls=len(calls)
                )


class OneValuePerGroup(
    Check,
    code="NK106",
    severity="error",
    remedy="use fewer groups, of several channels each",
):
    """A norm over single values gives its bias, whatever comes in.

    ## What it does
    Looks for group and instance norms whose groups hold one value: as many groups as channels, and no space; and for
    layer norms over an axis of length 1.

    ## Why is this bad
    The mean of one value is the value. Minus the mean it is 0, and nothing of the input is left; torch refuses this in
    a batch of one only.

    ## Example
    ```python
    model = nn.Sequential(nn.Linear(4, 8), nn.GroupNorm(8, 8), nn.ReLU(), nn.Linear(8, 2))
    batches = [torch.randn(16, 4)]
    ```

    ## Remedy
    Fewer groups, each of several channels.

    ## Fix safety
    Not fixed: another number of groups is another model.
    """

    def check(self, seen: Readings) -> Iterator[Finding]:
        for norm in seen.norms:
            if norm.kind not in ("group", "instance", "layer", "rms"):
                continue
            single = norm.kind == "layer" and all(length == 1 for length in norm.shape)
            if (norm.traffic is not None and norm.traffic.values == 1 and norm.kind != "rms") or (
                norm.kind == "group" and norm.groups == norm.channels and _fed_by_linear(seen, norm)
            ):
                single = True
            if single:
                yield self.finding(
                    norm.module, "one value per statistic: the output is its bias alone", values=1
                )


def _fed_by_linear(seen: Readings, norm: Norm) -> bool:
    """Whether what comes in is (N, C) as a linear layer gives it, which has no space."""
    for graph, step, other in norms_at_calls(seen):
        if other is norm:
            source = graph.before(step, through=("activation", "dropout"))
            layer = seen.weight(graph.nodes[source].module) if source is not None else None
            return layer is not None and not layer.convolves
    return False


class LayerNormOverTheWrongAxis(
    Check,
    code="NK107",
    severity="warning",
    remedy="move channels to the last axis, or use GroupNorm(1, channels)",
):
    """A layer norm that leaves out the channels.

    ## What it does
    Looks for layer and RMS norms behind a convolution whose axes do not reach the channels, and behind a linear layer
    or another norm whose features were transposed away.

    ## Why is this bad
    Layer norm works on the last axes. Behind a convolution these are space: each channel is normalized along a row
    of pixels, by parameters that belong to pixels, and the model fits one image size alone.

    ## Example
    ```python
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.LayerNorm(16), nn.ReLU(), nn.Conv2d(8, 2, 1))
    ```

    ## Remedy
    Channels to the last axis (`x.permute(0, 2, 3, 1)`), or `nn.GroupNorm(1, channels)`.

    ## Fix safety
    Not fixed: the model has to be trained with the other axes.
    """

    def check(self, seen: Readings) -> Iterator[Finding]:
        for graph, step, norm in norms_at_calls(seen):
            if norm.kind not in ("layer", "rms"):
                continue
            source = graph.before(step, through=("activation", "dropout", "pool"))
            node = graph.nodes[source] if source is not None else None
            space = {"1": 1, "2": 2, "3": 3}.get(node.op.removesuffix("d")[-1:], 0) if node else 0
            axes = f"its last {len(norm.shape)} axes, of size {list(norm.shape)}"
            if node and node.kind == "weight" and space > 0 and len(norm.shape) <= space:
                yield self.finding(
                    norm.module,
                    f"normalizes {axes}: space behind {node.module or node.op!r}, not its channels",
                )
            elif (
                node
                and source is not None
                and node.op in ("transpose", "mT", "T")
                and self._swaps(graph, source)
            ):
                yield self.finding(norm.module, f"normalizes {axes}, behind a transpose of the features")

    def _swaps(self, graph: Graph, transpose: int) -> bool:
        """Whether features in the last axis came in: behind a linear layer or a norm of features."""
        source = graph.before(transpose, through=("activation", "dropout"))
        return source is not None and graph.nodes[source].op in ("Linear", "linear", "LayerNorm", "Embedding")


class BatchNormInALoop(
    Check,
    code="NK108",
    severity="warning",
    remedy="use nk.RecurrentBatchNorm, which has statistics for each step, or layer norm",
):
    """A batch norm in a recurrent cell, with one set of statistics for all steps.

    ## What it does
    Looks for a batch norm whose output reaches its own input again within one forward pass.

    ## Why is this bad
    Activations of a recurrence differ from step to step, above all in the first ones. Running statistics that mix the
    steps are right for none of them (Cooijmans et al. 2017).

    ## Example
    ```python
    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.step, self.norm, self.head = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)

        def forward(self, x):
            for _ in range(3):
                x = torch.tanh(self.norm(self.step(x)))
            return self.head(x)


    model = Cell()
    ```

    ## Remedy
    `nk.RecurrentBatchNorm`, which has statistics for each step, or layer norm.

    ## Fix safety
    Not fixed: statistics for each step have to be trained.
    """

    def check(self, seen: Readings) -> Iterator[Finding]:
        for norm in seen.norms:
            calls = seen.graph.calls(norm.module) if seen.graph and norm.by_batch else []
            if seen.graph and len(calls) > 1 and _calls_depend(seen.graph, calls):
                yield self.finding(
                    norm.module,
                    f"runs {len(calls)} times, each on what it gave before, with one set of statistics",
                    calls=len(calls),
                )


CHECKS = (SharedNorm, OneValuePerGroup, LayerNormOverTheWrongAxis, BatchNormInALoop)
