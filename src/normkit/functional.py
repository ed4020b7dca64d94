"""Every norm as a stateless function: torch.nn.functional's signature, and ours keyword-only after it."""

from normkit.norms.batch_norm import batch_norm
from normkit.norms.group_norm import group_norm
from normkit.norms.instance_norm import instance_norm
from normkit.norms.layer_norm import layer_norm
from normkit.norms.rms_norm import rms_norm

__all__ = ["batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"]
