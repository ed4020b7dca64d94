"""NK1: how norms stand in a model."""

from __future__ import annotations

from collections.abc import Iterator

from normkit.doctor.checks.check import Check
from normkit.doctor.checks.readers import norms_at_calls
from normkit.doctor.diagnosis import Finding
from normkit.doctor.readings import Norm, Readings

_REMOVES_BIAS = ("batch", "mixed", "instance")


class BiasBeforeNorm(
    Check,
    code="NK101",
    severity="note",
    remedy="make the layer with bias=False; the norm has a bias of its own",
):
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

    def check(self, seen: Readings) -> Iterator[Finding]:
        for graph, step, norm in norms_at_calls(seen):
            source = graph.before(step, through=("view", "axes"))
            if source is None or graph.after(source) != step or len(graph.calls(norm.module)) > 1:
                continue
            layer = seen.weight(graph.nodes[source].module)
            centres = norm.kind in _REMOVES_BIAS or (norm.kind == "group" and norm.groups == norm.channels)
            own = (
                layer is not None and (norm.channels or 0) % layer.outputs == 0
            )  # else channels are other axes
            if layer is not None and layer.biased and centres and own:
                yield self.finding(
                    layer.module,
                    f"its bias, {layer.outputs} numbers, is without effect: {norm.module!r} subtracts it again",
                    parameters=layer.outputs,
                )


class NormAtTheEnd(
    Check,
    code="NK102",
    severity="warning",
    remedy="leave this norm out and train again, unless the output is to be normalized",
):
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

    def check(self, seen: Readings) -> Iterator[Finding]:
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


class DropoutBeforeBatchNorm(
    Check,
    code="NK103",
    severity="warning",
    remedy="put dropout behind the last batch norm, or nk.recalibrate once training is done",
):
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

    def check(self, seen: Readings) -> Iterator[Finding]:
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


class ActivationBeforeNorm(
    Check,
    code="NK104",
    severity="warning",
    remedy="order it as its siblings: layer, norm, activation",
):
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

    def check(self, seen: Readings) -> Iterator[Finding]:
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


CHECKS = (BiasBeforeNorm, NormAtTheEnd, DropoutBeforeBatchNorm, ActivationBeforeNorm)
