"""Readings while a model trains: what goes through each norm, every so many steps, to a file or a logger."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from normkit.doctor.kinds import norm_kind
from normkit.errors import InputError
from normkit.surgery.feed import takes
from normkit.surgery.outcome import check_model

Write: TypeAlias = Callable[[int, Mapping[str, float]], object]  # a step, and readings by `layer/reading`

_SMALL = 1e-6  # of the largest: what is smaller is called none


def record(model: nn.Module, to: str | Path | Write | Any, *, every: int = 100) -> Recorder:
    r"""Record what goes through the norms of a model while it trains.

    Every so many forward passes in training mode, each norm gives, as medians over its channels:

    ============ ==================================================================================================
    `mean`       of the input
    `deviation`  of the input
    `shift`      \|batch mean - running mean\| in running deviations, before this batch moves them
    `stretch`    batch deviation over running deviation
    `largest`    the largest \|output\|, of all channels
    `constant`   the share of channels whose output is the same all over the batch
    `weight`     the least \|weight\| over the largest
    ============ ==================================================================================================

    Those that a norm has no running statistics or weight for are left out. Nothing is changed, and between recordings
    there is one hook on the model and none on its norms. Norms of features (layer, RMS) count as one channel.

    Args:
        model: as it is trained; not a compiled one, whose hooks do not run.
        to: a path of a .csv file, which is written anew; a `SummaryWriter` of TensorBoard; or a function of the step,
            counted in forward passes from 0, and a mapping from `layer/reading` to numbers.
        every: forward passes from one recording to the next.

    Returns:
        What records; its `close()` ends it, and so does the end of a `with` block.

    Raises:
        InputError: no module, a compiled one, one without norms; nothing that takes numbers.

    >>> model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    >>> with record(model, lambda step, readings: print(step, round(readings["1/stretch"], 1)), every=2):
    ...     for _ in range(3):
    ...         _ = model(torch.arange(8.0).reshape(2, 4) * 0)
    0 0.0
    2 0.0
    """
    recorder = Recorder(model, to, every)
    recorder.follow(model)
    return recorder


class Readings(dict[str, float]):
    """Numbers by `layer/reading`; as text, to four digits."""

    def __repr__(self) -> str:
        return "{" + ", ".join(f"{name!r}: {value:.4g}" for name, value in self.items()) + "}"


class Recorder:
    """Hooks on the norms of a model that is trained; see `record`."""

    def __init__(self, model: nn.Module, to: str | Path | Write | Any, every: int) -> None:
        check_model(model)
        if every < 1:
            raise InputError(f"every must be 1 or more, got {every}")
        self._norms = {name: layer for name, layer in model.named_modules() if norm_kind(layer) is not None}
        if not self._norms:
            raise InputError("model must have norms to record, but it has none")
        self._write, self._every = _writer(to), every
        self.passes = 0  # so far
        self._readings = Readings()
        self._of_norms: list[Any] = []
        self._of_model: list[Any] = []

    def follow(self, model: nn.Module) -> None:
        """Begin and end with each forward pass of the model in training mode."""
        self._of_model = [
            model.register_forward_pre_hook(lambda model, inputs: self.begin() if model.training else None),
            model.register_forward_hook(
                lambda model, inputs, output: self.end() if model.training else None, always_call=True
            ),
        ]

    def begin(self) -> None:
        """What comes now is a pass; of one in so many, hooks on the norms take readings."""
        if self.passes % self._every or self._of_norms:
            return
        for name, layer in self._norms.items():
            self._of_norms += [
                layer.register_forward_pre_hook(partial(self._take, name), with_kwargs=True),
                layer.register_forward_hook(partial(self._took, name)),
            ]

    def end(self) -> None:
        """The pass is over: hand on what was read."""
        for handle in self._of_norms:
            handle.remove()
        readings, self._of_norms, self._readings = self._readings, [], Readings()
        self.passes += 1
        if readings:
            self._write(self.passes - 1, readings)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the hooks off; what was recorded stays where it was written."""
        for handle in (*self._of_model, *self._of_norms):
            handle.remove()
        self._of_model, self._of_norms = [], []

    @torch.no_grad()
    def _take(self, name: str, layer: Any, args: Any, kwargs: Any) -> None:
        x = args[0] if args else kwargs.get("input")
        if not isinstance(x, Tensor) or x.dim() < 2 or not x.numel() or not layer.training:
            return
        var, mean = torch.var_mean(_by_channel(layer, x), (0, 2), correction=0)
        self._put(name, mean=mean, deviation=var.sqrt())
        running_mean, running_var = getattr(layer, "running_mean", None), getattr(layer, "running_var", None)
        if (
            isinstance(running_mean, Tensor)
            and isinstance(running_var, Tensor)
            and running_mean.shape == mean.shape
        ):
            deviation = (running_var + layer.eps).sqrt()
            self._put(name, shift=(mean - running_mean).abs() / deviation, stretch=var.sqrt() / deviation)

    @torch.no_grad()
    def _took(self, name: str, layer: Any, args: Any, output: Any) -> None:
        if not isinstance(output, Tensor) or output.dim() < 2 or not output.numel() or not layer.training:
            return
        low, high = torch.aminmax(_by_channel(layer, output).transpose(0, 1).flatten(1), dim=1)
        largest = torch.maximum(-low, high).max()
        self._readings[f"{name}/largest"] = float(largest)
        self._readings[f"{name}/constant"] = float((high - low <= _SMALL * largest).float().mean())
        weight = getattr(layer, "weight", None)
        if isinstance(weight, Tensor):
            size = weight.detach().abs()
            self._readings[f"{name}/weight"] = float(size.min() / size.max().clamp(min=1e-30))

    def _put(self, name: str, **values: Tensor) -> None:
        medians = torch.stack([value.double().median() for value in values.values()]).tolist()
        self._readings |= {f"{name}/{key}": value for key, value in zip(values, medians, strict=True)}


def _by_channel(layer: nn.Module, x: Tensor) -> Tensor:
    """(N, C, S) in single precision or better; norms of features have one channel."""
    x = x.detach()
    x = x if x.dtype in (torch.float32, torch.float64) else x.float()
    if norm_kind(layer) in ("layer", "rms", "other"):
        return x.reshape(x.shape[0], 1, -1)
    return x.reshape(x.shape[0], x.shape[1], -1)


def _writer(to: Any) -> Write:
    if isinstance(to, (str, Path)):
        return _csv(Path(to))
    if hasattr(to, "add_scalar"):
        return lambda step, readings: [to.add_scalar(name, value, step) for name, value in readings.items()]
    if callable(to):
        if not takes(to, 2):
            raise InputError(f"to must be a function of step and readings, got one of {signature(to)}")
        return to
    raise InputError(f"to must be a .csv file, a SummaryWriter or a function, got {type(to).__name__}")


def _csv(path: Path) -> Write:
    """Rows of step, layer, reading, value; each recording is on the disk before training goes on."""
    if path.suffix != ".csv":
        raise InputError(f"{path}: readings are written as .csv alone")
    try:
        with path.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(["step", "layer", "reading", "value"])
    except OSError as failure:
        raise InputError(f"{path}: {failure.strerror or failure}") from failure

    def write(step: int, readings: Mapping[str, float]) -> None:
        with path.open("a", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerows([step, *name.rsplit("/", 1), value] for name, value in readings.items())

    return write
