"""NK5: norms and the optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterator

from normkit.doctor.checks.check import Check
from normkit.doctor.checks.readers import scale_invariant
from normkit.doctor.diagnosis import Finding
from normkit.doctor.readings import Norm, Readings, Weight

_TURNS = 0.5  # share of a weight's length that a step moves it
_STANDS = 1e-7
_DEAD = 1e-4  # of the largest weight
_MANY = 0.25  # of the channels
_PER_STEP = 1.9


def _affine(norm: Norm) -> list[tuple[str, float]]:
    """The decay of each parameter of a norm that is in the optimizer."""
    named = (("weight", norm.weight), ("bias", norm.bias))
    return [(name, p.group.weight_decay) for name, p in named if p is not None and p.group is not None]


class DecayOnNorm(
    Check,
    code="NK501",
    severity="warning",
    remedy="give the optimizer nk.param_groups(model, weight_decay), which leaves norms and biases out",
):
    """Weight decay on a norm's weight and bias.

    ## What it does
    Looks for a decay above 0 in the optimizer's group that holds a norm's parameters.

    ## Why is this bad
    Decay pulls a weight that is 1 by design towards 0, and the signal with it. It does not limit capacity there as it
    does in a layer's weights; recipes leave norms and biases out (He et al. 2019, "bag of tricks").

    ## Example
    ```python
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-2)
    ```

    ## Remedy
    `torch.optim.SGD(nk.param_groups(model, weight_decay=1e-2), lr=0.1)`.

    ## Fix safety
    Not fixed: the optimizer is made where training starts.
    """

    def check(self, seen: Readings) -> Iterator[Finding]:
        for norm in seen.norms:
            decayed = [(name, decay) for name, decay in _affine(norm) if decay > 0]
            if decayed:
                names = " and ".join(name for name, _ in decayed)
                yield self.finding(
                    norm.module, f"weight decay {decayed[0][1]:g} on its {names}", weight_decay=decayed[0][1]
                )


class NotInOptimizer(
    Check,
    code="NK502",
    severity="warning",
    remedy="build the groups by nk.param_groups(model, weight_decay), which has each parameter once",
):
    """A norm that learns, and that the optimizer does not know.

    ## What it does
    Looks for parameters of norms that require gradients and are in no group of the optimizer.

    ## Why is this bad
    Gradients are computed for them and never used: they stay at 1 and 0. Groups put together by name or by
    `weight.dim() > 1` lose them easily.

    ## Example
    ```python
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.dim() > 1], lr=0.1)
    ```

    ## Remedy
    `nk.param_groups(model, weight_decay)` has each parameter once; or `requires_grad_(False)`.

    ## Fix safety
    Not fixed: the optimizer is made where training starts.
    """

    def check(self, seen: Readings) -> Iterator[Finding]:
        for norm in seen.norms if seen.optimizer else ():
            named = (("weight", norm.weight), ("bias", norm.bias))
            missing = [name for name, p in named if p is not None and p.requires_grad and p.group is None]
            if missing:
                yield self.finding(
                    norm.module, f"its {' and '.join(missing)} learn but are in no group of the optimizer"
                )


class Accumulation(
    Check,
    code="NK503",
    severity="warning",
    remedy="put the micro-batches of a step inside `with nk.accumulate(model)`",
):
    """Running statistics move several times per optimizer step.

    ## What it does
    Compares `num_batches_tracked` with the steps that the optimizer counted (Adam and its relatives do).

    ## Why is this bad
    With gradient accumulation each micro-batch is normalized by its own few samples, and moves the statistics with
    the full momentum. Gradients are those of a large batch, statistics those of a small one.

    ## Example
    ```python
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    for i in range(16):
        model(torch.randn(8, 4)).square().mean().backward()
        if i % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()
    ```

    ## Remedy
    `with nk.accumulate(model):` around the micro-batches of a step.

    ## Fix safety
    Not fixed: it is a change of the training loop.
    """

    def check(self, seen: Readings) -> Iterator[Finding]:
        steps = seen.optimizer.steps if seen.optimizer else None
        if not steps:
            return
        for norm in seen.norms:
            calls = max(1, len(seen.graph.calls(norm.module))) if seen.graph else 1
            batches = norm.running.batches if norm.by_batch and norm.running else None
            learns = norm.weight is None or norm.weight.group is not None
            if batches and learns and batches / calls > _PER_STEP * steps:
                yield self.finding(
                    norm.module,
                    f"moved its statistics {batches / calls / steps:.2g} times per step of the optimizer "
                    f"({batches} batches, {steps} steps)",
                    batches=batches,
                    steps=steps,
                )


class StepAtTheEdge(
    Check,
    code="NK504",
    severity="warning",
    remedy="choose learning rate and decay so that a step moves weights by about a hundredth of their length",
):
    """A step turns a scale-invariant weight by more than it can follow, or hardly at all.

    ## What it does
    For layers in front of a norm, the share of its length that one step moves the weight: lr |g| / |w| / (1 - momentum)
    for SGD, lr sqrt(n) / |w| for Adam and its relatives.

    ## Why is this bad
    In front of a norm only the direction of a weight counts, and its learning rate is lr / |w|² in effect (van
    Laarhoven 2017). Above about a half, directions are forgotten from step to step; weights that have grown without
    decay no longer turn.

    ## Example
    ```python
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=3.0)
    ```

    ## Remedy
    A learning rate, or a weight decay, that moves weights by about a hundredth of their length per step.

    ## Fix safety
    Not fixed: it is a change of the training.
    """

    def check(self, seen: Readings) -> Iterator[Finding]:
        for weight in scale_invariant(seen):
            turn = self._turn(seen, weight)
            if turn is not None and (turn > _TURNS or turn < _STANDS):
                yield self.finding(
                    weight.module,
                    f"a step moves it by {turn:.2g} of its length {weight.norm:.2g}, and its length is without effect",
                    turn=turn,
                )

    def _turn(self, seen: Readings, weight: Weight) -> float | None:
        if seen.optimizer is None or weight.group is None or not weight.norm > 0:
            return None
        if seen.optimizer.adaptive:
            return weight.group.lr * math.sqrt(weight.size) / weight.norm
        if not weight.gradient:
            return None
        return weight.group.lr * weight.gradient / weight.norm / max(1 - weight.group.momentum, 1e-3)


class DeadWeight(
    Check,
    code="NK505",
    severity="warning",
    remedy="take decay off norms (nk.param_groups), or prune these channels",
):
    """Channels that the norm's weight has switched off.

    ## What it does
    Counts channels whose weight is below a ten thousandth of the largest, or all 0, once statistics have moved.

    ## Why is this bad
    The channel is its bias, whatever comes in, and the layer in front gets no gradient through it. Decay on norms and
    pruning penalties do this. All zeros at the start (the last norm of a residual branch) are not reported.

    ## Example
    ```python
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    model(torch.randn(64, 4))
    model[1].weight.data[:4] = 0.0
    ```

    ## Remedy
    Take decay off norms (`nk.param_groups`); prune the channels if they are to be dead.

    ## Fix safety
    Not fixed: what the channel was is lost.
    """

    def check(self, seen: Readings) -> Iterator[Finding]:
        for norm in seen.norms:
            if norm.weight is None or (norm.running is not None and norm.running.untouched):
                continue
            sizes = norm.weight.values.abs().flatten()
            largest = float(sizes.max()) if len(sizes) else 0.0
            dead = int((sizes <= _DEAD * largest).sum())
            if dead > _MANY * len(sizes) and (largest > 0 or norm.running is not None):
                yield self.finding(
                    norm.module,
                    f"weight is 0 in {dead} of {len(sizes)} channels, beside a largest of {largest:.2g}",
                    dead=dead,
                    channels=len(sizes),
                )


class CoupledDecay(
    Check,
    code="NK506",
    severity="warning",
    remedy="use AdamW, which decays weights beside the scaled gradient",
):
    """Decay of scale-invariant weights goes through Adam's scaling.

    ## What it does
    Looks for weight decay in an adaptive optimizer that adds it to the gradient, on weights in front of a norm.

    ## Why is this bad
    In front of a norm, decay does not limit the function; it keeps the effective learning rate up by keeping weights
    short. Added to the gradient and divided by its size, as Adam does, it pulls long weights no more than short ones,
    and does not even do that (Loshchilov and Hutter 2019; Heo et al. 2021).

    ## Example
    ```python
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=0.1)
    ```

    ## Remedy
    `torch.optim.AdamW`.

    ## Fix safety
    Not fixed: the optimizer is made where training starts.
    """

    def check(self, seen: Readings) -> Iterator[Finding]:
        if seen.optimizer is None or not seen.optimizer.coupled:
            return
        for weight in scale_invariant(seen):
            if weight.group is not None and weight.group.weight_decay > 0:
                yield self.finding(
                    weight.module,
                    f"{seen.optimizer.kind} scales its decay {weight.group.weight_decay:g} like a gradient; its length "
                    "is without effect on the function",
                    weight_decay=weight.group.weight_decay,
                )


CHECKS = (DecayOnNorm, NotInOptimizer, Accumulation, StepAtTheEdge, DeadWeight, CoupledDecay)
