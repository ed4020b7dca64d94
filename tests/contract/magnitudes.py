"""What the error bounds of a case refer to: the terms of each result, without their signs.

Each function takes the specification's cache, the gradient of its output, and what the layer learns by name. "|y|",
"|dx|" and so on bound what the result is a sum of; "|far y|" and so on stand for what float64 adds to it, where the
specification's mean is one number of the same precision, which a mean far from zero rounds.
"""

from __future__ import annotations

import numpy as np

from normkit import reference

Magnitudes = dict[str, np.ndarray]
Parameters = dict[str, np.ndarray | None]


def of_norm(cache: reference.Cache, dz: np.ndarray, parameters: Parameters) -> Magnitudes:
    """What error bounds refer to: the terms of each result, without their signs."""
    shape = [n if i in cache.affine_axes else 1 for i, n in enumerate(dz.shape)]
    weight, bias = parameters["weight"], parameters["bias"]
    gamma = np.ones(shape) if weight is None else np.abs(weight.reshape(shape))
    beta = np.zeros(shape) if bias is None else np.abs(bias.reshape(shape))

    def set_mean(a: np.ndarray) -> np.ndarray:
        """The mean over the elements that share a statistic, at each of them."""
        view = a.reshape(cache.valid.shape)
        return np.broadcast_to(view.mean(cache.axes, keepdims=True), view.shape).reshape(a.shape)

    sigma = np.sqrt(np.expand_dims(cache.var, cache.axes) + cache.eps)
    sigma = np.broadcast_to(sigma, cache.valid.shape).reshape(dz.shape)
    g, xhat = gamma * np.abs(dz), np.abs(cache.xhat)
    return {
        "|y|": gamma * xhat + beta,
        "|far y|": gamma,
        "|dx|": (g + set_mean(g) + xhat * set_mean(g * xhat)) / sigma,
        "|dweight|": np.abs(dz * xhat).sum(),
        "|dbias|": np.abs(dz).sum(),
    }


def of_mixture(cache: reference.Mixture, dz: np.ndarray, parameters: Parameters) -> Magnitudes:
    """The same for statistics that are mixed, whose mean is one float64 number: a large one rounds."""
    channel, space = [1, -1] + [1] * (dz.ndim - 2), tuple(range(2, dz.ndim))
    weight, bias = (
        np.full([1] * dz.ndim, default)
        if parameters[name] is None
        else np.abs(parameters[name].reshape(channel))
        for name, default in (("weight", 1.0), ("bias", 0.0))
    )
    s, g = 1 / np.sqrt(cache.var + cache.eps), weight * np.abs(dz)
    far = [np.abs(part.mean - cache.mean) for part in cache.parts]

    def terms(xhat: np.ndarray, far: list[np.ndarray], deviations: list[np.ndarray]) -> Magnitudes:
        """Of x̂, μ_k - m and x - μ_k as they are, or as what rounding makes of them."""
        dm = (g * s).sum(space, keepdims=True)
        dv = (g * xhat * s**2).sum(space, keepdims=True) / 2
        dx = g * s
        for k, part in enumerate(cache.parts):
            if part.axes is not None:
                dmu = cache.a[k] * dm + 2 * cache.b[k] * far[k] * dv * cache.merged
                dsigma2 = (cache.b[k] * dv).sum(part.axes, keepdims=True)
                dx = dx + (dmu.sum(part.axes, keepdims=True) + 2 * deviations[k] * dsigma2) / part.count
        da = np.array([(dm * d).sum() for d in far])
        db = np.array([(dv * part.var).sum() for part in cache.parts])
        return {
            "y|": weight * xhat,
            "dx|": dx,
            "dweight|": np.abs(dz * xhat).sum(),
            "dmean_weight|": cache.a * (da + (cache.a * da).sum()),
            "dvar_weight|": cache.b * (db + (cache.b * db).sum()),
        }

    deviations = [np.abs(cache.x - part.mean) for part in cache.parts]
    near, offset = terms(np.abs(cache.xhat), far, deviations), np.abs(cache.mean)
    far, deviations = ([d + offset for d in distances] for distances in (far, deviations))
    distant = terms(1 + np.broadcast_to(offset * s, dz.shape), far, deviations)
    return {
        **{f"|{name}": term for name, term in near.items()},
        **{f"|far {name}": term for name, term in distant.items()},
        "|y|": near["y|"] + bias,
        "|dbias|": np.abs(dz).sum(),
    }


