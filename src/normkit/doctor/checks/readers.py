"""What several checks look for in the readings."""

from __future__ import annotations

from collections.abc import Iterator

from normkit.doctor.graph import Graph
from normkit.doctor.readings import Norm, Readings, Running, Traffic, Weight


def tracked(seen: Readings) -> Iterator[tuple[Norm, Running]]:
    """The norms with running statistics of a batch."""
    for norm in seen.norms:
        if norm.by_batch and norm.running is not None:
            yield norm, norm.running


def trafficked(seen: Readings) -> Iterator[tuple[Norm, Traffic]]:
    """The norms that batches went through."""
    for norm in seen.norms:
        if norm.traffic is not None:
            yield norm, norm.traffic


def norms_at_calls(seen: Readings) -> Iterator[tuple[Graph, int, Norm]]:
    """Each step of the graph at which a norm runs."""
    if seen.graph is not None:
        for step, node in seen.graph.of_kind("norm"):
            norm = seen.norm(node.module)
            if norm is not None:
                yield seen.graph, step, norm


def scale_invariant(seen: Readings) -> Iterator[Weight]:
    """The layers whose output a norm divides by its deviation: a longer weight gives the same function."""
    if seen.graph is None:
        return
    for step, node in seen.graph.of_kind("weight"):
        after = seen.graph.after(step)
        norm = None if after is None else seen.norm(seen.graph.nodes[after].module)
        weight = seen.weight(node.module)
        if (
            weight is not None
            and norm is not None
            and norm.kind in ("batch", "instance", "group", "layer", "rms")
        ):
            yield weight


def in_order(seen: Readings) -> Iterator[Weight]:
    """The layers with weights in the order in which they first run."""
    steps = (node.module for _, node in seen.graph.of_kind("weight")) if seen.graph else iter(())
    for module in dict.fromkeys(steps):
        weight = seen.weight(module)
        if weight is not None:
            yield weight
