from __future__ import annotations

import importlib
import re
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import ClassVar

import pytest
from made_studies import Failing, Made

from browser import browse, contrast, needs_browser, of_hex, screenshot
from normkit.lab.export import write_table
from normkit.lab.palette import DARK, LIGHT
from normkit.lab.studies import NAMES, find
from normkit.lab.studies.study import Finding, Result, Results, Subject, Trial
from normkit.lab.sweep import page, text
from normkit.lab.sweep.files import FORMATS, numbers, rows, write_formats
from normkit.lab.sweep.sweep import Plan, Report, carry_out, plan
from normkit.lab.sweep.task import measure
from normkit.lab.sweep.trials import Trials


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Report], Plan]:
    the_plan = plan([Made(), Failing()], "quick")
    return carry_out(the_plan, tmp_path_factory.mktemp("study"), workers=2), the_plan


@pytest.fixture(scope="module")
def html(measured: tuple[list[Report], Plan]) -> str:
    return page.render(*measured, Path("runs/x"), ["all"], ["slow makes its own data: run it without --data"])


def test_claims_come_first_and_then_each_study(html: str) -> None:
    (claims,) = re.findall(r'<table id="claims">.*?</table>', html, flags=re.DOTALL)
    assert re.findall(r'<a href="#(\w+)">', claims) == ["made", "failing"]
    assert re.findall(r'class="text (supported|unmeasured)"', claims) == ["supported", "unmeasured"]
    assert "batch - none, sum: −0.500" in claims
    assert re.findall(r'<section id="(\w+)">', html) == ["made", "failing"]
    assert html.index("claims") < html.index("<section")
    assert "Of 2 studies of 1 claim: 1 supported, 1 unmeasured." in html
    assert "Left out: slow makes its own data" in html
    assert "failing (norm none, seed 1): the data must have images, got rows of 64" in html
    assert html.count("<svg ") == 1
    assert "normkit study made --quick --out runs/x" in html


def test_it_fetches_nothing_and_escapes_everything(html: str) -> None:
    tags: list[tuple[str, list[tuple[str, str | None]]]] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.append((tag, attrs))
    parser.feed(html)
    assert {tag for tag, _ in tags}.isdisjoint({"script", "link", "img", "iframe", "object", "batch"})
    references = [value for _, attrs in tags for key, value in attrs if key in {"src", "href", "xlink:href"}]
    assert all(value and value.startswith("#") for value in references)
    assert "http" not in html
    assert "Sums are lower with &lt;batch&gt; norm." in html


class Diverged(Made):
    """Every run with batch norm diverges: its sum is no number."""

    name: ClassVar[str] = "diverged"

    def measure(self, trial: Trial, subject: Subject) -> Result:
        lost = {"sum": None} if trial.levels["norm"] == "batch" else {}
        return {**super().measure(trial, subject), **lost}


def test_an_arm_that_no_seed_got_through_is_undecided_and_says_why(tmp_path: Path) -> None:
    the_plan = plan([Diverged()], "quick")
    with Trials(tmp_path) as trials:
        for task in the_plan.all:
            outcome = measure(task)
            assert outcome.result is not None
            trials.record(task, outcome.result, outcome.seconds)
    (report,) = carry_out(the_plan, tmp_path)
    why = "Nothing to compare: every run, or every pair, of an arm diverged."
    assert (text.verdict(report), text.telling_effect(report)) == ("undecided", why)
    html = page.render([report], the_plan, Path("runs/x"), ["diverged"])
    assert html.count(why) == 2
    assert "<svg" not in html
    assert {path.suffix for path in write_formats([report], tmp_path, FORMATS)} == {".csv"}


def test_the_same_reports_give_the_same_page(measured: tuple[list[Report], Plan], html: str) -> None:
    again = page.render(
        *measured, Path("runs/x"), ["all"], ["slow makes its own data: run it without --data"]
    )
    assert again == html


