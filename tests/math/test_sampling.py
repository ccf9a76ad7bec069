"""Processors against numpy in float64 and against torch transformers; the draw by chi-square."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rljax.math import sampling

rng = np.random.default_rng(0)
KEY = jax.random.key(0)
INFINITY = np.inf
# Called eagerly, each call of the two would compile its loop anew.
top_k, top_p, draw = jax.jit(sampling.top_k), jax.jit(sampling.top_p), jax.jit(sampling.draw)


def logits_of(*shape: int, scale: float = 2.0) -> jax.Array:
    return jnp.asarray(rng.normal(size=shape) * scale, jnp.float32)


def softmax(logits: jax.Array) -> np.ndarray:
    x = np.asarray(logits, np.float64)
    weight = np.exp(x - x.max(-1, keepdims=True))
    return weight / weight.sum(-1, keepdims=True)


def kept(logits: jax.Array) -> np.ndarray:
    return np.asarray(logits) > -INFINITY


@pytest.mark.parametrize("size", [1, 2, 5, 64, 100, 6400])
@pytest.mark.parametrize("k", [1, 2, 7, 50])
def test_top_k_keeps_the_k_largest(size: int, k: int) -> None:
    logits = logits_of(size)
    result = top_k(logits, jnp.int32(k))
    expected = np.zeros(size, bool)
    expected[np.argsort(-np.asarray(logits))[:k]] = True
    np.testing.assert_array_equal(kept(result), expected)
    np.testing.assert_array_equal(np.asarray(result)[expected], np.asarray(logits)[expected])


def test_top_k_keeps_ties_forbidden_tokens_and_zeros_of_both_signs() -> None:
    tied = jnp.asarray([1.0, 3.0, 1.0, -INFINITY, 0.5, 1.0], jnp.float32)
    np.testing.assert_array_equal(kept(top_k(tied, 2)), [1, 1, 1, 0, 0, 1])
    np.testing.assert_array_equal(kept(top_k(tied, 5)), [1, 1, 1, 0, 1, 1])
    np.testing.assert_array_equal(kept(top_k(tied, 6)), [1, 1, 1, 0, 1, 1])
    zeros = jnp.asarray([-0.0, 0.0, -1.0], jnp.float32)
    np.testing.assert_array_equal(kept(top_k(zeros, 1)), [1, 1, 0])


@pytest.mark.parametrize("k", [0, 6400, 10**6])
def test_top_k_of_nothing_or_of_all_changes_nothing(k: int) -> None:
    logits = logits_of(6400)
    np.testing.assert_array_equal(top_k(logits, k), logits)
    np.testing.assert_array_equal(top_k(logits, float(k)), logits)


@pytest.mark.parametrize("size", [1, 3, 17, 1000, 6400])
@pytest.mark.parametrize("p", [0.0, 1e-9, 0.1, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_smallest_set_of_that_mass(size: int, p: float) -> None:
    for scale in (0.1, 2.0, 20.0):
        logits = logits_of(size, scale=scale)
        probability = softmax(logits)
        order = np.argsort(-probability)
        count = 1 + np.searchsorted(np.cumsum(probability[order]), p)
        found = kept(top_p(logits, jnp.float32(p)))
        assert abs(found.sum() - min(count, size)) <= (p > 0.99)  # a last token of 1e-7 may be rounding
        assert found[order[: found.sum()]].all()


def test_top_p_keeps_the_token_that_crosses_and_its_equals() -> None:
    logits = jnp.log(jnp.asarray([0.5, 0.25, 0.125, 0.125], jnp.float32))
    for p, count in ((0.5, 1), (0.51, 2), (0.75, 2), (0.76, 4), (1.0, 4)):
        assert kept(top_p(logits, p)).sum() == count


def test_top_p_of_one_is_an_exact_no_op() -> None:
    """Also for tokens whose weight is lost in the sum, or is 0 in float32."""
    logits = jnp.asarray([0.0, -20.0, -80.0, -200.0, -INFINITY], jnp.float32)
    np.testing.assert_array_equal(top_p(logits, 1.0), logits)
    np.testing.assert_array_equal(top_p(logits, jnp.float32(1)), logits)
    np.testing.assert_array_equal(kept(top_p(logits, 0.9999)), [1, 0, 0, 0, 0])


def test_min_p_keeps_what_is_near_the_best() -> None:
    logits = jnp.log(jnp.asarray([0.5, 0.3, 0.1, 0.06, 0.04], jnp.float32))
    np.testing.assert_array_equal(kept(sampling.min_p(logits, 0.15)), [1, 1, 1, 0, 0])
    np.testing.assert_array_equal(kept(sampling.min_p(logits, 1.0)), [1, 0, 0, 0, 0])
    np.testing.assert_array_equal(sampling.min_p(logits, 0.0), logits)


def test_repetition_penalty_lowers_both_signs() -> None:
    logits = jnp.asarray([2.0, -2.0, 2.0, -2.0, 0.0], jnp.float32)
    seen = jnp.asarray([True, True, False, False, True])
    np.testing.assert_allclose(sampling.repetition_penalty(logits, seen, 2.0), [1, -4, 2, -2, 0])
    np.testing.assert_array_equal(sampling.repetition_penalty(logits, seen, 1.0), logits)


def test_temperature() -> None:
    logits = jnp.asarray([1.0, 3.0, 3.0, -INFINITY], jnp.float32)
    np.testing.assert_array_equal(sampling.temper(logits, 1.0), logits)
    np.testing.assert_allclose(sampling.temper(logits, 0.5), [2, 6, 6, -INFINITY])
    np.testing.assert_array_equal(sampling.temper(logits, 0.0), [-INFINITY, 0, -INFINITY, -INFINITY])
    traces = []

    @jax.jit
    def traced(temperature: jax.Array) -> jax.Array:
        traces.append(1)
        return sampling.temper(logits, temperature)

    assert kept(traced(jnp.float32(0))).sum() == 1
    assert kept(traced(jnp.float32(0.1))).sum() == 3
    assert len(traces) == 1


def test_greedy_stays_greedy_through_every_processor_and_has_log_probability_zero() -> None:
    logits = logits_of(1000)
    result = sampling.temper(logits, 0.0)
    for each in (
        top_k(result, 40),
        top_p(result, 0.3),
        sampling.min_p(result, 0.5),
        result,
    ):
        for u in (0.0, 0.5, 1 - 2**-24):
            token, log_prob = draw(jnp.asarray([u, u], jnp.float32), each)
            assert token == np.argmax(logits)
            assert log_prob == 0
            assert sampling.log_prob(each, token) == 0


@jax.jit
def truncated(logits: jax.Array) -> jax.Array:
    return sampling.min_p(top_p(top_k(sampling.temper(logits, 0.7), 30), 0.95), 0.01)


@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 100, 257, 1000])
@pytest.mark.parametrize("forbidden", ["none", "first", "last", "truncated"])
def test_draws_have_their_probabilities(size: int, forbidden: str) -> None:
    logits = logits_of(size, scale=1.0)
    if forbidden == "truncated":
        logits = truncated(logits)
    elif size > 2:
        some = {"none": [], "first": [0, 1], "last": [-1, -2]}[forbidden]
        logits = logits.at[np.array(some, int)].set(-INFINITY)
    uniforms = jax.random.uniform(KEY, (40_000, 2))
    tokens, log_probs = jax.jit(jax.vmap(sampling.draw, (0, None)))(uniforms, logits)
    p = softmax(logits)
    counts = np.bincount(np.asarray(tokens), minlength=size)
    assert counts[p == 0].sum() == 0
    if np.count_nonzero(p) > 1:
        assert stats.chisquare(counts[p > 0], 40_000 * p[p > 0]).pvalue > 1e-3
    np.testing.assert_allclose(log_probs, np.log(p[np.asarray(tokens)]), atol=1e-5)


def test_a_draw_of_a_large_vocabulary_has_the_right_first_levels() -> None:
    logits = logits_of(6400, scale=1.0)
    uniforms = jax.random.uniform(KEY, (20_000, 2))
    tokens = np.asarray(jax.jit(jax.vmap(sampling.draw, (0, None)))(uniforms, logits)[0])
    p = softmax(logits)
    for cell in (lambda token: token // 80, lambda token: token % 80):
        expected = np.bincount(cell(np.arange(6400)), p, minlength=80) * 20_000
        assert stats.chisquare(np.bincount(cell(tokens), minlength=80), expected).pvalue > 1e-3


@pytest.mark.parametrize("size", [5, 64, 333, 6400])
def test_a_token_of_probability_zero_is_never_drawn(size: int) -> None:
    """Random masks of every density, weights over 30 orders of magnitude, and uniforms at both ends."""
    rows = 20_000 if size < 6400 else 1000
    logits = rng.normal(size=(rows, size)) * rng.choice([0.1, 1, 30], size=(rows, 1))
    possible = rng.random((rows, size)) < rng.choice([0.01, 0.5, 0.99], size=(rows, 1))
    possible[np.arange(rows), rng.integers(size, size=rows)] = True
    logits = jnp.asarray(np.where(possible, logits, -INFINITY), jnp.float32)
    edges = np.asarray([0, 2**-24, 0.5, 1 - 2**-23, 1 - 2**-24], np.float32)
    uniforms = jnp.asarray(rng.choice(edges, size=(rows, 2)))
    tokens, log_probs = jax.jit(jax.vmap(sampling.draw))(uniforms, logits)
    weight = np.exp(np.asarray(logits) - np.asarray(logits).max(1, keepdims=True))
    assert (weight[np.arange(rows), np.asarray(tokens)] > 0).all()
    assert np.isfinite(log_probs).all()


def test_the_draw_is_monotone_in_its_uniforms() -> None:
    """u = 0 gives the first possible token of the first possible column, u → 1 the last of the last."""
    logits = np.full(64, -INFINITY, np.float32)  # 16 columns of 4 rows
    logits[[3 + 16, 3 + 32, 9, 9 + 48]] = 0.0
    first = draw(jnp.zeros(2, jnp.float32), jnp.asarray(logits))[0]
    last = draw(jnp.full(2, 1 - 2**-24, jnp.float32), jnp.asarray(logits))[0]
    assert (first, last) == (3 + 16, 9 + 48)


def test_log_prob_of_any_token_and_its_gradient() -> None:
    logits = truncated(logits_of(50))
    p = softmax(logits)
    for token in range(50):
        with np.errstate(divide="ignore"):
            np.testing.assert_allclose(sampling.log_prob(logits, token), np.log(p[token]), rtol=1e-5)
    token = int(np.argmax(p))
    gradient = jax.grad(lambda x: sampling.log_prob(truncated(x), token))(logits_of(50))
    assert np.isfinite(gradient).all()


def test_statistics_of_tokens_and_their_gradient() -> None:
    rng = np.random.default_rng(0)
    logits = jnp.asarray(5 * rng.normal(size=(2, 3, 7)), jnp.float32)
    tokens = jnp.asarray(rng.integers(0, 7, (2, 3)), jnp.int32)
    log_p = jax.nn.log_softmax(logits)
    found, pull = jax.vjp(lambda logits: sampling.statistics(logits, tokens), logits)
    own = jnp.take_along_axis(log_p, tokens[..., None], -1)[..., 0]
    np.testing.assert_allclose(found[0], own, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[1], -(jnp.exp(log_p) * log_p).sum(-1), rtol=1e-5, atol=1e-5)
    weight = jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)
    exact = jax.grad(
        lambda x: (weight * jnp.take_along_axis(jax.nn.log_softmax(x), tokens[..., None], -1)[..., 0]).sum()
    )(logits)
    np.testing.assert_allclose(pull((weight, jnp.ones((2, 3))))[0], exact, rtol=1e-5, atol=1e-6)
    far = sampling.statistics(
        logits.at[0, 0].set(300.0 * jnp.arange(7, dtype=jnp.float32)), tokens
    )  # nothing overflows
    assert np.isfinite(far).all()


def test_the_gradient_is_that_of_the_kept_set() -> None:
    logits = logits_of(50)
    support = kept(truncated(logits))
    token = int(np.argmax(logits))

    def plain(x: jax.Array) -> jax.Array:
        index = np.flatnonzero(support)
        return jax.nn.log_softmax(x[index] / 0.7)[index.tolist().index(token)]

    expected = jax.grad(plain)(logits)
    found = jax.grad(lambda x: sampling.log_prob(truncated(x), token))(logits)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    greedy = jax.grad(lambda x: sampling.log_prob(sampling.temper(x, 0.0), token))(logits)
    np.testing.assert_array_equal(greedy, np.zeros(50))


@pytest.mark.parity
@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize(
    ("k", "p", "least"), [(50, 1.0, 0.0), (0, 0.9, 0.0), (0, 1.0, 0.05), (40, 0.8, 0.02)]
)
def test_against_transformers(temperature: float, k: int, p: float, least: float) -> None:
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    logits = rng.normal(size=(6, 1000)).astype(np.float32) * 3
    context = rng.integers(1000, size=(6, 40))
    chain = [
        process.RepetitionPenaltyLogitsProcessor(1.3),
        process.TemperatureLogitsWarper(temperature),
        *([process.TopKLogitsWarper(k)] if k else []),
        process.TopPLogitsWarper(p),
        process.MinPLogitsWarper(least),
    ]
    expected = torch.tensor(logits)
    for each in chain:
        expected = each(torch.tensor(context), expected)

    def ours(logits: jax.Array, context: jax.Array) -> jax.Array:
        seen = jnp.zeros(1000, bool).at[context].set(True)
        x = sampling.temper(sampling.repetition_penalty(logits, seen, 1.3), temperature)
        return sampling.min_p(top_p(top_k(x, k), p), least)

    found = jax.jit(jax.vmap(ours))(jnp.asarray(logits), jnp.asarray(context, jnp.int32))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)
