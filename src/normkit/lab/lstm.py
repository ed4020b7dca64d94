"""What the comparison's recurrent network is made of: rows of an image as time steps, and an LSTM with norms in it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ReadRows(nn.Module):
    """The last hidden state (N, H) of an LSTM that reads images (N, C, T, W) row by row: T steps of C W values.

    `lstm` takes (N, T, C W) and returns what `torch.nn.LSTM` of one layer does.
    """

    def __init__(self, lstm: nn.Module) -> None:
        super().__init__()
        self.lstm = lstm

    def forward(self, x: Tensor) -> Tensor:
        _, (h, _) = self.lstm(x.movedim(1, 2).flatten(2))
        return h[0]


class NormLSTM(nn.Module):
    r"""One layer of an LSTM over (N, T, input_size) with norms that know no steps, beside `nk.BatchNormLSTM`.

    .. math::
        (i, f, g, o) &= norm(W_x x_t) + norm(W_h h_{t-1}) + b \\
        c_t &= \sigma(f) c_{t-1} + \sigma(i) \tanh(g) \\
        h_t &= \sigma(o) \tanh(norm(c_t))

    `make` gives the norm for so many values. The weights are drawn as `torch.nn.LSTMCell` and `nk.BatchNormLSTM` draw
    them; b begins at 0.

    With layer norm: Ba, Kiros and Hinton, "Layer Normalization", 2016, equations 20 to 22.
    """

    def __init__(self, input_size: int, hidden_size: int, make: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.weights = nn.LSTMCell(input_size, hidden_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(4 * hidden_size))
        self.norm_ih, self.norm_hh, self.norm_c = map(make, (4 * hidden_size, 4 * hidden_size, hidden_size))

    def forward(self, input: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The hidden states of all steps, and (h, c) after the last, each (1, N, hidden_size)."""
        projected = F.linear(input, self.weights.weight_ih)
        h = c = input.new_zeros(len(input), self.weights.hidden_size)
        outputs: list[Tensor] = []
        for of_input in projected.unbind(1):
            of_state = self.norm_hh(F.linear(h, self.weights.weight_hh))
            i, f, g, o = (self.norm_ih(of_input) + of_state + self.bias).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * self.norm_c(c).tanh()
            outputs.append(h)
        return torch.stack(outputs, 1), (h[None], c[None])
