"""`normkit doctor`: exit codes, formats, repairs into new files, and one line for bad input."""

from __future__ import annotations

import json
import pickle
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from torch import nn

from normkit.cli import run

NET = """
import sys
import torch
from torch import nn

class Batch:
    def __init__(self, x, y): self.x, self.y = x, y

def build(momentum=0.1):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8, momentum=momentum), nn.ReLU(), nn.Linear(8, 2))
    for _ in range(60):
        model(torch.randn(64, 4))
    return model

def keras():
    return build(0.99)

def shifted():
    model = build()
    model[1].running_mean += 3
    return model

def loader():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(64, 4, generator=generator), torch.randint(2, (64,), generator=generator)) for _ in range(8)]

def forward_only():
    for x, _ in loader():
        yield x

def nested():
    return nn.ModuleDict({"<script>alert(1)</script>": keras()})

def headless(): return nn.Linear(4, 2)
def needs(arguments): ...
def nothing(): return None
def strange(): return [object()]
def empty(): return []
def ruined(): return build().apply(lambda m: setattr(m, "in_features", 0)) and nn.Linear(5, 2)
def sgd(model): return torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
def squared(output, target): return output.square().mean()
def listed(): return [Batch(x, y) for x, y in loader()]
def step(model, batch): return model(batch.x)
def spread(output, target): return output.var(0).sum()
def narrow(output, target): return 10 - output.var(0).sum()
def own(output, target): return output.square().mean()
def pairs(): return [((x, {"extra": 1}), y) for x, y in loader()]
def average():
    model = build()
    model[1].reset_running_stats()
    return model
def broken(): raise ZeroDivisionError("no\\nmodel")
def leave(): sys.exit(3)
"""


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "clinic", raising=False)
    file = tmp_path / "clinic.py"
    file.write_text(NET)
    return file


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = run(["doctor", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def test_exit_codes_in_a_real_process(net: Path) -> None:
    for name, code in (("build", 0), ("keras", 1), ("nowhere", 2)):
        command = [sys.executable, "-m", "normkit", "doctor", f"{net}:{name}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, done.stderr
    assert re.fullmatch(r"normkit: .*unknown name 'nowhere'.*\n", done.stderr)
    assert done.stdout == ""


def test_text_names_code_layer_numbers_and_remedy(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = said(capsys, f"{net}:keras", "--data", f"{net}:loader")
    assert (code, err) == (1, "")
    assert "warning NK301 A momentum as Keras counts it" in out
    assert "  1: momentum=0.99 keeps 0.01" in out
    assert "remedy: " in out
    assert re.search(r"^found: .*1 warning", out, flags=re.MULTILINE)


def test_select_and_ignore(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, f"{net}:keras", "--ignore", "NK3")[0] == 0
    assert said(capsys, f"{net}:keras", "--select", "NK1,NK2")[0] == 0
    assert said(capsys, f"{net}:keras", "--select", "NK301")[0] == 1


def test_an_optimizer_and_a_loss_are_named_likewise(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (
        f"{net}:build",
        "--data",
        f"{net}:loader",
        "--optimizer",
        f"{net}:sgd",
        "--loss",
        f"{net}:squared",
    )
    code, out, _ = said(capsys, *arguments)
    assert code == 1
    assert "NK501" in out


def strict(schema: Any) -> Any:
    """The schema, which lets anything new be there for its readers, without what it does not name."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {"additionalProperties": False} if "properties" in schema and "type" in schema else {}
    return {**closed, **{key: strict(part) for key, part in schema.items()}}


@pytest.mark.parametrize("more", [[], ["--fix"]])
def test_json_is_as_its_schema_says(net: Path, more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    schema = json.loads((Path(__file__).parents[2] / "docs" / "doctor" / "diagnosis.schema.json").read_text())
    code, out, _ = said(capsys, f"{net}:shifted", "--data", f"{net}:loader", "--format", "json", *more)
    content = json.loads(out)
    jsonschema.validators.validator_for(schema).check_schema(schema)
    jsonschema.validate(content, strict(schema))
    assert code == (0 if more else 1)
    assert content["schema_version"] == schema["properties"]["schema_version"]["enum"][0] == 2
    assert content["norms"][0]["gradient"] > 0
    if more:
        assert {"NK202", "NK601"} <= {finding["code"] for finding in content["fix"]["findings_before"]}
        assert content["fix"]["loss_before"] != content["fix"]["loss_after"]
    else:
        assert {"NK202", "NK601"} <= {finding["code"] for finding in content["findings"]}


def test_the_page_escapes_names_and_draws_each_layer(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = said(capsys, f"{net}:nested", "--format", "html")
    assert "<script>" not in out
    assert "&lt;script&gt;alert(1)" in out
    _, out, _ = said(capsys, f"{net}:shifted", "--data", f"{net}:loader", "--format", "html")
    assert out.count('<svg class="strip"') == 1
    assert out.count('<svg class="axis"') == 1
    assert not re.search(r"(src|href)=|https?://", out)  # it opens offline
    median = float(
        re.findall(r'<line class="median" x1="([\d.]+)"', out)[1]
    )  # of what was seen; 224 is the middle
    assert (
        median < 164
    )  # 3 deviations to the left, 40 pixels each; the fit of 8 batches is nearer than half of one


def test_batches_that_go_in_another_way(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The remedy that the error names is one that the command has."""
    model = f"{net}:shifted"
    code, _, err = said(capsys, model, "--data", f"{net}:listed")
    assert (code, "give forward=" in err) == (2, True)
    arguments = (
        model,
        "--data",
        f"{net}:listed",
        "--forward",
        f"{net}:step",
        "--loss",
        f"{net}:own",
        "--fix",
    )
    code, out, err = said(capsys, *arguments)
    assert (code, err) == (0, "")
    assert re.search(r"before: found: .*error", out)
    assert re.search(r"loss in evaluation mode: \S+ before, \S+ after", out)


def test_a_copy_and_what_it_was_copied_from(
    net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("build", "average"):
        torch.save(
            {"model": runpy.run_path(str(net))[name]().state_dict(), "epoch": 3}, tmp_path / f"{name}.pt"
        )
    for target, reference in (
        (f"{net}:average", f"{net}:build"),
        (f"{net}:average", tmp_path / "build.pt"),
        (tmp_path / "average.pt", tmp_path / "build.pt"),
    ):
        code, out, _ = said(capsys, target, "--reference", reference, "--select", "NK205")
        assert code == 1
        assert re.search(r"  1: weights are 0 of their length .*1 of 1 layers", out)
    assert said(capsys, f"{net}:build", "--reference", tmp_path / "build.pt", "--select", "NK205")[0] == 0


def test_what_else_a_checkpoint_holds_stays_in_it(
    net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = runpy.run_path(str(net))["shifted"]().state_dict()
    torch.save(
        {"epoch": 3, "model": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "a.pt"
    )
    arguments = (f"{net}:build", "--weights", tmp_path / "a.pt", "--data", f"{net}:loader", "--fix")
    assert said(capsys, *arguments)[0] == 0
    fixed = torch.load(tmp_path / "a.fixed.pt", weights_only=True)
    assert fixed["epoch"] == 3
    assert set(fixed["model"]) == {f"module.{key}" for key in state}
    assert not fixed["model"]["module.1.running_mean"].equal(state["1.running_mean"])
    assert fixed["model"]["module.0.weight"].equal(state["0.weight"])
    code, out, _ = said(capsys, *arguments, "-o", tmp_path / "b.safetensors")
    assert code == 0
    assert "not in it, for it holds tensors alone: epoch" in out


def test_reports_beside_the_text(net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["a.html", "a.json", "a.sarif", "a.txt"]
    arguments = [argument for name in names for argument in ("--report", tmp_path / name)]
    code, out, _ = said(capsys, f"{net}:keras", *arguments)
    assert code == 1
    assert "NK301" in out
    assert (tmp_path / "a.txt").read_text() == out
    assert (tmp_path / "a.html").read_text().startswith("<!doctype html>")
    assert json.loads((tmp_path / "a.json").read_text())["findings"][0]["code"] == "NK301"
    assert json.loads((tmp_path / "a.sarif").read_text())["version"] == "2.1.0"


def test_the_page_after_a_repair_shows_both(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = said(capsys, f"{net}:shifted", "--data", f"{net}:loader", "--fix", "--format", "html")
    medians = [float(x) for x in re.findall(r'<line class="median" x1="([\d.]+)"', out)]
    predicted, before, after = medians
    assert before < 164  # 3 deviations to the left, 40 pixels each
    assert abs(after - predicted) < 8  # a fifth of a deviation
    assert out.count(">gone</span>") >= 2
    assert ">still there</span>" not in out


def test_a_loss_that_rose_is_told(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The spread of the output, which is small where statistics send most of it behind the ReLU."""
    arguments = (f"{net}:shifted", "--data", f"{net}:loader", "--fix", "--loss", f"{net}:spread")
    _, out, _ = said(capsys, *arguments)
    before, after = map(float, re.findall(r"mode: (\S+) before, (\S+) after", out)[0])
    assert after > 2 * before
    assert "the loss rose" in out
    assert "The loss rose" in said(capsys, *arguments, "--format", "html")[1]
    assert "the loss rose" not in said(capsys, *arguments[:-1], f"{net}:narrow")[1]


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "--explain", "NK202")
    assert code == 0
    assert out.startswith(
        "NK202 (warning or error; --fix repairs it)\n\nRunning statistics are not those of the data."
    )
    assert "## Fix safety" in out


def test_names_cannot_write_to_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.ModuleDict({"[red]\x1b[31m": nn.BatchNorm1d(3)})
    model["[red]\x1b[31m"].running_var[0] = -1
    torch.save(model.state_dict(), tmp_path / "last.pt")
    code, out, _ = said(capsys, tmp_path / "last.pt")
    assert code == 1
    assert r"[red]\x1b[31m: of 3 channels" in out
    assert "\x1b" not in out


def test_a_checkpoint_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).half()
    torch.save(model.state_dict(), tmp_path / "last.pt")
    before = (tmp_path / "last.pt").read_bytes()
    code, out, _ = said(capsys, tmp_path / "last.pt", "--fix")
    assert code == 0, out
    assert (tmp_path / "last.pt").read_bytes() == before
    fixed = torch.load(tmp_path / "last.fixed.pt", weights_only=True)
    assert set(fixed) == set(model.state_dict())
    assert fixed["1.running_var"].dtype == torch.float32
    assert fixed["0.weight"].equal(model[0].weight)
    code, _, err = said(capsys, tmp_path / "last.pt", "--fix")
    assert code == 2
    assert "last.fixed.pt is there already" in err


def test_fix_writes_new_weights_that_are_well(
    net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = said(
        capsys, f"{net}:shifted", "--data", f"{net}:loader", "--fix", "-o", tmp_path / "new.safetensors"
    )
    assert code == 0, out
    assert re.search(r"loss in evaluation mode: \S+ before, \S+ after", out)
    code, out, _ = said(
        capsys, f"{net}:build", "--weights", tmp_path / "new.safetensors", "--data", f"{net}:loader"
    )
    assert code == 0, out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["NET:needs"], "NET:needs must take no arguments, but needs arguments..."),
        (["NET:nothing"], "NET:nothing must be a module or a function that returns one, got nothing"),
        (["NET:broken"], "NET:broken() raised: ZeroDivisionError: no model"),
        (["NET:leave"], "NET:leave() raised: SystemExit: 3"),
        (["nowhere.py:net"], "nowhere.py:net: there is no file nowhere.py"),
        (["NET:build", "--data", "NET:strange"], "...a batch is a tensor...got a object..."),
        (["NET:build", "--data", "NET:empty"], "batches must hold one batch or more, got none"),
        (
            ["NET:ruined", "--data", "NET:loader"],
            "the model fails on batch 1: RuntimeError: mat1 and mat2...",
        ),
        (
            ["NET:build", "--data", "NET:loader", "--loss", "cross"],
            "--loss must be a function of..., got 'cross'",
        ),
        (
            ["NET:build", "--data", "NET:loader", "--loss", "ctc_loss"],
            "the loss fails on batch 1: TypeError: ...",
        ),
        (["NET:build", "--optimizer", "NET:nothing"], "NET:nothing(model) raised: TypeError: ..."),
        (["NET:build", "--format", "xml"], "unknown format 'xml': choose from text, json, html, sarif..."),
        (["NET:build", "--select", "NK9"], "unknown code 'NK9': choose from NK101..."),
        (["NET:build", "--batches", "0"], "--batches must be 1 or more, got 0"),
        (["NET:build", "-o", "new.pt"], "-o is for the weights that --fix writes: give --fix too"),
        (["NET:build", "--loss", "mse_loss"], "--loss is taken on batches: give --data too"),
        (
            ["last.pt", "--data", "NET:loader"],
            "--data needs the model: name it, and give last.pt as --weights",
        ),
        (
            ["NET:build", "--data", "NET:loader", "--forward", "NET:sgd"],
            "--forward must be a function of model and batch, got NET:sgd(model): def forward(model, batch)",
        ),
        (["NET:build", "--forward", "NET:step"], "--forward is taken on batches: give --data too"),
        (
            ["NET:build", "--reference", "NET:headless"],
            "reference must be a model that this one is a copy of, and...",
        ),
        (["NET:build", "--report", "a.pdf"], "a report ends in .html, .json, .sarif, .txt, got a.pdf"),
        (
            ["NET:build", "--report", "no/folder/a.html"],
            "no/folder/a.html must be a file in a folder that exists",
        ),
        (["PKL"], "PKL is a file of a kind that is refused: a pickle can run code..."),
        (["PKL", "--fix"], "PKL is a file of a kind that is refused: a pickle can run code..."),
        (["--explain", "NK000"], "unknown code 'NK000': choose from NK101..."),
        ([], "doctor needs a model to look at: ..."),
    ],
)
def test_bad_input_gets_a_line(
    net: Path, arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pickled = net.with_name("net.pkl")
    pickled.write_bytes(pickle.dumps({"model": 1}))

    def named(text: str) -> str:
        return text.replace("NET", str(net)).replace("PKL", str(pickled))

    code, out, err = said(capsys, *map(named, arguments))
    assert (code, out) == (2, "")
    pattern = re.escape(named(line)).replace(re.escape("..."), ".*")
    assert re.fullmatch(f"normkit: {pattern}\n", err), err


def test_a_pickle_that_needs_more_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(nn.BatchNorm1d(3), tmp_path / "whole.pt")
    code, _, err = said(capsys, tmp_path / "whole.pt")
    assert code == 2
    assert "it could run code" in err


def test_verbose_shows_where_it_comes_from(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = said(capsys, f"{net}:broken", "--verbose")
    assert code == 2
    assert "Traceback" in err
    assert "in broken" in err
    assert err.splitlines()[-1].startswith("normkit: ")
