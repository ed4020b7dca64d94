"""What the probe reads off a model and its batches, frozen: all that a check gets to see.

Tensors here are copies in float64 on the CPU, so that a check can compute and can change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from normkit.doctor.graph import Graph
from normkit.doctor.sketch import Sketch
from normkit.statistics import Moments


@dataclass(frozen=True)
class Group:
    """The settings that an optimizer has for a parameter."""

    lr: float
    weight_decay: float
    momentum: float


@dataclass(frozen=True)
class Optimizer:
    """Its class; whether decay goes through the gradient and its scaling; the steps it counted, None unknown."""

    kind: str
    coupled: bool
    adaptive: bool
    steps: int | None


@dataclass(frozen=True)
class Parameter:
    """A parameter of a norm, and its place in the optimizer: None where it is not in it, or there is none."""

    values: Tensor
    requires_grad: bool
    group: Group | None


@dataclass(frozen=True)
class Running:
    """Running statistics; `batches` is None where they are not counted."""

    mean: Tensor
    var: Tensor
    dtype: torch.dtype
    batches: int | None

    @property
    def untouched(self) -> bool:
        """Whether they are the mean 0 and variance 1 that they start from."""
        return bool((self.mean == 0).all() and (self.var == 1).all())


@dataclass(frozen=True)
class Traffic:
    """What went through a norm, by its channels, over all batches.

    Attributes:
        samples: the fewest in a batch.
        values: the fewest that one statistic was taken of.
        input: in training mode, of the other norms too; so what came in was as their data make it.
        input_evaluated: in evaluation mode; of large batches, this and the next two are of values evenly spaced.
        output: in training mode.
        output_evaluated: in evaluation mode.
        low: least output, training mode.
        high: greatest output, training mode.
        effective: how many independent values a batch's mean is worth; positions that resemble each other count
            less than one each. The median over channels; NaN in batches of one.
        scatter: variance of the batches' means over what batches drawn alike would show; the median over channels.
            1 where they are drawn alike; NaN below 4 batches.
        apart: deviation of the batches' means, in deviations of the values; likewise.
        drift: root mean square step from one batch's mean to that of the next, in deviations; likewise. Weights stand
            still, so this is what the order of the data makes.
        padded: share of places that look like padding; see `padding`.
        masked: whether a mask was given.
        predicted: the input as running statistics normalize it; where they are right, of mean 0 and variance 1.
        outputs: the output, training mode.
        gradient: Euclidean norm of the loss's gradient by the output, mean over the calls; None without a loss.
        dtype: of the input.
    """

    samples: int
    values: int
    input: Moments
    input_evaluated: Moments
    output: Moments
    output_evaluated: Moments
    low: Tensor
    high: Tensor
    effective: float
    scatter: float
    apart: float
    drift: float
    padded: float
    masked: bool
    predicted: Sketch
    outputs: Sketch
    gradient: float | None
    dtype: torch.dtype

    @property
    def order(self) -> float:
        """Mean square step between successive batches over twice their variance (von Neumann 1941): 1 in any order,
        towards 0 where batches are sorted or drift, 2 where two kinds of them take turns.
        """
        return self.drift**2 / (2 * self.apart**2) if self.apart > 0 else 1.0


@dataclass(frozen=True)
class Norm:
    """A norm: what it is, how it is set, its parameters, its running statistics, what went through it.

    Attributes:
        module: its name in the model.
        kind: as `kinds.norm_kind` says.
        groups: how many a group norm has.
        shape: the last axes that a layer or RMS norm works on.
        training: its flag.
        trains: its flag once `model.train()` was called.
        frozen: whether it was frozen for good, by `normkit.freeze`.
        tracks: its attribute `track_running_stats`.
        synchronized: whether processes share its statistics.
        effect: how far the model's output moves, in deviations of it, when this norm alone goes from running to
            batch statistics, on samples of the first batch; None where that was not looked at.
    """

    module: str
    type: str
    kind: str
    channels: int | None
    groups: int | None
    shape: tuple[int, ...]
    eps: float
    momentum: float | None
    training: bool
    trains: bool
    frozen: bool
    tracks: bool
    synchronized: bool
    weight: Parameter | None
    bias: Parameter | None
    running: Running | None
    dtype: torch.dtype | None
    traffic: Traffic | None
    effect: float | None

    @property
    def by_batch(self) -> bool:
        """Whether statistics are shared over the batch."""
        return self.kind in ("batch", "mixed")


@dataclass(frozen=True)
class Weight:
    """What stands between norms: a convolution or linear layer.

    Attributes:
        convolves: whether it is a convolution.
        norm: Euclidean, of the weight.
        gradient: norm of the gradient of the loss, mean over the batches; None without a loss.
    """

    module: str
    convolves: bool
    biased: bool
    outputs: int
    size: int
    norm: float
    gradient: float | None
    group: Group | None


@dataclass(frozen=True)
class Makers:
    """Which norms make evaluation differ from training, on the first batch.

    Attributes:
        modules: those of the largest effects, as few as together leave a tenth of the distance or less.
        left: the share of the distance that is left once these go by the batch.
        alone: the share that the first of them alone takes away; less than 0 where it adds to it.
        among: of how many.
    """

    modules: tuple[str, ...]
    left: float
    alone: float
    among: int


@dataclass(frozen=True)
class Gap:
    """Training mode beside evaluation mode, of norms alone: dropout was off in both.

    Attributes:
        output: distance of the outputs, in deviations of the output in training mode.
        loss: in training mode; None without a loss.
        loss_evaluated: in evaluation mode.
        makers: None where the modes hardly differ, or it could not be told.
    """

    output: float
    loss: float | None
    loss_evaluated: float | None
    makers: Makers | None


@dataclass(frozen=True)
class Run:
    """What the batches were, and what the model made of them.

    Attributes:
        batches: how many.
        least: samples in the smallest batch.
        most: samples in the largest.
        input: moments of the input by its features, None where it is no floating tensor.
        gap: between the modes; None where the model has no norm whose mode matters.
    """

    batches: int
    least: int
    most: int
    input: Moments | None
    gap: Gap | None


@dataclass(frozen=True)
class Copy:
    """Two parts of a model that are alike, of which one follows the other; or a model that follows a reference.

    Attributes:
        source: the part that is followed; empty for a reference.
        copy: the part that follows; empty for the model itself.
        weights: distance of the parameters, over their length.
        layers: of each layer's running statistics: root mean square distance of the means, in running deviations, and
            mean log ratio of the variances, summed.
    """

    source: str
    copy: str
    weights: float
    layers: Mapping[str, float]


@dataclass(frozen=True)
class Others:
    """What the model was compared with: its copies, and itself in other processes.

    Attributes:
        copies: within the model, and of the reference.
        processes: how many share the work; 1 for a process alone.
        disagree: norms whose running statistics differ between processes, with the distance in deviations.
    """

    copies: tuple[Copy, ...]
    processes: int
    disagree: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Readings:
    """All of it.

    Attributes:
        training: the model's flag.
        evaluates: whether every module is in evaluation mode.
        graph: None where neither torch.fx nor a batch gave one.
    """

    norms: tuple[Norm, ...]
    weights: tuple[Weight, ...]
    graph: Graph | None
    optimizer: Optimizer | None
    training: bool
    evaluates: bool
    run: Run | None
    others: Others

    def norm(self, module: str) -> Norm | None:
        """The norm of a name."""
        return next((norm for norm in self.norms if norm.module == module), None)

    def weight(self, module: str) -> Weight | None:
        """The layer with weights of a name."""
        return next((weight for weight in self.weights if weight.module == module), None)
