"""torch.compile, torch.export and torch.func: one graph, and the numbers of the layer called plainly."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from case import Case
from cases import every_case, every_mode
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def step(layer: nn.Module, call: object, x: Tensor) -> dict[str, Tensor]:
    """Output, gradients and state after one step."""
    x = x.clone().requires_grad_()
    y = call(x)
    y.square().sum().backward()
    grads = {f"grad {n}": p.grad for n, p in layer.named_parameters()}
    return {"y": y.detach(), "dx": x.grad, **grads, **{k: v.clone() for k, v in layer.state_dict().items()}}


def assert_same_step(case: Case, plain: nn.Module, other: nn.Module, call: object, x: Tensor) -> None:
    expected, got = step(plain, plain, x), step(other, call, x)
    assert list(got) == list(expected)
    for key in expected:
        torch.testing.assert_close(got[key], expected[key], **CLOSE, msg=lambda m, k=key: f"{k}: {m}")


@every_case
@every_mode
def test_compile_traces_one_graph(case: Case, training: bool) -> None:
    """Forward and backward in one graph each, run without code generation; then another batch size."""
    torch._dynamo.reset()
    plain = case.make().train(training)
    other = copy.deepcopy(plain)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    assert_same_step(case, plain, other, compiled, case.input())
    larger = torch.cat([case.input(seed=2), case.input(seed=3)])
    other.zero_grad(), plain.zero_grad()
    assert_same_step(case, plain, other, compiled, larger)


@every_case
def test_compile_with_open_sizes(case: Case) -> None:
    """Where every size of the input is a symbol, all checks still decide."""
    torch._dynamo.reset()
    plain = case.make()
    other = copy.deepcopy(plain)
    compiled = torch.compile(other, fullgraph=True, backend="eager", dynamic=True)
    assert_same_step(case, plain, other, compiled, case.input())


@every_case
def test_compile_generates_code(case: Case) -> None:
    """The whole compiler, C++ and all."""
    torch._dynamo.reset()
    plain = case.make()
    other = copy.deepcopy(plain)
    assert_same_step(case, plain, other, torch.compile(other, fullgraph=True), case.input())


@every_case
@every_mode
def test_export(case: Case, training: bool) -> None:
    """With a batch size that stays open; running statistics are part of the exported program."""
    layer = case.make().train(training)
    batch = torch.export.Dim("batch", min=case.least_batch, max=64)
    x = case.input()
    program = torch.export.export(copy.deepcopy(layer), (x,), dynamic_shapes=({0: batch},))
    exported = program.module()
    other = torch.cat([x, x])
    torch.testing.assert_close(exported(other), layer(other), **CLOSE)
    for key, value in exported.state_dict().items():
        torch.testing.assert_close(value, layer.state_dict()[key], **CLOSE)


@every_case
def test_symbolic_trace_sees_one_node(case: Case) -> None:
    """As torch's own layers: tools built on torch.fx (fusion, quantization) rely on it."""
    model = nn.Sequential(case.make(), nn.Identity())
    traced = torch.fx.symbolic_trace(model)
    assert [node.op for node in traced.graph.nodes] == ["placeholder", "call_module", "call_module", "output"]
    again = copy.deepcopy(model)  # what follows may move statistics
    torch.testing.assert_close(traced(case.input()), again(case.input()), **CLOSE)


@every_case
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.torch.jit:DeprecationWarning")
def test_jit_trace_holds_the_computation(case: Case, grad: bool) -> None:
    """A kernel called behind the tracer's back would leave an output of whatever memory held."""
    layer, x = case.make().eval(), case.input()
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(layer, case.input(seed=8), check_trace=False)
        torch.testing.assert_close(traced(x), layer(x), **CLOSE)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    torch.testing.assert_close(torch.jit.load(file)(x), layer(x), **CLOSE)


@every_case
def test_vmap_over_inputs(case: Case) -> None:
    layer = case.make().eval()
    xs = torch.stack([case.input(seed=s) for s in range(3)])
    expected = torch.stack([layer(x) for x in xs])
    torch.testing.assert_close(vmap(layer)(xs), expected, **CLOSE)


@every_case
@every_mode
def test_vmap_over_an_ensemble(case: Case, training: bool) -> None:
    """Several models at once, each with its own parameters and running statistics, which move in training."""
    layers = [case.make(seed=s).train(training) for s in range(3)]
    parameters, buffers = stack_module_state(layers)
    xs = torch.stack([case.input(seed=s) for s in range(3)])

    def call(p: dict[str, Tensor], b: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(layers[0], {**p, **b}, (x,))

    got = vmap(call)(parameters, buffers, xs)
    torch.testing.assert_close(got, torch.stack([f(x) for f, x in zip(layers, xs, strict=True)]), **CLOSE)
    for name, stacked in buffers.items():
        expected = torch.stack([dict(f.named_buffers())[name] for f in layers])
        torch.testing.assert_close(stacked, expected, **CLOSE)


@every_case
@every_mode
def test_gradients_of_an_ensemble(case: Case, training: bool) -> None:
    """By `torch.func.grad`, which autograd functions and operators must allow, of each model on its own input."""
    layers = [case.make(seed=s, dtype=torch.float64).train(training) for s in range(2)]
    parameters, buffers = stack_module_state(layers)
    xs = torch.stack([case.input(torch.float64, seed=s) for s in range(2)])

    def loss(p: dict[str, Tensor], x: Tensor, b: dict[str, Tensor]) -> Tensor:
        return functional_call(layers[0], {**p, **b}, (x,)).sin().sum()

    got, dxs = vmap(grad(loss, argnums=(0, 1)))({k: p.detach() for k, p in parameters.items()}, xs, buffers)
    for i, layer in enumerate(layers):
        x = xs[i].clone().requires_grad_()
        layer(x).sin().sum().backward()
        torch.testing.assert_close(dxs[i], x.grad, rtol=1e-9, atol=1e-9)
        for name, parameter in layer.named_parameters():
            torch.testing.assert_close(got[name][i], parameter.grad, rtol=1e-9, atol=1e-9)


@every_case
def test_functional_call_leaves_the_module_alone(case: Case) -> None:
    layer, other = case.make(seed=0), case.make(seed=1)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    state = {k: v.clone() for k, v in other.state_dict().items()}
    x = case.input()
    torch.testing.assert_close(functional_call(layer, state, (x,)), other(x), rtol=0, atol=0)
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key])
    for key, value in other.state_dict().items():
        assert torch.equal(state[key], value)
