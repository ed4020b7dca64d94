"""`accelerate` computes what the model computed, in training too, and leaves all else of it as it was."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, BasicBlock, ResNet, Untraceable, batch, lived, network
from torch import Tensor, nn

import normkit as nk
from normkit.errors import InputError

every_network = pytest.mark.parametrize("name", NETWORKS)
U = torch.finfo(torch.float64).eps


def step(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, gradients and buffers of a training step."""
    model.train()
    y = model(x)
    y.square().sum().backward()
    return [y, *(p.grad for p in model.parameters()), *model.buffers()]


@every_network
def test_a_training_step_and_evaluation_stay(name: str) -> None:
    old, x = network(name), batch(name)
    new = copy.deepcopy(old)
    outcome = nk.accelerate(new, x)
    assert outcome.difference is not None
    # Sums of at most a few thousand terms, a few layers deep, with norms that divide by a deviation.
    tolerance = 1e5 * U
    torch.testing.assert_close(new.eval()(x), old.eval()(x), rtol=tolerance, atol=tolerance)
    expected = step(old, x)
    scale = max(
        float(value.detach().abs().max()) for value in expected
    )  # some gradients are 0 but for rounding
    for a, b in zip(step(new, x), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * scale)


@every_network
def test_everything_else_stays(name: str) -> None:
    model = network(name).train()
    model[1].eval() if isinstance(model, nn.Sequential) else next(model.children()).eval()
    next(model.parameters()).requires_grad_(requires_grad=False)
    before = dict(model.named_modules())
    flags = {key: module.training for key, module in before.items()}
    parameters, keys = dict(model.named_parameters()), list(model.state_dict())
    learns = [p.requires_grad for p in model.parameters()]
    nk.accelerate(model, batch(name))
    after = dict(model.named_modules())
    assert list(after) == list(before)
    assert all(after[key] is before[key] or isinstance(after[key], nn.Identity) for key in before)
    assert {key: module.training for key, module in after.items()} == flags
    assert all(p is parameters[key] for key, p in model.named_parameters())
    assert list(model.state_dict()) == keys
    assert [p.requires_grad for p in model.parameters()] == learns


@pytest.mark.parametrize(
    ("name", "fused"),
    [
        ("resnet", {"bn1": "relu", "layer1.0.bn1": "relu", "layer1.0.bn2": "residual and relu",
                    "layer1.1.bn1": "relu", "layer1.1.bn2": "residual and relu",
                    "layer2.0.bn1": "relu", "layer2.0.bn2": "residual and relu"}),
        ("mobilenet", {"1": "relu6", "3.conv.0.1": "relu6", "3.conv.1.1": "silu", "3.conv.3": "residual",
                       "4.conv.0.1": "relu6", "4.conv.1.1": "silu", "4.conv.3": "residual"}),
        ("densenet", {"1": "relu", "3.norm1": "relu", "3.norm2": "relu", "4.norm1": "relu", "4.norm2": "relu"}),
        ("unet", {"down.1": "leaky_relu", "bottom.1": "gelu", "up_norm": "tanh"}),
        ("vit", {}),
        ("rnn", {"norm": "sigmoid"}),
        ("regnet", {"f.0.1": "hardswish", "f.1.1": "residual and relu", "g.bn": "residual and relu"}),
        ("optional", {"stem.1": "relu6", "block.bn1": "relu", "block.bn2": "residual and relu"}),
    ],
)  # fmt: skip
def test_what_is_fused(name: str, fused: dict[str, str]) -> None:
    model = network(name)
    outcome = nk.accelerate(model, batch(name))
    assert {k: v.partition(" with ")[2] for k, v in outcome.done.items() if " with " in v} == fused
    assert all(type(model.get_submodule(key)).__module__.startswith("normkit.") for key in outcome.done)


def test_what_is_left_is_told() -> None:
    def pair() -> list[nn.Module]:
        return [nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)]

    model = nn.Sequential(*pair(), nn.Mish(), *pair(), nn.LeakyReLU(0.2), nn.Sequential(*pair()), nn.ReLU())
    model[6].register_forward_hook(lambda module, args, y: None)
    outcome = nk.accelerate(lived(model), torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)))
    assert outcome.left == {
        "1": "Mish is not one of our activations",
        "4": "LeakyReLU is not one of our activations",
        "6.1": "hooks see what is activated, so not fused",
    }
    assert nk.accelerate(network("regnet"), batch("regnet")).left == {}


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "regnet"])
def test_shapes_are_proved_without_an_example(name: str) -> None:
    """By the arguments of the layers: what is added has the shape of the norm, whatever the input's."""
    told = nk.accelerate(network(name), batch(name)).done
    assert nk.accelerate(network(name)).done == told


