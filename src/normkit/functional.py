"""Every norm as a stateless function: torch.nn.functional's signature, and ours keyword-only after it."""

from normkit.norms.adaptive_batch_norm import adaptive_batch_norm
from normkit.norms.batch_instance_norm import batch_instance_norm
from normkit.norms.batch_norm import batch_norm
from normkit.norms.batch_renorm import batch_renorm
from normkit.norms.dynamic_tanh import dynamic_tanh
from normkit.norms.filter_response_norm import filter_response_norm
from normkit.norms.ghost_batch_norm import ghost_batch_norm
from normkit.norms.group_norm import group_norm
from normkit.norms.instance_norm import instance_norm
from normkit.norms.layer_norm import layer_norm
from normkit.norms.recurrent_batch_norm import recurrent_batch_norm
from normkit.norms.rms_norm import rms_norm
from normkit.norms.switch_norm import switch_norm
from normkit.norms.virtual_batch_norm import virtual_batch_norm
from normkit.norms.weights.spectral_norm import spectral_norm
from normkit.norms.weights.weight_norm import weight_norm
from normkit.norms.weights.weight_standardization import weight_standardization

__all__ = [
    "adaptive_batch_norm",
    "batch_instance_norm",
    "batch_norm",
    "batch_renorm",
    "dynamic_tanh",
    "filter_response_norm",
    "ghost_batch_norm",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "recurrent_batch_norm",
    "rms_norm",
    "spectral_norm",
    "switch_norm",
    "virtual_batch_norm",
    "weight_norm",
    "weight_standardization",
]
