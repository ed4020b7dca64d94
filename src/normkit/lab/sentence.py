"""What a comparison found, in one sentence that claims no more than the intervals allow."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from normkit.lab.comparison import Comparison, Contrast, Verdict
from normkit.lab.intervals import Estimate
from normkit.lab.table import number, span, steps


def sentence(comparison: Comparison) -> str:
    """Say with which norms steps are fewer (claim C1) and the gap is smaller (claim C7)."""
    if not comparison.trained:
        return "Every run diverged, so there is nothing to compare: try a smaller --lr."
    if not comparison.learned:
        return (
            f"No norm did better than always giving the most frequent class ({comparison.chance:.1%}), "
            "so there is nothing to compare: try more --epochs or another --lr."
        )
    settings, seeds, lrs = comparison.settings, comparison.seeds, len({row.lr for row in comparison.rows})
    rates = f"lr {settings.lr:g}" if lrs == 1 else f"each at its best of {lrs} learning rates"
    where = f"On {settings.data} ({settings.model}, {rates}, {seeds} seed{'s' if seeds > 1 else ''})"
    target = f"{comparison.target:.1%} validation accuracy"
    if not comparison.contrasts:
        row = comparison.best_rows[0]
        return f"{where}, {row.norm} alone was run: steps to {target} are {steps(row.steps)}."
    baseline = "no norm" if comparison.baseline == "none" else comparison.baseline
    contrasts = comparison.contrasts
    fewer = _clause(
        f"steps to {target} are",
        ("fewer", "more"),
        [(c, c.fewer_steps, c.steps_ratio) for c in contrasts],
        _ratio,
    )
    smaller = _clause(
        "the gap between training and validation accuracy is",
        ("smaller", "larger"),
        [(c, c.smaller_gap, c.gap_difference) for c in contrasts],
        _difference,
    )
    unsure = "" if seeds > 1 else " (one seed decides nothing: try --seeds 5)"
    return f"{where}, compared with {baseline}: {fewer}; {smaller}{unsure}."


def _clause(
    subject: str,
    words: tuple[str, str],
    judged: Sequence[tuple[Contrast, Verdict, Estimate | None]],
    figure: Callable[[Contrast], str],
) -> str:
    """`{subject} fewer with a and b (a 0.4 times, ...), more with c (...), undecided with d`.

    A figure goes with the strongest norm of each decided group; where nothing is decided, with the first.
    """
    ranked = sorted(judged, key=lambda one: one[2].mean if one[2] else 0.0)
    better = [contrast for contrast, verdict, _ in ranked if verdict == "supported"]
    worse = [contrast for contrast, verdict, _ in reversed(ranked) if verdict == "contradicted"]
    undecided = [contrast for contrast, verdict, _ in judged if verdict == "undecided"]
    phrases = [
        f"{word} with {_listed(group)} ({group[0].norm} {figure(group[0])})"
        for word, group in zip(words, (better, worse), strict=True)
        if group
    ]
    if not phrases:
        first = f"({undecided[0].norm} {figure(undecided[0])})"
        return f"whether {subject} {words[0]} is undecided with {_listed(undecided)} {first}"
    if undecided:
        phrases.append(f"undecided with {_listed(undecided)}")
    return f"{subject} {', '.join(phrases)}"


def _ratio(contrast: Contrast) -> str:
    ratio = contrast.steps_ratio
    if ratio is None:
        return "and the baseline both have runs that never got there"
    return f"{contrast.bound}{number(ratio.mean, 2)} times as many" + _interval(ratio, 2)


def _difference(contrast: Contrast) -> str:
    difference = contrast.gap_difference
    if difference is None:
        return "has no pair of runs that did not diverge"
    return f"{number(difference.mean, 2, sign=True)} points" + _interval(difference, 2, sign=True)


def _interval(estimate: Estimate, digits: int, sign: bool = False) -> str:
    interval = span(estimate, digits, sign)
    return f", 95% interval {interval}" if interval else ""


def _listed(contrasts: Sequence[Contrast]) -> str:
    names = [contrast.norm for contrast in contrasts]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + f" and {names[-1]}"