def test_sums_of_unknown_shapes_stay_without_an_example() -> None:
    class Pooled(nn.Module):
        def __init__(self, pool: nn.Module) -> None:
            super().__init__()
            self.pool, self.conv, self.norm = pool, nn.Conv2d(3, 3, 3, 2, 1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x)) + self.pool(x)

    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for pool in (nn.AvgPool2d(2), nn.AvgPool2d(2, ceil_mode=True), nn.AdaptiveAvgPool2d(4)):
        model = lived(Pooled(pool))  # of 8 rows each makes 4; of 7, the first makes 3
        assert nk.accelerate(model).left == {
            "norm": "whether the residual has its shape is not known: pass an example= to fuse it"
        }
        assert nk.accelerate(model, x).done == {"norm": "BatchNorm2d with residual"}
    same = nn.MaxPool2d(3, 2, 1)
    assert nk.accelerate(lived(Pooled(same))).done == {"norm": "BatchNorm2d with residual"}


def test_again_changes_nothing() -> None:
    model = network("resnet")
    nk.accelerate(model, batch("resnet"))
    kinds = [type(module) for module in model.modules()]
    assert nk.accelerate(model, batch("resnet")).done == {}
    assert [type(module) for module in model.modules()] == kinds


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"]
)
def test_residuals_that_are_handed_on_are_copied(duplicate: object) -> None:
    model, x = network("regnet"), batch("regnet")
    old = copy.deepcopy(model).eval()
    nk.accelerate(model, x)
    other = duplicate(model.eval())
    torch.testing.assert_close(other(x), old(x), rtol=1e5 * U, atol=1e5 * U)
    # By themselves the modules compute what they did, and show what they hold as before.
    torch.testing.assert_close(other.f(x), old.f(x), rtol=1e5 * U, atol=1e5 * U)
    torch.testing.assert_close(other.g(x), old.g(x), rtol=1e5 * U, atol=1e5 * U)
    assert isinstance(other.f, nn.Sequential)
    assert [type(m).__name__ for m in other.modules()][:7] == [type(m).__name__ for m in old.modules()][:7]
    assert repr(other.f[1]).replace("Conv", "").startswith("Sequential(")


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"]
)
def test_a_written_forward_is_copied(duplicate: object) -> None:
    model, x = network("resnet"), batch("resnet")
    nk.accelerate(model, x)
    other = duplicate(model)
    assert isinstance(other.layer1[0], BasicBlock)
    assert other.layer1[0].forward.__func__ is model.layer1[0].forward.__func__
    torch.nn.init.zeros_(model.layer1[0].bn2.weight)  # the copy has its own layers
    assert torch.equal(other.eval()(x), duplicate(other)(x))
    assert not torch.equal(other(x), model.eval()(x))


def test_an_optimizer_goes_on() -> None:
    model, x = network("resnet"), batch("resnet")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    nk.accelerate(model, x)
    before = model.bn1.weight.clone()
    model.train()(x).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model.bn1.weight, before)


@pytest.mark.parametrize("name", ["resnet", "regnet"])
def test_compiles_and_exports(name: str) -> None:
    model, x = network(name).eval(), batch(name)
    nk.accelerate(model, x)
    y = model(x)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), y)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), y)


def test_what_cannot_be_traced_is_converted_and_said() -> None:
    model = lived(Untraceable())
    outcome = nk.accelerate(model, torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)))
    assert outcome.done == {"norm": "BatchNorm2d"}
    assert outcome.left[""].startswith(
        "nothing is fused: torch.fx cannot follow its forward: symbolically traced"
    )
    assert type(model.norm) is nk.BatchNorm2d


