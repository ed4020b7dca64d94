"""Normalization for deep networks. This page is the contents: public names only."""

from normkit import functional, kernels
from normkit.norms.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from normkit.norms.group_norm import GroupNorm
from normkit.norms.instance_norm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from normkit.norms.layer_norm import LayerNorm
from normkit.norms.rms_norm import RMSNorm
from normkit.statistics import Moments

__version__ = "0.1.0"

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "Moments",
    "RMSNorm",
    "functional",
    "kernels",
]
