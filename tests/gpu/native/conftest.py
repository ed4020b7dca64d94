"""What runs on a CUDA device alone, and is collected where there is one and kernels are not interpreted.

`pytest tests/gpu` on such a machine runs these beside the tests that the interpreter runs elsewhere.
"""

from __future__ import annotations

import os

import pytest
import torch

collect_ignore_glob = (
    ["test_*.py"] if os.environ.get("TRITON_INTERPRET") == "1" or not torch.cuda.is_available() else []
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What torch's compiler says of itself on a GPU is not ours to prevent."""
    for item in items:
        if "native" in item.path.parts:
            for kind in ("UserWarning", "DeprecationWarning", "FutureWarning"):
                item.add_marker(pytest.mark.filterwarnings(f"ignore::{kind}"))
