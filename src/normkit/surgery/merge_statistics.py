"""Running statistics of several copies of a model, of processes or federated clients, merged into one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from normkit.errors import InputError
from normkit.statistics import Moments

_MEAN, _VAR, _BATCHES = "running_mean", "running_var", "num_batches_tracked"
_ENTRY = re.compile(
    rf"(?P<layer>(.*\.)?)(?P<name>{_MEAN}|{_VAR}|{_BATCHES})(?P<domain>(@[^.]*)?)$", re.DOTALL
)


def merge_statistics(
    state_dicts: Sequence[Mapping[str, Tensor]],
    counts: Sequence[float | Mapping[str, float]] | None = None,
) -> dict[str, Tensor]:
    r"""The running statistics of all data together, from those of models that saw a part each.

    .. math::
        \mu = \sum \frac{n_k}{n} \mu_k, \quad
        \sigma^2 = \frac{1}{n - 1} \sum \left((n_k - 1) \sigma_k^2 + n_k (\mu_k - \mu)^2\right)

    Exact where each model's statistics are those of its own data; where they are moving averages, it is what these
    stand for that is merged. Averaging state_dicts instead loses the second term, the distance between the models'
    data. Nothing is random, and no order of models changes more than the last bits.

    Args:
        state_dicts: of the same model, on one device.
        counts: for each, how many values per channel its statistics were taken of, 2 or more: one number, or one for
            each layer, by the name of the layer, with `@name` behind it for those of a domain. What matters is their
            proportion, and, for few values, n - 1; so numbers of samples will do. None: as many in each, and many.

    Returns:
        The merged entries `*.running_mean`, `*.running_var`, and `*.num_batches_tracked`, which is their sum, and
        those of domains, each with its own in the others; for `model.load_state_dict(merged, strict=False)`.

    Raises:
        InputError: no state_dict or no statistics; layers that are not in all of them, or of another shape; counts
            that are not as many, or below 2.

    >>> a, b = torch.nn.BatchNorm1d(1, momentum=None), torch.nn.BatchNorm1d(1, momentum=None)
    >>> _ = a(torch.tensor([[1.0], [2.0]])), b(torch.tensor([[3.0], [4.0], [10.0]]))
    >>> merged = merge_statistics([a.state_dict(), b.state_dict()], counts=[2, 3])
    >>> merged["running_mean"], merged["running_var"]  # of 1, 2, 3, 4, 10
    (tensor([4.]), tensor([12.5000]))
    """
    places = _places(state_dicts)
    many = [2.0**40] * len(state_dicts) if counts is None else counts
    if len(many) != len(state_dicts):
        raise InputError(f"counts must be one for each state_dict, {len(state_dicts)}, got {len(many)}")
    merged: dict[str, Tensor] = {}
    for place in places:
        first, *others = (
            _moments(state, place, _count(count, place))
            for state, count in zip(state_dicts, many, strict=True)
        )
        moments = first.merge(*others)
        for entry, value in ((place.of(_MEAN), moments.mean), (place.of(_VAR), moments.var(unbiased=True))):
            merged[entry] = value.to(state_dicts[0][entry].dtype)
        if (batches := place.of(_BATCHES)) in state_dicts[0]:
            merged[batches] = torch.stack([state[batches] for state in state_dicts]).sum(0)
    return merged


class _Place(NamedTuple):
    """Whose statistics: of a layer, whose prefix ends in a dot unless it is the model; "@name" where of a domain."""

    layer: str
    domain: str

    def of(self, name: str) -> str:
        return f"{self.layer}{name}{self.domain}"


def _places(state_dicts: Sequence[Mapping[str, Tensor]]) -> list[_Place]:
    """The layers with statistics, and their domains; the same in all models."""
    if not state_dicts:
        raise InputError("merging takes one state_dict or more, got none")
    shapes = [dict(_shapes(state)) for state in state_dicts]
    for shape in shapes[1:]:
        for entry in shapes[0].keys() | shape.keys():
            if shapes[0].get(entry) != shape.get(entry):
                raise InputError(
                    f"state_dicts must be of one model, but {entry} is {shapes[0].get(entry, 'absent')} in one "
                    f"and {shape.get(entry, 'absent')} in another"
                )
    found = [
        _Place(m["layer"], m["domain"]) for m in map(_ENTRY.match, shapes[0]) if m and m["name"] == _MEAN
    ]
    places = [place for place in found if place.of(_VAR) in shapes[0]]
    if not places:
        raise InputError("state_dicts must hold running statistics, and these hold none")
    return places


def _shapes(state: Mapping[str, Tensor]) -> Iterator[tuple[str, list[int]]]:
    for entry, value in state.items():
        if _ENTRY.match(entry):
            yield entry, list(value.shape)


def _count(count: float | Mapping[str, float], place: _Place) -> float:
    """Of one layer, or of one of its domains."""
    name = place.layer.removesuffix(".") + place.domain
    if isinstance(count, Mapping):
        if name not in count:
            raise InputError(f"counts must have every layer with statistics, and lack {name!r}")
        count = count[name]
    if not 2 <= count < float("inf"):
        raise InputError(f"counts must be 2 or more, for one value has no variance, got {count}")
    return float(count)


def _moments(state: Mapping[str, Tensor], place: _Place, count: float) -> Moments:
    mean, var = state[place.of(_MEAN)].double(), state[place.of(_VAR)].double()
    return Moments(mean.new_tensor(count), mean, var * (count - 1))
