"""torch's norms as ours, with what follows them: `accelerate`."""

from __future__ import annotations

from typing import Any

from torch import nn

from normkit.errors import InputError
from normkit.surgery.fuse import fuse
from normkit.surgery.handwritten import handwritten
from normkit.surgery.handwritten import imitate as imitate_handwritten
from normkit.surgery.imitate import imitate, is_imitated
from normkit.surgery.ours import NORMS, become_ours, has_known_forward, is_ours, our_class
from normkit.surgery.outcome import Outcome, checked
from normkit.surgery.trace import UntraceableError
from normkit.surgery.walk import for_quantization, layers_of


def accelerate(model: nn.Module, example: Any = None) -> Outcome:
    r"""Let all norms of a model be ours, and let batch norm do the addition and the activation that follow it.

    .. math:: f(\mathrm{norm}(x) + r) \text{ in one pass}

    In place: layers remain the objects that they are, with their parameters (which an optimizer may hold), buffers,
    hooks, flags, names and state_dict keys; so do all modules above them, each of which computes what it did.
    Batch, instance, group, layer and RMS norm of torch become ours, and so does a subclass that leaves normalizing to
    its base, or whose forward is torch's norm with something around it, as those of timm: dropout that is none and an
    activation, other axes. A module that inherits nothing of torch's norms computes by our function where it holds
    what such a norm holds, and computes what it does on random values of many sizes.

    An activation of ours (also in place) and an addition are fused where torch.fx's graph of the forward, in training
    and in evaluation, with optional arguments left out and given, proves that they are all that takes the norm's
    output, and that both summands have one shape. What a forward above adds or activates is fused too: the modules
    between hand it on. A module that was the activation in the same forward becomes `torch.nn.Identity`; where it
    serves others too, or where a function activates or adds, the forward around it is written anew. Numbers that
    such a forward takes from attributes are those of now. Layers shared by several calls, or with hooks, are not
    fused; nor is anything in a model that torch.fx cannot follow.

    Args:
        model: any module.
        example: a batch, on which outputs in evaluation are compared: a tensor, a tuple of arguments, or a dict of
            named ones. Where they differ by more than half of the digits, the model is as it was. It shows the
            shapes of what is added as well, where the layers before it do not tell.

    Returns:
        What each layer is now; what was left, and why.

    Raises:
        Exception: what the model raises on the example; the model is as it was.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    >>> accelerate(model)
    accelerate: 1 changed, 0 left
      1  BatchNorm2d with relu
    """
    outcome = Outcome("accelerate", model)
    return checked(outcome, example, lambda: _accelerate(outcome, example))


def _accelerate(outcome: Outcome, example: Any) -> None:
    quantized = for_quantization(outcome.model)
    norms, others = list(layers_of(outcome.model, NORMS)), list(handwritten(outcome.model))
    for name, layer in norms:
        if layer in quantized:
            outcome.left[name] = "it is prepared for quantization"
            continue
        if is_ours(type(layer)) or is_imitated(layer):
            continue
        try:
            _become_ours(name, layer)
        except (InputError, UntraceableError) as why:
            outcome.left[name] = str(why)
        else:
            outcome.done[name] = type(layer).__name__
    for name, layer in others:
        _imitate_handwritten(outcome, name, layer)
    if not norms and not others:
        outcome.note = "the model has no norm that is known"
    elif not isinstance(outcome.model, NORMS) and not is_imitated(outcome.model):
        fuse(outcome, example)
    if outcome.note is None and not outcome.done and not outcome.left:
        outcome.note = "its norms are normkit's already"


def _imitate_handwritten(outcome: Outcome, name: str, layer: nn.Module) -> None:
    if is_imitated(layer):
        return
    try:
        outcome.done[name] = f"{type(layer).__name__} by our {imitate_handwritten(layer)}"
    except InputError as why:
        outcome.left[name] = str(why)


def _become_ours(name: str, layer: nn.Module) -> None:
    try:
        target = our_class(name, layer)
    except InputError:
        if has_known_forward(layer):
            raise
        imitate(name, layer)
    else:
        become_ours(name, layer, target)
