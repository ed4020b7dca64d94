from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hand_made import SAMPLES, run, runs
from scipy import stats

from normkit.errors import InputError
from normkit.lab.compare import check_out, compare, plan
from normkit.lab.comparison import Comparison, summarize
from normkit.lab.grid import Grid
from normkit.lab.models import MODELS, NORMS, USUAL, norms_of
from normkit.lab.records import Epoch, Settings
from normkit.lab.sentence import sentence
from normkit.lab.studies import find

SLOW = [[0.3, 0.6, 0.9], [0.2, 0.5, 0.92], [0.3, 0.7, 0.94]]  # at 0.5 after 20, 20 and 20 steps
FAST = [[0.6, 0.8, 0.95], [0.7, 0.9, 0.96], [0.8, 0.9, 0.97]]  # at 0.5 after 10, 10 and 10 steps

# The same after 400 and 200 steps, of which the 10 between two measurements are few.
LATE_SLOW = [[0.2] * 38 + curve for curve in SLOW]
LATE_FAST = [[0.2] * 19 + curve for curve in FAST]


def test_default_target_lies_between_chance_and_the_best_median() -> None:
    comparison = summarize(runs("none", SLOW) + runs("batch", FAST), samples=SAMPLES, chance=0.1)
    assert comparison.target == pytest.approx(0.1 + 0.95 * (0.96 - 0.1), rel=1e-15)
    assert comparison.learned


def test_steps_count_to_the_first_measurement_at_the_target() -> None:
    curves = [[0.2, 0.5, 0.4], [0.499, 0.499, 0.5]]
    (row,) = summarize(runs("none", curves), samples=SAMPLES, chance=0.1, target=0.5).rows
    assert row.steps.values == (20, 30)
    assert row.steps.limit == 30


def test_the_measurement_before_the_first_step_reaches_nothing() -> None:
    early = run("none", [0.05, 0.9])  # 0.1 before the first step
    (row,) = summarize([early], samples=SAMPLES, chance=0.04, target=0.08).rows
    assert row.steps.values == (20,)


def test_row_holds_estimates_of_final_values() -> None:
    made = [
        run("none", [0.5, a], seed=seed, gap=g, loss=loss, seconds=s)
        for seed, (a, g, loss, s) in enumerate([(0.8, 0.02, 0.4, 0.01), (0.9, 0.04, 0.2, 0.03)])
    ]
    (row,) = summarize(made, samples=SAMPLES, chance=0.1).rows
    means = [row.accuracy, row.loss, row.gap, row.loss_gap, row.milliseconds]
    assert [estimate.mean for estimate in means if estimate] == pytest.approx([0.85, 0.3, 3.0, 0.15, 2.0])
    assert row.accuracy is not None
    assert row.accuracy.half_width == pytest.approx(
        stats.t.ppf(0.975, 1) * np.std([0.8, 0.9], ddof=1) / 2**0.5
    )


def test_seeds_are_paired_whatever_their_order() -> None:
    mixed = runs("none", SLOW)[::-1] + runs("batch", FAST)
    assert [r.settings.seed for r in summarize(mixed, samples=SAMPLES, chance=0.1).rows[0].runs] == [0, 1, 2]


def test_diverged_runs_are_counted_and_left_out_of_final_values() -> None:
    made = [
        *runs("none", SLOW),
        run("none", [0.95], diverged=True, seed=3),
        run("none", [], diverged=True, seed=4),
    ]
    (row,) = summarize(made, samples=SAMPLES, chance=0.1, target=0.92).rows
    assert row.diverged == 2
    assert row.accuracy is not None
    assert row.accuracy.count == 3
    assert row.steps.values == (None, 30, 30, 10, None)  # what was reached before diverging was reached
    assert row.steps.limit == 30


def test_unfinished_runs_are_refused() -> None:
    with pytest.raises(ValueError, match="only finished runs"):
        summarize([replace(run("none", [0.5]), status="unfinished")], samples=SAMPLES, chance=0.1)


