"""Every illness of the zoo is found at its layer, and the healthy have no error. The counts are printed."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from healthy import HEALTHY
from patients import Case
from sick_batches import BATCHES
from sick_statistics import STATISTICS
from sick_structure import STRUCTURE
from sick_training import TRAINING

from normkit.doctor.checks import CHECKS
from normkit.doctor.diagnose import diagnose
from normkit.doctor.diagnosis import Diagnosis

SICK = [*STRUCTURE, *STATISTICS, *TRAINING, *BATCHES]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Of models this small, threads would wait for each other most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def diagnosed(case: Case) -> Diagnosis:
    """The diagnosis; the model is as it was afterwards, to the bit."""
    patient = case.make()
    model = patient.model
    before = copy.deepcopy(model.state_dict())
    flags = [module.training for module in model.modules()]
    generator = torch.get_rng_state()
    options = {"forward": patient.forward, "reference": patient.reference}
    diagnosis = diagnose(model, patient.batches, patient.loss, patient.optimizer, **options)
    after = model.state_dict()
    assert all(value.equal(after[key]) or value.isnan().any() for key, value in before.items()), case.name
    assert [module.training for module in model.modules()] == flags
    assert torch.get_rng_state().equal(generator)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    return diagnosis


def test_the_zoo_is_large_enough_and_has_every_code() -> None:
    assert len({case.name for case in SICK}) == len(SICK) >= 40
    assert len({case.name for case in HEALTHY}) == len(HEALTHY) >= 20
    shown = {code for case in SICK for code, _ in case.ills}
    # These need several processes: tests/doctor/test_processes.py.
    assert shown | {"NK206", "NK702"} == {check.code for check in CHECKS}


def test_what_is_found_and_missed(capsys: pytest.CaptureFixture[str]) -> None:
    found, missed, false, warned = 0, [], [], []
    for case in SICK:
        codes = {(finding.code, finding.module) for finding in diagnosed(case).findings}
        found += len(case.ills & codes)
        missed += [(case.name, *ill) for ill in sorted(case.ills - codes)]
    for case in HEALTHY:
        for finding in diagnosed(case).findings:
            entry = (case.name, finding.code, finding.module, finding.message)
            if finding.severity == "error":
                false.append(entry)
            elif finding.severity == "warning":
                warned.append(entry)
    with capsys.disabled():
        print(
            f"\nzoo: {len(SICK)} sick models with {found + len(missed)} illnesses, {found} found, {len(missed)} "
            f"missed; {len(HEALTHY)} healthy models, {len(false)} false errors, {len(warned)} warnings"
        )
        for entry in warned:
            print(f"  warning on a healthy model: {entry}")
    assert not missed
    assert not false
