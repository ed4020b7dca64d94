"""The contract runs on the backend that users get; test_backends.py runs its numbers on the other."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
