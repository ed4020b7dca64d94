"""Running statistics of parts of the data merge into those of all of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.errors import InputError

PARTS = [torch.randn(n, 3, 4, generator=torch.Generator().manual_seed(n)).double() * n + n for n in (5, 2, 9)]


def client(x: Tensor) -> dict[str, Tensor]:
    """A model whose statistics are those of its data: it saw them in one batch."""
    model = nn.Sequential(
        nk.BatchNorm1d(3, momentum=None, dtype=torch.float64),
        nn.Flatten(),
        nn.BatchNorm1d(12, momentum=None, dtype=torch.float64),
    )
    model(x)
    return model.state_dict()


def first_layer(states: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    return [{key: value for key, value in state.items() if key.startswith("0.")} for state in states]


def test_merged_is_that_of_all_data() -> None:
    merged = nk.merge_statistics(first_layer([client(x) for x in PARTS]), [{"0": 4 * len(x)} for x in PARTS])
    whole = torch.cat(PARTS)
    # Some roundings of float64, at variances of up to 80.
    torch.testing.assert_close(merged["0.running_mean"], whole.mean((0, 2)), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(merged["0.running_var"], whole.var((0, 2)), rtol=1e-14, atol=0)
    assert merged["0.num_batches_tracked"] == 3


def test_one_number_serves_all_layers() -> None:
    states = [client(x) for x in PARTS]
    merged = nk.merge_statistics(states, [len(x) for x in PARTS])
    assert set(merged) == {
        f"{i}.{name}" for i in (0, 2) for name in ("running_mean", "running_var", "num_batches_tracked")
    }
    torch.testing.assert_close(
        merged["0.running_mean"], torch.cat(PARTS).mean((0, 2)), rtol=1e-14, atol=1e-14
    )


def test_without_counts_all_weigh_the_same() -> None:
    states = first_layer([client(x) for x in PARTS])
    merged = nk.merge_statistics(states)
    means, variances = (torch.stack([s[f"0.running_{k}"] for s in states]) for k in ("mean", "var"))
    torch.testing.assert_close(merged["0.running_mean"], means.mean(0))
    torch.testing.assert_close(merged["0.running_var"], variances.mean(0) + means.var(0, correction=0))


def test_domains_merge_apart() -> None:
    """Each client has seen another number of samples in each domain."""
    states, counts = [], []
    for x in PARTS:
        layer = nk.BatchNorm1d(3, momentum=None, dtype=torch.float64)
        layer(x)
        with nk.domain("photo"):
            layer(3 * x[1:] if len(x) > 2 else 3 * x)
        states.append(layer.state_dict())
        counts.append({"": 4 * len(x), "@photo": 4 * (len(x) - (len(x) > 2))})
    layer.load_state_dict(nk.merge_statistics(states, counts), strict=False)
    photos = torch.cat([3 * x[1:] if len(x) > 2 else 3 * x for x in PARTS])
    for name, data in (("", torch.cat(PARTS)), ("@photo", photos)):
        # Some roundings of float64, at variances of up to 9 times 80.
        torch.testing.assert_close(
            getattr(layer, f"running_mean{name}"), data.mean((0, 2)), rtol=1e-13, atol=0
        )
        torch.testing.assert_close(getattr(layer, f"running_var{name}"), data.var((0, 2)), rtol=1e-13, atol=0)
        assert getattr(layer, f"num_batches_tracked{name}") == 3


def test_a_domain_that_one_lacks_is_named() -> None:
    one, other = nk.BatchNorm1d(3), nk.BatchNorm1d(3)
    with nk.domain("photo"):
        one(PARTS[0].float())
    with pytest.raises(InputError, match=r"@photo is .* absent in another"):
        nk.merge_statistics([one.state_dict(), other.state_dict()])


def test_time_steps_keep_their_counts() -> None:
    layers = [nk.RecurrentBatchNorm(3, max_length=2) for _ in range(2)]
    for steps, layer in enumerate(layers, start=1):
        for step in range(steps):
            layer(PARTS[0].float(), step=step)
    merged = nk.merge_statistics([layer.state_dict() for layer in layers])
    assert merged["num_batches_tracked"].tolist() == [2, 1]
    layers[0].load_state_dict(merged, strict=False)


def test_it_loads() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).bfloat16()
    merged = nk.merge_statistics([model.state_dict(), model.state_dict()])
    assert merged["1.running_var"].dtype == torch.bfloat16
    missing, unexpected = model.load_state_dict(merged, strict=False)
    assert not unexpected
    assert "0.weight" in missing


@pytest.mark.parametrize(
    ("states", "counts", "message"),
    [
        ([], None, "one state_dict or more, got none"),
        ([nn.Linear(2, 2).state_dict()], None, "hold none"),
        (
            [nn.BatchNorm1d(2).state_dict(), nn.BatchNorm1d(3).state_dict()],
            None,
            r"of one model, but .* is \[\d\]",
        ),
        ([nn.BatchNorm1d(2).state_dict(), nn.Linear(2, 2).state_dict()], None, "absent in another"),
        ([nn.BatchNorm1d(2).state_dict()], [1, 2], "one for each state_dict, 1, got 2"),
        ([nn.BatchNorm1d(2).state_dict()], [1], "counts must be 2 or more, .* got 1"),
        ([nn.Sequential(nn.BatchNorm1d(2)).state_dict()], [{"bn": 4}], "lack '0'"),
    ],
)
def test_bad_input(states: list[dict[str, Tensor]], counts: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        nk.merge_statistics(states, counts)
