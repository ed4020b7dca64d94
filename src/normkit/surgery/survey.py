"""What batches say of all running statistics of a model, in this process or in several."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from normkit import processes
from normkit.errors import ProcessError, one_line
from normkit.statistics import CumulativeAverage, Estimator, Exact, ExponentialAverage, Moments, RandomBatch
from normkit.surgery.convergence import Evidence
from normkit.surgery.observe import Gathering, Observation, Site
from normkit.surgery.walk import RunningNorm

_FEWEST, _LASTING = 5, 2  # batches before an end, and after the first that was enough
ESTIMATORS = ("exact", "cumulative", "exponential", "random")


class Given:
    """An estimate that is known as it is."""

    def __init__(self, *values: Tensor) -> None:
        self.values: tuple[Tensor, ...] = values

    def update(self, batch: Moments) -> None:
        """Nothing moves it."""

    def estimate(self) -> tuple[Tensor, Tensor]:
        """Mean and variance."""
        mean, var = self.values
        return mean, var


class Survey(Gathering):
    """What the batches say of each set of running statistics."""

    def __init__(self, estimator: str, tolerance: float, seed: int) -> None:
        super().__init__()
        self._estimator, self._tolerance, self._seed = estimator, tolerance, seed
        self.sites: dict[Site, tuple[Evidence, Estimator]] = {}
        self.enough_after: int | None = None

    def take(self, observation: Observation) -> None:
        """Take in what one forward pass of a layer brought."""
        super().take(observation)
        site, moments, _ = observation
        if site not in self.sites:
            self.sites[site] = Evidence(site.layer.eps), self._made(site)
        for part in self.sites[site]:
            part.update(moments)

    def _made(self, site: Site) -> Estimator:
        if self._estimator == "exponential":
            momentum = site.layer.momentum
            return ExponentialAverage(0.1 if momentum is None else momentum)
        if self._estimator == "random":  # the same draws, so the same batch, in every layer
            return RandomBatch(torch.Generator().manual_seed(self._seed))
        return CumulativeAverage() if self._estimator == "cumulative" else Exact()

    def end_batch(self) -> None:
        """Judge what a batch brought, and whether it was enough."""
        super().end_batch()
        self.enough_after = (self.enough_after or self.batches) if self._enough() else None

    @property
    def lastingly_enough(self) -> bool:
        """Whether the batches have been enough for a while, and several: two may agree by chance."""
        return (
            self.enough_after is not None
            and self.batches >= _FEWEST
            and self.batches - self.enough_after >= _LASTING
        )

    def _enough(self) -> bool:
        errors = [evidence.error() for evidence, _ in self.sites.values() if evidence.moments is not None]
        return bool(errors) and bool((torch.stack(errors) <= self._tolerance).all())

    def _drawn(self, estimator: Estimator) -> tuple[Tensor, ...] | None:
        """What this process has drawn, on the CPU, where one batch is drawn."""
        if self._estimator != "random":
            return None
        return tuple(value.cpu() for value in estimator.estimate())

    def _draw(self, batches: list[int], seed: int) -> int:
        """The process whose batch is taken where one is: each batch has the same chance."""
        if self._estimator != "random" or not any(batches):
            return 0
        generator = torch.Generator().manual_seed(seed)
        return int(torch.multinomial(torch.tensor(batches, dtype=torch.float64), 1, generator=generator))

    def _conclude(self) -> None:
        """Estimate from what all processes bring, but for a batch that was drawn."""
        for evidence, estimator in self.sites.values():
            if evidence.moments is None or self._estimator == "random":
                continue
            assert isinstance(estimator, Given)
            moments = evidence.moments
            exact = moments.mean, moments.var(unbiased=True)
            estimator.values = exact if self._estimator == "exact" else evidence.averages

    def exchange(
        self, group: processes.Group, layers: Mapping[str, RunningNorm], failure: Exception | None
    ) -> None:
        """Merge what all processes saw, in the order of their ranks, so that all hold the same bits.

        Raises:
            ProcessError: a process brings a failure instead.
        """
        own = {
            (site.name, site.step): (evidence.pack(), self._drawn(estimator))
            for site, (evidence, estimator) in self.sites.items()
        }
        heard = processes.exchange(
            group, (self.batches, self.enough_after, self._seed, own, failure and one_line(failure))
        )
        if failure is not None:
            return  # all know, and this one raises it
        for rank, (*_, failed) in enumerate(heard):
            if failed is not None:
                raise ProcessError(
                    f"statistics of all processes take all of them, but rank {rank} failed: {failed}"
                )
        self.sites.clear()
        drawn = self._draw([batches for batches, *_ in heard], seed=heard[0][2])
        for rank in (drawn, *(other for other in range(len(heard)) if other != drawn)):
            for (name, step), (packed, one) in heard[rank][3].items():
                site = Site(name, layers[name], step)
                device = site.running.mean.device
                given = Given(*(value.to(device) for value in one)) if one else Given()
                evidence, _ = self.sites.setdefault(site, (Evidence(site.layer.eps), given))
                evidence.merge(packed.to(device))
        self._conclude()
        self.reached = {site.name for site in self.sites}
        self.batches = sum(batches for batches, *_ in heard)
        latest = max(enough_after or batches for batches, enough_after, *_ in heard)
        self.enough_after = latest if self._enough() else None
