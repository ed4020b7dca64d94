"""Batch renormalization: batch norm, corrected towards the running statistics it will be evaluated by."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from normkit import kernels, processes
from normkit.kernels.recomputation import recall, recall_once, recomputing
from normkit.norms import inputs, tracking
from normkit.norms.batch_moments import by_given, normalize
from normkit.norms.batch_norm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from normkit.norms.mixing import Affine
from normkit.norms.naming import for_all_dimensions
from normkit.norms.switched import check
from normkit.norms.tracking import PREVIOUS, Running
from normkit.statistics import update_running_


def batch_renorm(
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    *,
    r_max: float | Tensor = 3.0,
    d_max: float | Tensor = 5.0,
    activation: str | None = None,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
    num_batches_tracked: Tensor | None = None,
    process_group: processes.Group = None,
    layer: processes.Layer = processes.NOBODY,
) -> Tensor:
    r"""Normalize each channel by the batch's statistics, then shift and scale towards the running ones.

    .. math::
        y = f\left(\gamma \left(\frac{x - \mu}{\sigma} r + d\right) + \beta + \text{residual}\right), \quad
        r = \operatorname{clip}\left(\frac{\sigma}{\sigma_\text{run}}, \frac{1}{r_\max}, r_\max\right), \;
        d = \operatorname{clip}\left(\frac{\mu - \mu_\text{run}}{\sigma_\text{run}}, -d_\max, d_\max\right)

    with :math:`\sigma^2` the biased variance of the batch plus eps, :math:`\sigma_\text{run}^2` the running
    variance plus eps, both before the running statistics move; r and d carry no gradient. Where nothing is
    clipped, training normalizes by the running statistics, as evaluation does, but sends the gradient through
    the batch's. With r_max 1 and d_max 0 it is batch norm. Without training it is `batch_norm`.

    Args:
        input: (N, C) or (N, C, *), floating; any strides.
        running_mean: (C); changed in place in training.
        running_var: (C), holds the unbiased variance.
        weight: :math:`\gamma`, (C), or (N, C) for one per sample; of the input's dtype, or float32 under half
            input.
        bias: :math:`\beta`, likewise.
        training: normalize by the batch's statistics.
        momentum: weight of the batch in the running statistics, 0.01 in the paper; None for the cumulative average.
        eps: added to both variances.
        r_max: 1 or more; a number or a tensor ().
        d_max: 0 or more, in deviations.
        activation: :math:`f`: relu, leaky_relu, silu, gelu, elu, sigmoid, tanh, relu6 or hardswish; None: identity.
        residual: of the input's shape, added before the activation.
        mask: bool, broadcastable to the input without channels, true where it is valid.
        num_batches_tracked: () int64, counts the batches; needed where momentum is None.
        process_group: processes whose batches are one in training, as in `batch_norm`.
        layer: how the processes of the group tell this call from others.

    Returns:
        Tensor of the input's shape, dtype and memory format.

    Raises:
        ValueError: r_max below 1, d_max below 0; and all that `batch_norm` raises.

    Ioffe, "Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized Models", 2017.

    >>> x = torch.tensor([[1.0], [3.0]])
    >>> batch_renorm(x, torch.tensor([1.0]), torch.tensor([4.0]), training=True, eps=1e-12).flatten()
    tensor([0., 1.])
    """
    check_limits(r_max, d_max)
    inputs.check_running(running_mean, running_var, needed=True)
    affine = Affine(weight, bias, eps, activation, residual, mask)
    check(input, running_mean, running_var, affine, training, training and processes.several(process_group))
    affine = affine._replace(mask=inputs.expand_mask(mask, input))
    if not training:
        return by_given(input, running_mean, running_var, affine)
    tracking.check_momentum(momentum, running_mean, num_batches_tracked)
    plain = kernels.is_plain(running_mean)
    known = (running_mean, running_var) if plain else (recall(running_mean), recall(running_var))
    y, stats, count = _corrected(input, *known, r_max, d_max, affine, process_group, layer)
    if not recomputing():
        update_running_(running_mean, running_var, stats, count, momentum, num_batches_tracked)
    return y


def _corrected(
    input: Tensor,
    known_mean: Tensor,
    known_var: Tensor,
    r_max: float | Tensor,
    d_max: float | Tensor,
    affine: Affine,
    group: processes.Group,
    layer: processes.Layer,
) -> tuple[Tensor, Tensor, int | Tensor]:
    """Output; mean and biased variance of the batch as rows of C; their count."""
    if not affine.each and not processes.several(group):
        return kernels.renorm(input, known_mean, known_var, r_max, d_max, *affine)
    rule = partial(kernels.correct, r_max, d_max, affine.eps)
    # Part of a graph, and so copies: the running statistics move before the backward pass.
    tensors = {"known_mean": known_mean.clone(), "known_var": known_var.clone()}
    return normalize(input, rule, tensors, affine, group, layer)


def check_limits(r_max: float | Tensor, d_max: float | Tensor) -> None:
    """The clipping of r holds 1, that of d holds 0. Tensors are taken as they are: to ask them may wait."""
    if not isinstance(r_max, Tensor) and not r_max >= 1:
        raise ValueError(f"r lies in [1 / r_max, r_max], so r_max must be 1 or more, got {r_max}")
    if not isinstance(d_max, Tensor) and not d_max >= 0:
        raise ValueError(f"d lies in [-d_max, d_max], so d_max must not be negative, got {d_max}")


@for_all_dimensions
class _BatchRenorm(_BatchNorm):
    """What batch renorm of every dimension shares; each class below adds torch's class of its dimension."""

    _by_own_rule = True
    _corrects = True

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
        process_group: processes.Group = None,
        training_statistics: Literal["batch", "running"] = "batch",
        evaluation_statistics: Literal["running", "batch", "blend"] = "running",
        prior: float = 16.0,
        update_statistics: bool = True,
        guard: Literal["nonfinite"] | None = None,
        r_max: float = 3.0,
        d_max: float = 5.0,
        warmup: int = 5_000,
        r_steps: int = 40_000,
        d_steps: int = 25_000,
    ) -> None:
        if not track_running_stats:
            raise ValueError(
                "batch renorm corrects towards running statistics, got track_running_stats=False"
            )
        inputs.check_real(r_max=r_max, d_max=d_max)
        check_limits(r_max, d_max)
        inputs.check_whole(warmup=warmup, r_steps=r_steps, d_steps=d_steps)
        if not 0 <= warmup <= min(r_steps, d_steps):
            raise ValueError(
                f"r and d are relaxed from step warmup to steps r_steps and d_steps, 0 <= warmup <= both, got "
                f"warmup={warmup}, r_steps={r_steps}, d_steps={d_steps}"
            )
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias,
            activation=activation, process_group=process_group, training_statistics=training_statistics,
            evaluation_statistics=evaluation_statistics, prior=prior, update_statistics=update_statistics,
            guard=guard,
        )  # fmt: skip
        self.r_max, self.d_max = r_max, d_max
        self.warmup, self.r_steps, self.d_steps = warmup, r_steps, d_steps

    def _by_batch(
        self,
        input: Tensor,
        running: Running | None,
        affine: Affine,
        group: processes.Group,
        layer: processes.Layer,
    ) -> tuple[Tensor, Tensor, int | Tensor]:
        if not self.training:
            return super()._by_batch(input, running, affine, group, layer)
        assert running is not None
        steps = running.num_batches_tracked
        if kernels.is_plain(input):  # a number costs nothing to read there, and the kernels take it as one
            steps = int(steps)
            if steps < self.warmup:
                return super()._by_batch(input, running, affine, group, layer)
        r_max, d_max = self._limits(steps)
        return _corrected(input, running.mean, running.var, r_max, d_max, affine, group, layer)

    def _straight(
        self,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        activation: str | None,
        residual: Tensor | None,
        running: Any,
    ) -> Tensor | None:
        if running is None or not kernels.is_plain(input):
            return None
        kept = [self._buffers[name] for name in PREVIOUS]
        # Of a recomputation, those of the step that it repeats.
        mean, var, steps = recall_once((running[0], running[1], running[3]), kept)  # pyright: ignore
        rest = weight, bias, self.eps, activation, residual, running
        if int(steps) < self.warmup:
            return kernels.straight_channels(input, *rest, True)
        r_max, d_max = map(float, self._limits(int(steps)))
        return kernels.straight_renorm(input, mean, var, r_max, d_max, *rest)

    def _recalled(self, now: Running, kept: Running) -> Iterable[Tensor]:
        """r and d are made at once, and nothing of what they are made of is kept, unless it is copied."""
        at_once = self._statistics() == "batch" and kernels.is_plain(now.mean)
        return recall_once(now, kept) if at_once else super()._recalled(now, kept)

    def _limits(self, steps: int | Tensor) -> tuple[float | Tensor, float | Tensor]:
        """r_max and d_max after so many steps: 1 and 0 during the warm-up, then growing linearly."""
        r_share, d_share = self._share(steps, self.r_steps), self._share(steps, self.d_steps)
        return 1 + (self.r_max - 1) * r_share, self.d_max * d_share

    def _share(self, steps: int | Tensor, end: int) -> float | Tensor:
        """The share of the way from the end of the warm-up, at most 1; all at once where nothing lies between."""
        since, way = steps - self.warmup + (end == self.warmup), max(end - self.warmup, 1)
        if isinstance(since, int):
            return min(max(since / way, 0.0), 1.0)
        return (since.to(torch.float32 if since.device.type == "mps" else torch.float64) / way).clamp(0, 1)

    def extra_repr(self) -> str:
        """The arguments, the limits and their schedule among them."""
        names = ("r_max", "d_max", "warmup", "r_steps", "d_steps")
        return ", ".join([super().extra_repr(), *(f"{name}={getattr(self, name)}" for name in names)])