def test_best_learning_rate_has_the_lowest_mean_loss() -> None:
    made = [
        *runs("batch", FAST, lr=0.1, loss=0.3),
        *runs("batch", FAST, lr=0.2, loss=0.2),
        *runs("none", SLOW, lr=0.1, loss=0.5),
        *runs("none", SLOW, lr=0.2, loss=0.6),
    ]
    comparison = summarize(made, samples=SAMPLES, chance=0.1)
    assert [(row.norm, row.lr) for row in comparison.rows if row.best] == [("batch", 0.2), ("none", 0.1)]
    assert comparison.baseline == "none"
    assert [contrast.norm for contrast in comparison.contrasts] == ["batch"]


def test_a_learning_rate_that_diverges_is_the_best_only_where_all_do() -> None:
    one_diverges = [*runs("none", SLOW[:2], lr=0.2, loss=0.1), run("none", [], diverged=True, seed=2, lr=0.2)]
    comparison = summarize(
        [*one_diverges, *runs("none", SLOW, lr=0.1, loss=0.9)], samples=SAMPLES, chance=0.1
    )
    assert [row.lr for row in comparison.best_rows] == [0.1]


def test_contrasts_are_paired_and_hold_together() -> None:
    """Against scipy, at the confidence that Bonferroni asks of two contrasts."""
    steps = {"none": [30, 40, 60], "batch": [10, 20, 20], "layer": [20, 20, 50]}
    gaps = {"none": [0.05, 0.06, 0.09], "batch": [0.01, 0.03, 0.05], "layer": [0.06, 0.05, 0.09]}
    made = [
        run(norm, [0.2] * (count // 10 - 1) + [0.9] * (7 - count // 10), seed=seed, gap=gaps[norm][seed])
        for norm, counts in steps.items()
        for seed, count in enumerate(counts)
    ]
    comparison = summarize(made, samples=SAMPLES, chance=0.1)
    for contrast in comparison.contrasts:
        ratios = np.log(steps[contrast.norm]) - np.log(steps["none"])
        differences = 100 * (np.array(gaps[contrast.norm]) - gaps["none"])
        both = np.array([*steps[contrast.norm], *steps["none"]])
        # A count of 30 stands for 21 to 30, as runs are measured every 10 steps.
        cells = np.log((both + 0.5) / (both - 9.5))
        hidden = np.sqrt(2 * np.mean(cells**2) / 12)  # in one side's mean logarithm minus the other's
        for estimate, values in ((contrast.steps_ratio, ratios), (contrast.gap_difference, differences)):
            scale = np.hypot(
                stats.sem(values), hidden if values is ratios else np.sqrt(4 / 12) * 100 / SAMPLES
            )
            low, high = stats.t.interval(1 - 0.05 / 2, 2, loc=values.mean(), scale=scale)
            assert estimate is not None
            ends = estimate.low, estimate.high
            assert ends == pytest.approx(np.exp([low, high]) if values is ratios else (low, high), rel=1e-9)


@pytest.mark.parametrize(
    ("gaps", "verdict"),
    [
        ((0.01, 0.011, 0.012), "supported"),
        ((0.05, 0.051, 0.052), "contradicted"),
        ((0.01, 0.03, 0.05), "undecided"),
        ((0.03, 0.03, 0.03), "undecided"),
    ],
)
def test_verdict_on_the_gap(gaps: tuple[float, ...], verdict: str) -> None:
    batch = [run("batch", curve, seed=seed, gap=gaps[seed]) for seed, curve in enumerate(FAST)]
    (contrast,) = summarize([*runs("none", SLOW, gap=0.03), *batch], samples=SAMPLES, chance=0.1).contrasts
    assert contrast.smaller_gap == verdict


@pytest.mark.parametrize(
    ("norm", "baseline", "bound", "verdict"),
    [
        ((100, 100, 100), (200, 200, 300), "", "supported"),
        ((200, 200, 300), (100, 100, 100), "", "contradicted"),
        ((100, 200, 300), (200, 200, 200), "", "undecided"),
        ((100, 100, 100), (110, 110, 110), "", "undecided"),
        ((10, 10), (20, 20), "", "undecided"),
        ((100, 100, 100), (300, None, None), "at most ", "supported"),
        ((300, 300, 300), (None, None, None), "at most ", "undecided"),
        ((290, 290), (None, None), "at most ", "undecided"),
        ((300, None, None), (100, 100, 100), "at least ", "contradicted"),
        ((None, 100, 200), (300, 300, 300), "at least ", "undecided"),
    ],
)
def test_verdict_on_steps(
    norm: tuple[int | None, ...], baseline: tuple[int | None, ...], bound: str, verdict: str
) -> None:
    """A run that never arrives is set to the 300 steps of a full run, which bounds the ratio on one side.

    Runs are measured every 10 steps: 100 and 110 may both have been 100, and 10 and 20 may have been 1 and 20.
    """

    def made(name: str, steps: tuple[int | None, ...]) -> list[list[float]]:
        return [[0.9 if s is not None and step >= s else 0.2 for step in range(10, 310, 10)] for s in steps]

    comparison = summarize(
        runs("none", made("none", baseline)) + runs("batch", made("batch", norm)),
        samples=SAMPLES,
        chance=0.1,
        target=0.9,
    )
    (contrast,) = comparison.contrasts
    assert (contrast.bound, contrast.fewer_steps) == (bound, verdict)


def test_a_bound_decides_nothing_on_its_open_side() -> None:
    """Two thirds of the runs without a norm are later than 30 steps: batch's 30 may well be fewer."""
    none = runs("none", [[0.2, 0.2, 0.2], [0.9] * 3, [0.9] * 3])
    batch = runs("batch", [[0.2, 0.2, 0.9]] * 3)
    (contrast,) = summarize(none + batch, samples=SAMPLES, chance=0.1, target=0.9).contrasts
    assert contrast.bound == "at most "
    assert contrast.fewer_steps == "undecided"


def test_nothing_is_said_where_neither_arrives() -> None:
    (contrast,) = summarize(
        runs("none", SLOW) + runs("batch", FAST), samples=SAMPLES, chance=0.1, target=0.99
    ).contrasts
    assert contrast.steps_ratio is None
    assert contrast.fewer_steps == "undecided"


def test_accuracies_that_tie_decide_no_more_than_their_samples_allow() -> None:
    """Two seeds whose gaps are both 4 of 121 samples larger: a difference of 3.31 points without any spread."""
    none = [run("none", [0.5, c / 121], seed=s, gap=g / 121) for s, (c, g) in enumerate([(80, 0), (82, 4)])]
    batch = [run("batch", [0.5, c / 121], seed=s, gap=g / 121) for s, (c, g) in enumerate([(84, 4), (81, 8)])]
    (contrast,) = summarize([*none, *batch], samples=121, chance=0.1).contrasts
    assert contrast.gap_difference is not None
    assert contrast.gap_difference.mean == pytest.approx(400 / 121)
    # Each gap is of two accuracies, so that four roundings of 1 / 121 add: t · √(4 / 12) · 100 / 121.
    width = stats.t.ppf(0.975, 1) * (4 / 12) ** 0.5 * 100 / 121
    assert contrast.gap_difference.half_width == pytest.approx(width)
    assert contrast.smaller_gap == "undecided"


def test_a_network_of_your_own_is_pointed_to_the_studies_that_take_it() -> None:
    with pytest.raises(InputError, match=r"`normkit study .* --model mynet.py:build`$") as refusal:
        plan(Grid(model="mynet.py:build"))
    named = str(refusal.value).split("normkit study ")[1].split(" --model")[0].split()
    assert named
    assert all(find(name).takes_model for name in named)


def test_one_seed_decides_nothing() -> None:
    comparison = summarize(
        [run("none", SLOW[0], gap=0.3), run("batch", FAST[0])], samples=SAMPLES, chance=0.1
    )
    (contrast,) = comparison.contrasts
    assert (contrast.fewer_steps, contrast.smaller_gap) == ("undecided", "undecided")
    assert "one seed decides nothing" in sentence(comparison)


def test_the_first_norm_is_the_baseline_without_none() -> None:
    comparison = summarize(runs("layer", SLOW) + runs("batch", FAST), samples=SAMPLES, chance=0.1)
    assert comparison.baseline == "layer"
    assert "compared with layer" in sentence(comparison)


def test_sentence_says_what_is_decided_and_what_is_not() -> None:
    made = [
        *(run("none", c, seed=s, gap=0.04 + 0.01 * s) for s, c in enumerate(LATE_SLOW)),
        *(run("batch", c, seed=s, gap=0.01 * s) for s, c in enumerate(LATE_FAST)),
        *(run("layer", c, seed=s, gap=0.02 + 0.04 * s) for s, c in enumerate(LATE_SLOW)),
    ]
    assert sentence(summarize(made, samples=SAMPLES, chance=0.1, target=0.5)) == (
        "On digits (cnn, lr 0.1, 3 seeds), compared with no norm: "
        "steps to 50.0% validation accuracy are fewer with batch (batch 0.50 times as many, 95% interval "
        "0.45 to 0.55), undecided with layer; "
        "the gap between training and validation accuracy is smaller with batch (batch −4.00 points, "
        "95% interval −4.00 to −4.00), undecided with layer."
    )


def test_sentence_where_nothing_is_decided() -> None:
    text = sentence(
        summarize(runs("none", SLOW) + runs("batch", SLOW), samples=SAMPLES, chance=0.1, target=0.5)
    )
    assert text == (
        "On digits (cnn, lr 0.1, 3 seeds), compared with no norm: "
        "whether steps to 50.0% validation accuracy are fewer is undecided with batch (batch 1.00 times as "
        "many, 95% interval 0.31 to 3.24); "
        "whether the gap between training and validation accuracy is smaller is undecided with batch (batch "
        "0.00 points, 95% interval 0.00 to 0.00)."
    )


def test_sentence_names_a_norm_that_is_worse() -> None:
    text = sentence(
        summarize(
            runs("none", LATE_FAST) + runs("batch", LATE_SLOW, gap=0.05),
            samples=SAMPLES,
            chance=0.1,
            target=0.5,
        )
    )
    assert "are more with batch (batch 2.00 times as many" in text
    assert "is larger with batch (batch +5.00 points" in text


def test_sentence_where_there_is_nothing_to_compare() -> None:
    diverged = [run(norm, [], diverged=True) for norm in ("none", "batch")]
    assert sentence(summarize(diverged, samples=SAMPLES, chance=0.1)).startswith("Every run diverged")
    unlearned = runs("none", [[0.1, 0.1]]) + runs("batch", [[0.1, 0.09]])
    assert sentence(summarize(unlearned, samples=SAMPLES, chance=0.1)).startswith(
        "No norm did better than always giving"
    )
    assert "rms alone was run: steps to 50.0% validation accuracy are 20 ± 12." in sentence(
        summarize(runs("rms", SLOW), samples=SAMPLES, chance=0.1, target=0.5)
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0), ("seeds", 0), ("batch_size", 0), ("threads", 0),
        ("lr", ()), ("lr", (0.1, 0.0)), ("lr", (math.nan,)), ("lr", (math.inf,)),
        ("dropout", 1.0), ("dropout", math.nan), ("weight_decay", -1.0), ("weight_decay", math.inf),
        ("target", 0.0), ("target", 1.1), ("target", math.nan),
    ],
)  # fmt: skip
def test_grid_refuses_what_makes_no_sense(field: str, value: object) -> None:
    with pytest.raises(InputError, match="--" + field.replace("_", "-")) as refused:
        Grid(**{field: value})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("model", MODELS)
