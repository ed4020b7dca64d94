"""Two processors' outputs, line by line: within a few units in the last place of the largest value."""

import sys
from pathlib import Path

UNIT = {0: 2.0**-24, 1: 2.0**-53, 2: 2.0**-8, 3: 2.0**-11}

one, other = (Path(path).read_text().splitlines() for path in sys.argv[1:3])
assert one, "there must be outputs"
worst = 0.0
for a, b in zip(one, other, strict=True):
    name, dtype, *values = a.split()
    assert [name, dtype] == b.split()[:2]
    pairs = [(float(p), float(q)) for p, q in zip(values, b.split()[2:], strict=True)]
    error = max(abs(p - q) for p, q in pairs) / (max(abs(p) for p, _ in pairs) * UNIT[int(dtype)])
    # Fused and unfused multiply-adds differ by a unit each; half types by one place of the output.
    assert error <= 16, f"{name} of dtype {dtype}: {error:.1f} units apart"
    worst = max(worst, error)
print(f"{len(one)} outputs agree, at most {worst:.1f} units apart")
