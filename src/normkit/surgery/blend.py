"""Running statistics blended with those of new data, and signs that this goes wrong: arithmetic alone."""

from __future__ import annotations

from torch import Tensor

from normkit.statistics import Moments

COLLAPSED = 0.01  # of the deviation that a channel had


class Blend:
    r"""Statistics from before and those of n samples seen since, of which the ones before are worth N.

    .. math:: \mu = \frac{N \mu_s + n \mu_t}{N + n}, \quad \sigma^2 = \frac{N \sigma_s^2 + n \sigma_t^2}{N + n}

    Schneider et al., "Improving robustness against common corruptions by covariate shift adaptation", 2020; with
    N = 0, Li et al., "Revisiting Batch Normalization For Practical Domain Adaptation", 2016.
    """

    def __init__(self, mean: Tensor, var: Tensor, prior: float) -> None:
        self.mean, self.var, self._prior = mean.double(), var.double(), prior
        self.samples = 0.0
        self._seen: Moments | None = None

    def update(self, batch: Moments, samples: float) -> None:
        """Take in a batch."""
        self.samples += samples
        self._seen = batch if self._seen is None else self._seen.merge(batch)

    @property
    def share(self) -> float:
        """The weight of what was seen, n / (N + n)."""
        return self.samples / (self.samples + self._prior) if self.samples else 0.0

    def estimate(self) -> tuple[Tensor, Tensor]:
        """The blended mean and variance, that of the samples biased, as it is where a batch normalizes itself."""
        if self._seen is None or not self.samples:
            return self.mean, self.var
        mean, var = self._seen.mean, self._seen.var(unbiased=False)
        return self.mean + self.share * (mean - self.mean), self.var + self.share * (var - self.var)


def collapsed_channels(var: Tensor, var_before: Tensor, eps: float) -> float:
    """The share of channels, of those that varied before, that have all but stopped.

    >>> import torch
    >>> collapsed_channels(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 0.0]), 1e-5)
    0.5
    """
    varied = var_before > eps
    stopped = (var + eps).sqrt() < COLLAPSED * (var_before + eps).sqrt()
    return ((stopped & varied).sum() / varied.sum().clamp(min=1)).item()
