"""Batch norms that stay in evaluation mode whatever `train()` says: `freeze` and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from normkit.errors import InputError
from normkit.norms.tracking import Tracked
from normkit.surgery.walk import become, joined, tracking_layers

_LEARNED = "learned_before_freeze"  # attribute of a layer: the parameters that `unfreeze` lets learn again


class Frozen(nn.Module):
    """What makes a norm that is not ours a frozen one: it is never in training mode, but remembers the mode."""

    if not TYPE_CHECKING:

        @property
        def training(self) -> bool:
            """False."""
            return False

        @training.setter
        def training(self, mode: bool) -> None:
            self.__dict__["training"] = mode

    def extra_repr(self) -> str:
        """The arguments, and that it is frozen."""
        return f"{super().extra_repr()}, frozen=True"


def freeze(model: nn.Module, affine: bool = True) -> nn.Module:
    """Let all batch norms of a model normalize by their running statistics, and move these no more.

    In training too, whatever `train()` says, as fine-tuning on small batches asks for. In place, and for torch's
    batch norms, ours and their relatives alike, whatever has running statistics; layers keep their class as
    `isinstance` sees it, their state_dict, momentum and counters, and show `frozen=True`. Freezing again, or parts
    of a model, adds up. TorchScript does not take torch's layers while they are frozen.

    Args:
        model: any module, a batch norm included.
        affine: weights and biases of these layers learn no more either; gradients that they have are dropped, so
            that no optimizer moves them.

    Returns:
        The model.

    Raises:
        InputError: a batch norm without running statistics, or one that is not yet initialized; the model is as it
            was.

    >>> net = freeze(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))).train()
    >>> print(net[1])
    BatchNorm1d(3, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True, frozen=True)
    """
    layers = tracking_layers(model)
    for name, layer in layers:
        if isinstance(layer, _BatchNorm) and layer.running_mean is None:  # pyright: ignore[reportUnnecessaryComparison]
            raise InputError(
                f"layer {name!r} must have running statistics to be frozen, but has track_running_stats=False: "
                "convert it, or freeze the parts of the model without it"
            )
    for _, layer in layers:
        if layer.running_mean is not None:  # pyright: ignore[reportUnnecessaryComparison]
            _freeze(layer)
            if affine:
                _stop_learning(layer)
    return model


def unfreeze(model: nn.Module) -> nn.Module:
    """Let the batch norms of a model train again, as before `freeze`.

    They take the mode that `train()` and `eval()` last asked for; weights and biases that learned before learn again.

    Args:
        model: any module; layers that are not frozen stay as they are.

    Returns:
        The model.

    >>> unfreeze(freeze(nn.BatchNorm1d(3)))
    BatchNorm1d(3, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)
    """
    for _, layer in tracking_layers(model):
        if isinstance(layer, Tracked):
            layer.unfreeze()
        elif isinstance(layer, Frozen):
            become(layer, type(layer).__bases__[1])
        for name in layer.__dict__.pop(_LEARNED, ()):
            layer.get_parameter(name).requires_grad_()
    return model


def is_frozen(layer: nn.Module) -> bool:
    """Whether a norm is frozen, by `freeze(model)` or by a layer's own `freeze()`."""
    return isinstance(layer, Frozen) or (isinstance(layer, Tracked) and layer.tracking.frozen)


def _freeze(layer: nn.Module) -> None:
    if isinstance(layer, Tracked):
        layer.freeze()
    elif not isinstance(layer, Frozen):
        become(layer, joined(type(layer), Frozen, type(layer)))


def _stop_learning(layer: nn.Module) -> None:
    learned = [name for name, p in layer.named_parameters(recurse=False) if p.requires_grad]
    for name in learned:
        parameter = layer.get_parameter(name)
        parameter.requires_grad, parameter.grad = False, None
    layer.__dict__[_LEARNED] = (*layer.__dict__.get(_LEARNED, ()), *learned)
