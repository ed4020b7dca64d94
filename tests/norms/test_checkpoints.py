"""Activation checkpointing moves running statistics once."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from kinds import KINDS, assert_same, batch, every_kind, network, state_of, train
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import normkit as nk


class TestCheckpoints:
    @every_kind
    @pytest.mark.parametrize("reentrant", [False, True])
    def test_one_step_updates_once(self, kind: str, reentrant: bool) -> None:
        """To the bit: the recomputation normalizes as the first pass did, whatever that has changed."""
        plain, other = network(kind), network(kind)
        expected = train(plain, plain)
        got = train(other, lambda x: checkpoint(other, x, use_reentrant=reentrant))
        assert_same(other, state_of(plain))
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))

    @every_kind
    def test_nested(self, kind: str) -> None:
        plain, other = network(kind), network(kind)

        def inner(x: Tensor) -> Tensor:
            return checkpoint(other[2:], checkpoint(other[:2], x, use_reentrant=False), use_reentrant=False)

        expected = train(plain, plain)
        got = train(other, lambda x: checkpoint(inner, x, use_reentrant=False))
        assert_same(other, state_of(plain))
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))

    @pytest.mark.parametrize("reentrant", [False, True])
    @pytest.mark.parametrize("kind", ["batch", "ghost", "renorm"])
    def test_around_a_compiled_layer(self, kind: str, reentrant: bool) -> None:
        """Its graph, traced outside, asks when it runs."""
        torch._dynamo.reset()
        plain, other = KINDS[kind](3), KINDS[kind](3)
        compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
        expected = train(plain, plain)
        got = train(other, lambda x: checkpoint(compiled, x, use_reentrant=reentrant))
        for key, value in other.state_dict().items():
            torch.testing.assert_close(value, plain.state_dict()[key], rtol=1e-6, atol=1e-6)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)

    def test_around_a_compiled_layer_without_kernels(self) -> None:
        """As on other devices, where torch operations would move statistics each time that the graph runs."""
        run = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-p",
                "no:cacheprovider",
                __file__,
                "-k",
                "around_a_compiled_layer[",
            ],
            env={**os.environ, "NORMKIT_BACKEND": "composed"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stdout[-3000:]

    @pytest.mark.parametrize("kind", ["batch", "renorm", "running"])
    def test_inside_a_compiled_function(self, kind: str) -> None:
        torch._dynamo.reset()
        plain, other = KINDS[kind](3), KINDS[kind](3)
        backend = "inductor" if kind == "renorm" else "aot_eager"
        compiled = torch.compile(
            lambda x: checkpoint(other, x, use_reentrant=False), fullgraph=True, backend=backend
        )
        expected, got = train(plain, plain), train(other, compiled)
        for key, value in other.state_dict().items():
            torch.testing.assert_close(value, plain.state_dict()[key], rtol=1e-6, atol=1e-6)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)

    @every_kind
    def test_with_a_mask(self, kind: str) -> None:
        plain, other = KINDS[kind](3), KINDS[kind](3)
        x, mask = batch(0).requires_grad_(), torch.arange(4) < 3
        plain(x, mask=mask)
        checkpoint(other, x, mask=mask, use_reentrant=False).sum().backward()
        assert_same(other, state_of(plain))

    @pytest.mark.parametrize("reentrant", [False, True])
    @pytest.mark.parametrize(
        "layer",
        [
            nk.BatchNorm1d(3, training_statistics="running"),
            nk.BatchNorm1d(3, evaluation_statistics="blend").eval(),
            nk.AdaptiveBatchNorm1d(3, per_sample=True).eval(),
            nk.BatchRenorm1d(3, warmup=0),
            nk.FilterResponseNorm(3, learn_eps=True),
            nk.GroupNorm(1, 3),
            nk.InstanceNorm1d(3),
            nk.SwitchNorm1d(3),
        ],
        ids=lambda layer: type(layer).__name__,
    )
    def test_a_forward_pass_is_repeated_once(self, layer: torch.nn.Module, reentrant: bool) -> None:
        """Not a second time for the small graph that leads from a batch's moments to what normalizes."""
        passes = 0

        def forward(x: Tensor) -> Tensor:
            nonlocal passes
            passes += 1
            return layer(x, mask=torch.arange(4) < 3)

        checkpoint(forward, batch(0).requires_grad_(), use_reentrant=reentrant).sum().backward()
        assert passes == 2

    def test_a_pass_between_backward_passes_moves(self) -> None:
        """Only what runs inside a backward pass is a recomputation."""
        layer = nk.BatchNorm1d(3)
        x = batch(0).requires_grad_()
        y = layer(x)
        y.sum().backward(retain_graph=True)
        layer(x)
        y.sum().backward()
        assert layer.num_batches_tracked == 2

    def test_double_backward_moves_once(self) -> None:
        layer = nk.BatchNorm1d(3)
        x = batch(0).requires_grad_()
        (dx,) = torch.autograd.grad(layer(x).sin().sum(), x, create_graph=True)
        dx.square().sum().backward()
        assert layer.num_batches_tracked == 1
