"""The studies: one claim of the literature a file, and what measures it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from normkit.errors import unknown

if TYPE_CHECKING:
    from normkit.lab.studies.study import Study

# In the order of their claims. The study `deep-sigmoid` is STUDY in deep_sigmoid.py, imported when it is asked for.
NAMES: tuple[str, ...] = (
    "fewer-steps",
    "learning-rate",
    "initialisation",
    "sigmoid-inputs",
    "gradient-shift",
    "noisy-batch-norm",
    "gradient-flow",
    "loss-landscape",
    "parameter-scale",
    "regularisation",
    "ghost-size",
    "dropout-and-decay",
    "placement",
    "batch-size",
    "train-inference-gap",
    "small-batch-norms",
    "cost-of-training",
    "rescue",
    "sequence-models",
    "weight-norm-conditioning",
    "input-scaling",
    "without-gamma-beta",
    "fine-detail",
    "inference-estimators",
)


def find(name: str) -> Study:
    """The study of that name.

    Raises:
        InputError: a name that no study has.
    """
    if name not in NAMES:
        raise unknown("study", name, NAMES)
    study = import_module(f"normkit.lab.studies.{name.replace('-', '_')}").STUDY
    assert study.name == name, f"STUDY of {name} is named {study.name}"
    return study
