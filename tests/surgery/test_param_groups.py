"""Every parameter stands in one group, and decay reaches what it should, in real optimizers too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.errors import InputError


class ForeignRMSNorm(nn.Module):
    """A norm as models bring them along."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x * x.square().mean(-1, keepdim=True).rsqrt()


class Vector(nn.Module):
    """A vector that is no norm's."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.ones(4))


def names(model: nn.Module, weight_decay: float = 0.1) -> tuple[set[str], set[str]]:
    """The parameters with decay and without."""
    of = {p: name for name, p in model.named_parameters()}
    found: dict[float, set[str]] = {weight_decay: set(), 0.0: set()}
    for group in nk.param_groups(model, weight_decay):
        found[group["weight_decay"]] |= {of[p] for p in group["params"]}
    return found[weight_decay], found[0.0]


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm1d(4), nk.BatchNorm1d(4), nn.LayerNorm([2, 4]), nk.LayerNorm([2, 4]), nn.GroupNorm(2, 4),
        nn.InstanceNorm1d(4, affine=True), nn.RMSNorm(4), nk.RMSNorm(4), nk.GroupNorm(2, 4), nn.SyncBatchNorm(4),
        nk.SwitchNorm1d(4), nk.BatchInstanceNorm1d(4), nk.VirtualBatchNorm1d(4), nk.FilterResponseNorm(4),
        nk.DynamicTanh(4), nk.RecurrentBatchNorm(4, 3), nk.AdaptiveBatchNorm1d(4), nk.BatchRenorm1d(4),
        nk.Conditional(nk.BatchNorm1d(4, affine=False), 3), ForeignRMSNorm(4), nk.freeze(nn.BatchNorm1d(4)),
    ],
    ids=lambda norm: type(norm).__name__,
)  # fmt: skip
def test_norms_do_not_decay(norm: nn.Module) -> None:
    assert names(norm) == (set(), {name for name, _ in norm.named_parameters()})


def test_other_modules() -> None:
    model = nn.ModuleDict(
        {
            "linear": nn.Linear(4, 4),
            "attention": nn.MultiheadAttention(4, 2, add_bias_kv=True),
            "lstm": nn.LSTM(4, 4),
            "cell": nk.BatchNormLSTMCell(4, 4, max_length=2),
            "normed": nk.weight_norm(nn.Linear(4, 4)),
            "spectral": nk.spectral_norm(nn.Linear(4, 4), name="weight"),
            "embedding": nn.Embedding(3, 4),
            "vector": Vector(),
            "prelu": nn.PReLU(4),
        }
    )
    decayed, plain = names(model)
    assert {name for name in plain if "bias" not in name} == {
        name
        for name, _ in model["cell"].named_parameters(prefix="cell")
        if "norm" in name and "bias" not in name
    }
    assert not any("bias" in name for name in decayed)
    assert {
        "vector.query",
        "prelu.weight",
        "embedding.weight",
        "linear.weight",
        "lstm.weight_hh_l0",
    } <= decayed
    assert {
        "attention.in_proj_bias",
        "attention.bias_k",
        "attention.out_proj.bias",
        "lstm.bias_ih_l0",
    } <= plain


def test_parametrized_bias() -> None:
    layer = nn.Linear(4, 4)
    nn.utils.parametrize.register_parametrization(layer, "bias", nn.Identity())
    assert names(layer) == ({"weight"}, {"parametrizations.bias.original"})


def test_shared_parameters_are_there_once() -> None:
    norm, linear = nn.LayerNorm(4), nn.Linear(4, 4)
    model = nn.Sequential(norm, linear, nn.Linear(4, 4), norm, linear, nn.LayerNorm(4))
    model[2].weight = linear.weight  # tied
    model[5].weight = model[2].bias  # a bias here and a norm's there
    groups = nk.param_groups(model, 0.1)
    found = [p for group in groups for p in group["params"]]
    assert len(found) == len(set(found)) == len(list(model.parameters()))
    assert [len(group["params"]) for group in groups] == [1, len(found) - 1]


@pytest.mark.parametrize(
    "optimizer",
    [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad, torch.optim.RMSprop,
     torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adadelta, torch.optim.Adamax],
)  # fmt: skip
def test_optimizers_take_them(optimizer: type[torch.optim.Optimizer]) -> None:
    """Where gradients are zero, decay alone moves parameters."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    for parameter in model.parameters():
        parameter.data.fill_(1.0)
        parameter.grad = torch.zeros_like(parameter)
    optimizer(nk.param_groups(model, 0.1), lr=0.1).step()
    moved = {name for name, p in model.named_parameters() if not p.eq(1).all()}
    assert moved == {"0.weight", "2.weight"}


def test_groups_that_would_be_empty() -> None:
    assert [group["weight_decay"] for group in nk.param_groups(nn.LayerNorm(3), 0.1)] == [0.0]
    assert nk.param_groups(nn.ReLU(), 0.1) == []


@pytest.mark.parametrize("weight_decay", [-0.1, float("nan"), float("inf")])
def test_bad_decay(weight_decay: float) -> None:
    with pytest.raises(InputError, match="weight_decay must be 0 or more and finite"):
        nk.param_groups(nn.Linear(2, 2), weight_decay)
