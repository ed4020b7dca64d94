"""Which part of a batch is the target: of mappings by its name, of models that take it by the loss that they give."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normkit as nk
from normkit.cli import run
from normkit.doctor.batches import usual_loss
from normkit.doctor.diagnosis import Diagnosis
from normkit.errors import InputError

U = 2.0**-24  # the unit roundoff of float32


class Classifier(nn.Module):
    """Takes its input by name; what else a batch has does not concern it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def scores(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)).relu())

    def forward(self, image: Tensor) -> Any:
        return self.scores(image)


class Output(OrderedDict[str, Any]):
    """As Hugging Face's: a dict, whose entries are attributes too."""

    loss = property(lambda self: self["loss"])
    logits = property(lambda self: self["logits"])


class TakesLabels(Classifier):
    """Gives its loss with its scores, where it gets labels."""

    def forward(self, input_values: Tensor, labels: Tensor | None = None) -> Output:
        scores = self.scores(input_values)
        loss = {} if labels is None else {"loss": 3 * F.cross_entropy(scores, labels)}
        return Output(**loss, logits=scores)


@dataclass
class Given:
    """The same without being a dict."""

    loss: Tensor | None
    logits: Tensor


class GivesDataclass(TakesLabels):
    def forward(self, input_values: Tensor, labels: Tensor | None = None) -> Any:
        return Given(**{"loss": None, **super().forward(input_values, labels)})


class Teaches(Classifier):
    """Takes the target as an input, and another one is for the loss."""

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        return self.scores(image + target[:, None])


def trained(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    for _ in range(40):
        model.norm(model.first(torch.randn(64, 4)))  # pyright: ignore
    return model


def data() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(32, 4, generator=generator), torch.randint(3, (32,), generator=generator))
        for _ in range(3)
    ]


def loss_of(diagnosis: Diagnosis) -> float | None:
    """The mean loss in evaluation mode."""
    seen = diagnosis.readings.run
    assert seen is not None
    assert seen.gap is not None
    return seen.gap.loss_evaluated


def expected(model: Classifier, factor: float = 1.0) -> float:
    model.eval()
    with torch.no_grad():
        scores = [(model.double().scores(x.double()), y) for x, y in data()]
    model.float().train()
    return factor * sum(F.cross_entropy(s, y).item() for s, y in scores) / len(scores)


NAMED = {
    "labels": lambda x, y: {"labels": y, "image": x},
    "label": lambda x, y: {"image": x, "label": y, "path": ["a.png"] * len(x)},
    "target": lambda x, y: {"image": x, "target": y},
    "targets": lambda x, y: {"image": x, "targets": y},
    "y": lambda x, y: {"y": y, "image": x},
    "a pair": lambda x, y: ({"image": x}, y),
}


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("loss", [usual_loss, F.cross_entropy])
def test_the_target_of_a_mapping(name: str, loss: Callable[..., Any]) -> None:
    model = trained(Classifier())
    found = loss_of(nk.diagnose(model, [NAMED[name](x, y) for x, y in data()], loss))
    assert found == pytest.approx(expected(model), rel=64 * U)  # three layers of 4 to 8 products, a softmax


@pytest.mark.parametrize("kind", [TakesLabels, GivesDataclass])
def test_a_model_that_takes_labels_gives_the_loss(kind: type[TakesLabels]) -> None:
    """Its own, thrice the usual one; and the output that both modes are compared by is the scores."""
    model = trained(kind())
    batches = [{"input_values": x, "labels": y} for x, y in data()]
    diagnosis = nk.diagnose(model, batches, usual_loss)
    assert loss_of(diagnosis) == pytest.approx(expected(model, 3.0), rel=64 * U)
    assert loss_of(nk.diagnose(model, batches, lambda output, _: output.loss / 3)) == pytest.approx(
        expected(model), rel=64 * U
    )
    apart = nk.diagnose(trained(Classifier()), [x for x, _ in data()]).readings.run
    assert diagnosis.readings.run is not None
    assert diagnosis.readings.run.gap is not None
    assert apart is not None
    assert apart.gap is not None
    assert diagnosis.readings.run.gap.output == pytest.approx(
        apart.gap.output, rel=1e-6
    )  # the same sums in float64


def test_what_the_model_takes_is_the_target_last() -> None:
    """Of two names, that which is not an input; of one that is an input, that one."""
    model = trained(Teaches())
    shifts = [torch.zeros(32) for _ in data()]
    seen: list[Any] = []

    def loss(output: Tensor, target: Any) -> Tensor:
        seen.append(target)
        return output.square().mean()

    both = [{"image": x, "target": zero, "label": y} for (x, y), zero in zip(data(), shifts, strict=True)]
    nk.diagnose(model, both, loss)
    assert all(target.dtype == torch.int64 for target in seen)
    seen.clear()
    nk.diagnose(
        model, [{"image": x, "target": zero} for (x, _), zero in zip(data(), shifts, strict=True)], loss
    )
    assert all(target.equal(shifts[0]) for target in seen)


def test_a_loss_without_target_needs_none() -> None:
    batches = [{"image": x, "mask": x > 0} for x, _ in data()]
    model = trained(Classifier())
    assert loss_of(nk.diagnose(model, batches, lambda output, target: output.square().mean())) is not None
    assert loss_of(nk.diagnose(model, batches, usual_loss)) is None


def test_a_target_that_cannot_be_told_is_a_line() -> None:
    model = trained(Classifier())
    with pytest.raises(InputError) as caught:
        nk.diagnose(model, [{"image": x, "mask": y, "id\n": y} for x, y in data()], F.cross_entropy)
    assert str(caught.value).startswith("the loss fails without a target (TypeError: cross_entropy")
    assert str(caught.value).endswith(
        "has it as labels, label, targets, target, y, got mask, id\\n beside what forward takes: rename it, or give "
        "batches of (inputs, target)"
    )
    with pytest.raises(InputError, match="got nothing beside what forward takes"):
        nk.diagnose(model, [{"image": x} for x, _ in data()], F.cross_entropy)


def test_one_batch_alone_is_refused() -> None:
    x, y = data()[0]
    for one in ({"image": x, "label": y}, x):
        with pytest.raises(InputError, match=r"^batches must be several, .* put it in a list$"):
            nk.diagnose(trained(Classifier()), one)


FILE = """
import torch
from torch import nn
from test_targets_of_batches import Classifier, TakesLabels, data, trained

def build(): return trained(Classifier())
def takes(): return trained(TakesLabels())
def loader(): return [{"image": x, "label": y} for x, y in data()]
def labelled(): return [{"input_values": x, "labels": y} for x, y in data()]
def masked(): return [{"image": x, "mask": y} for x, y in data()]
"""


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A loss of torch's gets the scores, whatever holds them."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    net = tmp_path / "net_of_targets.py"
    net.write_text(FILE)
    for model, data_, more in (
        ("build", "loader", []),
        ("takes", "labelled", []),
        ("takes", "labelled", ["--loss", "cross_entropy"]),
    ):
        code = run(["doctor", f"{net}:{model}", "--data", f"{net}:{data_}", "--fix", *more])
        out, err = capsys.readouterr()
        assert (code < 2, err) == (True, "")
        assert "loss in evaluation mode: " in out
    assert run(["doctor", f"{net}:build", "--data", f"{net}:masked", "--loss", "cross_entropy"]) == 2
    assert capsys.readouterr().err.startswith("normkit: the loss fails without a target (TypeError: ")
