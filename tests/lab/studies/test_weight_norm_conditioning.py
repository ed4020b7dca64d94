"""C16: the condition against closed forms and finite differences, the verdict on made results, a real run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from made_results import conclude, measured_twice
from torch import nn
from torch.nn import functional as F

import normkit as nk
from normkit.lab.studies.curvature import condition, gauss_newton_root
from normkit.lab.studies.weight_norm_conditioning import STUDY


def test_a_linear_network_has_its_hessian_for_gauss_newton() -> None:
    """Logits that are linear in the weights leave nothing else in the Hessian of the loss."""
    torch.manual_seed(0)
    net, x, y = nn.Linear(3, 4, bias=False).double(), torch.randn(6, 3).double(), torch.randint(4, (6,))

    def loss(weight: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(x @ weight.view(4, 3).T, y)

    root = gauss_newton_root(net, x)
    hessian = torch.autograd.functional.hessian(loss, net.weight.detach().flatten())
    torch.testing.assert_close(root.T @ root, hessian, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("norm", ["none", "weight_norm"])
def test_gauss_newton_of_a_deeper_network_by_finite_differences(norm: str) -> None:
    """Its root times a direction: how the logits move along it, weighted by the probabilities."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double(), torch.randn(6, 3).double()
    if norm == "weight_norm":
        nk.weight_norm(net[0])
    parameters = list(net.parameters())
    direction = [torch.randn_like(p) for p in parameters]
    along = torch.cat([d.flatten() for d in direction])
    step = 1e-5
    with torch.no_grad():
        p = net(x).softmax(1)
        moved = []
        for sign in (1, -2):
            for parameter, d in zip(parameters, direction, strict=True):
                parameter += sign * step * d
            moved.append(net(x))
        for parameter, d in zip(parameters, direction, strict=True):
            parameter += step * d
        change = (moved[0] - moved[1]) / (2 * step)
        expected = (p * change.square()).sum(1) - (p * change).sum(1).square()
    curvature = (gauss_newton_root(net, x) @ along).square().sum()
    # Central differences: the third derivative times step², and rounding over step.
    torch.testing.assert_close(curvature, expected.mean(), rtol=1e-7, atol=1e-9)


def test_condition_of_scaled_inputs() -> None:
    """Logits 0 and inputs along axes of lengths a_i: G = diag(a²) / N, twice, of which half is flat; d by hand."""
    net = nn.Linear(3, 2, bias=False)
    nn.init.zeros_(net.weight)
    x = torch.diag(torch.tensor([1.0, 2.0, 4.0]))
    # Two equal probabilities: diag(p) - pp' has eigenvalues 1/2 and 0. So G has those of diag(1, 4, 16)/6.
    assert condition(net, x, dimensions=3) == pytest.approx(16 / (21 / 3), rel=1e-6)


def test_a_length_that_scales_a_direction_is_seen() -> None:
    """Weight norm of one filter: curvature along g is that along w, curvature across v is scaled by (g / |v|)²."""
    torch.manual_seed(0)
    plain = nn.Linear(2, 1, bias=False).double()
    normed = nn.Linear(2, 1, bias=False).double()
    head = nn.Linear(1, 2).double()
    normed.load_state_dict(plain.state_dict())
    nk.weight_norm(normed)
    x = torch.randn(5, 2).double()
    for parameter in head.parameters():
        parameter.requires_grad_(False)
    of_weights = gauss_newton_root(nn.Sequential(plain, head), x)
    of_both = gauss_newton_root(nn.Sequential(normed, head), x)
    g = plain.weight.detach()[0]
    unit = g / g.norm()
    across = torch.stack([-unit[1], unit[0]])
    columns = torch.stack([of_weights @ unit, of_weights @ across], 1).square().sum(0)
    names = [name for name, _ in normed.named_parameters()]
    found = of_both.square().sum(0)
    length = found[0] if names[0].endswith("original0") else found[-1]
    torch.testing.assert_close(length, columns[0], rtol=1e-10, atol=0)
    torch.testing.assert_close(found.sum() - length, columns[1], rtol=1e-10, atol=0)  # g = |v|: scaled by 1


def trainings(condition_ratio: float, loss_ratio: float) -> Any:
    def value(shared: float, norm: str, lr: float) -> dict[str, Any]:
        ratios = (condition_ratio, loss_ratio) if norm == "weight_norm" else (1.0, 1.0)
        loss = 0.5 * shared * ratios[1] * (1 if lr == 0.1 else 3)
        kappa = 100 * shared * ratios[0]
        return {"condition": kappa, "loss": loss, "conditions": [kappa] * 4, "losses": [loss] * 200}

    return value


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [((0.5, 0.7), "supported"), ((1.0, 0.7), "undecided"), ((2.0, 0.7), "contradicted")],
)
def test_verdict(ratios: tuple[float, float], verdict: str) -> None:
    finding = conclude(STUDY, trainings(*ratios))
    assert finding.verdict == verdict
    assert [effect.estimate.mean for effect in finding.effects] == pytest.approx(list(ratios), rel=0.02)


def test_measures_the_same_twice() -> None:
    measured = measured_twice(STUDY, norm="weight_norm", lr=0.1)
    assert len(measured["conditions"]) == 4
    assert min(measured["conditions"]) > 1
    assert measured["losses"][-1] < measured["losses"][0]
