"""Filter response norm and the threshold behind it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normkit.reference.standardize import Array, Cache, normalize, other_axes, shaped


@dataclass(frozen=True, eq=False, kw_only=True)
class FilterResponseCache(Cache):
    """What filter response norm keeps besides."""

    above: NDArray[np.bool_] | None  # where y > τ; None without a threshold
    learned_eps: float | None

    def backward(self, dy: ArrayLike) -> tuple[Array | None, ...]:
        """The gradients dx, dweight, dbias, then those of the threshold and of learned_eps where these were given.

        dτ = Σ dz where τ was the larger; ∂x̂/∂ε = -½ x̂ / (ν² + ε)
        """
        dz = np.where(self.valid, np.asarray(dy, np.float64), 0.0)
        others = other_axes((1,), dz.ndim)
        dy = dz if self.above is None else np.where(self.above, dz, 0.0)
        dx, dweight, dbias = super().backward(dy)
        gradients = [dx, dweight, dbias]
        if self.above is not None:
            gradients.append((dz - dy).sum(axis=others))
        if self.learned_eps is not None:
            dxhat = dy if self.weight is None else dy * np.expand_dims(self.weight, others)
            slope = -0.5 * (dxhat * self.xhat).sum(axis=self.axes) / (self.var + self.eps)
            gradients.append(np.sign(self.learned_eps) * slope.sum())
        return tuple(gradients)


def filter_response_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    threshold: ArrayLike | None = None,
    eps: float = 1e-6,
    learned_eps: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> tuple[Array, FilterResponseCache]:
    """Filter response norm: each channel of each sample is divided by its root mean square over space.

    z = max(y, τ_c), y = γ_c x / √(ν²_nc + ε) + β_c, ν²_nc = mean over space of x², ε = eps + |learned_eps|

    weight, bias and threshold τ: (C,). learned_eps: one number. mask: as in `batch_norm`. Without a threshold
    z = y. Singh and Krishnan 2020, arXiv:1911.09737.
    """
    n, channels, *space = np.shape(x)
    learned = None if learned_eps is None else float(np.asarray(learned_eps).item())
    y, cache = normalize(
        x,
        tuple(range(2, 2 + len(space))),
        (1,),
        eps + abs(learned or 0.0),
        weight,
        bias,
        mean=np.zeros((n, channels)),
        mask=mask,
    )
    tau, above = shaped("threshold", threshold, (channels,)), None
    if tau is not None:
        tau = np.expand_dims(tau, other_axes((1,), y.ndim))
        above, y = y > tau, np.where(cache.valid, np.maximum(y, tau), 0.0)
    return y, FilterResponseCache(**vars(cache), above=above, learned_eps=learned)
