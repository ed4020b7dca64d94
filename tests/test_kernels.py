"""Which backend runs, and why."""

from __future__ import annotations

import pytest
import torch

import normkit as nk
from normkit.errors import InputError


def test_says_which_backend_and_why() -> None:
    choice = nk.kernels.choose(torch.ones(2, 3))
    assert nk.kernels.explain(torch.ones(2, 3)) == f"{choice.name}: {choice.reason}"


def test_backend_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORMKIT_BACKEND", "composed")
    assert nk.kernels.explain(torch.ones(2, 3)) == "composed: NORMKIT_BACKEND asks for it"


def test_unknown_backend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORMKIT_BACKEND", "composd")
    with pytest.raises(InputError, match=r"unknown NORMKIT_BACKEND 'composd': .* did you mean 'composed'"):
        nk.BatchNorm1d(3)(torch.randn(4, 3))
