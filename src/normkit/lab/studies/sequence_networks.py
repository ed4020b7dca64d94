"""Two small networks for sequences of different lengths, a recurrent one and a transformer, with a norm to choose.

Steps are (N, T, 3): a value, a mark, and 1 where the step is real, 0 where it is padding. The output is one number
for each sequence. Norms know the padding: it enters no statistic.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normkit as nk

# From features to a norm of (rows, features) with a mask over rows.
_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda features: _Unchanged(),
    "batch": nk.BatchNorm1d,
    "layer": nk.LayerNorm,
    "rms": nk.RMSNorm,
}
NORMS = tuple(_NORMS)


class Recurrent(nn.Module):
    """An LSTM whose gates are normalized before their sigmoids and tanh; the last real state gives the output.

    a_t = norm(W_x x_t + W_h h_{t-1}), the same norm at every step, and with running statistics for all steps
    together. With "batch at each step" it is `nk.BatchNormLSTM`, which has them for each step (Cooijmans et al. 2016).
    """

    def __init__(self, norm: str, units: int = 32, longest: int = 16) -> None:
        super().__init__()
        self.units = units
        self.whole: nn.Module | None = None
        if norm == "batch at each step":
            self.whole = nk.BatchNormLSTM(2, units, longest, batch_first=True)
        else:
            self.inputs = nn.Linear(2, 4 * units, bias=norm == "none")
            self.states = nn.Linear(units, 4 * units, bias=False)
            self.norm = _NORMS[norm](4 * units)
        self.output = nn.Linear(units, 1)

    def forward(self, x: Tensor) -> Tensor:
        real = x[..., 2] > 0
        if self.whole is not None:
            _, (h, _) = self.whole(x[..., :2], mask=real)
            return self.output(h[0])[:, 0]
        projected = self.inputs(x[..., :2])
        h = c = x.new_zeros(len(x), self.units)
        for step in range(x.shape[1]):
            goes_on = real[:, step]
            gates = self.norm(projected[:, step] + self.states(h), mask=goes_on)
            i, f, g, o = gates.chunk(4, 1)
            next_c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            next_h = o.sigmoid() * next_c.tanh()
            h, c = next_h.where(goes_on[:, None], h), next_c.where(goes_on[:, None], c)
        return self.output(h)[:, 0]


class Transformer(nn.Module):
    """Two pre-norm blocks of attention and a dense layer, and the mean over real steps gives the output."""

    def __init__(self, norm: str, width: int = 32, longest: int = 16) -> None:
        super().__init__()
        self.embed = nn.Linear(2, width)
        self.places = nn.Parameter(0.1 * torch.randn(longest, width))
        self.blocks = nn.ModuleList(_Block(norm, width) for _ in range(2))
        self.norm = _Steps(norm, width)
        self.output = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        real = x[..., 2] > 0
        h = self.embed(x[..., :2]) + self.places[: x.shape[1]]
        for block in self.blocks:
            h = block(h, real)
        h = self.norm(h, real) * real[..., None]
        return self.output(h.sum(1) / real.sum(1, keepdim=True))[:, 0]


class _Block(nn.Module):
    def __init__(self, norm: str, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_dense = _Steps(norm, width), _Steps(norm, width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.dense = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def forward(self, h: Tensor, real: Tensor) -> Tensor:
        h = h + self._attend(self.before_attention(h, real), real)
        return h + self.dense(self.before_dense(h, real))

    def _attend(self, h: Tensor, real: Tensor) -> Tensor:
        split = self.queries_keys_values(h).unflatten(
            -1, (3, self.heads, -1)
        )  # (N, T, 3, heads, width of a head)
        q, k, v = split.movedim(2, 0).transpose(2, 3)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=real[:, None, None])
        return self.mix(mixed.transpose(1, 2).flatten(2))


class _Steps(nn.Module):
    """A norm of (N, T, features) that sees all steps of all sequences as rows."""

    def __init__(self, norm: str, features: int) -> None:
        super().__init__()
        self.norm = _NORMS[norm](features)

    def forward(self, h: Tensor, real: Tensor) -> Tensor:
        return self.norm(h.flatten(0, 1), mask=real.flatten()).view_as(h)


class _Unchanged(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x
