"""Layers that normalize each channel by the statistics that their switches name: of the batch, running, or a blend."""

from __future__ import annotations

from torch import Tensor

from normkit import processes
from normkit.norms import inputs, mixing
from normkit.norms.batch_moments import by_batch, by_given, given, normalize
from normkit.norms.blending import by_blend, share_of
from normkit.norms.mixing import Affine
from normkit.norms.sharing import Sharing
from normkit.norms.tracking import Running, Tracked


def check(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    affine: Affine,
    training: bool,
    shared: bool = False,
) -> None:
    """Everything that all batch norms ask for but the mask; training: statistics of the batch are taken."""
    if input.dim() < 2:
        raise ValueError(f"batch norm takes (N, C) or (N, C, *), got input size {list(input.shape)}")
    inputs.check_dtype("batch norm", input)
    weight, bias, eps, activation, residual, _ = affine
    if eps < 0 or (training and eps == 0):
        raise ValueError(f"batch norm eps must be positive in training and never negative, got {eps}")
    inputs.check_running(running_mean, running_var, needed=not training)
    if affine.each:
        inputs.check_channels(input, running_mean=running_mean, running_var=running_var)
        inputs.check_per_sample(input, input.shape[1:2], weight, bias)
    else:
        inputs.check_channels(
            input, running_mean=running_mean, running_var=running_var, weight=weight, bias=bias
        )
    if training and not shared and input.numel() == input.shape[1]:
        values = inputs.count([*input.shape[:1], *input.shape[2:]])
        inputs.check_several_values(values, input, what="value per channel")
    if activation is not None:
        inputs.check_activation(activation)
    if residual is not None:
        inputs.check_residual(residual, input)


class Switched(Sharing, Tracked):
    """Batch norm and its relatives, by the switches and the scope of `tracking`."""

    def _switched(self, input: Tensor, affine: Affine, row: int | None = None) -> Tensor:
        """Normalize, and move the running statistics where they are to be moved; row: of a time step."""
        by, moves = self._statistics(), self._moves()
        running = self._normalizing(moves, row) if moves or by != "batch" else None
        mean, var = (None, None) if running is None else running[:2]
        group = None if self.process_group is None else self._sharing(measures=by == "batch" or moves)
        layer = self.identity
        if row is not None:
            layer = layer._replace(title=f"{layer.title}, step {row}")
        check(input, mean, var, affine, by != "running", processes.several(group))
        if affine.mask is not None:
            affine = affine._replace(mask=inputs.expand_mask(affine.mask, input))
        if by == "batch":
            y, stats, count = self._by_batch(input, running, affine, group, layer)
        elif by == "blend" or moves:
            assert running is not None
            y, stats, count = self._by_running(input, running, affine, by == "blend", group, layer)
        else:
            assert mean is not None
            assert var is not None
            return by_given(input, mean, var, affine)
        if moves:
            self._track(stats, count, row)
        return y

    def _by_batch(
        self,
        input: Tensor,
        running: Running | None,
        affine: Affine,
        group: processes.Group,
        layer: processes.Layer,
    ) -> tuple[Tensor, Tensor, int | Tensor]:
        """Normalize by the batch's own statistics: output, statistics, count."""
        return by_batch(input, affine, group, layer)

    def _by_running(
        self,
        input: Tensor,
        running: Running,
        affine: Affine,
        blended: bool,
        group: processes.Group,
        layer: processes.Layer,
    ) -> tuple[Tensor, Tensor, int | Tensor]:
        """Normalize by running statistics, blended with the batch's or alone; and take the batch's."""
        if blended:
            share = share_of(mixing.samples(input, affine.mask), self.tracking.prior)
            return by_blend(input, share, running.mean, running.var, affine)
        tensors = {"given_mean": running.mean, "given_var": running.var}
        return normalize(input, given, tensors, affine, group, layer)
