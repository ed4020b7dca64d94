"""Gradients by torch operations, for a backward pass that is differentiated or has a batch of gradients at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def gradients_of(
    function: Callable[..., Tensor], inputs: Sequence[Tensor | None], dy: Tensor
) -> list[Tensor | None]:
    """Partial derivatives of function(*inputs), None for inputs that are none or need no gradient.

    An input may be made of another: a residual that x was computed from, one tensor as weight and bias. Each enters
    as an alias of its own, where its gradient stops; the way from one to the other belongs to the graph around, and
    taken here too it would count twice, as would what hooks of the inputs do.
    """
    differentiated = torch.is_grad_enabled()
    with torch.enable_grad():
        aliases = [None if t is None else t.view_as(t) for t in inputs]
        y = function(*aliases)
    wanted = [t for t in aliases if t is not None and t.requires_grad]
    found = iter(torch.autograd.grad(y, wanted, dy, create_graph=differentiated, allow_unused=True))
    return [next(found) if t is not None and t.requires_grad else None for t in aliases]
