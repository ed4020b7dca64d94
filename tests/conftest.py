"""For every test: generated values are not timed, for a busy machine is no failure."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("normkit", deadline=None)
settings.load_profile("normkit")
