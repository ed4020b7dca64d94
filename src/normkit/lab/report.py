"""The comparison as one HTML page that needs nothing else: it opens offline, in light and in dark."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from markupsafe import Markup

from normkit import page
from normkit.lab import figures, palette, table
from normkit.lab.comparison import TARGET_SHARE, Comparison
from normkit.lab.sentence import sentence

_TEMPLATE = Path(__file__).parent / "templates" / "report.html.j2"


def write(comparison: Comparison, path: Path, *, command: str) -> None:
    """Write the page; whatever stood at `path` is replaced whole, or not at all.

    Raises:
        InputError: a path that cannot be written.
    """
    page.write(path, render(comparison, command=command))


def render(comparison: Comparison, *, command: str) -> str:
    """The page as text; the same comparison gives the same text. Every value is escaped but our own SVG."""
    return page.render(
        _TEMPLATE,
        colors=Markup(palette.variables()),
        data=comparison.settings.data,
        model=comparison.settings.model,
        sentence=sentence(comparison),
        legend=table.legend(comparison),
        header=[*table.header(comparison), "loss gap"],
        rows=[
            (row, [*table.cells(comparison, row), table.plus_minus(row.loss_gap, 3)])
            for row in comparison.rows
        ],
        baseline="no norm" if comparison.baseline == "none" else comparison.baseline,
        contrast_header=table.CONTRAST_HEADER,
        contrasts=[table.contrast_cells(contrast) for contrast in comparison.contrasts],
        figures=_figures(comparison) if comparison.trained else {},
        seeds=comparison.seeds,
        target=comparison.target,
        target_share=TARGET_SHARE,
        chance=comparison.chance,
        timed=comparison.timed,
        grain=_grain(comparison),
        settings=_settings(comparison),
        command=command,
    )


def _figures(comparison: Comparison) -> dict[str, Markup]:
    drawings = (figures.accuracy_curves, figures.loss_gaps, figures.intervals)
    return {draw.__name__: Markup(draw(comparison)) for draw in drawings}


def _grain(comparison: Comparison) -> str:
    """How many steps lie between measurements: `5 to 6`; empty where every run diverged at once."""
    run = max((run for row in comparison.rows for run in row.runs), key=lambda run: len(run.epochs))
    steps = [measured.step for epoch in run.epochs for measured in epoch.measurements]
    apart = sorted({after - before for before, after in pairwise(steps)})
    return " to ".join(map(str, dict.fromkeys([*apart[:1], *apart[-1:]])))


def _settings(comparison: Comparison) -> list[tuple[str, str]]:
    settings = comparison.settings
    return [
        ("data", f"{settings.data} (sha256 {settings.data_fingerprint[:12]}…)"),
        (
            "model",
            f"{settings.model}, norm {'before' if settings.placement == 'pre' else 'after'} activation",
        ),
        ("parameters", ", ".join(f"{row.norm} {row.runs[0].parameters:,}" for row in comparison.best_rows)),
        ("input scaling", settings.input_scaling),
        ("optimizer", f"{settings.optimizer}, batch size {settings.batch_size}"),
        ("learning rates", ", ".join(f"{lr:g}" for lr in dict.fromkeys(row.lr for row in comparison.rows))),
        ("regularization", f"dropout {settings.dropout:g}, weight decay {settings.weight_decay:g}"),
        ("length", f"{settings.epochs} epochs, {comparison.rows[0].steps.limit} steps"),
        ("seeds", f"{comparison.seeds}"),
        ("device", f"{settings.device}, threads {settings.threads}{_together(settings.processes)}"),
        ("versions", settings.versions),
    ]


def _together(processes: int) -> str:
    return f", {processes} processes for each run" if processes > 1 else ""
