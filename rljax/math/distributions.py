"""Distributions over actions as pure functions of raw parameter arrays, with any leading batch shape.

    distribution.sample(key, parameters) -> action       one key for the whole batch
    distribution.log_prob(parameters, action) -> (...)   natural logarithm, in nats
    distribution.entropy(parameters, key) -> (...)       in nats; the key only where there is no closed form
    distribution.mode(parameters) -> action
    distribution.kl(parameters_p, parameters_q) -> (...)    KL(p ‖ q), in nats

`categorical`, `diagonal_gaussian` and `tanh_gaussian` are such bundles; `multi_categorical(sizes)` makes one.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32, Key

Logits = Float[Array, "*B A"]
Gaussian = tuple[Float[Array, "*B D"], Float[Array, "..."]]  # mean and log_std, which broadcasts to mean


class Distribution(NamedTuple):
    """A family of distributions; every function takes the parameters as they leave the network."""

    sample: Callable[[Any, Any], Array]  # (key, parameters) -> action
    log_prob: Callable[[Any, Array], Array]  # (parameters, action) -> (...)
    # (parameters, key) -> (...): exact, and then without a key, or an unbiased estimate from one sample
    entropy: Callable[..., Array]
    mode: Callable[[Any], Array]  # (parameters) -> action
    kl: Callable[[Any, Any], Array]  # (parameters_p, parameters_q) -> (...)


# Categorical: parameters are logits (..., A), actions int32 (...). A logit of −∞ forbids its action; at least
# one must be finite.


def _inverse_cdf(uniform: Float[Array, "*B"], logits: Logits) -> Int32[Array, "*B"]:
    """The first possible action whose cumulative weight exceeds uniform · total, else the last possible one.

    Only possible actions are considered because a parallel sum need not be monotone: rounding alone could
    otherwise step onto a forbidden one.
    """
    logits = logits.astype(uniform.dtype)
    weight = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    cumulative = jnp.cumsum(weight, axis=-1)
    threshold = uniform[..., None] * cumulative[..., -1:]
    index = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    last = jnp.max(jnp.where(weight > 0, index, 0), axis=-1, keepdims=True)
    return jnp.min(jnp.where((weight > 0) & (cumulative > threshold), index, last), axis=-1)


def _uniform(key: Key[Array, ""], shape: tuple[Any, ...], logits: Logits) -> Float[Array, "..."]:
    """Uniforms of at least float32: those of a half-precision type have too few values."""
    return jax.random.uniform(key, shape, logits.dtype if jnp.finfo(logits.dtype).bits >= 32 else jnp.float32)


def _categorical_sample(key: Key[Array, ""], logits: Logits) -> Int32[Array, "*B"]:
    """Inverts the cumulative distribution with one uniform per draw, of 23 random bits in float32.

    Cheaper than the A Gumbel variables of `jax.random.categorical`; the price is that probabilities are
    realised to about 1e-7 absolute. Logits of −∞ are never drawn.
    """
    return _inverse_cdf(_uniform(key, logits.shape[:-1], logits), logits)


def _categorical_log_prob(logits: Logits, action: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """log softmax(logits)[action]; a masked sum, because the gradient of a gather is a slow scatter.

    An action outside 0 .. A − 1 gets 0: range checks are the caller's.
    """
    index = jax.lax.broadcasted_iota(action.dtype, logits.shape, logits.ndim - 1)
    return jnp.sum(jnp.where(index == action[..., None], jax.nn.log_softmax(logits), 0), axis=-1)


def _categorical_entropy(logits: Logits, key: Key[Array, ""] | None = None) -> Float[Array, "*B"]:
    """−Σ p log p with 0 log 0 = 0."""
    del key
    log_p = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.exp(log_p) * jnp.where(log_p > -jnp.inf, log_p, 0), axis=-1)


def _categorical_mode(logits: Logits) -> Int32[Array, "*B"]:
    """The most probable action, the first of equals."""
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def _categorical_kl(logits_p: Logits, logits_q: Logits) -> Float[Array, "*B"]:
    """Σ p (log p − log q) over the actions p allows: ∞ where q forbids one of them."""
    log_p, log_q = jax.nn.log_softmax(logits_p), jax.nn.log_softmax(logits_q)
    possible = log_p > -jnp.inf
    difference = jnp.where(possible, log_p, 0) - jnp.where(possible, log_q, 0)
    return jnp.sum(jnp.exp(log_p) * difference, axis=-1)


categorical = Distribution(
    _categorical_sample, _categorical_log_prob, _categorical_entropy, _categorical_mode, _categorical_kl
)


def multi_categorical(sizes: tuple[int, ...]) -> Distribution:
    """Independent categoricals: logits end to end (..., Σ sizes), actions int32 (..., len(sizes)).

    `log_prob`, `entropy` and `kl` are sums over the components. With one component it is `categorical`, its
    actions with a trailing axis of 1. Raises ValueError for no sizes or a size below 1, and where the last
    axis of the parameters is not Σ sizes.
    """
    if not sizes or min(sizes) < 1:
        raise ValueError(f"sizes = {sizes}: must be positive integers, at least one")
    edges = [0, *np.cumsum(sizes).tolist()]

    def split(logits: Array) -> list[Array]:
        if logits.shape[-1] != edges[-1]:
            raise ValueError(f"{logits.shape[-1]} logits for sizes {sizes}: must be {edges[-1]}")
        return [logits[..., low:high] for low, high in pairwise(edges)]

    def sample(key: Array, logits: Array) -> Array:
        uniform = _uniform(key, (*logits.shape[:-1], len(sizes)), logits)
        draws = [_inverse_cdf(uniform[..., i], part) for i, part in enumerate(split(logits))]
        return jnp.stack(draws, axis=-1)

    def log_prob(logits: Array, action: Array) -> Array:
        return _total(categorical.log_prob(part, action[..., i]) for i, part in enumerate(split(logits)))

    def entropy(logits: Array, key: Array | None = None) -> Array:
        del key
        return _total(map(categorical.entropy, split(logits)))

    def mode(logits: Array) -> Array:
        return jnp.stack([categorical.mode(part) for part in split(logits)], axis=-1)

    def kl(logits_p: Array, logits_q: Array) -> Array:
        return _total(map(categorical.kl, split(logits_p), split(logits_q)))

    return Distribution(sample, log_prob, entropy, mode, kl)


def _total(parts: Any) -> Array:
    return jnp.sum(jnp.stack(list(parts)), axis=0)


# Gaussian: parameters are (mean (..., D), log_std broadcastable to mean), actions (..., D) in any unit.


def _gaussian_sample(key: Key[Array, ""], parameters: Gaussian) -> Float[Array, "*B D"]:
    """mean + std · noise: reparameterised, so gradients flow from the action to both parameters."""
    mean, log_std = _gaussian(parameters)
    return mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape, mean.dtype)


def _gaussian_log_prob(parameters: Gaussian, action: Float[Array, "*B D"]) -> Float[Array, "*B"]:
    """−Σ [½ ((a − mean) / std)² + log std + ½ log 2π]."""
    mean, log_std = _gaussian(parameters)
    scaled = (action - mean) * jnp.exp(-log_std)
    return -jnp.sum(0.5 * jnp.square(scaled) + log_std + 0.5 * math.log(2 * math.pi), axis=-1)


def _gaussian_entropy(parameters: Gaussian, key: Key[Array, ""] | None = None) -> Float[Array, "*B"]:
    """Σ [log std + ½ log 2πe]."""
    del key
    return jnp.sum(_gaussian(parameters)[1] + 0.5 * math.log(2 * math.pi * math.e), axis=-1)


def _gaussian_mode(parameters: Gaussian) -> Float[Array, "*B D"]:
    """The mean."""
    return parameters[0]


def _gaussian_kl(parameters_p: Gaussian, parameters_q: Gaussian) -> Float[Array, "*B"]:
    """Σ [log (std_q / std_p) + (std_p² + (mean_p − mean_q)²) / (2 std_q²) − ½]."""
    (mean_p, log_std_p), (mean_q, log_std_q) = _gaussian(parameters_p), _gaussian(parameters_q)
    log_ratio = log_std_p - log_std_q
    scaled = (mean_p - mean_q) * jnp.exp(-log_std_q)
    return jnp.sum(0.5 * (jnp.expm1(2 * log_ratio) + jnp.square(scaled)) - log_ratio, axis=-1)


def _gaussian(parameters: Gaussian) -> Gaussian:
    mean, log_std = parameters
    return mean, jnp.broadcast_to(log_std, mean.shape)


diagonal_gaussian = Distribution(
    _gaussian_sample, _gaussian_log_prob, _gaussian_entropy, _gaussian_mode, _gaussian_kl
)


def squash(action: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """tanh(u): the squashed action in (−1, 1) of `tanh_gaussian`'s pre-squash action u."""
    return jnp.tanh(action)


