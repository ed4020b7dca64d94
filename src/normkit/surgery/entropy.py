"""Weights and biases of norms that learn from unlabelled data, by the entropy of a model's own predictions."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from normkit.errors import InputError

LIVELY = 0.9  # of the diversity that predictions have by the first weights and biases
SURE = 0.9  # the probability from which on the first weights and biases are sure of a class
FAITHFUL = 0.91  # of the samples that they are sure of, those that go on to be of that class
FEWEST = 10  # samples that say something about it
MEMORY = 0.9  # weight of the batches before, in the mean prediction and in these counts


class EntropyDescent:
    r"""Steps of Adam down the mean entropy of predictions, and a watch over what becomes of them.

    .. math:: L = - \frac{1}{N} \sum_n \sum_k p_{nk} \log p_{nk}

    The loss has trivial minima, in which every sample is of one class. There the mean prediction has little entropy,
    so that is compared with the one that the first weights and biases give on the same batches. On the way there, or
    to classes that are as many and mean something else, samples change their class of which these were sure, which
    those seldom do that are corrected; so these are counted.

    Wang et al., "Tent: Fully Test-Time Adaptation by Entropy Minimization", 2021.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], lr: float) -> None:
        if not parameters:
            raise InputError("minimize_entropy moves weights and biases of norms, and these have none")
        if not isinstance(lr, (int, float)) or not lr > 0:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(f"lr must be positive, got {lr!r}")
        self.parameters = list(parameters)
        self._first = [p.detach().clone() for p in self.parameters]
        self._optimizer = torch.optim.Adam(self.parameters, lr=lr)
        self.reference: object = None  # the output for the next batch, by the first parameters
        self._predicted: list[Tensor] = []  # sums (K) by the first parameters, and by the present ones
        self._sure, self._kept = (
            0.0,
            0.0,
        )  # samples that the first are sure of, and that are of the same class now
        self.entropies: list[tuple[float, float]] = []  # of each batch, by the same two

    def step(self, run: Callable[[], object]) -> None:
        """One step on a batch, which `run` takes through the model; `reference` must be the output as at first.

        Raises:
            InputError: an output that is not logits; predictions that have collapsed.
        """
        first = _log_predictions(self.reference)
        with torch.enable_grad():
            now = _log_predictions(run())
            loss = _mean_entropy(now)
            gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        self.entropies.append((_mean_entropy(first).item(), loss.item()))
        self._watch_diversity(first, now.detach())
        self._watch_classes(first, now.detach())
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        self._optimizer.step()

    def _watch_classes(self, first: Tensor, now: Tensor) -> None:
        highest, before = first.max(0)
        sure = highest.exp() > SURE
        self._sure = MEMORY * self._sure + sure.sum().item()
        self._kept = MEMORY * self._kept + (sure & (now.argmax(0) == before)).sum().item()
        if self._sure > FEWEST and not self._kept >= FAITHFUL * self._sure:
            raise InputError(
                f"predictions must stay what the model was sure of, but by batch {len(self.entropies)} "
                f"{1 - self._kept / self._sure:.0%} of these are other ones: take a smaller lr, larger batches, or no "
                "minimize_entropy"
            )

    def _watch_diversity(self, *log_predictions: Tensor) -> None:
        sums = [p.double().exp().sum(1) for p in log_predictions]
        known = self._predicted or [torch.zeros_like(total) for total in sums]
        self._predicted = [MEMORY * old + new for old, new in zip(known, sums, strict=True)]
        before, now = (torch.special.entr(p / p.sum()).sum().item() for p in self._predicted)
        if not now >= LIVELY * before:
            raise InputError(
                f"predictions must stay diverse, but by batch {len(self.entropies)} the entropy of their mean has "
                f"fallen from {before:.3g} to {now:.3g}: take a smaller lr, larger batches, or no minimize_entropy"
            )

    @contextmanager
    def as_at_first(self) -> Generator[None]:
        """The model with the weights and biases that it had at the beginning."""
        now = [p.data for p in self.parameters]
        for parameter, value in zip(self.parameters, self._first, strict=True):
            parameter.data = value
        try:
            yield
        finally:
            for parameter, value in zip(self.parameters, now, strict=True):
                parameter.data = value


@contextmanager
def learning(parameters: Sequence[nn.Parameter]) -> Generator[None]:
    """Let parameters learn inside; afterwards they have the gradients, and learn or not, as before."""
    before = [(p, p.requires_grad, p.grad) for p in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_()
        yield
    finally:
        for parameter, learns, gradient in before:
            parameter.requires_grad, parameter.grad = learns, gradient


def _mean_entropy(log_p: Tensor) -> Tensor:
    """Of distributions (K, M), in nats. From logarithms, whose gradient is finite where a probability is 0."""
    return -(log_p.exp() * log_p).sum(0).mean()


def _log_predictions(output: object) -> Tensor:
    """Logarithms of the probabilities (K, M) of K classes for M samples or positions, from logits (N, K, *)."""
    if (
        not isinstance(output, Tensor)
        or output.dim() < 2
        or output.shape[1] < 2
        or not output.is_floating_point()
    ):
        what = f"{list(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise InputError(
            f"entropy is of logits (N, classes, *), but the model gives {what}: give forward= to return them"
        )
    return output.transpose(0, 1).flatten(1).log_softmax(0)
