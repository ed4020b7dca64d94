"""NK6: what batches do in a model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

from normkit.doctor.checks.check import Check
from normkit.doctor.checks.readers import in_order, trafficked
from normkit.doctor.diagnosis import Finding
from normkit.doctor.graph import Graph
from normkit.doctor.readings import Makers, Norm, Readings

_GAP, _WIDE_GAP = 0.5, 1.0  # deviations of the output
_LEFT = 0.1  # of the gap, to what was not found
_NAMED = 4  # norms
_DEAD, _SATURATED = 0.3, 0.5  # share of channels, of outputs
_FLAT = {
    "sigmoid": 4.0,
    "hardsigmoid": 3.0,
    "tanh": 2.0,
    "hardtanh": 1.0,
    "softsign": 10.0,
    "logsigmoid": 6.0,
}
_ONE_SIDED = ("relu", "relu6")
_DECADES = 3.0  # of the gradients, from one end of the model to the other
_DEEP = 4  # layers with weights, below which depth is not looked at


class ModeGap(
    Check,
    code="NK601",
    severity="warning",
    also="error",
    fixable=True,
    remedy="see the findings of the layer that is named; mostly nk.recalibrate(model, batches)",
):
    """The model in evaluation is another one than in training.

    ## What it does
    Runs each batch with norms in both modes, dropout off, and compares outputs and losses. Then it is measured what
    each norm makes of this: how far the output moves when it alone goes from running statistics to those of the first
    batch; with eight norms or more on some of its samples, evenly spaced. The fewest norms that together leave a tenth
    or less are named; what they make together and not alone is their interaction.

    ## Why is this bad
    Good in `train()`, useless in `eval()`. An error from a deviation of the output on, or where the loss in
    evaluation is twice that in training and a tenth of it above.

    ## Example
    ```python
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    batches = [torch.randn(64, 4) + 5 for _ in range(4)]
    for _ in range(50):
        model(torch.randn(64, 4))
    ```

    ## Remedy
    What is said about the layer that is named; mostly `nk.recalibrate(model, batches)`.

    ## Fix safety
    Safe with `--data`: recalibration, and the loss before and after is shown.
    """

    def check(self, seen: Readings) -> Iterator[Finding]:
        gap = seen.run.gap if seen.run else None
        if gap is None or not (gap.output > _GAP or math.isnan(gap.output)) or _fresh(seen):
            return
        losses = ""
        worse = False
        if gap.loss is not None and gap.loss_evaluated is not None:
            losses = (
                f"; the loss is {gap.loss:.3g} in training mode and {gap.loss_evaluated:.3g} in evaluation"
            )
            worse = not gap.loss_evaluated <= 2 * gap.loss or not math.isfinite(gap.loss_evaluated)
            worse = worse and not gap.loss_evaluated - gap.loss <= 0.1
        makers = gap.makers
        yield self.finding(
            makers.modules[0] if makers else "",
            f"outputs in training and evaluation mode lie {gap.output:.2g} deviations apart"
            + (f"; {_made_by(makers)}" if makers else "")
            + losses,
            "error" if worse or not gap.output <= _WIDE_GAP else None,
            output=gap.output,
            **(
                {"alone": makers.alone, "together": 1 - makers.left, "norms": len(makers.modules)}
                if makers
                else {}
            ),
        )


def _made_by(makers: Makers) -> str:
    """Who makes the gap, alone and together, and what is left and why."""
    first, *others = makers.modules
    alone = f"{first!r} alone makes {max(0.0, makers.alone):.0%} of it"
    if not others:
        return alone + (f" (1 of {makers.among} norms)" if makers.among > 1 else "")
    named = ", ".join(map(repr, others[: _NAMED - 1]))
    more = f" and {len(others) - _NAMED + 1} more" if len(others) >= _NAMED else ""
    together = (
        f"together with {named}{more} ({len(makers.modules)} of {makers.among} norms) {1 - makers.left:.0%}"
    )
    left = (
        ""
        if makers.left <= _LEFT
        else f"; {makers.left:.0%} is left to norms whose statistics cannot be exchanged"
    )
    return f"{alone}, {together}: what each makes depends on the others{left}"


def _fresh(seen: Readings) -> bool:
    """Whether no statistic ever moved in a model that is to be trained: there is a finding for that."""
    known = [norm.running for norm in seen.norms if norm.by_batch and norm.running]
    return bool(known) and seen.training and all(running.untouched for running in known)


def _activation_after(graph: Graph | None, norm: Norm) -> str:
    """The activation that takes what the norm gives: its name in lower case."""
    for step in graph.calls(norm.module) if graph else []:
        after = graph.after(step) if graph else None
        if graph and after is not None and graph.nodes[after].kind == "activation":
            return graph.nodes[after].op.lower()
    return ""


class DeadUnits(
    Check,
    code="NK602",
    severity="warning",
    remedy="lower the learning rate, use a leaky activation, or prune these channels",
):
    """Channels behind a norm that no sample switches on.

    ## What it does
    For norms in front of a ReLU, counts the channels whose largest output over all batches is 0 or less.

    ## Why is this bad
    They give nothing and learn nothing. The norm's bias has sunk below its weight's reach.

    ## Example
    ```python
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    batches = [torch.randn(64, 4)]
    model[1].bias.data[:4] = -9.0
    ```

    ## Remedy
    A lower learning rate or no decay for the norm's parameters; leaky ReLU; or prune the channels.

    ## Fix safety
    Not fixed: a bias is learned.
    """

    def check(self, seen: Readings) -> Iterator[Finding]:
        for norm, traffic in trafficked(seen):
            if _activation_after(seen.graph, norm) in _ONE_SIDED and traffic.high.numel() > 1:
                dead, channels = int((traffic.high <= 0).sum()), traffic.high.numel()
                if dead > _DEAD * channels:
                    yield self.finding(
                        norm.module,
                        f"{dead} of {channels} channels are 0 behind their activation in every sample",
                        dead=dead,
                        channels=channels,
                    )


class Saturated(
    Check,
    code="NK603",
    severity="warning",
    remedy="start with a smaller weight, lower the learning rate, or use another activation",
):
    """Most outputs of a norm lie where the activation behind it is flat.

    ## What it does
    For norms in front of sigmoid, tanh and their like, the share of outputs beyond the point where the slope is below
    a tenth of the steepest.

    ## Why is this bad
    Gradients do not pass. The norm's weight has grown too large, or its bias lies far out.

    ## Example
    ```python
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2))
    batches = [torch.randn(64, 4)]
    model[1].weight.data.fill_(20.0)
    ```

    ## Remedy
    A lower learning rate for the norm's parameters, a smaller initial weight, or another activation.

    ## Fix safety
    Not fixed: a weight is learned.
    """

    def check(self, seen: Readings) -> Iterator[Finding]:
        for norm, traffic in trafficked(seen):
            activation = _activation_after(seen.graph, norm)
            bound = _FLAT.get(activation)
            if bound is None:
                continue
            flat = traffic.outputs.share_above(bound) + 1 - traffic.outputs.share_above(-bound)
            if flat > _SATURATED:
                yield self.finding(
                    norm.module, f"{flat:.0%} of its outputs lie where {activation} is flat", share=flat
                )


class Gradients(
    Check,
    code="NK604",
    severity="warning",
    remedy="put shortcuts around blocks, a norm into each, or initialize otherwise",
):
    """Gradients vanish or explode from one end of a model to the other.

    ## What it does
    Takes the length of the gradient at the output of each norm, in the order in which norms run, and compares the
    medians of the first and of the last third; of a model with fewer than 4 norms, the gradient of each layer's weight
    over the length of that weight. Names the place where it changes most.

    ## Why is this bad
    Three powers of ten between them, and no learning rate suits both ends. Batch norm in a deep network without
    shortcuts makes gradients explode at the start (Yang et al. 2019).

    ## Example
    ```python
    layers = [layer for _ in range(20) for layer in (nn.Linear(32, 32), nn.Sigmoid())]
    model = nn.Sequential(nn.Linear(4, 32), *layers, nn.Linear(32, 2))
    batches, loss = [(torch.randn(32, 4), torch.randint(2, (32,)))], nn.CrossEntropyLoss()
    ```

    ## Remedy
    Shortcuts around blocks; a norm in each block where they vanish; another initialization.

    ## Fix safety
    Not fixed: it is the model's design.
    """

    def check(self, seen: Readings) -> Iterator[Finding]:
        what, sizes = "at the outputs of norms", _at_norms(seen)
        if len(sizes) < _DEEP:
            what, sizes = "relative to weights", _at_weights(seen)
        if len(sizes) < _DEEP:
            return
        third = len(sizes) // 3
        first, last = (_median([size for _, size in part]) for part in (sizes[:third], sizes[-third:]))
        if abs(first - last) > _DECADES:
            steps = [(abs(b[1] - a[1]), a[0], b[0]) for a, b in pairwise(sizes)]
            jump, before, behind = max(steps)
            yield self.finding(
                sizes[0][0],
                f"gradients {'vanish' if first < last else 'explode'}: {what}, those of the first third are "
                f"1e{first - last:+.0f} times those of the last; from {before!r} to {behind!r} it is 1e{jump:.1f}",
                decades=first - last,
                steepest=jump,
            )


def _at_norms(seen: Readings) -> list[tuple[str, float]]:
    """Powers of ten of the gradient at the output of each norm, in the order in which they first run."""
    modules = [node.module for _, node in seen.graph.of_kind("norm")] if seen.graph else []
    norms = (seen.norm(module) for module in dict.fromkeys(modules))
    found = [(norm.module, norm.traffic.gradient) for norm in norms if norm and norm.traffic]
    return [(module, math.log10(size)) for module, size in found if size and math.isfinite(size)]


def _at_weights(seen: Readings) -> list[tuple[str, float]]:
    """Likewise of the gradient of each layer's weight, over its length."""
    return [
        (weight.module, math.log10(weight.gradient / weight.norm))
        for weight in in_order(seen)
        if weight.gradient and weight.norm > 0 and math.isfinite(weight.gradient)
    ]


def _median(values: list[float]) -> float:
    """The lower one of two."""
    return sorted(values)[(len(values) - 1) // 2]


CHECKS = (
    ModeGap,
    DeadUnits,
    Saturated,
    Gradients,
)
