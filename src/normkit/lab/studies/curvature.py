"""How well conditioned a network's loss is: the largest curvature over the mean."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap


def condition(net: nn.Module, x: Tensor, dimensions: int) -> float:
    r"""The largest eigenvalue of the Gauss-Newton matrix of the cross-entropy, over the mean one.

    .. math::
        \kappa = \frac{\lambda_{max}(G)}{\mathrm{tr}(G) / d}, \quad
        G = \frac{1}{N} \sum_n J_n^\top (\mathrm{diag}(p_n) - p_n p_n^\top) J_n

    J being the Jacobian of the logits, p the softmax. G is the Fisher information where labels are the model's own.
    1 is a sphere, d a single direction. The ratio to the smallest eigenvalue would be infinite: there are directions
    that change no output, those of weight norm's lengths among them.

    Args:
        net: gives logits (N, classes); its mode is taken as it is.
        x: (N, *) samples.
        dimensions: d, in how many directions the function can be moved; the same for networks that are compared.
    """
    rows = gauss_newton_root(net, x)
    gram = rows @ rows.T  # has the eigenvalues of G that are not 0
    return float(torch.linalg.eigvalsh(gram)[-1] / gram.diagonal().sum() * dimensions)


def gauss_newton_root(net: nn.Module, x: Tensor) -> Tensor:
    r"""R of (N · classes, parameters), float64, with :math:`R^\top R = G`.

    .. math:: R_n = (\mathrm{diag}(\sqrt{p_n}) - \sqrt{p_n} p_n^\top) J_n / \sqrt{N}
    """
    parameters = {name: p.detach() for name, p in net.named_parameters() if p.requires_grad}

    def logits(values: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(net, values, (sample[None],))[0]

    by_name = vmap(jacrev(logits), (None, 0))(parameters, x)
    jacobian = torch.cat([part.flatten(2) for part in by_name.values()], 2).double()
    with torch.no_grad():
        p = vmap(logits, (None, 0))(parameters, x).double().softmax(1)
    root = torch.diag_embed(p.sqrt()) - p.sqrt()[:, :, None] * p[:, None, :]
    return (root @ jacobian).flatten(0, 1) / len(x) ** 0.5
