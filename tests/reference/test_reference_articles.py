"""The specification beside itself where norms meet, beside the source articles, and beside torch in float64."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from known_norms import DEFAULT_EPS, EPS, U, close, inputs
from numpy.testing import assert_array_equal

from normkit import reference
from normkit.reference import Array


def test_the_norms_meet_where_their_axes_do() -> None:
    rng = np.random.default_rng(6)
    x = rng.standard_normal((2, 6, 3, 2))
    weight, bias = rng.standard_normal((2, 6))
    atol = 64 * U  # values of order one, summed in another order
    close(reference.layer_norm(x, 3)[0], reference.group_norm(x, 1)[0], atol)
    close(reference.layer_norm(x, 2)[0], reference.instance_norm(x)[0], atol)
    each_channel, _ = reference.instance_norm(x, weight, bias)
    close(reference.group_norm(x, 6, weight, bias)[0], each_channel, atol)
    for i in range(2):
        close(reference.batch_norm(x[i : i + 1], weight, bias)[0], each_channel[i : i + 1], atol)
    centered = x - x.mean(axis=(2, 3), keepdims=True)
    close(reference.rms_norm(centered, 2, eps=EPS)[0], reference.layer_norm(centered, 2, eps=EPS)[0], atol)


def test_inference_with_the_statistics_of_the_batch_is_training() -> None:
    x = np.random.default_rng(8).standard_normal((4, 3, 5))
    y, cache = reference.batch_norm(x)
    close(reference.batch_norm_inference(x, cache.mean, cache.var)[0], y, atol=8 * U * np.abs(y).max())


def test_the_worked_example_of_article_004() -> None:
    x = np.array([[0.23, 0.56], [1.26, 0.75], [-2.41, 1.00]]).T  # a batch of two samples of three features
    y, cache = reference.batch_norm(x)
    printed = 5e-3  # the article gives two or three digits
    close(cache.mean, [0.395, 1.005, -0.705], atol=4 * U)
    close(cache.var, [0.027225, 0.065025, 2.907025], atol=16 * U)  # biased: half the difference, squared
    close(cache.unbiased_var, [0.054, 0.130, 5.81], printed)  # what the article gives

    # Two values lie one biased deviation from their mean, 1/√2 of an unbiased one. The norm uses the biased.
    close((x[0] - cache.mean) / np.sqrt(cache.unbiased_var), [-0.71, 0.71, -0.71], printed)
    close(y[0], [-1, 1, -1], printed)
    close(y[0], [-1, 1, -1] / np.sqrt(1 + DEFAULT_EPS / cache.var), atol=16 * U)  # less than 1 by ε alone


@settings(max_examples=50)
@given(x=inputs((4, 3, 2)))
def test_gamma_and_beta_can_restore_the_identity(x: Array) -> None:
    _, cache = reference.batch_norm(x)
    y, _ = reference.batch_norm(x, np.sqrt(cache.var + DEFAULT_EPS), cache.mean)
    close(y, x, atol=16 * U * np.abs(x).max())


def test_batchnorm_forward_and_backward_of_article_000() -> None:
    rng = np.random.default_rng(9)
    x, dout = rng.standard_normal((2, 6, 4))
    gamma, beta = rng.standard_normal((2, 4))
    out, cache = reference.batchnorm_forward(x, gamma, beta)
    dx, dgamma, dbeta = reference.batchnorm_backward(dout, cache)

    # The computational graph, node by node: center, square, average, root, invert, scale.
    centered = x - x.sum(0) / 6
    inverse = 1 / np.sqrt((centered**2).sum(0) / 6 + DEFAULT_EPS)
    dinverse = (dout * gamma * centered).sum(0)
    dcentered = dout * gamma * inverse + 2 * centered * (-0.5 * inverse**3 * dinverse) / 6
    atol = 64 * U * float(np.abs(dout).sum())
    close(out, gamma * centered * inverse + beta, atol)
    close(dx, dcentered - dcentered.sum(0) / 6, atol)
    close(dgamma, (dout * centered * inverse).sum(0), atol)
    close(dbeta, dout.sum(0), atol)

    same, same_cache = reference.batch_norm(x, gamma, beta)
    assert_array_equal(out, same)
    assert_array_equal(dx, reference.backward(dout, same_cache)[0])
    wider = reference.batchnorm_forward(x, gamma, beta, eps=0.5)[0]
    assert_array_equal(wider, reference.batch_norm(x, gamma, beta, eps=0.5)[0])


def test_defaults_are_those_of_torch() -> None:
    x = 1e-3 * np.random.default_rng(11).standard_normal((2, 4, 3))  # so small that ε shows
    t, f = torch.from_numpy(x), torch.nn.functional
    for (y, _), expected in [
        (reference.batch_norm(x), f.batch_norm(t, None, None, training=True)),
        (
            reference.batch_norm_inference(x, np.zeros(4), np.full(4, 1e-6)),
            f.batch_norm(t, torch.zeros(4, dtype=torch.float64), torch.full((4,), 1e-6, dtype=torch.float64)),
        ),
        (reference.layer_norm(x, 2), f.layer_norm(t, (4, 3))),
        (reference.rms_norm(1e-5 * x, 1), f.rms_norm(1e-5 * t, (3,))),
        (reference.group_norm(x, 2), f.group_norm(t, 2)),
        (reference.instance_norm(x), f.instance_norm(t)),
    ]:
        close(y, expected.numpy(), atol=64 * U)


def test_running_statistics_are_those_of_torch() -> None:
    rng = np.random.default_rng(10)
    mean, var = np.zeros(3), np.ones(3)
    torch_mean, torch_var = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    for _ in range(5):
        x = 2 + 3 * rng.standard_normal((4, 3, 2))
        cache = reference.batch_norm(x)[1]
        mean = reference.running_update(mean, cache.mean, momentum=0.3)
        var = reference.running_update(var, cache.unbiased_var, momentum=0.3)
        torch.nn.functional.batch_norm(
            torch.from_numpy(x), torch_mean, torch_var, training=True, momentum=0.3
        )
    close(mean, torch_mean.numpy(), atol=64 * U * 3)  # five rounds of eight-term sums of values about 3
    close(var, torch_var.numpy(), atol=64 * U * 9)
