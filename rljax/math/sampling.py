"""Distributions over the next token: processors of logits (V,), and the draw.

    logits = repetition_penalty(logits, seen, 1.2)
    logits = min_p(top_p(top_k(temper(logits, 0.7), 50), 0.95), 0.02)
    token, log_prob = draw(jax.random.uniform(key, (2,)), logits)

A processor returns logits of −∞ where a token may not be drawn; the log-probability of `draw` and of
`log_prob` is that of the renormalised rest: the very distribution sampled from. All numbers may be traced,
and the usual ones change nothing: temperature 1, k = 0, p = 1, min-p 0, penalty 1.

Nothing sorts the vocabulary. `top_k` and `top_p` look for their threshold among the float32 numbers, bit by
bit: 32 passes of compare and add, which vectorise, instead of V log V comparisons. On one core, 64 × 6,400
logits: top-k in 5 ms (`lax.top_k` of 64: 49), top-p in 7 (by a sort: 60), the draw in 0.33 (argmax 1.1,
`jax.random.categorical` 9.7). Thresholds are constants to `jax.grad`. Each processor keeps ties of its last
token, so that the kept set does not depend on the order of the vocabulary.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32, UInt32

Logits = Float[Array, "V"]
Number = float | Float[Array, ""]


def repetition_penalty(logits: Logits, seen: Bool[Array, "V"], penalty: Number) -> Logits:
    """Positive logits of `seen` tokens divided by `penalty`, negative ones multiplied (Keskar et al. 2019,
    arXiv:1909.05858, section 4.1, as Hugging Face completed it for negative logits). Of raw logits.
    """
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def temper(logits: Logits, temperature: Number) -> Logits:
    """logits / temperature; at 0 the limit: 0 for the largest, the first of equals, and −∞ for the others.

    So greedy decoding is one more distribution, of log-probability 0, and what follows needs to know nothing.
    """
    index = jax.lax.iota(jnp.int32, logits.shape[0])
    # Two plain reductions: jnp.argmax is one over pairs, which a CPU does not vectorise.
    first = jnp.min(jnp.where(logits == jnp.max(logits), index, logits.shape[0]))
    greedy = jnp.where(index == first, 0.0, -jnp.inf).astype(logits.dtype)
    return jnp.where(temperature > 0, logits / jnp.where(temperature > 0, temperature, 1.0), greedy)


def top_k(logits: Logits, k: int | Int[Array, ""] | Number) -> Logits:
    """Keeps the k largest logits and all that equal the k-th; k = 0 or k ≥ V keeps all (Fan et al. 2018,
    arXiv:1805.04833).
    """
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(logits), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    keys = jnp.where(bits > sign, ~bits, bits | sign)  # unsigned integers in the order of the floats, −0 as 0
    wanted = jnp.asarray(k).astype(jnp.int32)
    threshold = _largest(keys, lambda kept: jnp.sum(kept, dtype=jnp.int32) >= wanted)
    return jnp.where((keys >= threshold) | (wanted <= 0), logits, -jnp.inf)


def top_p(logits: Logits, p: Number) -> Logits:
    """Keeps the most probable tokens until their probabilities add up to p or more: the one that crosses p
    stays, and all that equal it (Holtzman et al. 2020, arXiv:1904.09751). p ≥ 1 keeps all, p ≤ 0 the best.
    """
    weight = jax.lax.stop_gradient(_weight(logits))
    keys = jax.lax.bitcast_convert_type(
        weight, jnp.uint32
    )  # weights have no sign: their order is that of bits
    mass = jnp.asarray(p, logits.dtype) * jnp.sum(_columns(weight))
    enough = lambda kept: jnp.sum(_columns(jnp.where(kept, weight, 0.0))) >= mass
    best = jax.lax.bitcast_convert_type(jnp.float32(1), jnp.uint32)  # its weight is 1
    threshold = jnp.minimum(_largest(keys, enough), best)
    return jnp.where((keys >= threshold) | (jnp.asarray(p) >= 1), logits, -jnp.inf)


def min_p(logits: Logits, p: Number) -> Logits:
    """Keeps tokens at least p times as probable as the most probable one (Nguyen et al. 2024,
    arXiv:2407.01082); p ≤ 0 keeps all.
    """
    best = jax.lax.stop_gradient(jnp.max(logits))
    return jnp.where(
        logits >= best + jnp.log(jnp.maximum(jnp.asarray(p, logits.dtype), 0.0)), logits, -jnp.inf
    )


def log_prob(logits: Logits, token: int | Int[Array, ""]) -> Float[Array, ""]:
    """log softmax(logits)[token]: −∞ where the token may not be drawn. It must lie in 0 .. V − 1.

    A masked sum, because the gradient of a gather is a slow scatter.
    """
    index = jax.lax.iota(jnp.int32, logits.shape[0])
    return jnp.sum(jnp.where(index == token, logits, 0.0)) - jax.nn.logsumexp(logits)


def statistics(
    logits: Float[Array, "*B V"], tokens: Int[Array, "*B"]
) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
    """log softmax(logits)[token], and the entropy of softmax(logits) in nats, which is not differentiated.
    Logits are finite.

    Its own gradient, softmax times what the forward pass kept, reads the logits half as often as autodiff's.
    """
    return _statistics(logits, tokens)


def _statistics_forward(logits: Array, tokens: Array) -> tuple[tuple[Array, Array], tuple]:
    best = logits.max(axis=-1, keepdims=True)
    shifted = logits - best
    weight = jnp.exp(shifted)
    total = weight.sum(axis=-1)
    own = jnp.take_along_axis(logits, tokens[..., None], axis=-1, mode="clip")
    log_z = jnp.log(total)
    entropy = log_z - (weight * shifted).sum(axis=-1) / total
    return ((own - best)[..., 0] - log_z, entropy), (weight, total, tokens)


def _statistics_backward(saved: tuple, g: tuple[Array, Array]) -> tuple[Array, None]:
    weight, total, tokens = saved
    index = jax.lax.broadcasted_iota(tokens.dtype, weight.shape, weight.ndim - 1)
    others = weight * (-g[0] / total)[..., None]
    return jnp.where(index == tokens[..., None], g[0][..., None] + others, others), None


_statistics = jax.custom_vjp(lambda logits, tokens: _statistics_forward(logits, tokens)[0])
_statistics.defvjp(_statistics_forward, _statistics_backward)


def draw(uniform: Float[Array, "2"], logits: Logits) -> tuple[Int32[Array, ""], Float[Array, ""]]:
    """A token of the distribution softmax(logits), and its log-probability.

    Inverts the cumulative distribution in two levels, with two uniforms of [0, 1): the first chooses one of
    about √V columns of the vocabulary by their sums, the second a token of that column. V Gumbel variables,
    as of `jax.random.categorical`, cost as much as a small model. A token of probability 0 is never drawn:
    rounding can only move the choice to a neighbour that is possible. Each level realises its probabilities
    to about 1e-7 absolute.
    """
    best = jnp.max(logits)
    weight = _columns(jnp.exp(logits - best))
    sums = jnp.sum(weight, axis=0)
    column = _inverse(uniform[0], sums)
    row = _inverse(uniform[1], weight[:, column])
    token = row * weight.shape[1] + column
    return token, logits[token] - best - jnp.log(jnp.sum(sums))


def _weight(logits: Logits) -> Logits:
    return jnp.exp(logits - jnp.max(logits))


def _columns(weight: Float[Array, "V"]) -> Float[Array, "R C"]:
    """As a matrix of about √V columns, zeros after the end: sums over its rows vectorise and round less than
    one long sum.
    """
    size = weight.shape[0]
    columns = -(-int(size**0.5) // 16) * 16
    return jnp.pad(weight, (0, -size % columns)).reshape(-1, columns)


def _inverse(uniform: Float[Array, ""], weight: Float[Array, "N"]) -> Int32[Array, ""]:
    """The first i of positive weight whose cumulative weight exceeds uniform · total, else the last one."""
    index = jax.lax.iota(jnp.int32, weight.shape[0])
    until = (index[:, None] <= index[None, :]).astype(weight.dtype)
    # A cumulative sum as a product: one operation where a scan takes log N, in full precision everywhere.
    cumulative = jnp.matmul(weight, until, precision=jax.lax.Precision.HIGHEST)
    last = jnp.max(jnp.where(weight > 0, index, 0))
    over = (weight > 0) & (cumulative > uniform * cumulative[-1])
    return jnp.min(jnp.where(over, index, last))


def _largest(
    keys: UInt32[Array, "V"], enough: Callable[[Bool[Array, "V"]], Bool[Array, ""]]
) -> UInt32[Array, ""]:
    """The largest t for which keys ≥ t are `enough` (or 0), where fewer of them are never more enough."""

    def bit(i: Int32[Array, ""], found: UInt32[Array, ""]) -> UInt32[Array, ""]:
        tried = found | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
        return jnp.where(enough(keys >= tried), tried, found)

    return jax.lax.fori_loop(0, 32, bit, jnp.uint32(0))
