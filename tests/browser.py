"""Pages in a real browser: what it finds in them, and what they look like."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
WIDTH = 900

needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")


def browse(page: Path, profile: Path, *flags: str) -> str:
    """What the browser prints of a page, with `--dump-dom` the page as it stands after loading."""
    assert BROWSER is not None
    command = [BROWSER, *FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def screenshot(page: Path, folder: Path, preferred: int, height: int) -> NDArray[np.float64]:
    """Linear RGB of the page as rendered, in light (1) or in dark (0)."""
    shot = folder / "page.png"
    browse(
        page,
        folder / "profile",
        f"--blink-settings=preferredColorScheme={preferred}",
        f"--screenshot={shot}",
        f"--window-size={WIDTH},{height}",
    )
    with Image.open(shot) as image:
        pixels = linear(np.asarray(image.convert("RGB")) / 255)
    assert pixels.shape[:2] == (height, WIDTH)
    return pixels


def linear(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """Linear RGB of sRGB from 0 to 1."""
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def of_hex(color: str) -> NDArray[np.float64]:
    return linear(np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255)


def luminance(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    return rgb @ np.array([0.2126, 0.7152, 0.0722])


def contrast(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """WCAG 2's contrast ratio of linear RGB colors."""
    low, high = np.minimum(luminance(a), luminance(b)), np.maximum(luminance(a), luminance(b))
    return (high + 0.05) / (low + 0.05)
