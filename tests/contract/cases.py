"""The layers that the contract holds for. A new norm joins by one line of `CASES`.

Everything else in this folder runs over all cases and knows no layer by name.
"""

from __future__ import annotations

from functools import partial

import magnitudes
import pytest
from case import Case
from makers import (
    AtStep,
    adaptive,
    batch,
    batch_instance,
    by_running,
    conditional,
    dynamic_tanh,
    filter_response,
    frozen,
    ghost,
    group,
    instance,
    layer,
    renorm,
    rms,
    switch,
    virtual,
)
from torch import nn

import normkit as nk
from normkit import reference

CASES = (
    Case("batch1d", shape=(16, 6), **batch(1)),
    Case("batch1d-sequence", shape=(5, 6, 7), **batch(1)),
    Case("batch2d", shape=(4, 6, 5, 3), **batch(2)),
    Case("batch3d", shape=(3, 6, 2, 3, 4), **batch(3)),
    Case("batch2d-no-bias", shape=(4, 6, 5, 3), **batch(2, options={"bias": False})),
    Case("batch2d-plain", shape=(4, 6, 5, 3), **batch(2, options={"affine": False})),
    Case("batch2d-cumulative", shape=(4, 6, 5, 3), **batch(2, options={"momentum": None})),
    Case("batch2d-untracked", shape=(4, 6, 5, 3), **batch(2, options={"track_running_stats": False})),
    *(
        Case(f"batch2d-{name}", shape=(4, 6, 5, 3), **batch(2, activation=name))
        for name in nk.kernels.ACTIVATIONS
    ),
    Case(
        "sync",
        ours=partial(nk.SyncBatchNorm, 6),
        twin=partial(nn.SyncBatchNorm, 6),
        shape=(4, 6, 5, 3),
        forward=reference.batch_norm,
        base=nn.modules.batchnorm._BatchNorm,  # DistributedDataParallel refuses nn.SyncBatchNorm on the CPU
    ),
    Case(
        "batch2d-guarded",
        shape=(4, 6, 5, 3),
        **batch(2, twin=None, options={"guard": "nonfinite", "momentum": None}),
    ),
    Case(
        "batch2d-by-running",
        shape=(4, 6, 5, 3),
        **batch(2, twin=None, forward=by_running, centered=False, options={"training_statistics": "running"}),
    ),
    Case("batch2d-frozen", shape=(4, 6, 5, 3), ours=frozen, forward=by_running, centered=False),
    Case("ghost1d", shape=(10, 6), **ghost(1, 4)),
    Case("ghost1d-sequence", shape=(4, 6, 7), **ghost(1, 2)),
    Case("ghost2d", shape=(5, 6, 5, 3), **ghost(2, 2)),
    Case("ghost2d-silu", shape=(5, 6, 5, 3), **ghost(2, 3, activation="silu")),
    Case("ghost3d", shape=(3, 6, 2, 3, 4), **ghost(3, 2)),
    Case(
        "ghost2d-plain",
        shape=(5, 6, 5, 3),
        **ghost(2, 3, options={"ghost_size": 3, "affine": False, "momentum": None}),
    ),
    Case("renorm1d", shape=(16, 6), **renorm(1)),
    Case("renorm2d", shape=(4, 6, 5, 3), **renorm(2)),
    Case("renorm2d-silu", shape=(4, 6, 5, 3), **renorm(2, activation="silu")),
    Case("renorm3d", shape=(3, 6, 2, 3, 4), **renorm(3)),
    Case(
        "renorm2d-warm-up",
        shape=(4, 6, 5, 3),
        ours=partial(nk.BatchRenorm2d, 6),
        forward=reference.batch_norm,
        magnitudes=magnitudes.of_one_mean,
    ),
    Case("layer", shape=(4, 5, 12), **layer(12)),
    Case("layer-two-axes", shape=(4, 3, 5, 4), **layer(5, 4)),
    Case("layer-no-bias", shape=(4, 12), **layer(12, options={"bias": False})),
    Case("layer-plain", shape=(4, 12), **layer(12, options={"elementwise_affine": False})),
    Case(
        "rms",
        ours=partial(nk.RMSNorm, 12),
        twin=partial(nn.RMSNorm, 12),
        shape=(4, 5, 12),
        forward=rms,
        options={"eps": 1e-5},
        centered=False,
        feature_axis=-1,
    ),
    Case("group", shape=(4, 6, 5, 3), **group(3)),
    Case("group-flat", shape=(4, 6), **group(3)),
    Case("group-plain", shape=(4, 6, 5), **group(2, options={"affine": False})),
    Case("group-silu", shape=(4, 6, 5, 3), **group(3, activation="silu")),
    Case("instance1d", shape=(4, 6, 7), **instance(1)),
    Case("instance2d", shape=(4, 6, 5, 3), **instance(2)),
    Case("instance3d", shape=(3, 6, 2, 3, 4), **instance(3)),
    Case("instance2d-affine", shape=(4, 6, 5, 3), **instance(2, options={"affine": True})),
    Case(
        "instance2d-tracked",
        shape=(4, 6, 5, 3),
        **instance(2, options={"affine": True, "track_running_stats": True}),
    ),
    Case("instance2d-relu", shape=(4, 6, 5, 3), **instance(2, activation="relu", options={"affine": True})),
    Case("filter-response", shape=(4, 6, 5, 3), **filter_response()),
    Case("filter-response-flat", shape=(4, 6), **filter_response(options={"learn_eps": True})),
    Case("filter-response-plain", shape=(4, 6, 7), **filter_response(options={"affine": False})),
    Case(
        "filter-response-3d",
        shape=(3, 6, 2, 3, 4),
        **filter_response(options={"learn_eps": True, "threshold": False}),
    ),
    Case("dynamic-tanh", shape=(4, 5, 12), **dynamic_tanh()),
    Case("dynamic-tanh-no-bias", shape=(4, 12), **dynamic_tanh(options={"bias": False})),
    Case("dynamic-tanh-plain", shape=(4, 12), **dynamic_tanh(options={"elementwise_affine": False})),
    Case(
        "recurrent",
        ours=partial(AtStep, 6),
        shape=(16, 6),
        forward=reference.batch_norm,
        options={"max_length": 3},
    ),
    Case(
        "recurrent-convolution",
        ours=partial(AtStep, 6),
        shape=(4, 6, 5, 3),
        forward=reference.batch_norm,
        options={"max_length": 1, "momentum": None},
    ),
    Case("switch1d", shape=(16, 6), **switch(1)),
    Case("switch1d-sequence", shape=(5, 6, 7), **switch(1, options={"momentum": None})),
    Case("switch2d", shape=(4, 6, 5, 3), **switch(2)),
    Case("switch2d-no-bias", shape=(4, 6, 5, 3), **switch(2, options={"bias": False})),
    Case("switch2d-untracked", shape=(4, 6, 5, 3), **switch(2, options={"track_running_stats": False})),
    Case("switch2d-silu", shape=(4, 6, 5, 3), **switch(2, activation="silu")),
    Case("switch3d", shape=(3, 6, 2, 3, 4), **switch(3, options={"affine": False})),
    Case("batch-instance1d", shape=(5, 6, 7), **batch_instance(1, options={"affine": False})),
    Case("batch-instance2d", shape=(4, 6, 5, 3), **batch_instance(2)),
    Case("batch-instance2d-relu", shape=(4, 6, 5, 3), **batch_instance(2, activation="relu")),
    Case("batch-instance3d", shape=(3, 6, 2, 3, 4), **batch_instance(3)),
    Case("virtual1d", shape=(16, 6), **virtual(1)),
    Case("virtual1d-sequence", shape=(5, 6, 7), **virtual(1, options={"bias": False})),
    Case("virtual2d", shape=(4, 6, 5, 3), **virtual(2)),
    Case("virtual2d-relu", shape=(4, 6, 5, 3), **virtual(2, activation="relu")),
    Case("virtual3d", shape=(3, 6, 2, 3, 4), **virtual(3, options={"affine": False})),
    Case("adaptive1d", shape=(16, 6), **adaptive(1)),
    Case("adaptive1d-sample", shape=(5, 6, 7), **adaptive(1, options={"prior": 2.0, "per_sample": True})),
    Case("adaptive2d", shape=(4, 6, 5, 3), **adaptive(2)),
    Case(
        "adaptive2d-relu", shape=(4, 6, 5, 3), **adaptive(2, activation="relu", options={"per_sample": True})
    ),
    Case("adaptive2d-untracked", shape=(4, 6, 5, 3), **adaptive(2, options={"track_running_stats": False})),
    Case("adaptive3d", shape=(3, 6, 2, 3, 4), **adaptive(3, options={"affine": False, "prior": 0.0})),
    Case(
        "conditional-batch2d",
        shape=(4, 6, 5, 3),
        **conditional(partial(nk.BatchNorm2d, 6), reference.batch_norm),
    ),
    Case(
        "conditional-instance1d",
        shape=(4, 6, 7),
        **conditional(partial(nk.InstanceNorm1d, 6), reference.instance_norm),
    ),
    Case(
        "conditional-group",
        shape=(4, 6, 5, 3),
        **conditional(partial(nk.GroupNorm, 3, 6), reference.group_norm, num_groups=3),
    ),
)

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_twin = pytest.mark.parametrize("case", [c for c in CASES if c.twin], ids=lambda case: case.name)
every_twinless = pytest.mark.parametrize(
    "case", [c for c in CASES if c.twin is None], ids=lambda case: case.name
)
every_mode = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
