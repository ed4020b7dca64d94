"""Normalization for deep networks. This page is the contents: public names only."""

from normkit import functional, kernels
from normkit.doctor.diagnose import diagnose
from normkit.doctor.recorder import record
from normkit.norms.accumulation import accumulate
from normkit.norms.adaptive_batch_norm import AdaptiveBatchNorm1d, AdaptiveBatchNorm2d, AdaptiveBatchNorm3d
from normkit.norms.batch_instance_norm import BatchInstanceNorm1d, BatchInstanceNorm2d, BatchInstanceNorm3d
from normkit.norms.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from normkit.norms.batch_norm_lstm import BatchNormLSTM, BatchNormLSTMCell
from normkit.norms.batch_renorm import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d
from normkit.norms.conditional import Conditional
from normkit.norms.dynamic_tanh import DynamicTanh
from normkit.norms.filter_response_norm import FilterResponseNorm
from normkit.norms.ghost_batch_norm import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d
from normkit.norms.group_norm import GroupNorm
from normkit.norms.instance_norm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from normkit.norms.layer_norm import LayerNorm
from normkit.norms.recurrent_batch_norm import RecurrentBatchNorm
from normkit.norms.rms_norm import RMSNorm
from normkit.norms.scope import domain
from normkit.norms.switch_norm import SwitchNorm1d, SwitchNorm2d, SwitchNorm3d
from normkit.norms.sync_batch_norm import SyncBatchNorm
from normkit.norms.virtual_batch_norm import (
    VirtualBatchNorm1d,
    VirtualBatchNorm2d,
    VirtualBatchNorm3d,
    reference_batch,
)
from normkit.norms.weights.initialize import initialize_from_data
from normkit.norms.weights.register import spectral_norm, weight_norm, weight_standardization
from normkit.statistics import Moments
from normkit.surgery.accelerate import accelerate
from normkit.surgery.adapt import adapt
from normkit.surgery.convert import convert
from normkit.surgery.fold import fold
from normkit.surgery.freeze import freeze, unfreeze
from normkit.surgery.merge_statistics import merge_statistics
from normkit.surgery.param_groups import param_groups
from normkit.surgery.recalibrate import recalibrate
from normkit.surgery.synchronize import desynchronize, synchronize

__version__ = "0.1.0"

__all__ = [
    "AdaptiveBatchNorm1d",
    "AdaptiveBatchNorm2d",
    "AdaptiveBatchNorm3d",
    "BatchInstanceNorm1d",
    "BatchInstanceNorm2d",
    "BatchInstanceNorm3d",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchNormLSTM",
    "BatchNormLSTMCell",
    "BatchRenorm1d",
    "BatchRenorm2d",
    "BatchRenorm3d",
    "Conditional",
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
    "SwitchNorm1d",
    "SwitchNorm2d",
    "SwitchNorm3d",
    "SyncBatchNorm",
    "VirtualBatchNorm1d",
    "VirtualBatchNorm2d",
    "VirtualBatchNorm3d",
    "accelerate",
    "accumulate",
    "adapt",
    "convert",
    "desynchronize",
    "diagnose",
    "domain",
    "fold",
    "freeze",
    "functional",
    "initialize_from_data",
    "kernels",
    "merge_statistics",
    "param_groups",
    "recalibrate",
    "record",
    "reference_batch",
    "spectral_norm",
    "synchronize",
    "unfreeze",
    "weight_norm",
    "weight_standardization",
]