def of_interpolation(cache: reference.Interpolation, dz: np.ndarray, parameters: Parameters) -> Magnitudes:
    """The same for two outputs that are mixed: of each, by its share."""
    rho = cache.rho.reshape([1, -1] + [1] * (dz.ndim - 2))
    of_batch = of_norm(cache.batch, rho * dz, parameters)
    of_instance = of_norm(cache.instance, (1 - rho) * dz, parameters)
    gamma, xhats = of_batch["|far y|"], np.abs(cache.batch.xhat) + np.abs(cache.instance.xhat)
    lengths = [
        np.sqrt(c.var + c.eps).reshape(-1, dz.shape[1], *rho.shape[2:]) for c in (cache.batch, cache.instance)
    ]
    offset = 1 + np.abs(cache.batch.mean).reshape(rho.shape) / np.minimum(*lengths)
    return {
        **{name: of_batch[name] + of_instance[name] for name in ("|dx|", "|dweight|", "|dbias|")},
        "|y|": rho * of_batch["|y|"] + (1 - rho) * of_instance["|y|"],
        "|drho|": np.abs(dz * gamma * xhats).sum(),
        "|far y|": gamma * offset,
        "|far dx|": (of_batch["|dx|"] + of_instance["|dx|"]) * offset,
        "|far dweight|": np.abs(dz * offset).sum(),
        "|far drho|": np.abs(dz * gamma * offset).sum(),
    }


def of_conditional(cache: reference.Conditional, dz: np.ndarray, parameters: Parameters) -> Magnitudes:
    """With the map of each sample; the batch's moments are pooled from those of samples, in float64."""
    each = {name: None if p is None else p[cache.labels] for name, p in parameters.items()}
    return of_one_mean(cache.cache, dz, each)


def of_one_mean(cache: reference.Cache, dz: np.ndarray, parameters: Parameters) -> Magnitudes:
    """For a mean that goes through `combined` as one float64 number: a large one rounds."""
    terms = of_norm(cache, dz, parameters)
    offset = 1 + np.abs(cache.mean).max() / np.sqrt(cache.var + cache.eps).min()
    far = {f"|far {name}|": terms[f"|{name}|"] * offset for name in ("dx", "dweight")}
    return {**terms, **far, "|far y|": terms["|far y|"] * offset}


def of_filter_response(
    cache: reference.FilterResponseCache, dz: np.ndarray, parameters: Parameters
) -> Magnitudes:
    """The threshold is taken off and put back, so it counts among the terms of y."""
    magnitudes = of_norm(cache, dz, parameters)
    slopes = magnitudes["|far y|"] * np.abs(dz * cache.xhat)
    variance = np.expand_dims(cache.var + cache.eps, cache.axes)
    magnitudes["|dthreshold|"] = np.abs(dz).sum()
    magnitudes["|dlearned_eps|"] = (slopes / (2 * variance)).sum()
    if (threshold := parameters.get("threshold")) is not None:
        shape = [-1 if axis == 1 else 1 for axis in range(dz.ndim)]
        magnitudes["|y|"] = magnitudes["|y|"] + 2 * np.abs(threshold.reshape(shape))
    return magnitudes


def of_tanh(cache: reference.TanhCache, dy: np.ndarray, parameters: Parameters) -> Magnitudes:
    """The slope 1 - tanh² is a difference of numbers of the size of 1."""
    gamma, beta = (0 if p is None else np.abs(p) for p in (parameters["weight"], parameters["bias"]))
    gamma = np.ones(()) if parameters["weight"] is None else gamma
    t = np.abs(np.tanh(cache.alpha * cache.x))
    return {
        "|y|": gamma * t + beta,
        "|far y|": np.broadcast_to(gamma, t.shape),
        "|dx|": gamma * np.abs(dy) * cache.alpha,
        "|dweight|": np.abs(dy * t).sum(),
        "|dbias|": np.abs(dy).sum(),
        "|dalpha|": (gamma * np.abs(dy * cache.x)).sum(),
    }
