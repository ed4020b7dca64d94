"""Writes the pages of the doctor from the docstrings of its checks: `python docs/doctor/write.py`."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from normkit.doctor.checks import (
    batches,
    deployment,
    dynamics,
    optimisation,
    sharing,
    statistics,
    structure,
    tracking,
)

FOLDER = Path(__file__).parent
GROUPS = (structure, sharing, statistics, tracking, batches, optimisation, dynamics, deployment)
INTRODUCTION = """# The doctor

People lose days to normalization that fails silently: good in `train()`, useless in `eval()`; frozen layers that
thaw; padding that poisons statistics; Keras' momentum in torch. `normkit doctor` finds these in your model, shows
the numbers, names the remedy, and repairs with `--fix` what is safe to repair.

```sh
normkit doctor net.py:build                                    # the model alone
normkit doctor net.py:build --weights last.pt --data net.py:loader   # and what its data do in it
normkit doctor net.py:build --weights last.pt --data net.py:loader --fix   # writes last.fixed.pt
normkit doctor last.pt                                         # a checkpoint alone: its running statistics
normkit doctor --explain NK202
```

`net.py:build` is a module or a function without arguments that returns one, `net.py:loader` batches or a function
that returns them; `--weights` are loaded into the model, and without them a model that loads none itself is looked at
as it is initialized. `--optimizer` names a function of the model, `--reference` the model that this one is a copy of,
or its checkpoint. `--report FILE` writes the diagnosis as `.html`, `.json` ([schema](diagnosis.schema.json)),
`.sarif` or `.txt`, and `--format` says what the standard output gets; `-o FILE` is for the weights that `--fix`
repaired. What else a checkpoint holds, epoch or optimizer, stays in it. `--select NK2` and `--ignore NK101` choose by
the beginning of a code.

The exit code is 0 where nothing was found, 1 with findings of any severity (after `--fix`, with those that are left),
and 2 where it could not run. In CI, `--fail-on warning` or `--fail-on error` lets findings below that pass; they are
shown all the same. 0 says that nothing was found in what was looked at: of a checkpoint alone that is no more than
its running statistics, and the last line says so.

## Batches, and what the loss compares
| a batch is | the model gets | the target is |
|---|---|---|
| a tensor | it | none |
| `(input, target)` | the input, or the tensors of a tuple of them | what comes behind it |
| a dict | the entries that its forward has names for | the entry `labels`, `label`, `targets`, `target` or `y` |
| `(dict, target)` | likewise | the second |

Of several such entries the target is one that forward does not take, the first in this order; `y` is only ever that.
For batches of another kind `--forward` names a function of model and batch; in Python `forward=` is of the batch
alone. `--loss` names a function of `torch.nn.functional`, which gets the scores, or one of yours, of the model's
output and the target. Without it the loss is the model's own where its output has one as `loss`, as Hugging Face's
models have when they are given labels; else cross entropy for classes or the mean squared error for values of the
output's shape. Where none fits, gradients are not looked at, which is said at the end.

## In Python

```python
import torch, normkit as nk

model = torch.nn.Sequential(
    torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8, momentum=0.99), torch.nn.Linear(8, 2)
)
diagnosis = nk.diagnose(model, batches=[torch.randn(64, 4) for _ in range(8)])
for finding in diagnosis.findings:
    print(finding.code, finding.module, finding.message, finding.remedy)
```

## How it looks
One pass of hooks over the batches records, in memory that does not grow with their number, moments and quantiles of
what comes into each norm and goes out of it. The norms run in training mode and in evaluation mode, everything else
in evaluation mode both times: what differs is the norms' doing. Where it differs, it is measured how far the output
moves when each norm alone goes from running statistics to those of the first batch, and which of them together make
the difference. With a loss there are gradients too, at each norm's output. The model is as it was afterwards, random
numbers included.

Several norms are switched in one pass, each in a copy of some of the batch's samples, where a model gives a sample
the same output in whatever batch. That takes about eight passes over the batch, however many norms there are, as long
as that leaves a sample for each; beyond, a pass for as many norms as the batch has samples. Where outputs do depend on
other samples, as of some graph networks, it is a pass for each norm.

Weights stand still meanwhile. So what is said of steps, from one batch to the next, is what the order of the data
makes, and not what training makes; of that, only what the running statistics were left with is seen.

An **error** means that the model computes something else than it was trained for, or cannot be trained; a
**warning**, that it will cost accuracy or stability; a **note** is worth knowing.

## The codes
"""


def pages() -> dict[str, str]:
    """The text of each page by its file's name."""
    rows = ["| code | severity | fix | what is wrong |", "|---|---|---|---|"]
    written: dict[str, str] = {}
    for group in GROUPS:
        name = f"{group.__name__.rpartition('.')[2]}.md"
        heading = (inspect.getdoc(group) or "").rstrip(".")
        parts = [f"# {heading}\n\n[All codes](README.md#the-codes)\n"]
        for check in group.CHECKS:
            text = inspect.getdoc(check) or ""
            title, _, rest = text.partition("\n")
            body = re.sub(r"^## ", "### ", rest.strip(), flags=re.MULTILINE)
            parts.append(f"## {check.code}\n**{title}** Severity: {check.severities()}.\n\n{body}\n")
            fix = "yes" if check.fixable else ""
            rows.append(
                f"| [{check.code}]({name}#{check.code.lower()}) | {check.severities()} | {fix} | {title} |"
            )
        written[name] = "\n".join(parts)
    return {"README.md": INTRODUCTION + "\n".join(rows) + "\n", **written}


if __name__ == "__main__":
    for file, page in pages().items():
        (FOLDER / file).write_text(page, encoding="utf-8")