def test_plan_takes_the_usual_norms_that_the_model_can_take(model: str) -> None:
    settings = plan(Grid(model=model, seeds=1)).settings
    expected = USUAL if model in ("cnn", "residual") else tuple(norm for norm in USUAL if norm != "instance")
    if model == "lstm":
        expected = (*expected, "recurrent")
    assert tuple(s.norm for s in settings) == expected


def test_plan_takes_every_norm_that_is_named() -> None:
    for model in ("cnn", "lstm"):
        norms = norms_of(model)
        assert tuple(s.norm for s in plan(Grid(model=model, norms=norms, seeds=1)).settings) == norms
    assert {*norms_of("cnn"), *norms_of("lstm")} == set(NORMS)
    with pytest.raises(InputError, match="--batch-size must be 2 to"):
        plan(Grid(norms=("none", "renorm"), batch_size=1))
    with pytest.raises(InputError, match=r"norm 'ghost' .* a batch of 17"):
        plan(Grid(norms=("none", "ghost"), batch_size=17))


def test_plan_runs_whole_seeds_and_nothing_twice() -> None:
    settings = plan(Grid(norms=("none", "batch", "none"), lr=(0.1, 0.2, 0.1), seeds=2)).settings
    assert [(s.seed, s.norm, s.lr) for s in settings] == [
        (seed, norm, lr) for seed in (0, 1) for norm in ("none", "batch") for lr in (0.1, 0.2)
    ]
    assert len({s.key for s in settings}) == len(settings)


