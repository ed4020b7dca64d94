"""Large outputs lie in memory that serves again; nobody else's values change by it."""

from __future__ import annotations

import os
import threading

import pytest
import torch

import normkit as nk
from normkit.kernels import cpu
from normkit.kernels.cpu import _native

MIB = 1 << 20
pytestmark = pytest.mark.skipif(not _native.pooled_bytes(), reason="the pool is for Linux")


@pytest.fixture(autouse=True)
def empty_pool() -> None:
    nk.kernels.release_memory()


def output(mib: int) -> torch.Tensor:
    return cpu.channels_normalize(
        torch.ones(1, 1, mib, MIB // 4), *torch.tensor([[0.0], [1.0]]), None, None, 1e-5
    )


def test_memory_serves_again_and_only_when_it_is_free() -> None:
    first = output(4)
    second = output(4)
    address = first.data_ptr()
    assert second.data_ptr() != address
    view = first[0, 0, 1:]
    del first
    assert output(4).data_ptr() != address, "a view still needs it"
    del view
    assert output(4).data_ptr() == address


@pytest.mark.parametrize("dtype", cpu.DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "channels_last_3d", "odd strides"])
def test_output_is_like_the_input(dtype: torch.dtype, layout: str) -> None:
    x = torch.randn(2, 16, 64, 1536).to(dtype)
    if layout == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    if layout == "channels_last_3d":
        x = x.reshape(2, 16, 8, 8, 1536).to(memory_format=torch.channels_last_3d)
    if layout == "odd strides":  # of an axis of one element, where they do not matter
        x = x.as_strided((1, 32, 64, 1536), (7, 64 * 1536, 1536, 1))
    y = nk.functional.batch_norm(x, None, None, training=True)
    twin = torch.empty_like(x)
    assert (y.dtype, y.shape, y.stride()) == (twin.dtype, twin.shape, twin.stride())
    assert y.data_ptr() % (2 * MIB) == 0, "this one should have come from the pool"


def test_holds_no_more_than_was_in_use_at_once() -> None:
    for mib in (4, 6, 8, 10, 12):  # one at a time, each of a size of its own
        output(mib)
    assert nk.kernels.release_memory() <= 12 * MIB
    kept = [output(4) for _ in range(3)]
    del kept
    assert nk.kernels.release_memory() == 12 * MIB
    assert nk.kernels.release_memory() == 0


def test_small_outputs_do_not_come_from_it() -> None:
    nk.functional.batch_norm(torch.randn(8, 16, 4, 4), None, None, training=True)
    assert nk.kernels.release_memory() == 0


def test_a_capsule_that_nobody_adopts_gives_its_block_back() -> None:
    capsule = _native.pooled((4, MIB), (MIB, 1), 0)
    del capsule
    assert nk.kernels.release_memory() == 16 * MIB


def test_threads_never_share_a_block() -> None:
    """Each thread fills outputs with its own number and finds nothing else in them."""
    wrong: list[float] = []

    def work(number: float) -> None:
        x = torch.full((1, 2, 512, 1024), number)
        mean, var = torch.zeros(2), torch.ones(2)
        kept: list[torch.Tensor] = []
        for _ in range(40):
            kept.append(cpu.channels_normalize(x, mean, var, None, None, 0.0))
            if len(kept) == 3:
                wrong.extend(float(y.sub(number).abs().max()) for y in kept if not bool((y == number).all()))
                del kept[:2]

    team = [threading.Thread(target=work, args=(float(i),)) for i in range(4)]
    for member in team:
        member.start()
    for member in team:
        member.join()
    assert not wrong


def test_a_forked_child_has_a_pool_of_its_own() -> None:
    y = output(4)
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # OpenMP's threads do not live on in a child
        fine = bool((output(4) != 0).all()) and bool(torch.isfinite(y).all())
        os._exit(0 if fine else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_training_is_the_same_on_used_memory() -> None:
    """The second pass writes into blocks full of the first one's values."""
    torch.manual_seed(0)
    x = torch.randn(4, 32, 128, 128, requires_grad=True)
    results = []
    for _ in range(2):
        layer = nk.BatchNorm2d(32, activation="relu")
        y = layer(x, residual=x)
        (gradient,) = torch.autograd.grad(y.square().sum(), x)
        results.append((y.detach().clone(), gradient.clone()))
        del y, gradient
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
