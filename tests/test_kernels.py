"""Which backend runs, and why."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch.autograd import forward_ad

import normkit as nk
from normkit import kernels


def explained(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What a fresh process says, with its own environment: the choice is made at import."""
    return subprocess.run(
        [sys.executable, "-c", f"import torch, normkit as nk; {code}"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_plain_cpu_tensors_are_compiled() -> None:
    """The extension is part of what is tested: without it this fails, and nothing is skipped."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        assert nk.kernels.explain(torch.ones(2, 3, dtype=dtype)).startswith("compiled: CPU kernels for ")


def test_what_the_kernels_cannot_take_is_composed() -> None:
    x = torch.ones(2, 3)
    assert nk.kernels.explain(x.to("meta")) == "composed: no compiled kernels for meta tensors"
    assert "no compiled kernels for torch.int64" in nk.kernels.explain(x.long())
    assert "empty" in nk.kernels.explain(x[:0])
    said = []
    torch.vmap(lambda v: (said.append(nk.kernels.explain(v)), v)[1])(x)
    with forward_ad.dual_level():
        said.append(nk.kernels.explain(x))
    assert all(line.startswith("composed: torch.func transforms") for line in said)
    assert "negated" in nk.kernels.explain(torch.ones(2, 3, dtype=torch.complex64).conj().imag[:1, :1])


def test_dtypes_of_parameters_decide_too() -> None:
    """RMS norm takes any weight, as torch's does; the kernels take the input's dtype or float32."""
    x, weight = torch.randn(4, 6), torch.rand(6)
    assert kernels._choose(x, weight) is kernels.compiled
    assert kernels._choose(x.bfloat16(), weight) is kernels.compiled
    assert kernels._choose(x, weight.bfloat16()) is kernels.composed


def test_backend_can_be_forced() -> None:
    told = explained("print(nk.kernels.explain(torch.ones(2, 3)))", NORMKIT_BACKEND="composed")
    assert told.stdout == "composed: NORMKIT_BACKEND asks for it\n"


def test_unknown_backend_is_named() -> None:
    told = explained("nk.LayerNorm(3)(torch.ones(2, 3))", NORMKIT_BACKEND="composd")
    assert (
        "unknown NORMKIT_BACKEND 'composd': choose from compiled, composed, triton; did you mean"
        in told.stderr
    )


def test_dispatch_modes_see_the_operator() -> None:
    """What records or counts operators must not be bypassed by a kernel called behind its back."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.append(str(function))
            return function(*args, **(kwargs or {}))

    names: list[str] = []
    layer, x = nk.BatchNorm1d(3), torch.randn(8, 3)
    expected = nk.BatchNorm1d(3)(x)
    with Names():
        got = layer(x)
    assert "normkit.normalize.default" in names
    assert torch.equal(got, expected)


KINDS = {
    "channels": ((4, 6, 5), 0, "relu"),
    "given": ((4, 6, 5), 0, None),
    "groups": ((4, 6, 5), 3, "silu"),
    "layer": ((4, 6), 1, None),
    "rms": ((4, 6), 1, None),
}


@pytest.mark.parametrize("kind", KINDS)
def test_operators_pass_opcheck(kind: str) -> None:
    """torch's own check of a custom operator: schema, fake kernel, autograd registration, AOT dispatch."""
    shape, size, activation = KINDS[kind]
    x = torch.randn(shape, requires_grad=True)
    weight = torch.rand(6, requires_grad=True)
    bias = None if kind == "rms" else torch.rand(6, requires_grad=True)
    given = (torch.zeros(6), torch.ones(6)) if kind == "given" else (None, None)
    residual = torch.randn(shape, requires_grad=True) if kind == "channels" else None
    mask = torch.rand(4, 5) < 0.7 if kind in ("channels", "given") else None
    arguments = (kind, x, weight, bias, residual, mask, *given, size, 1e-5, activation)
    torch.library.opcheck(torch.ops.normkit.normalize.default, arguments)
    detached = [a.detach() if isinstance(a, torch.Tensor) else a for a in arguments]
    stats = torch.ops.normkit.normalize(*detached)[1]
    torch.library.opcheck(
        torch.ops.normkit.normalize_backward.default, (torch.randn(shape), stats, *detached)
    )
