"""torch's own test databases, shipped in its wheel, with our layers and functions in the place of torch's.

`module_db` holds constructor and forward arguments for every torch.nn module, wrong ones included; `op_db`
holds sample and error inputs for every torch.nn.functional function.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import ModuleErrorEnum, module_db
from torch.testing._internal.opinfo.core import OpInfo

import normkit as nk

OURS = {
    getattr(nn, name): getattr(nk, name)
    for name in nk.__all__
    if isinstance(getattr(nk, name), type)
    and hasattr(nn, name)
    and name != "SyncBatchNorm"  # not in the databases
}
MODULES = [info for info in module_db if info.module_cls in OURS]
FUNCTIONS = {
    name: info
    for name in nk.functional.__all__
    for info in op_db
    if info.name == f"nn.functional.{name}" and not info.variant_test_name
}
CLOSE = {
    torch.float64: {"rtol": 1e-9, "atol": 1e-9},
    torch.float32: {"rtol": 2e-5, "atol": 2e-5},
}


def test_every_layer_of_torchs_is_covered() -> None:
    """No layer that replaces one of torch's is missing from these tests because a name changed."""
    assert {info.module_cls for info in MODULES} == set(OURS)
    assert len(OURS) == 9
    assert set(FUNCTIONS) == {n for n in nk.functional.__all__ if hasattr(nn.functional, n)}


def both(info: object, module_input: object, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    arguments = module_input.constructor_input
    twin = info.module_cls(*arguments.args, **arguments.kwargs, dtype=dtype)
    ours = OURS[info.module_cls](*arguments.args, **arguments.kwargs, dtype=dtype)
    ours.load_state_dict(twin.state_dict())
    return ours, twin


@pytest.mark.parametrize("info", MODULES, ids=lambda info: info.module_cls.__name__)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_module_inputs(info: object, training: bool, dtype: torch.dtype) -> None:
    """Output, gradients and buffers of each module input; non-contiguous input; the databases' references."""
    samples = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=training)
    assert samples
    for sample in samples:
        ours, twin = (m.train(training) for m in both(info, sample, dtype))
        (x,) = sample.forward_input.args
        for value in (x, x.detach().movedim(0, -1).contiguous().movedim(-1, 0).requires_grad_()):
            compare_step(ours, twin, value)
        if sample.reference_fn is not None:
            expected = sample.reference_fn(copy.deepcopy(ours), x)
            # torch's references compute in float32 whatever the input's dtype.
            torch.testing.assert_close(ours(x), expected, **CLOSE[torch.float32])


def compare_step(ours: nn.Module, twin: nn.Module, x: torch.Tensor) -> None:
    dtype = x.dtype
    xs = [x.detach().clone().requires_grad_() for _ in range(2)]
    try:
        expected = twin(xs[1])
    except IndexError:  # torch's instance norm fails on an empty batch, which ours passes through
        assert x.numel() == 0
        return
    got = ours(xs[0])
    torch.testing.assert_close(got, expected, **CLOSE[dtype])
    dy = torch.randn(got.shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    got.backward(dy)
    expected.backward(dy)
    torch.testing.assert_close(xs[0].grad, xs[1].grad, **CLOSE[dtype])
    for (name, a), b in zip(ours.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, **CLOSE[dtype], msg=lambda m, n=name: f"{n}: {m}")
    for name, b in twin.state_dict().items():
        if name == "num_batches_tracked" and x.numel() == 0:
            continue  # torch counts an empty batch; ours leaves every buffer alone
        torch.testing.assert_close(ours.state_dict()[name], b, **CLOSE[dtype])


ERRORS = [info for info in MODULES if info.module_error_inputs_func is not None]


@pytest.mark.parametrize("info", ERRORS, ids=lambda info: info.module_cls.__name__)
def test_module_error_inputs(info: object) -> None:
    """What torch documents as an error raises the same type and message (it documents training alone)."""
    samples = info.module_error_inputs_func(
        info, device="cpu", dtype=torch.float32, requires_grad=False, training=True
    )
    assert samples
    for sample in samples:
        arguments = sample.module_error_input.constructor_input
        if sample.error_on is ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(sample.error_type, match=sample.error_regex):
                OURS[info.module_cls](*arguments.args, **arguments.kwargs)
            continue
        ours = OURS[info.module_cls](*arguments.args, **arguments.kwargs).train()
        forward = sample.module_error_input.forward_input
        with pytest.raises(sample.error_type, match=sample.error_regex):
            ours(*forward.args, **forward.kwargs)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_function_inputs(name: str, dtype: torch.dtype) -> None:
    """Each sample through our function and torch's: output, gradient, running statistics."""
    info: OpInfo = FUNCTIONS[name]
    count = 0
    for sample in info.sample_inputs("cpu", dtype, requires_grad=True):
        if name == "batch_norm" and sample.input.dim() == 1:
            continue  # no channel axis: torch lets it pass where it is empty, ours says what is wrong
        results = []
        for function in (getattr(nk.functional, name), info.op):
            x = sample.input.detach().clone().requires_grad_()
            args = [a.detach().clone() if isinstance(a, torch.Tensor) else a for a in sample.args]
            kwargs = {
                k: v.detach().clone() if isinstance(v, torch.Tensor) else v for k, v in sample.kwargs.items()
            }
            y = function(x, *args, **kwargs)
            (dx,) = torch.autograd.grad(y.square().sum(), x)
            buffers = [t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)]
            results.append([y.detach(), dx, *buffers])
        for got, expected in zip(*results, strict=True):
            torch.testing.assert_close(got, expected, **CLOSE[dtype])
        count += 1
    assert count >= 3


@pytest.mark.parametrize("name", [n for n, info in FUNCTIONS.items() if info.error_inputs_func])
def test_function_error_inputs(name: str) -> None:
    info: OpInfo = FUNCTIONS[name]
    for error in info.error_inputs("cpu"):
        sample = error.sample_input
        with pytest.raises(error.error_type, match=error.error_regex):
            getattr(nk.functional, name)(sample.input, *sample.args, **sample.kwargs)
