"""The specification: every norm in NumPy float64, forward and backward, the equation beside the code.

A norm answers three questions, and each function is its three answers:

    norm         over which axes        statistic from      affine map along
    ---------    -------------------    ----------------    ----------------
    batch        batch, space           x                   channel
      inference  (one per channel)      running averages    channel
      ghost      sub-batch, space       x                   channel
      renorm     batch, space           x, then corrected   channel
    layer        last k                 x                   last k
    RMS          last k                 x, the mean is 0    last k, no bias
    group        space, C/G channels    x                   channel
    instance     space                  x                   channel
    switch       mixes instance, layer and batch            channel
    virtual      mixes instance and a reference batch       channel
    adaptive     mixes running averages and batch           channel
    batch-inst.  mixes the outputs of batch and instance    channel
    filter       space                  x, the mean is 0    channel, then max(y, τ)
      response
    weight       a weight's filter      v, the mean is 0    filter, no bias
    weight       a weight's filter      the weight          none
      standard.

Dynamic tanh and spectral norm stand beside them: one has no statistic, the other's is a singular value.

The rest is one pair that all share, `standardize` and `standardize_backward`. Arrays are converted to
float64; x has shape (N, C, *spatial) unless stated. Every norm returns (y, cache), and `backward(dy, cache)`
serves all but spectral norm. Of packages it needs NumPy alone, and nothing else in normkit imports it.
"""

from normkit.reference.activations import ACTIVATIONS
from normkit.reference.batch import (
    batch_norm,
    batch_norm_inference,
    batchnorm_backward,
    batchnorm_forward,
    running_update,
)
from normkit.reference.batch_variants import Corrected, Ghosts, batch_renorm, ghost_batch_norm
from normkit.reference.combinations import Conditional, Interpolation, batch_instance_norm, conditional_norm
from normkit.reference.filter_response import FilterResponseCache, filter_response_norm
from normkit.reference.mixtures import Mixture, Part, adaptive_batch_norm, switch_norm, virtual_batch_norm
from normkit.reference.rows import group_norm, instance_norm, layer_norm, rms_norm
from normkit.reference.standardize import Array, Cache, Shape, backward
from normkit.reference.tanh import TanhCache, dynamic_tanh
from normkit.reference.weights import (
    spectral_norm,
    spectral_norm_backward,
    weight_norm,
    weight_standardization,
)

__all__ = [
    "ACTIVATIONS",
    "Array",
    "Cache",
    "Conditional",
    "Corrected",
    "FilterResponseCache",
    "Ghosts",
    "Interpolation",
    "Mixture",
    "Part",
    "Shape",
    "TanhCache",
    "adaptive_batch_norm",
    "backward",
    "batch_instance_norm",
    "batch_norm",
    "batch_norm_inference",
    "batch_renorm",
    "batchnorm_backward",
    "batchnorm_forward",
    "conditional_norm",
    "dynamic_tanh",
    "filter_response_norm",
    "ghost_batch_norm",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "rms_norm",
    "running_update",
    "spectral_norm",
    "spectral_norm_backward",
    "switch_norm",
    "virtual_batch_norm",
    "weight_norm",
    "weight_standardization",
]
