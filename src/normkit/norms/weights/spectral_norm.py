"""Spectral norm: a weight divided by its largest singular value."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import parametrizations

from normkit.norms.weights.axes import axis


def spectral_norm(
    weight: Tensor, u: Tensor, v: Tensor, n_power_iterations: int = 0, eps: float = 1e-12, *, dim: int = 0
) -> Tensor:
    r"""Divide a weight, as a matrix, by its largest singular value, which two vectors tell.

    .. math:: \hat{w} = \frac{w}{\sigma}, \quad \sigma = u^T w v

    The vectors are constants to the gradient; at the singular vectors themselves that is exact.

    Args:
        weight: floating, two axes or more; all but dim are flattened.
        u: (outputs), of length 1: about the left singular vector; changed in place where there are iterations.
        v: (inputs), of length 1: about the right one, likewise.
        n_power_iterations: steps of the power method that bring both nearer first.
        eps: the least length of a vector that is normalized.
        dim: the axis that counts outputs.

    Returns:
        Tensor of the weight's shape and dtype.

    Raises:
        IndexError: no such axis.
        RuntimeError: vectors of another length.

    Miyato, Kataoka, Koyama and Yoshida, "Spectral Normalization for Generative Adversarial Networks", 2018.

    >>> w = torch.tensor([[4.0, 0.0], [0.0, 2.0]])
    >>> spectral_norm(w, torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0]))
    tensor([[1.0000, 0.0000],
            [0.0000, 0.5000]])
    """
    matrix = weight.movedim(axis(weight, dim), 0).flatten(1)
    if u.shape != matrix.shape[:1] or v.shape != matrix.shape[1:]:
        raise RuntimeError(
            f"u and v of a weight {list(matrix.shape)} have as many elements as it has rows and columns, "
            f"got {list(u.shape)} and {list(v.shape)}"
        )
    with torch.no_grad():
        for _ in range(n_power_iterations):
            u.copy_(F.normalize(torch.mv(matrix, v), dim=0, eps=eps))
            v.copy_(F.normalize(torch.mv(matrix.mT, u), dim=0, eps=eps))
    # Copies, for the backward pass of this use may come after the next use has changed the vectors.
    sigma = torch.dot(u.clone(), torch.mv(matrix, v.clone()))
    return weight / sigma


class SpectralNorm(parametrizations._SpectralNorm):  # pyright: ignore[reportPrivateUsage]
    """The parametrization: torch's, whose vectors, their first values and their buffers it takes over."""

    def forward(self, weight: Tensor) -> Tensor:
        """The weight divided by its largest singular value; a vector by its length."""
        if weight.dim() == 1:
            return F.normalize(weight, dim=0, eps=self.eps)
        iterations = self.n_power_iterations if self.training else 0
        return spectral_norm(weight, self._u, self._v, iterations, self.eps, dim=self.dim)
