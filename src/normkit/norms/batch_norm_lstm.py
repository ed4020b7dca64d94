"""An LSTM with recurrent batch norm in it: one cell, and a layer over whole sequences."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normkit import processes
from normkit.norms import inputs
from normkit.norms.recurrent_batch_norm import RecurrentBatchNorm


class BatchNormLSTMCell(nn.LSTMCell):
    r"""An LSTM cell whose input, hidden and cell states are batch normalized at each step.

    .. math::
        (f, i, o, g) &= BN(W_h h_{t-1}) + BN(W_x x_t) + b \\
        c_t &= \sigma(f) c_{t-1} + \sigma(i) \tanh(g) \\
        h_t &= \sigma(o) \tanh(BN(c_t))

    Args:
        input_size: of x.
        hidden_size: of h and c.
        max_length: steps that have running statistics of their own, as in `RecurrentBatchNorm`.
        eps: added to the variances.
        momentum: weight of a batch in the running statistics.
        device: of parameters and buffers.
        dtype: of parameters and buffers.
        process_group: processes whose batches are one in training, as in `BatchNorm1d`; all take the same steps.
        guard: "nonfinite" keeps running statistics from batches that are not finite, as in `BatchNorm1d`.

    The weights and their initialization are those of `torch.nn.LSTMCell`; the bias b is that of `norm_ih`.
    `forward(input, hx=None, *, step, mask=None)` takes (N, input_size) and the states (h, c) of (N, hidden_size),
    zeros by default, and returns the next ones. Where the mask (N) is false, a sequence has ended and keeps its
    states.

    Cooijmans, Ballas, Laurent, Gülçehre and Courville, "Recurrent Batch Normalization", 2016.

    >>> h, c = BatchNormLSTMCell(4, 8, max_length=10)(torch.randn(3, 4), step=0)
    >>> h.shape
    torch.Size([3, 8])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        max_length: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        process_group: processes.Group = None,
        guard: Literal["nonfinite"] | None = None,
    ) -> None:
        inputs.check_whole(input_size=input_size, hidden_size=hidden_size, max_length=max_length)
        super().__init__(input_size, hidden_size, bias=False, device=device, dtype=dtype)
        rest = (max_length, eps, momentum, True, device, dtype)
        norm = partial(RecurrentBatchNorm, process_group=process_group, guard=guard)
        self.norm_ih = norm(4 * hidden_size, *rest)
        self.norm_hh = norm(4 * hidden_size, *rest, bias=False)
        self.norm_c = norm(hidden_size, *rest)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  # torch's knows no steps
        self,
        input: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        step: int,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The states after one step."""
        if input.dim() != 2 or input.shape[1] != self.input_size:
            raise ValueError(f"input must be (N, {self.input_size}), got {list(input.shape)}")
        if hx is None:
            hx = _zeros(input, self.hidden_size)
        return self.advance(F.linear(_kept(input, mask), self.weight_ih), hx, step, mask)

    def advance(
        self, projected: Tensor, hx: tuple[Tensor, Tensor], step: int, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The states after one step, from the input as `weight_ih` projects it: (N, 4 hidden_size)."""
        h, c = hx
        gates = self.norm_ih(projected, step=step, mask=mask)
        gates = self.norm_hh(F.linear(h, self.weight_hh), step=step, residual=gates, mask=mask)
        i, f, g, o = gates.chunk(4, 1)  # torch's order
        c_next = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h_next = o.sigmoid() * self.norm_c(c_next, step=step, mask=mask).tanh()
        if mask is None:
            return h_next, c_next
        goes_on = mask[:, None]
        return h_next.where(goes_on, h), c_next.where(goes_on, c)


class BatchNormLSTM(nn.Module):
    """One layer of `BatchNormLSTMCell` over whole sequences, as `torch.nn.LSTM` of one layer takes them.

    Args:
        input_size: of x.
        hidden_size: of h and c.
        max_length: steps that have running statistics of their own, as in `RecurrentBatchNorm`.
        batch_first: input and output are (N, T, *) instead of (T, N, *).
        eps: added to the variances.
        momentum: weight of a batch in the running statistics.
        device: of parameters and buffers.
        dtype: of parameters and buffers.
        process_group: processes whose batches are one in training, as in `BatchNorm1d`; all take the same steps.
        guard: "nonfinite" keeps running statistics from batches that are not finite, as in `BatchNorm1d`.

    `forward(input, hx=None, *, mask=None)` returns the hidden states of all steps, and (h, c) after the last,
    each (1, N, hidden_size) as torch has them. The mask, bool of (T, N), or (N, T) where batch_first, is false
    where a sequence has ended: it keeps its states, puts out zeros, and enters no statistic.

    >>> output, (h, c) = BatchNormLSTM(4, 8, max_length=5)(torch.randn(5, 3, 4))
    >>> output.shape, h.shape
    (torch.Size([5, 3, 8]), torch.Size([1, 3, 8]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        max_length: int,
        batch_first: bool = False,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        process_group: processes.Group = None,
        guard: Literal["nonfinite"] | None = None,
    ) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.cell = BatchNormLSTMCell(
            input_size, hidden_size, max_length, eps, momentum, device, dtype,
            process_group=process_group, guard=guard,
        )  # fmt: skip

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None, *, mask: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The hidden states of all steps, and the states after the last."""
        cell = self.cell
        if input.dim() != 3 or input.shape[2] != cell.input_size:
            axes = "N, T" if self.batch_first else "T, N"
            raise ValueError(f"input must be ({axes}, {cell.input_size}), got {list(input.shape)}")
        time = 1 if self.batch_first else 0
        alone = not (self.training and processes.several(cell.norm_c.process_group))
        if input.shape[time] == 0 or (alone and input.shape[1 - time] == 0):
            raise ValueError(
                f"sequences need a step and a sample or more, got input size {list(input.shape)}"
            )
        projected = F.linear(_kept(input, mask), cell.weight_ih)
        steps = projected.unbind(time)
        states = _zeros(steps[0], cell.hidden_size) if hx is None else (hx[0][0], hx[1][0])
        outputs: list[Tensor] = []
        for step, of_input in enumerate(steps):
            now = None if mask is None else mask.select(time, step)
            states = cell.advance(of_input, states, step, now)
            outputs.append(states[0] if now is None else states[0] * now[:, None])
        output = torch.stack(outputs, time)
        return output, (states[0][None], states[1][None])

    def extra_repr(self) -> str:
        """The arguments that the cell does not show."""
        return f"batch_first={self.batch_first}"


def _zeros(input: Tensor, hidden_size: int) -> tuple[Tensor, Tensor]:
    zeros = input.new_zeros(input.shape[0], hidden_size)
    return zeros, zeros


def _kept(input: Tensor, mask: Tensor | None) -> Tensor:
    """Zero where a sequence has ended, for NaN there would reach the gradient of the weight."""
    if mask is None:
        return input
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be a bool tensor, false where a sequence has ended, got {mask.dtype}")
    if mask.shape != input.shape[:-1]:
        raise ValueError(f"mask must be {list(input.shape[:-1])}, got {list(mask.shape)}")
    return input.masked_fill(~mask.unsqueeze(-1), 0)
