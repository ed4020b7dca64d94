"""Normalization for deep networks. This page is the contents: public names only."""

from normkit import functional, kernels
from normkit.norms.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from normkit.norms.batch_norm_lstm import BatchNormLSTM, BatchNormLSTMCell
from normkit.norms.batch_renorm import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d
from normkit.norms.dynamic_tanh import DynamicTanh
from normkit.norms.filter_response_norm import FilterResponseNorm
from normkit.norms.ghost_batch_norm import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d
from normkit.norms.group_norm import GroupNorm
from normkit.norms.instance_norm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from normkit.norms.layer_norm import LayerNorm
from normkit.norms.recurrent_batch_norm import RecurrentBatchNorm
from normkit.norms.rms_norm import RMSNorm
from normkit.norms.tracking import accumulate, domain
from normkit.norms.weights.initialize import initialize_from_data
from normkit.norms.weights.register import spectral_norm, weight_norm, weight_standardization
from normkit.statistics import Moments

__version__ = "0.1.0"

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchNormLSTM",
    "BatchNormLSTMCell",
    "BatchRenorm1d",
    "BatchRenorm2d",
    "BatchRenorm3d",
    "DynamicTanh",
    "FilterResponseNorm",
    "GhostBatchNorm1d",
    "GhostBatchNorm2d",
    "GhostBatchNorm3d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "Moments",
    "RMSNorm",
    "RecurrentBatchNorm",
    "accumulate",
    "domain",
    "functional",
    "initialize_from_data",
    "kernels",
    "spectral_norm",
    "weight_norm",
    "weight_standardization",
]