def test_chance_is_the_share_of_the_most_frequent_class(tmp_path: Path) -> None:
    file = tmp_path / "three_to_one.npz"
    np.savez(file, x=np.arange(80.0).reshape(40, 2), y=[0] * 30 + [1] * 10)
    assert plan(Grid(data=str(file), model="mlp", batch_size=8)).chance == 0.75
    with pytest.raises(InputError, match=r"above chance, 0\.750"):
        plan(Grid(data=str(file), model="mlp", batch_size=8, target=0.7))


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check_out(tmp_path / "new" / "newer")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="must be a folder"):
            check_out(out)


SMALL = Grid(model="mlp", norms=("none", "batch"), epochs=2, seeds=2)


def measurements(comparison: Comparison) -> list[object]:
    """All but the times, which no two trainings share."""
    return [[epoch.measurements for epoch in r.epochs] for row in comparison.rows for r in row.runs]


class StoppedError(Exception):
    pass


def test_comparison_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    whole = compare(SMALL, tmp_path / "whole")

    def stop_in_the_second_run(done: int, settings: Settings, epoch: Epoch | None) -> None:
        if done == 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        compare(SMALL, tmp_path / "parts", stop_in_the_second_run)
    seen: list[tuple[int, bool]] = []
    parts = compare(SMALL, tmp_path / "parts", lambda done, _, epoch: seen.append((done, epoch is not None)))
    assert measurements(parts) == measurements(whole)
    # The first run is there; the second was stopped within its first second, and begins again like the others.
    expected = [(2, False), (2, False), (3, True), (4, True), (4, False), (5, True), (6, True)]
    assert seen == [*expected, (6, False), (7, True), (8, True)]
    again: list[bool] = []
    assert compare(SMALL, tmp_path / "parts", lambda done, _, epoch: again.append(epoch is None)) == parts
    assert all(again)


def test_a_wider_comparison_keeps_the_runs_of_a_narrower_one(tmp_path: Path) -> None:
    compare(replace(SMALL, epochs=1, norms=("none",)), tmp_path)
    trained: list[str] = []
    compare(
        replace(SMALL, epochs=1),
        tmp_path,
        lambda _, settings, epoch: trained.append(settings.norm) if epoch else None,
    )
    assert set(trained) == {"batch"}