@needs_browser
@pytest.mark.parametrize(("preferred", "scheme"), [(1, LIGHT), (0, DARK)], ids=["light", "dark"])
def test_it_is_legible_as_rendered(html: str, tmp_path: Path, preferred: int, scheme: dict[str, str]) -> None:
    path = tmp_path / "report.html"
    path.write_text(html)
    pixels = screenshot(path, tmp_path, preferred, height=1600)
    assert pixels[0, 0] == pytest.approx(of_hex(scheme["ground"]), abs=1e-6)
    against = contrast(pixels, pixels[0, 0])
    strips = against.reshape(16, 100, 900).max(axis=(1, 2))
    assert (strips > 1.5).sum() >= 13
    assert (strips[strips > 1.5] >= 4.5).all()  # each strip that shows anything has text that stands out


@needs_browser
def test_a_browser_finds_every_part(html: str, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(html)
    dom = browse(path, tmp_path, "--dump-dom")
    assert dom.count("</section>") == 2
    assert dom.count("</figure>") == 1
    assert dom.count("</table>") == 2


def test_effects_are_shown_to_the_digits_that_their_interval_leaves() -> None:
    (report,) = [Report(Made(), Results([]), None, (), 0.0)]
    trial = Trial({}, 0)
    assert text.telling_effect(replace(report, results=Results([(trial, {})]))) == "0 of 1 trials failed"
    finding = Made().judge(
        Results(
            (Trial({"norm": norm}, seed), {"sum": value + seed * slope})
            for norm, value, slope in (("none", 0.0, 0.0), ("batch", -123.456, 0.01))
            for seed in range(6)
        )
    )
    (effect,) = finding.effects
    low, high = (f"{end:.3f}".replace("-", "−") for end in (effect.estimate.low, effect.estimate.high))
    assert text.with_interval(effect) == f"batch - none, sum: −123.431 ({low} to {high})"


def test_numbers_of_a_result_have_names_and_places(
    measured: tuple[list[Report], Plan], tmp_path: Path
) -> None:
    assert list(numbers({"a": {"b": [1, 2]}, "c": "x"})) == [("a.b", 0, 1), ("a.b", 1, 2), ("c", None, "x")]
    parquet = importlib.import_module("pyarrow.parquet")
    write_table(rows(measured[0]), tmp_path / "trials.parquet")
    table = parquet.read_table(tmp_path / "trials.parquet").to_pylist()
    assert [tuple(row.values()) for row in table] == list(rows(measured[0]))


@pytest.mark.parametrize("name", NAMES)
def test_every_study_says_what_it_is_and_measures_fresh(name: str) -> None:
    study = find(name)
    for field in ("claim", "statement", "source", "question", "design", "rule", "literature"):
        assert getattr(study, field).strip(), field
    assert re.fullmatch(r"C([1-9]|1\d|20)", study.claim)
    quick, full = (
        {(tuple(t.levels.items()), t.seed) for t in study.trials(scale)} for scale in ("quick", "full")
    )
    assert quick <= full
    assert len({t.seed for t in study.trials("quick")}) >= 5  # below, bootstrap intervals are Student's


def test_every_claim_has_a_study() -> None:
    assert {find(name).claim for name in NAMES} == {f"C{number}" for number in range(1, 21)}


class Many(Made):
    """Ten thousand trials."""

    name: ClassVar[str] = "many"
    seeds: ClassVar[int] = 5000

    def judge(self, results: Results) -> Finding:
        return super().judge(Results(results.measured[:24]))

    def figure(self, results: Results):
        return super().figure(Results(results.measured[:24]))


@pytest.mark.slow
def test_ten_thousand_trials_are_listed_and_reported(tmp_path: Path) -> None:
    """A bound of the product, not a comparison of speeds: 10 seconds, where 3 were measured."""
    the_plan = plan([Many()], "quick")
    with Trials(tmp_path) as trials:
        for task in the_plan.all:
            outcome = measure(task)
            assert outcome.result is not None
            trials.record(task, outcome.result, outcome.seconds)
    assert len(the_plan.all) == 10_000
    started = time.process_time()
    reports = carry_out(plan([Many()], "quick"), tmp_path)
    assert "10,000 trials" in page.render(reports, the_plan, tmp_path, ["many"])
    assert time.process_time() - started < 10
