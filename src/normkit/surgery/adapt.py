"""Running statistics, and weights and biases, adapted to unlabelled data of another kind: `adapt`."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from normkit.errors import InputError
from normkit.surgery.blend import Blend, collapsed_channels
from normkit.surgery.convergence import movement
from normkit.surgery.dtypes import telling_dtypes
from normkit.surgery.entropy import EntropyDescent, learning
from normkit.surgery.feed import Forward, each, feeder, first_of
from normkit.surgery.observe import Gathering, Observation, Site, observable_layers, observed
from normkit.surgery.restore import Saved, Undoable, kept
from normkit.surgery.table import aligned
from normkit.surgery.walk import RunningNorm


class Row(NamedTuple):
    """What happened to one set of running statistics."""

    name: str
    samples: int
    share: float  # of the new data in the blend
    mean_moved: float  # by how many of the new deviations, the root mean square over channels
    deviation_ratio: float  # new over old, the geometric mean over channels


class Adaptation(Undoable):
    """What `adapt` did; `undo()`, or the end of a `with` block, takes it back.

    Attributes:
        rows: for each set of statistics, how far it moved.
        left: the layers that were left as they are, and why.
        entropies: mean entropy of the predictions on each batch, by the weights and biases from before and by those
            at that moment, in nats; empty where entropy was not minimized.
    """

    def __init__(
        self,
        saved: tuple[Saved, ...],
        rows: list[Row],
        left: dict[str, str],
        entropies: list[tuple[float, float]],
    ) -> None:
        super().__init__(*saved)
        self.rows, self.left, self.entropies = rows, left, entropies

    def __repr__(self) -> str:
        """A table: a row for each layer, what was left alone, what became of the entropy."""
        header = ["layer", "samples", "their share", "mean moved by", "deviation"]
        rows = [
            [r.name, str(r.samples), f"{r.share:.0%}", f"{r.mean_moved:.3g}", f"x {r.deviation_ratio:.3g}"]
            for r in self.rows
        ]
        lines = [aligned([header, *rows]), *(f"{n}: left alone, {reason}" for n, reason in self.left.items())]
        if self.entropies:
            before, now = self.entropies[-1]
            lines.append(f"entropy of predictions on the last batch: {now:.3g}, before {before:.3g}")
        return "\n".join(lines)


def adapt(
    model: nn.Module,
    batches: Iterable[object],
    prior: float = 16.0,
    *,
    forward: Forward | None = None,
    minimize_entropy: bool = False,
    lr: float = 1e-3,
) -> Adaptation:
    r"""Adapt the batch norms of a trained model to unlabelled data: another camera, hospital, noise, or one batch.

    Each layer's running statistics become, over all samples seen,

    .. math:: \mu = \frac{N \mu_s + n \mu_t}{N + n}, \quad \sigma^2 = \frac{N \sigma_s^2 + n \sigma_t^2}{N + n}

    The model runs in evaluation mode, and each batch is normalized by the blend with all that was seen until then, as
    `AdaptiveBatchNorm2d` does within a batch; so one sample will do. torch's layers and ours alike. Where the blend
    would stop more than half of a layer's channels, as constant data do under prior=0, predictions fall to few classes,
    or many change of which the model was sure, it raises, and the model is as it was, as after any exception. `undo()`
    goes back to the statistics from before.

    Args:
        model: any module; its modes stay.
        batches: as of `recalibrate`; none of their labels is used.
        prior: N, how many samples the statistics from before are worth: 0 replaces them, infinity keeps them.
        forward: a function of one batch that runs the model on it, where it is not given the batch's input; returns
            logits where entropy is minimized.
        minimize_entropy: also let weights and biases of these norms learn, one step of Adam for each batch, towards
            predictions of less entropy; the statistics are constants for the gradient.
        lr: of these steps.

    Returns:
        A table of what moved and how far, and `undo()`.

    Raises:
        InputError: no batch norm with running statistics, no batch or one of unknown structure; a collapse, or values
            that are not finite; a prior or lr out of range.

    Li et al. 2016 and Schneider et al. 2020, as in `AdaptiveBatchNorm2d`; Wang et al., "Tent: Fully Test-Time
    Adaptation by Entropy Minimization", 2021.

    >>> net = nn.Sequential(nn.BatchNorm1d(1)).eval()
    >>> with adapt(net, [torch.tensor([[1.0], [3.0]])], prior=2):
    ...     net[0].running_mean.item()
    1.0
    >>> net[0].running_mean.item()
    0.0
    """
    if not isinstance(prior, (int, float)) or not prior >= 0:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"prior counts samples and must be 0 or more, got {prior!r}")
    layers, left = observable_layers(model)
    affine = _affine(layers) if minimize_entropy else []
    descent = EntropyDescent(affine, lr) if minimize_entropy else None
    before = Saved(affine)
    blending, by_first = Blending(prior, layers), Blending(prior, layers)
    run = feeder(model, forward)
    try:
        with kept(model), learning(affine):
            for batch in each(batches):
                with telling_dtypes(model, first_of(batch), f"batch {blending.batches + 1}"):
                    if descent is not None:
                        with descent.as_at_first():
                            descent.reference = by_first.run(run, batch)
                    blending.run(run, batch)
                blending.end_batch()
                if descent is not None:
                    descent.step(partial(run, batch))
        blending.check()
    except BaseException:
        before.restore()
        raise
    left |= {name: "not reached" for name in layers if name not in blending.reached}
    saved = Saved(buffer for name in blending.reached for buffer in layers[name].buffers(recurse=False))
    rows = [_settle(site, blend) for site, blend in blending.blends.items()]
    return Adaptation((saved, before), rows, left, [] if descent is None else descent.entropies)


class Blending(Gathering):
    """The blend of each set of running statistics, by which its layer normalizes from then on."""

    def __init__(self, prior: float, layers: Mapping[str, RunningNorm]) -> None:
        super().__init__()
        self._prior, self._layers = prior, layers
        self._before = {n: [t.clone() for t in Site(n, layer).running[:2]] for n, layer in layers.items()}
        self.blends: dict[Site, Blend] = {}

    @torch.no_grad()
    def run(self, forward: Forward, batch: object) -> object:
        """The model's output for a batch, each layer normalizing by the blend with it."""
        with observed(self._layers, self.take):
            return forward(batch)

    def take(self, observation: Observation) -> None:
        """Take in what a layer is about to normalize, and let it do so by the new blend."""
        super().take(observation)
        site, moments, samples = observation
        if site not in self.blends:
            mean, var = (t if site.step is None else t[site.step] for t in self._before[site.name])
            self.blends[site] = Blend(mean, var, self._prior)
        self.blends[site].update(moments, float(samples))
        for buffer, value in zip(site.running[:2], self.blends[site].estimate(), strict=True):
            buffer.copy_(value)

    def check(self) -> None:
        """Whether there was anything to adapt to, and layers still let it through."""
        super().check()
        for site, blend in self.blends.items():
            stopped = collapsed_channels(blend.estimate()[1], blend.var, site.layer.eps)
            if stopped > 0.5:
                raise InputError(
                    f"data must vary, but {site} would lose {stopped:.0%} of its channels, which are as good as "
                    "constant in it: take other batches, or a larger prior"
                )


def _affine(layers: Mapping[str, RunningNorm]) -> list[nn.Parameter]:
    """The weights and biases, each once."""
    held = itertools.chain.from_iterable(layer.named_parameters(recurse=False) for layer in layers.values())
    return list(dict.fromkeys(p for name, p in held if name in ("weight", "bias")))


@torch.no_grad()
def _settle(site: Site, blend: Blend) -> Row:
    """Give a layer its new statistics; how they differ from the old ones."""
    running, (mean, var) = site.running, blend.estimate()
    row = Row(str(site), int(blend.samples), blend.share, *movement(running, mean, var, site.layer.eps))
    running.mean.copy_(mean)
    running.var.copy_(var)
    return row
