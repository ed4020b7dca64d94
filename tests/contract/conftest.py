"""The contract holds for the backend that the environment names, and by default for the one users get."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
