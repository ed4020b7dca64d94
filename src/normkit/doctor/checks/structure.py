"""NK1: how norms stand in a model."""

from __future__ import annotations

from collections.abc import Iterator

from normkit.doctor.checks.check import Check
from normkit.doctor.checks.readers import norms_at_calls
from normkit.doctor.diagnosis import Finding
from normkit.doctor.graph import Graph
from normkit.doctor.readings import Norm, Readings

_REMOVES_BIAS = ("batch", "mixed", "instance")


class BiasBeforeNorm(Check):
    """A layer adds a bias that the norm after it subtracts again.

    ## What it does
    Looks for convolutions and linear layers with a bias whose only consumer is a norm that centres each channel.

    ## Why is this bad
    The output does not depend on the bias, nor does its gradient differ from zero. It costs memory, a pass over the
    gradients, and a place in the optimizer, where weight decay moves it about.

    ## Example
    ```python
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
    ```

    ## Remedy
    `nn.Conv2d(3, 8, 3, bias=False)`: the norm's own bias does what this one cannot.

    ## Fix safety
    Not fixed: the keys of the state_dict would change.
    """

    code = "NK101"
    severity = "note"
    remedy = "make the layer with bias=False; the norm has a bias of its own"

    def check(self, seen: Readings) -> Iterator[Finding]:
        """The findings of this code."""
        for graph, step, norm in norms_at_calls(seen):
            source = graph.before(step, through=("view", "axes"))
            if source is None or graph.after(source) != step or len(graph.calls(norm.module)) > 1:
                continue
            layer = seen.weight(graph.nodes[source].module)
            centres = norm.kind in _REMOVES_BIAS or (norm.kind == "group" and norm.groups == norm.channels)
            if layer is not None and layer.biased and centres:
                yield self.finding(
                    layer.module,
                    f"its bias, {layer.outputs} numbers, is without effect: {norm.module!r} subtracts it again",
                    parameters=layer.outputs,
                )


class NormAtTheEnd(Check):
    """A norm after the last layer fixes mean and variance of the model's output.

    ## What it does
    Looks for a norm behind a convolution or linear layer, with no layer with weights between it and the output.

    ## Why is this bad
    What the batch (or the sample) has in common is taken out of the output: class frequencies, brightness, the
    confidence of logits. A generator with batch norm on its last layer is the known case (Radford et al. 2016).
    Embeddings that are normalized on purpose are the exception.

    ## Example
    ```python
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), nn.BatchNorm1d(3))
    ```

    ## Remedy
    Leave the last norm out.

    ## Fix safety
    Not fixed: the model has to be trained without it.
    """

    code = "NK102"
    severity = "warning"
    remedy = "leave this norm out and train again, unless the output is to be normalized"

    def check(self, seen: Readings) -> Iterator[Finding]:
        """The findings of this code."""
        for graph, step, norm in norms_at_calls(seen):
            source = graph.before(step, through=("view", "axes"))
            if source is None or graph.nodes[source].kind != "weight":
                continue
            end: int | None = step
            while end is not None and end not in graph.outputs:
                end = graph.after(end, through=()) if len(graph.consumers[end]) == 1 else None
                if end is not None and graph.nodes[end].kind not in ("activation", "view", "axes"):
                    end = None
            if end is not None:
                yield self.finding(
                    norm.module, f"normalizes the output of the last layer, {graph.nodes[source].module!r}"
                )


class DropoutBeforeBatchNorm(Check):
    """Dropout changes the variance that batch norm remembers.

    ## What it does
    Looks for dropout with a probability above 0 on the way to a batch norm, with no other norm between them.

    ## Why is this bad
    In training, dropout multiplies the variance of what follows; in evaluation it does nothing. Running variances
    were taken with it, and are too large without (Li et al. 2019, "variance shift").

    ## Example
    ```python
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    ```

    ## Remedy
    Put dropout behind the last batch norm, or recalibrate in evaluation mode once training is done.

    ## Fix safety
    Not fixed: the order of layers is the model's design.
    """

    code = "NK103"
    severity = "warning"
    remedy = "put dropout behind the last batch norm, or nk.recalibrate once training is done"

    def check(self, seen: Readings) -> Iterator[Finding]:
        """The findings of this code."""
        for graph, step, norm in norms_at_calls(seen):
            if not norm.by_batch:
                continue
            dropouts = [
                node
                for source in graph.ancestors(step, stop=lambda node: node.kind == "norm")
                if (node := graph.nodes[source]).kind == "dropout" and node.dropped > 0
            ]
            if dropouts:
                kept = min(1 - node.dropped for node in dropouts)
                yield self.finding(
                    norm.module,
                    f"dropout of {1 - kept:g} ({dropouts[0].module or dropouts[0].op!r}) before it: up to "
                    f"{1 / max(kept, 1e-9):.3g} times the variance in training",
                    dropped=1 - kept,
                )


