"""C13: what does batch norm cost in time and memory?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from time import process_time

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from normkit.lab import drawing
from normkit.lab.bootstrap import bootstrap_ratio
from normkit.lab.models import build
from normkit.lab.studies.conclusion import each_of, told
from normkit.lab.studies.design import crossed, within
from normkit.lab.studies.fit import Samples, scaled, seeded
from normkit.lab.studies.networks import check_images, check_samples
from normkit.lab.studies.study import Effect, Finding, Result, Results, Scale, Study, Subject, Trial

NETWORKS = ("cnn", "mlp", "sigmoid")
NORMS = ("none", "batch", "layer", "group", "rms")
BATCH, ROUNDS, WARM_UP = 64, 60, 5


class CostOfTraining(Study):
    """The time of a training step, and the bytes that it keeps for its backward pass."""

    name = "cost-of-training"
    claim = "C13"
    statement = "Batch norm costs time and memory in training."
    source = "article 002"
    question = (
        "How much longer is a training step with batch norm, and how much more does it keep for backward?"
    )
    design = (
        "The CNN, the MLP and the sigmoid network, batch size 64, Adam, one thread. Memory: the bytes of all "
        "tensors that autograd keeps for backward, parameters left out, each storage once: an exact count. Time: "
        "CPU time of a step, the norms interleaved, the median of 60 rounds, as a ratio to no norm in the same "
        "process. Times repeat within noise, not to the bit; bytes repeat exactly."
    )
    rule = (
        "For each network, bytes kept and time of a step with batch norm over without, paired by seed. Supported "
        "where all six 95% intervals lie above 1, contradicted where any lies below. Other norms are shown and do "
        "not count."
    )
    literature = (
        "Gitman and Ginsburg (2017) name a significant share of training time in batch norm. Rota Bulò, "
        "Porzi and Kontschieder (2018) save up to half the memory of training by recomputing what batch norm "
        "keeps. Jung et al. (2019): normalization is bound by memory traffic, and fusing it with convolutions wins."
    )
    alone = True

    def trials(self, scale: Scale) -> Sequence[Trial]:
        return crossed(scale, network=NETWORKS)

    def check(self, subject: Subject) -> None:
        super().check(subject)
        check_images(self, subject)
        check_samples(self, subject, BATCH)

    def measure(self, trial: Trial, subject: Subject) -> Result:
        dataset = scaled(subject.data)
        samples = Samples.of(dataset).first(BATCH)
        steps = dict[str, _Step]()
        for norm in NORMS:
            with seeded(trial.seed):
                net = build(
                    str(trial.levels["network"]),
                    norm=norm,
                    placement="pre",
                    input_shape=dataset.x_train.shape[1:],
                    classes=dataset.classes,
                )
            steps[norm] = _Step(net, samples.x, samples.y)
        memory = {f"{norm} bytes": bytes_kept(step.net, samples.x, samples.y) for norm, step in steps.items()}
        return memory | {f"{norm} seconds": seconds for norm, seconds in interleaved(steps).items()}

    def judge(self, results: Results) -> Finding:
        decisive = [_ratio(results, net, "batch", what) for net in NETWORKS for what in ("seconds", "bytes")]
        others = [_ratio(results, "cnn", norm, what) for norm in NORMS[2:] for what in ("seconds", "bytes")]
        of = {
            what: ", ".join(
                f"{net} {told(effect.estimate, 3)}"
                for net, effect in zip(NETWORKS, decisive[first::2], strict=True)
            )
            for first, what in enumerate(("time", "memory"))
        }
        sentence = f"With batch norm, time of a step over without: {of['time']}; memory kept: {of['memory']}."
        return Finding(each_of(decisive), (*decisive, *others), sentence)

    def figure(self, results: Results) -> Figure:
        figure = Figure((drawing.WIDTH, drawing.HEIGHT))
        axes = figure.subplots(1, 2, sharey=True)
        rows = [(net, norm) for net in NETWORKS for norm in NORMS[1:]]
        for panel, what in zip(axes, ("seconds", "bytes"), strict=True):
            panel.axvline(1, color=drawing.rule(), lw=1)
            for row, (net, norm) in enumerate(rows):
                mine, none = within(results, f"{norm} {what}", f"none {what}", network=net)
                ratio = bootstrap_ratio(mine, none)
                drawing.interval(panel, row, ratio.mean, ratio.low, ratio.high, drawing.color(norm))
            drawing.rows(panel, [f"{net}, {norm}" for net, norm in rows])
            panel.set(
                title={"seconds": "time", "bytes": "memory for backward"}[what], xlabel="with over without"
            )
        figure.subplots_adjust(left=0.18, bottom=0.14)
        return figure


class _Step:
    """A training step that can be taken again and again."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor) -> None:
        self.net, self.x, self.y = net, x, y
        self.optimizer = torch.optim.Adam(net.parameters(), 0.001)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.net(self.x), self.y).backward()
        self.optimizer.step()


def interleaved(steps: Mapping[str, Callable[[], None]]) -> dict[str, float]:
    """The median CPU time of each step; in every round each is taken once, the first of them another each time."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for turn in range(WARM_UP + ROUNDS):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            started = process_time()
            steps[name]()
            if turn >= WARM_UP:
                times[name].append(process_time() - started)
    return {name: median(taken) for name, taken in times.items()}


def bytes_kept(net: nn.Module, x: Tensor, y: Tensor) -> int:
    """The bytes that autograd keeps between forward and backward, but for the parameters: each storage once."""
    own = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}
    kept = dict[int, Tensor]()  # holds on to them, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = F.cross_entropy(net(x), y)
    total = sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in own)
    del loss
    return total


def _ratio(results: Results, net: str, norm: str, what: str) -> Effect:
    estimate = bootstrap_ratio(*within(results, f"{norm} {what}", f"none {what}", network=net))
    label = {"seconds": "time of a step", "bytes": "memory kept for backward"}[what]
    return Effect(f"{norm} / none, {net}: {label}", estimate, 1.0, "above", "x")


STUDY = CostOfTraining()