def _log_slope(action: Float[Array, "*B D"]) -> Float[Array, "*B"]:
    """Σ log(1 − tanh² u) at the pre-squash action u, as Σ 2 (log 2 − u − softplus(−2u)): without the
    cancellation (Haarnoja et al. 2018, appendix C).
    """
    return jnp.sum(2 * (math.log(2) - action - jax.nn.softplus(-2 * action)), axis=-1)


def _tanh_log_prob(parameters: Gaussian, action: Float[Array, "*B D"]) -> Float[Array, "*B"]:
    """log N(u) − Σ log(1 − tanh² u): the log-density of tanh(u) at the pre-squash action u."""
    return _gaussian_log_prob(parameters, action) - _log_slope(action)


def _tanh_entropy(parameters: Gaussian, key: Key[Array, ""]) -> Float[Array, "*B"]:
    """The Gaussian's entropy + Σ log(1 − tanh² u) at one reparameterised sample u: its mean over samples, and
    that of its gradient, are those of the entropy of tanh(u), which has no closed form.
    """
    return _gaussian_entropy(parameters) + _log_slope(_gaussian_sample(key, parameters))


# The action variable of tanh_gaussian is the PRE-squash u everywhere: store u, step the environment with
# squash(u). So log_prob needs no atanh and is finite for every finite u. `kl` is exact, being the same before
# and after a bijection. `entropy` is that of the squashed action, an estimate that needs a key. `mode` is the
# mean before squashing: its image is the median of each component, not the densest point.
tanh_gaussian = Distribution(_gaussian_sample, _tanh_log_prob, _tanh_entropy, _gaussian_mode, _gaussian_kl)


def reparameterise(
    noise: Float[Array, "*B D"], parameters: Gaussian
) -> tuple[Float[Array, "*B D"], Float[Array, "*B"]]:
    """The squashed action of `tanh_gaussian` that standard normal `noise` gives, in (−1, 1), and its
    log-density there; gradients flow through both (Haarnoja et al. 2018, eq. 8). The Gaussian's part is that
    of the noise: from (action − mean) / std it would lose digits where std is small beside the mean.
    """
    mean, log_std = _gaussian(parameters)
    action = mean + jnp.exp(log_std) * noise
    density = -jnp.sum(0.5 * jnp.square(noise) + log_std + 0.5 * math.log(2 * math.pi), axis=-1)
    return squash(action), density - _log_slope(action)
