"""The GPU's kernels: on the GPU where there is one, and by Triton's interpreter in a process made for that.

The interpreter must be chosen before Triton is imported, and then stands for every kernel of the process. So these
files are collected where TRITON_INTERPRET=1 is set, which `tests/kernels/test_triton_interpreted.py` does for a
process of its own, and where there is a CUDA device. NumPy, which interprets, warns of what a GPU computes silently.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "kernels"))  # the oracle of all kernels
sys.path.insert(0, str(Path(__file__).parent))

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETED or torch.cuda.is_available() else ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("ignore::RuntimeWarning"))
