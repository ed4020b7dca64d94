"""Who runs a case: normkit, torch eager, torch.compile, JAX where installed, and the copy for the floor."""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor, nn

from normkit.bench.cases import Case
from normkit.bench.timing import Contender

OURS, EAGER, COMPILED, JAX, COPY = "normkit", "torch eager", "torch.compile", "JAX", "copy"
PEERS = (EAGER, COMPILED, JAX)


def absent(threads: int) -> dict[str, str]:
    """The peers that cannot run here, each with the reason in one line."""
    reasons: dict[str, str] = {}
    try:
        torch.compile(_increment)(torch.ones(2))
    except Exception as failure:  # a compiler is missing or broken, in ways that only inductor knows
        reasons[COMPILED] = " ".join(f"{type(failure).__name__}: {failure}".split())[:200]
    if importlib.util.find_spec("jax") is None:
        reasons[JAX] = "not installed"
    elif threads != os.cpu_count():
        reasons[JAX] = f"always uses all {os.cpu_count()} cores, this run uses {threads}"
    return reasons


def _increment(x: Tensor) -> Tensor:
    return x + 1


def contenders(case: Case, without: dict[str, str]) -> list[Contender]:
    """All who run this case but those left out, on the same input, and the copy of one tensor of its size."""
    x = case.tensor(seed=0)
    dy = case.tensor(seed=1)
    residual = case.tensor(seed=2) if case.row.residual else None
    found = [
        of_module(OURS, case.ours(), x, dy, residual),
        of_module(EAGER, case.theirs(), x, dy, residual),
    ]
    if COMPILED not in without:
        torch.compiler.reset()  # each case is compiled for its own sizes, and none counts against a limit
        compiled = case.theirs()
        compiled.compile(dynamic=False)
        found.append(of_module(COMPILED, compiled, x, dy, residual))
    if JAX not in without:
        from normkit.bench.jax_peer import step

        found.append(Contender(JAX, step(case, x, dy, residual)))
    copied, target = x.detach(), torch.empty_like(x)
    return [*found, Contender(COPY, lambda: target.copy_(copied))]


def of_module(name: str, module: nn.Module, x: Tensor, dy: Tensor, residual: Tensor | None) -> Contender:
    """The module as a contender: as one layer within a training step, or its forward pass in evaluation.

    In training the input and the residual require gradients, and gradients are dropped after each iteration,
    not added up.
    """
    inputs = {} if residual is None else {"residual": residual}
    if not module.training:
        return Contender(name, lambda: module(x, **inputs))
    leaves = [tensor.requires_grad_() for tensor in (x, *inputs.values())] + list(module.parameters())

    def release() -> None:
        for leaf in leaves:
            leaf.grad = None

    return Contender(
        name,
        forward=lambda: module(x, **inputs),
        backward=lambda y: torch.autograd.backward(y, dy),
        release=release,
    )
