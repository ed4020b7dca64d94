"""The network of a study: one of the lab's that fits the data, or the user's own with its norms converted."""

from __future__ import annotations

import torch
from torch import nn

from normkit.doctor.target import blaming
from normkit.errors import InputError
from normkit.lab.data import Dataset
from normkit.lab.models import begin, build
from normkit.lab.studies import own
from normkit.lab.studies.fit import scaled
from normkit.lab.studies.study import Study, Subject

LEAST_SIDE = 6  # pixels that the convolutions of `cnn` need


def network(subject: Subject, norm: str, dataset: Dataset, *, model: str | None = None) -> nn.Module:
    """A new network with random weights: the lab's `cnn`, or `mlp` where samples are no images, or the user's.

    The user's has its norms converted, before training, so that they start from mean 0 and variance 1; for `none`
    they are taken out.
    """
    if subject.model is None:
        name = model or fitting(dataset)
        shape = dataset.x_train.shape[1:]
        net = build(name, norm=norm, placement="pre", input_shape=shape, classes=dataset.classes)
        begin(net, norm, torch.from_numpy(dataset.x_train[:64]))
        return net
    return own.network(subject.model, norm)


def fitting(dataset: Dataset) -> str:
    """The lab's network that fits the data: `cnn`, or `mlp` where samples are no images."""
    return "cnn" if is_image(dataset) else "mlp"


def is_image(dataset: Dataset) -> bool:
    """Whether samples are images that convolutions can take."""
    shape = dataset.x_train.shape
    return len(shape) == 4 and min(shape[2:]) >= LEAST_SIDE


def check_images(study: Study, subject: Subject) -> None:
    """Refuse data that are no images.

    Raises:
        InputError: and says what the samples are.
    """
    if subject.data == Subject.data:
        return
    dataset = scaled(subject.data)
    if not is_image(dataset):
        raise InputError(
            f"{study.name} needs images, (samples, channels, height, width) of {LEAST_SIDE}x{LEAST_SIDE} pixels or "
            f"more, the samples of {subject.data} are {list(dataset.x_train.shape[1:])}: use other data"
        )


def check_samples(study: Study, subject: Subject, least: int) -> None:
    """Refuse data with fewer training samples than a batch of the design has.

    Raises:
        InputError: and says how many there are.
    """
    if subject.data == Subject.data:
        return
    samples = len(scaled(subject.data).x_train)
    if samples < least:
        raise InputError(
            f"{study.name} needs {least} training samples or more, {subject.data} has {samples}: use other data"
        )


def check_own_network(subject: Subject, norm: str) -> None:
    """Refuse a user's network whose norms cannot be of a kind, or that does not fit the data.

    Raises:
        InputError: and says which of it.
    """
    if subject.model is None:
        return
    dataset = scaled(subject.data)
    with torch.random.fork_rng(devices=[]):
        net = own.network(subject.model, norm)
        with blaming(f"{subject.model} does not take the samples of {subject.data}"), torch.no_grad():
            outputs = net.eval()(torch.from_numpy(dataset.x_train[:2]))
    if list(outputs.shape) != [2, dataset.classes]:
        raise InputError(
            f"{subject.model} must give (N, {dataset.classes}), a score for each class of {subject.data}, "
            f"got {list(outputs.shape)} for 2 samples"
        )
