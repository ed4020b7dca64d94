"""Activations as our layers know them, found as modules, functions and methods."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

_FUNCTIONS: dict[Any, str] = {
    F.relu: "relu", F.relu_: "relu", torch.relu: "relu", torch.relu_: "relu",
    F.leaky_relu: "leaky_relu", F.leaky_relu_: "leaky_relu",
    F.silu: "silu",
    F.gelu: "gelu",
    F.elu: "elu", F.elu_: "elu",
    F.sigmoid: "sigmoid", torch.sigmoid: "sigmoid", torch.sigmoid_: "sigmoid",
    F.relu6: "relu6",
    F.hardswish: "hardswish",
    F.tanh: "tanh", torch.tanh: "tanh", torch.tanh_: "tanh",
}  # fmt: skip
_METHODS = {name + end: name for name in ("relu", "sigmoid", "tanh") for end in ("", "_")}
_MODULES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.SiLU: "silu",
    nn.GELU: "gelu",
    nn.ELU: "elu",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
    nn.ReLU6: "relu6",
    nn.Hardswish: "hardswish",
}
# Under these arguments, which are their defaults, torch's activations are ours.
_DEFAULTS = {"negative_slope": 0.01, "alpha": 1.0, "approximate": "none", "inplace": None}
_OTHER = (
    nn.Hardsigmoid, nn.Hardtanh, nn.Mish, nn.PReLU, nn.RReLU, nn.SELU, nn.CELU, nn.Softplus,
    nn.Softsign, nn.GLU, nn.Softmax, nn.LogSigmoid, nn.Threshold, nn.LeakyReLU, nn.GELU, nn.ELU,
)  # fmt: skip
_ADD = (operator.add, operator.iadd, torch.add)


def of_module(module: nn.Module | None) -> str | None:
    """Our name for an activation module; None for what is none of ours."""
    name = _MODULES.get(type(module)) if module is not None else None
    if type(module) is nn.Hardtanh and (module.min_val, module.max_val) == (0, 6):
        return "relu6"
    plain = all(getattr(module, key, value) == value for key, value in _DEFAULTS.items() if value is not None)
    return name if plain else None


def of_call(node: fx.Node) -> str | None:
    """Our name for the activation that a function or method computes; None for what is none of ours."""
    name = _FUNCTIONS.get(node.target) if node.op == "call_function" else None
    if node.op == "call_method":
        name = _METHODS.get(str(node.target))
    plain = all(
        key == "input" or _DEFAULTS.get(key, node) in (None, value) for key, value in node.kwargs.items()
    )
    return name if plain and len(node.args) <= 1 else None


def is_foreign(module: nn.Module | None) -> bool:
    """Whether a module is an activation that our layers do not compute, as it is."""
    return isinstance(module, _OTHER) and of_module(module) is None


def summands(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The two results that a call adds, the one that it may change in place first; None for any other call."""
    adds = node.target in _ADD if node.op == "call_function" else str(node.target) in ("add", "add_")
    if node.op not in ("call_function", "call_method") or not adds or node.kwargs or len(node.args) != 2:
        return None
    a, b = node.args
    return (a, b) if isinstance(a, fx.Node) and isinstance(b, fx.Node) and a is not b else None


def changes_first(node: fx.Node) -> bool:
    """Whether a sum is written over its first summand."""
    return node.target is operator.iadd or node.target == "add_"