class BatchRenorm1d(_BatchRenorm, torch.nn.BatchNorm1d):
    """Batch renormalization over (N, C) or (N, C, L), for small batches and those that are not independent.

    Equation and errors as in `normkit.functional.batch_renorm`; evaluation is that of batch norm. Arguments and
    state_dict as in `BatchNorm1d`, and the following. num_batches_tracked counts the steps of the schedule, so it
    goes on where a checkpoint left it; weights of a trained batch norm start behind the warm-up.

    Args:
        num_features: C.
        r_max: the factor r lies in [1 / r_max, r_max] at the end of the schedule.
        d_max: the shift d, in deviations, lies in [-d_max, d_max].
        warmup: steps of plain batch norm at the beginning, r_max = 1 and d_max = 0; the defaults here and below
            are those of the paper.
        r_steps: the step until which r_max grows, linearly, from 1.
        d_steps: the step until which d_max grows, linearly, from 0.

    >>> BatchRenorm1d(16, r_max=2.0, warmup=1_000)(torch.randn(8, 16)).shape
    torch.Size([8, 16])
    """


class BatchRenorm2d(_BatchRenorm, torch.nn.BatchNorm2d):
    """Batch renormalization over (N, C, H, W); see `BatchRenorm1d`."""


class BatchRenorm3d(_BatchRenorm, torch.nn.BatchNorm3d):
    """Batch renormalization over (N, C, D, H, W); see `BatchRenorm1d`."""
