"""What batches say of all running statistics of a model, in this process or in several."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from normkit import processes
from normkit.errors import ProcessError, one_line
from normkit.statistics import CumulativeAverage, Estimator, Exact, ExponentialAverage, RandomBatch
from normkit.surgery.convergence import Evidence
from normkit.surgery.observe import Gathering, Observation, Site
from normkit.surgery.walk import RunningNorm

ESTIMATORS = ("exact", "cumulative", "exponential", "random")


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

    def _enough(self) -> bool:
        errors = [evidence.error() for evidence, _ in self.sites.values() if evidence.moments is not None]
        return bool(errors) and bool((torch.stack(errors) <= self._tolerance).all())

    def exchange(
        self, group: processes.Group, layers: Mapping[str, RunningNorm], failure: Exception | None
    ) -> None:
        """Merge what all processes saw, in the order of their ranks, so that all hold the same bits.

        Raises:
            ProcessError: a process brings a failure instead.
        """
        own = {(site.name, site.step): evidence.pack() for site, (evidence, _) in self.sites.items()}
        heard = processes.exchange(
            group, (self.batches, self.enough_after, own, failure and one_line(failure))
        )
        if failure is not None:
            return  # all know, and this one raises it
        for rank, (*_, failed) in enumerate(heard):
            if failed is not None:
                raise ProcessError(
                    f"statistics of all processes take all of them, but rank {rank} failed: {failed}"
                )
        self.sites.clear()
        for _, _, found, _ in heard:
            for (name, step), packed in found.items():
                site = Site(name, layers[name], step)
                evidence, _ = self.sites.setdefault(site, (Evidence(site.layer.eps), Exact()))
                evidence.merge(packed.to(site.running.mean.device))
        for evidence, estimator in self.sites.values():
            if evidence.moments is not None:
                estimator.update(evidence.moments)
        self.reached = {site.name for site in self.sites}
        self.batches = sum(batches for batches, *_ in heard)
        latest = max(enough_after or batches for batches, enough_after, *_ in heard)
        self.enough_after = latest if self._enough() else None
