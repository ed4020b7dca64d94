"""torch.fx sees torch's own layers as one node each; so it shall see ours."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.fx import Proxy

_Forward = TypeVar("_Forward", bound=Callable[..., Tensor])


def one_node(forward: _Forward) -> _Forward:
    """Make a layer's forward a `call_module` node under `torch.fx.symbolic_trace`.

    torch.fx knows leaves by their place in torch.nn and would trace into ours, where checks of the input's
    shape cannot be decided for a proxy.
    """

    @functools.wraps(forward)
    def traced(self: torch.nn.Module, input: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(input, Proxy):
            tracer = input.tracer
            path = tracer.path_of_module(self)  # pyright: ignore[reportAttributeAccessIssue]
            return tracer.create_proxy("call_module", path, (input, *args), kwargs)
        return forward(self, input, *args, **kwargs) if args or kwargs else forward(self, input)

    return traced  # pyright: ignore[reportReturnType]
