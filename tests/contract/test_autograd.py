"""Derivatives by finite differences: first and second order, forward mode, in training and evaluation."""

from __future__ import annotations

import torch
from case import Case
from cases import every_case, every_mode, every_twin
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call


def as_function(case: Case, training: bool) -> tuple[object, tuple[Tensor, ...]]:
    """The layer as a pure function of its input and parameters, away from the kinks of its activation."""
    layer = case.make(dtype=torch.float64).train(training)
    names = [name for name, _ in layer.named_parameters()]
    buffers = {name: b.clone() for name, b in layer.named_buffers()}

    def f(x: Tensor, *parameters: Tensor) -> Tensor:
        fresh = {name: b.clone() for name, b in buffers.items()}
        return functional_call(layer, {**dict(zip(names, parameters, strict=True)), **fresh}, (x,))

    x = case.input(torch.float64).requires_grad_()
    return f, (x, *(p.detach().requires_grad_() for p in layer.parameters()))


@every_case
@every_mode
def test_first_derivatives(case: Case, training: bool) -> None:
    f, inputs = as_function(case, training)
    assert gradcheck(f, inputs, check_forward_ad=True, check_batched_grad=True, fast_mode=True)


@every_case
@every_mode
def test_second_derivatives(case: Case, training: bool) -> None:
    f, inputs = as_function(case, training)
    assert gradgradcheck(f, inputs, fast_mode=True)


@every_twin
def test_double_backward_matches_the_twin(case: Case) -> None:
    """A gradient penalty, as in Gulrajani et al. 2017, through ours and through torch's layer."""

    def penalty(layer: torch.nn.Module, activate: object) -> Tensor:
        x = case.input(torch.float64).requires_grad_()
        (dx,) = torch.autograd.grad(activate(layer(x)).sin().sum(), x, create_graph=True)
        dx.square().sum().backward()
        return x.grad

    ours = penalty(case.make(dtype=torch.float64), lambda y: y)
    twin = penalty(case.make_twin(dtype=torch.float64), case.activate)
    torch.testing.assert_close(ours, twin, rtol=1e-9, atol=1e-9)