def test_optional_arguments_are_followed_left_out_and_given() -> None:
    old, x = network("optional"), batch("optional")
    new = copy.deepcopy(old)
    outcome = nk.accelerate(new, x)
    assert outcome.done["bn"] == "BatchNorm2d"  # for it is returned where features is true
    assert outcome.left == {}
    scale = torch.rand(8, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for model in (old, new):
        model.eval()
    for given in ({}, {"scale": scale}, {"features": True}, {"scale": scale, "features": True}):
        torch.testing.assert_close(new(x, **given), old(x, **given), rtol=1e5 * U, atol=1e5 * U)
    assert nk.accelerate(network("optional"), {"x": x, "scale": scale}).done == outcome.done


def test_where_an_optional_argument_cannot_be_followed_blocks_are_fused() -> None:
    class Cut(ResNet):
        def forward(self, x: Tensor, to: int = 1) -> Tensor:
            x = F.relu(self.bn1(self.conv1(x)))
            for block in self.layer1[: int(to)]:
                x = block(x)
            return self.layer2(x)

    torch.manual_seed(0)
    old = lived(Cut()).double()
    new = copy.deepcopy(old)
    outcome = nk.accelerate(new)
    assert outcome.left[""].startswith("only what modules below it do is fused: torch.fx cannot follow")
    assert "where to is given" in outcome.left[""]
    assert (
        outcome.left["bn1"]
        == "not fused with what follows: its forward may do other things where to is given"
    )
    assert (
        outcome.done["layer1.0.bn2"] == outcome.done["layer2.0.bn2"] == "BatchNorm2d with residual and relu"
    )
    x = batch("resnet")
    for to in (0, 1, 2):
        torch.testing.assert_close(new.eval()(x, to), old.eval()(x, to), rtol=1e5 * U, atol=1e5 * U)


def test_any_number_of_arguments_is_not_guessed() -> None:
    class Any(ResNet):
        def forward(self, x: Tensor, **options: object) -> Tensor:
            return super().forward(x) if not options else self.bn1(self.conv1(x))

    assert "where options is given" in nk.accelerate(lived(Any())).left[""]

    class Locals(ResNet):
        def forward(self, x: Tensor, **options: object) -> Tensor:
            return super().forward(x) if len(locals()) < 9 and not eval("options") else x

    assert "where options is given" in nk.accelerate(lived(Locals())).left[""]

    class InACell(ResNet):
        def forward(self, x: Tensor, **options: object) -> Tensor:
            found = (lambda: options)()
            return super().forward(x) if not found else x

    assert "where options is given" in nk.accelerate(lived(InACell())).left[""]


def test_any_number_of_arguments_that_a_forward_ignores() -> None:
    """They are taken as before, by forwards that are written anew as well, and by those that hand something on."""

    class Ignores(BasicBlock):
        def forward(self, x: Tensor, *args: object, **options: object) -> Tensor:
            y = self.relu(self.bn1(self.conv1(x)))
            return self.bn2(self.conv2(y))

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.inner = nn.BatchNorm2d(8), Ignores(8, 8)

        def forward(self, x: Tensor, **options: object) -> Tensor:
            y = F.relu(self.norm(x))
            return torch.tanh(self.inner(y, 1, 2, anything=3) + y)

    torch.manual_seed(0)
    old = lived(Outer()).double()
    new, x = copy.deepcopy(old), torch.randn(6, 8, 5, 5, dtype=torch.float64)
    assert nk.accelerate(new).done == {
        "norm": "BatchNorm2d with relu",
        "inner.bn1": "BatchNorm2d with relu",
        "inner.bn2": "BatchNorm2d with residual and tanh",
    }
    torch.testing.assert_close(new.eval()(x, other=None), old.eval()(x), rtol=1e5 * U, atol=1e5 * U)
    torch.testing.assert_close(new.inner(x, 1, a=2), old.inner(x), rtol=1e5 * U, atol=1e5 * U)
    folded = nk.fold(new, (x,))
    assert folded.done == {"inner.bn1": "folded into inner.conv1", "inner.bn2": "folded into inner.conv2"}
    torch.testing.assert_close(new(x, other=None), old(x), rtol=1e5 * U, atol=1e5 * U)


def test_arguments_by_name_and_by_place() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            return {"out": torch.relu(self.norm(x) + y)}

    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for example in ((x, x), [x, x], {"y": x, "x": x}):
        assert nk.accelerate(lived(Two()), example).done == {"norm": "BatchNorm2d with residual and relu"}


def test_outputs_that_differ_restore_the_model() -> None:
    class Fickle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            return y if type(self.norm) is nn.BatchNorm1d else -y

    model = Fickle()
    outcome = nk.accelerate(model, torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
    assert type(model.norm) is nn.BatchNorm1d
    assert outcome.done == {}
    assert outcome.left["norm"].startswith(
        "outputs differed by 2.0e+00, more than 3.5e-04: all was taken back"
    )


def test_a_model_that_raises_is_as_it_was() -> None:
    model = network("resnet")
    with pytest.raises(RuntimeError, match="expected input"):
        nk.accelerate(model, torch.randn(2, 5, 8, 8, dtype=torch.float64))
    assert type(model.bn1) is nn.BatchNorm2d


def test_the_model_is_a_norm() -> None:
    layer = nn.LayerNorm(4)
    assert repr(nk.accelerate(layer)) == "accelerate: 1 changed, 0 left\n  (the model)  LayerNorm"
    assert type(layer) is nk.LayerNorm


@pytest.mark.parametrize("verb", [nk.accelerate, nk.fold, lambda model: nk.convert(model, "group")])
def test_a_compiled_model_and_what_is_none_are_refused(verb: Callable[[nn.Module], object]) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    with pytest.raises(InputError, match="got a compiled one"):
        verb(torch.compile(model))
    assert type(model[1]) is nn.BatchNorm1d
    with pytest.raises(InputError, match="got list"):
        verb([model])  # pyright: ignore[reportArgumentType]
