"""Images as another camera would have taken them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def shift(x: NDArray[np.float32], contrast: float, brightness: float) -> NDArray[np.float32]:
    """Change the contrast of images about their common mean, and add brightness in deviations of theirs.

    x' = m + contrast · (x - m) + brightness · s, where m and s are the mean and the deviation of all of x.

    >>> shift(np.array([-1.0, 1.0], np.float32), 0.5, 1.0).tolist()
    [0.5, 1.5]
    """
    mean, deviation = x.mean(dtype=np.float64), x.std(dtype=np.float64)
    return (mean + contrast * (x - mean) + brightness * deviation).astype(np.float32)