class ActivationBeforeNorm(Check):
    """An activation stands before this norm, and behind the layer in its siblings.

    ## What it does
    Compares the batch norms of a model: whether each is fed by a layer directly, or through an activation.

    ## Why is this bad
    One that differs from the many is mostly a slip. What it normalizes is one-sided, and its siblings' inputs are
    not.

    ## Example
    ```python
    def block(*middle):
        return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), *middle)


    model = nn.Sequential(
        block(nn.BatchNorm2d(4), nn.ReLU()),
        block(nn.BatchNorm2d(4), nn.ReLU()),
        block(nn.ReLU(), nn.BatchNorm2d(4)),
        block(nn.BatchNorm2d(4), nn.ReLU()),
        nn.Conv2d(4, 2, 1),
    )
    ```

    ## Remedy
    Order it as its siblings are: layer, norm, activation.

    ## Fix safety
    Not fixed: the model has to be trained in the new order.
    """

    code = "NK104"
    severity = "warning"
    remedy = "order it as its siblings: layer, norm, activation"

    def check(self, seen: Readings) -> Iterator[Finding]:
        """The findings of this code."""
        direct: list[Norm] = []
        activated: list[Norm] = []
        for graph, step, norm in norms_at_calls(seen):
            source = graph.before(step)
            if not norm.by_batch or source is None:
                continue
            if graph.nodes[source].kind == "weight":
                direct.append(norm)
            elif graph.nodes[source].kind == "activation":
                behind = graph.before(source)
                if behind is not None and graph.nodes[behind].kind == "weight":
                    activated.append(norm)
        if 2 * len(activated) < len(direct):
            for norm in activated:
                yield self.finding(
                    norm.module,
                    f"an activation stands before it, and in {len(direct)} siblings behind the norm",
                    siblings=len(direct),
                )


def _calls_depend(graph: Graph, calls: list[int]) -> bool:
    """Whether a later call takes what an earlier one gave: the norm stands in a loop."""
    return any(first in graph.ancestors(later) for first in calls for later in calls if later > first)


class SharedNorm(Check):
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

    code = "NK105"
    severity = "warning"
    remedy = "give each place a norm of its own"

    def check(self, seen: Readings) -> Iterator[Finding]:
        """The findings of this code."""
        for norm in seen.norms:
            calls = seen.graph.calls(norm.module) if seen.graph and norm.by_batch else []
            if seen.graph and len(calls) > 1 and not _calls_depend(seen.graph, calls):
                yield self.finding(
                    norm.module, f"runs in {len(calls)} places and mixes their statistics", calls=len(calls)
                )


class OneValuePerGroup(Check):
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

    code = "NK106"
    severity = "error"
    remedy = "use fewer groups, of several channels each"

    def check(self, seen: Readings) -> Iterator[Finding]:
        """The findings of this code."""
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


class LayerNormOverTheWrongAxis(Check):
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

    code = "NK107"
    severity = "warning"
    remedy = "move channels to the last axis, or use GroupNorm(1, channels)"

    def check(self, seen: Readings) -> Iterator[Finding]:
        """The findings of this code."""
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


class BatchNormInALoop(Check):
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

    code = "NK108"
    severity = "warning"
    remedy = "use nk.RecurrentBatchNorm, which has statistics for each step, or layer norm"

    def check(self, seen: Readings) -> Iterator[Finding]:
        """The findings of this code."""
        for norm in seen.norms:
            calls = seen.graph.calls(norm.module) if seen.graph and norm.by_batch else []
            if seen.graph and len(calls) > 1 and _calls_depend(seen.graph, calls):
                yield self.finding(
                    norm.module,
                    f"runs {len(calls)} times, each on what it gave before, with one set of statistics",
                    calls=len(calls),
                )


CHECKS = (
    BiasBeforeNorm,
    NormAtTheEnd,
    DropoutBeforeBatchNorm,
    ActivationBeforeNorm,
    SharedNorm,
    OneValuePerGroup,
    LayerNormOverTheWrongAxis,
    BatchNormInALoop,
)
