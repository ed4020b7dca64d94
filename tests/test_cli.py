from __future__ import annotations

import json
import os
import pty
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import typer.main

from normkit.cli import app, run
from normkit.lab.compare import compare
from normkit.lab.grid import Grid
from normkit.lab.models import MODELS, NORMS, PLACEMENTS
from normkit.lab.records import Epoch, Settings
from normkit.lab.scaling import SCALINGS
from normkit.lab.train import OPTIMIZERS

SURFACE = Path(__file__).parent / "surface" / "cli.txt"
SMALL = ["compare", "--model", "mlp", "--norms", "none,batch", "--epochs", "2", "--seeds", "2"]


def start(*arguments: str, **more: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "normkit", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def complete(*arguments: str) -> tuple[int | None, str, str]:
    process = start(*arguments)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


# What it offers


def options(name: str, command: object) -> list[str]:
    lines = [name]
    for option in command.params:
        default = option.default if isinstance(option.show_default, bool) else f"({option.show_default})"
        lines.append(f"  {', '.join(option.opts)} = {default}")
    return lines


def surface() -> str:
    """Every command and option with its default, a line each."""
    lines = []
    for name, command in typer.main.get_command(app).commands.items():
        lines += options(name, command)
        for sub, subcommand in getattr(command, "commands", {}).items():
            lines += options(f"{name} {sub}", subcommand)
    return "\n".join(lines) + "\n"


def test_options_are_the_reviewed_ones() -> None:
    """After a wanted change: `python tests/test_cli.py` writes the file; review its diff."""
    assert surface() == SURFACE.read_text()


def test_help_names_every_choice(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # no name is broken over lines
    assert run(["compare", "--help"]) == 0
    words = set(re.findall(r"[\w-]+", capsys.readouterr().out))
    assert words >= {*MODELS, *NORMS, *PLACEMENTS, *SCALINGS, *OPTIMIZERS, "cifar10", "fashion-mnist"}


def test_no_command_gives_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    out = capsys.readouterr().out
    assert "compare" in out
    assert "env" in out


def test_help_loads_nothing_heavy() -> None:
    """Beyond what `import normkit` loads, which another test keeps to torch and NumPy."""
    code = (
        "import sys, json, normkit; before = set(sys.modules); from normkit.cli import run;"
        "run(['--help']); run(['compare', '--help']);"
        "print(json.dumps(sorted({m.split('.')[0] for m in set(sys.modules) - before})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert loaded.isdisjoint({"torch", "matplotlib", "sklearn", "scipy", "jinja2", "safetensors", "sqlite3"})


def test_env_prints_the_facts(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["env"]) == 0
    assert re.search(r"^kernels +\S", capsys.readouterr().out, flags=re.MULTILINE)


# Bad input: one line, exit code 2, nothing written


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--norms", "bacth"], "unknown norm 'bacth': choose from none, batch, ...; did you mean 'batch'?"),
        (["--norms", "none,layre"], "unknown norm 'layre': ...; did you mean 'layer'?"),
        (
            ["--model", "cn"],
            "unknown model 'cn': choose from mlp, cnn, sigmoid, residual, lstm; did you mean 'cnn'?",
        ),
        (["--model", "mlp", "--norms", "instance"], "norm 'instance' needs ..."),
        (["--norms", "none,recurrent"], "norm 'recurrent' needs time steps, ... use --model lstm, ..."),
        (
            ["--norms", "none,conditional"],
            "norm 'conditional' needs the class of each sample, ... nk.Conditional ...",
        ),
        (
            ["--norms", "domain"],
            "norm 'domain' needs to know which domain each batch is from, ... nk.domain ...",
        ),
        (
            ["--model", "lstm", "--norms", "none,ghost"],
            "norm 'ghost' has no place in model 'lstm': choose from ...",
        ),
        (
            ["--model", "lstm", "--placement", "post"],
            "model 'lstm' has its norms before the gates, got placement 'post': use placement 'pre'",
        ),
        (["--data", "digit"], "unknown data set 'digit': ...; did you mean 'digits'?"),
        (["--data", "nowhere.npz"], "nowhere.npz: no such file"),
        (["--placement", "before"], "unknown placement 'before': choose from pre, post"),
        (["--input-scaling", "standart"], "unknown input scaling 'standart': ...; did you mean 'standard'?"),
        (["--optimizer", "adamw"], "unknown optimizer 'adamw': ...; did you mean 'adam'?"),
        (["--batch-size", "0"], "--batch-size must be 1 or more, got 0"),
        (["--batch-size", "1"], "--batch-size must be 2 to 1438, the training samples of digits, got 1"),
        (
            ["--batch-size", "5000"],
            "--batch-size must be 2 to 1438, the training samples of digits, got 5000",
        ),
        (["--lr", "0"], "--lr must be above 0 and finite, got 0"),
        (["--lr", "0.1,-1"], "--lr must be above 0 and finite, got -1"),
        (["--lr", "nan"], "--lr must be above 0 and finite, got nan"),
        (["--lr", "high"], "--lr must be numbers with commas between them, got 'high'"),
        (["--lr", ","], "--lr needs one learning rate or several, got none"),
        (["--epochs", "0"], "--epochs must be 1 or more, got 0"),
        (["--seeds", "0"], "--seeds must be 1 or more, got 0"),
        (["--threads", "0"], "--threads must be 1 or more, got 0"),
        (["--dropout", "1"], "--dropout must be 0 or more and below 1, got 1"),
        (["--weight-decay", "-1"], "--weight-decay must be 0 or more and finite, got -1"),
        (["--target", "2"], "--target must be above 0 and at most 1, got 2"),
        (["--target", "0.1"], "--target must be above chance, 0.103 here, got 0.1"),
        (["--device", "tpu"], "--device tpu is not available ...: use cpu"),
        (["--device", "meta"], "--device must be cpu or cuda, got meta"),
        (["--workers", "0"], "--workers must be 1 or more, got 0"),
        (
            ["--workers", "2", "--ray", "here:1"],
            "--workers are processes of this machine, --ray has its own: ...",
        ),
        (
            ["--workers", "2", "--device", "cuda"],
            "--workers trains on the cores of CPUs, got --device cuda: use --device cpu, or leave --workers out",
        ),
        (
            ["--ray", "here:1", "--device", "cuda"],
            "--ray trains on the cores of CPUs, got --device cuda: use --device cpu, or leave --ray out",
        ),
        (["--ray", "here"], "--ray must be HOST:PORT of the cluster's head, got 'here'"),
        (["--ray", "127.0.0.1:1"], "--ray 127.0.0.1:1: no answer (...): is `ray start --head` up there?"),
        (["--epochs", "many"], "Invalid value for '--epochs': ..."),
        (["--epoch", "1"], "No such option: --epoch..."),
    ],
)
def test_bad_input_gets_a_line(
    arguments: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compare", "--out", str(tmp_path / "out"), *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    pattern = re.escape(line).replace(re.escape("..."), ".*")
    assert re.fullmatch(f"normkit: {pattern}\n", said.err), said.err
    assert not (tmp_path / "out").exists()


def test_unknown_command_gets_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compaer"]) == 2
    assert re.fullmatch(r"normkit: No such command 'compaer'.*\n", capsys.readouterr().err)


@pytest.mark.parametrize("damage", ["truncated", "NaN", "labels"])
def test_bad_file_gets_a_line(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "data.npz", tmp_path / "out"
    x = np.ones((20, 3))
    x[7, 1] = np.nan if damage == "NaN" else 0
    np.savez(file, x=x, y=np.arange(19 if damage == "labels" else 20) % 2)
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:200])
    assert (
        run(["compare", "--data", str(file), "--model", "mlp", "--batch-size", "4", "--out", str(out)]) == 2
    )
    assert re.fullmatch(rf"normkit: {re.escape(str(file))}: .+\n", capsys.readouterr().err)
    assert not out.exists()


def unwritable(tmp_path: Path) -> Path:
    """A folder that even root cannot write where there is one, else one without permission."""
    if os.geteuid() == 0:
        return Path("/proc/sys")
    tmp_path.chmod(0o500)
    return tmp_path


def test_unwritable_out_gets_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("kept")
    for out in (tmp_path / "file", tmp_path / "file" / "below", unwritable(tmp_path) / "out"):
        assert run([*SMALL, "--out", str(out)]) == 2
        assert re.fullmatch(r"normkit: .+\n", capsys.readouterr().err)
    assert (tmp_path / "file").read_text() == "kept"


def test_a_newer_store_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(sqlite3.connect(tmp_path / "runs.sqlite")) as store:
        store.execute("PRAGMA user_version = 1000")
    (tmp_path / "report.html").write_text("older")
    before = (tmp_path / "runs.sqlite").read_bytes()
    assert run([*SMALL, "--out", str(tmp_path)]) == 2
    assert re.fullmatch(r"normkit: .+runs\.sqlite.+newer.+\n", capsys.readouterr().err)
    assert (tmp_path / "runs.sqlite").read_bytes() == before
    assert (tmp_path / "report.html").read_text() == "older"


# What it does


def test_compare_shows_a_table_and_a_sentence_and_writes_the_report(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    code, shown, said = complete(*SMALL, "--out", str(out))
    assert (code, said) == (0, "")  # quiet where there is no terminal
    assert [line.split()[0] for line in shown.splitlines() if re.match(r" (norm|none|batch) ", line)] == [
        "norm", "none", "batch",
    ]  # fmt: skip
    (sentence,) = [
        line for line in shown.splitlines() if line.startswith("On digits (mlp, lr 0.003, 2 seeds)")
    ]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert sentence in page
    assert shown.endswith(f"Report: {out / 'report.html'}\n")
    # The command on the page, run as it stands, has every run already and comes to the same page.
    (command,) = re.findall(r"<pre>normkit (.*?)</pre>", page)
    assert complete(*shlex.split(command)) == (0, shown, "")
    assert (out / "report.html").read_text(encoding="utf-8") == page


def test_command_spells_out_every_option(tmp_path: Path) -> None:
    words = shlex.split(Grid(norms=("none", "batch"), target=0.5).command(tmp_path / "a b"))
    given = dict(zip(words[2::2], words[3::2], strict=True))
    options = {option.opts[0] for option in typer.main.get_command(app).commands["compare"].params}
    # The same answer, for other readers and by other processes.
    assert set(given) == options - {"--export", "--tensorboard", "--workers", "--ray"}
    assert (given["--norms"], given["--out"]) == ("none,batch", str(tmp_path / "a b"))


def test_learning_rates_are_given_with_commas_or_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for rates in (["--lr", "0.01,0.02"], ["--lr", "0.01", "--lr", "0.02"]):
        assert run([*SMALL, "--epochs", "1", *rates, "--out", str(tmp_path)]) == 0
        assert "each at its best of 2 learning rates" in capsys.readouterr().out


def test_diverged_runs_are_told_and_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*SMALL, "--lr", "1e20", "--optimizer", "sgd", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "2 of 2" in shown
    assert "Every run diverged" in shown
    assert "Every run diverged" in (tmp_path / "report.html").read_text(encoding="utf-8")


def wait_for_a_state(store: Path, deadline: float = 60.0) -> None:
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        if any((store.parent / "states").glob("*.safetensors")):
            return
        time.sleep(0.01)
    raise AssertionError(f"no state beside {store} after {deadline} s")


def test_interrupted_it_says_so_and_goes_on(tmp_path: Path) -> None:
    arguments = [*SMALL, "--epochs", "60", "--seeds", "1", "--out", str(tmp_path)]
    process = start(*arguments)
    wait_for_a_state(tmp_path / "runs.sqlite")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err == "normkit: interrupted; all but the last second is kept, the same command goes on\n"
    assert not (tmp_path / "report.html").exists()
    code, shown, said = complete(*arguments)
    assert (code, said) == (0, "")
    assert "Report: " in shown


def test_a_warning_is_a_line_like_every_other(tmp_path: Path) -> None:
    """A state that was lost costs time, and the user is told."""

    def stop_where_there_is_a_state(done: int, settings: Settings, epoch: Epoch | None) -> None:
        if [*tmp_path.glob("states/*")]:
            raise KeyboardInterrupt

    grid = Grid(model="mlp", norms=("none", "batch"), epochs=60, seeds=1)
    with pytest.raises(KeyboardInterrupt):
        compare(grid, tmp_path, stop_where_there_is_a_state)
    (state,) = (tmp_path / "states").iterdir()
    state.unlink()
    code, shown, said = complete(*SMALL, "--epochs", "60", "--seeds", "1", "--out", str(tmp_path))
    assert (code, said) == (0, f"normkit: {state} is lost or damaged: its run begins again\n")
    assert "Report: " in shown


def test_progress_is_shown_on_a_terminal(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    seen = bytearray()

    def read() -> None:
        try:
            while part := os.read(ours, 4096):
                seen.extend(part)
        except OSError:  # the other end is closed: Linux's end of file
            pass

    process = subprocess.Popen(
        [sys.executable, "-m", "normkit", *SMALL, "--epochs", "5", "--out", str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(theirs)
    reader = threading.Thread(target=read)
    reader.start()
    assert process.wait(timeout=120) == 0
    reader.join(timeout=10)
    os.close(ours)
    text = re.sub(r"\x1b\[[\d;?]*\w", "", seen.decode())
    assert re.search(r"seed [12]/2 +(none|batch) +lr 0\.003 +\d+\.\d% .* \d+/20 +epochs", text), text


if __name__ == "__main__":
    SURFACE.write_text(surface())
