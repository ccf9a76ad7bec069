"""Distributions against scipy and float64 sums, their samplers by chi-square, and logits of −∞."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rljax.math.distributions import (
    Distribution,
    _inverse_cdf,
    categorical,
    diagonal_gaussian,
    multi_categorical,
    reparameterise,
    squash,
    tanh_gaussian,
)

rng = np.random.default_rng(0)
KEY = jax.random.key(0)
INFINITY = np.inf


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def probabilities(logits: jax.Array) -> np.ndarray:
    weight = np.exp(np.asarray(logits, np.float64))
    return weight / weight.sum(-1, keepdims=True)


def fits(draws: np.ndarray, p: np.ndarray) -> bool:
    counts = np.bincount(draws, minlength=len(p))
    assert counts[p == 0].sum() == 0
    if np.count_nonzero(p) == 1:
        return True
    return stats.chisquare(counts[p > 0], draws.size * p[p > 0]).pvalue > 1e-3


@pytest.mark.parametrize("actions", [1, 2, 3, 6, 18, 200])
@pytest.mark.parametrize("forbidden", ["none", "first", "last", "some"])
def test_categorical_samples_have_their_probabilities(actions: int, forbidden: str) -> None:
    logits = rng.normal(size=actions)
    if actions > 2:
        logits[{"none": [], "first": [0, 1], "last": [-1], "some": [1, actions // 2]}[forbidden]] = -INFINITY
    logits = jnp.asarray(logits, jnp.float32)
    draws = categorical.sample(KEY, jnp.broadcast_to(logits, (100, 200, actions)))
    assert draws.shape == (100, 200)
    assert draws.dtype == jnp.int32
    assert fits(np.asarray(draws).ravel(), probabilities(logits))


@pytest.mark.parametrize("actions", [8, 33, 500])
def test_a_forbidden_action_is_never_drawn(actions: int) -> None:
    """10⁵ draws at random logits and masks of every density, with weights over 30 orders of magnitude."""
    logits = rng.normal(size=(100_000, actions)) * rng.choice([0.1, 1, 30], size=(100_000, 1))
    possible = rng.random((100_000, actions)) < rng.choice([0.05, 0.5, 0.95], size=(100_000, 1))
    possible[np.arange(100_000), rng.integers(actions, size=100_000)] = True
    logits = np.where(possible, logits, -INFINITY)
    draws = categorical.sample(KEY, jnp.asarray(logits, jnp.float32))
    assert possible[np.arange(100_000), draws].all()


def test_rounding_does_not_step_onto_a_forbidden_action() -> None:
    """Thresholds on and beside every edge of the cumulative weights, where only a guard decides."""
    logits = np.where(rng.random((4, 500)) < 0.5, rng.normal(size=(4, 500)), -INFINITY)
    logits[:, 0] = 0.0
    cumulative = np.cumsum(probabilities(logits), axis=-1)
    edges = np.minimum(cumulative[:, :, None] * (1 + np.arange(-4, 5) * 2.0**-24), 1 - 2.0**-24)
    uniform = jnp.asarray(edges.reshape(4, -1).T, jnp.float32)
    draws = np.asarray(_inverse_cdf(uniform, jnp.broadcast_to(jnp.float32(logits), (*uniform.shape, 500))))
    assert np.isfinite(logits[np.arange(4), draws]).all()


def test_categorical_samples_of_half_precision_logits() -> None:
    logits = jnp.log(jnp.array([0.5, 0.499, 0.001])).astype(jnp.bfloat16)
    draws = categorical.sample(KEY, jnp.broadcast_to(logits, (100_000, 3)))
    assert fits(np.asarray(draws), probabilities(logits.astype(jnp.float32)))


def test_draws_of_a_batch_are_independent() -> None:
    draws = np.asarray(categorical.sample(KEY, jnp.zeros((20_000, 2, 2))))
    assert fits(draws[:, 0] * 2 + draws[:, 1], np.full(4, 0.25))
    keys = jax.random.split(KEY, 20_000)
    mapped = np.asarray(jax.vmap(categorical.sample, (0, None))(keys, jnp.zeros(3)))
    assert fits(mapped, np.full(3, 1 / 3))


@pytest.mark.parametrize("batch", [(), (5,), (2, 3)], ids=str)
def test_categorical_quantities_are_their_sums(batch: tuple[int, ...]) -> None:
    p_logits, q_logits = normal(*batch, 4), normal(*batch, 4)
    p, q = probabilities(p_logits), probabilities(q_logits)
    np.testing.assert_allclose(categorical.entropy(p_logits), -(p * np.log(p)).sum(-1), rtol=1e-5)
    expected = (p * np.log(p / q)).sum(-1)
    np.testing.assert_allclose(categorical.kl(p_logits, q_logits), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(categorical.mode(p_logits), p.argmax(-1))
    for action in range(4):
        actual = categorical.log_prob(p_logits, jnp.full(batch, action, jnp.int32))
        np.testing.assert_allclose(actual, np.log(p[..., action]), rtol=1e-5)


def test_forbidden_actions_make_no_nan() -> None:
    logits, other = jnp.array([0.3, -INFINITY, 1.0, -INFINITY]), jnp.array([0.1, -INFINITY, 0.2, 0.7])
    p = probabilities(logits)
    entropy = -sum(x * np.log(x) for x in p if x > 0)
    assert categorical.entropy(logits) == pytest.approx(entropy, rel=1e-5)
    assert categorical.log_prob(logits, jnp.int32(1)) == -INFINITY
    assert categorical.kl(logits, logits) == 0
    assert np.isfinite(categorical.kl(logits, other))
    assert categorical.kl(other, logits) == INFINITY
    for action in range(4):
        gradient = jax.grad(categorical.log_prob)(logits, jnp.int32(action))
        np.testing.assert_allclose(gradient, (np.arange(4) == action) - p, atol=1e-6)
    slope = np.where(p > 0, -p * (np.log(np.where(p > 0, p, 1)) + entropy), 0)
    np.testing.assert_allclose(jax.grad(categorical.entropy)(logits), slope, atol=1e-6)
    for argument in (0, 1):
        assert np.all(np.isfinite(jax.grad(categorical.kl, argument)(logits, other)))
    only = jnp.array([-INFINITY, 2.0])
    assert categorical.entropy(only) == 0
    np.testing.assert_array_equal(jax.grad(categorical.entropy)(only), [0, 0])


def test_large_logits_do_not_overflow() -> None:
    logits = jnp.array([1e4, 1e4, -1e4])
    np.testing.assert_allclose(categorical.log_prob(logits, jnp.int32(0)), np.log(0.5), rtol=1e-6)
    assert set(np.asarray(categorical.sample(KEY, jnp.broadcast_to(logits, (500, 3))))) == {0, 1}


def test_multi_categorical_is_a_product() -> None:
    sizes = (2, 1, 5)
    product = multi_categorical(sizes)
    logits, other = normal(7, 8), normal(7, 8)
    parts, others = (np.split(np.asarray(x), [2, 3], axis=-1) for x in (logits, other))
    action = product.sample(KEY, logits)
    assert action.shape == (7, 3)
    assert action.dtype == jnp.int32
    expected = [
        sum(np.log(probabilities(part[row])[action[row, i]]) for i, part in enumerate(parts))
        for row in range(7)
    ]
    np.testing.assert_allclose(product.log_prob(logits, action), expected, rtol=1e-5)
    entropy = sum(categorical.entropy(jnp.asarray(part)) for part in parts)
    np.testing.assert_allclose(product.entropy(logits), entropy, rtol=1e-5)
    kl = sum(categorical.kl(jnp.asarray(p), jnp.asarray(q)) for p, q in zip(parts, others, strict=True))
    np.testing.assert_allclose(product.kl(logits, other), kl, rtol=1e-5)
    mode = np.stack([part.argmax(-1) for part in parts], -1)
    np.testing.assert_array_equal(product.mode(logits), mode)


def test_multi_categorical_components_are_drawn_independently() -> None:
    logits = normal(5)
    draws = np.asarray(multi_categorical((2, 3)).sample(KEY, jnp.broadcast_to(logits, (30_000, 5))))
    joint = np.outer(probabilities(logits[:2]), probabilities(logits[2:])).ravel()
    assert fits(draws[:, 0] * 3 + draws[:, 1], joint)


def test_multi_categorical_refuses_wrong_sizes() -> None:
    for sizes in ((), (2, 0)):
        with pytest.raises(ValueError, match="positive integers"):
            multi_categorical(sizes)
    with pytest.raises(ValueError, match="must be 5"):
        multi_categorical((2, 3)).entropy(jnp.zeros(6))


def gaussian(seed: int, *batch: int) -> tuple[jax.Array, jax.Array]:
    source = np.random.default_rng(seed)
    mean, log_std = source.normal(size=(*batch, 3)), source.normal(size=3) * 0.5  # one log_std for the batch
    return jnp.asarray(mean, jnp.float32), jnp.asarray(log_std, jnp.float32)


@pytest.mark.parametrize("batch", [(), (5,), (2, 4)], ids=str)
def test_gaussian_quantities_are_scipys(batch: tuple[int, ...]) -> None:
    parameters, (mean_q, log_std_q) = gaussian(1, *batch), gaussian(2, *batch)
    mean, std = np.asarray(parameters[0], np.float64), np.exp(np.asarray(parameters[1], np.float64))
    action = normal(*batch, 3)
    expected = stats.norm.logpdf(action, mean, std).sum(-1)
    np.testing.assert_allclose(diagonal_gaussian.log_prob(parameters, action), expected, rtol=1e-5)
    entropy = np.broadcast_to(stats.norm.entropy(0, std).sum(), batch)
    np.testing.assert_allclose(diagonal_gaussian.entropy(parameters), entropy, rtol=1e-5)
    std_q = np.exp(np.asarray(log_std_q, np.float64))
    ratio = (std**2 + (mean - np.asarray(mean_q)) ** 2) / (2 * std_q**2)
    kl = (np.log(std_q / std) + ratio - 0.5).sum(-1)
    np.testing.assert_allclose(diagonal_gaussian.kl(parameters, (mean_q, log_std_q)), kl, rtol=1e-4)
    np.testing.assert_array_equal(diagonal_gaussian.kl(parameters, parameters), np.zeros(batch))
    np.testing.assert_array_equal(diagonal_gaussian.mode(parameters), parameters[0])


@pytest.mark.parametrize("distribution", [diagonal_gaussian, tanh_gaussian])
def test_gaussian_samples(distribution: Distribution) -> None:
    mean, log_std = jnp.array([1.0, -2.0]), jnp.array([0.5, -1.0])
    draws = np.asarray(distribution.sample(KEY, (jnp.broadcast_to(mean, (20_000, 2)), log_std)), np.float64)
    for i in range(2):
        test = stats.kstest(draws[:, i], stats.norm(float(mean[i]), float(np.exp(log_std[i]))).cdf)
        assert test.pvalue > 1e-3
    assert abs(np.corrcoef(draws.T)[0, 1]) < 0.03
    slopes = jax.jacobian(lambda x: distribution.sample(KEY, x))((mean, log_std))
    noise = (distribution.sample(KEY, (mean, log_std)) - mean) / jnp.exp(log_std)
    np.testing.assert_allclose(slopes[0], np.eye(2), atol=1e-6)
    np.testing.assert_allclose(slopes[1], np.diag(noise * jnp.exp(log_std)), rtol=1e-5)


def test_tanh_gaussian_density_integrates_to_one() -> None:
    parameters = (jnp.array([0.4]), jnp.array([-0.3]))
    u = np.linspace(-9, 9, 20_001)
    squashed = np.tanh(u)
    columns = jnp.asarray(u[:, None], jnp.float32)
    repeated = (jnp.broadcast_to(parameters[0], columns.shape), parameters[1])
    density = np.exp(np.asarray(tanh_gaussian.log_prob(repeated, columns), np.float64))
    assert np.trapezoid(density, squashed) == pytest.approx(1, abs=1e-3)
    base = stats.norm.logpdf(u[8000:12000], 0.4, np.exp(-0.3))
    expected = base - np.log1p(-(squashed[8000:12000] ** 2))
    np.testing.assert_allclose(np.log(density[8000:12000]), expected, rtol=1e-4, atol=1e-4)


def test_the_density_of_a_reparameterised_action_is_exact_where_it_is_narrow() -> None:
    """At log_std −18 beside a mean of 3, (action − mean) / std has no digit left: off by 0.5 nats before."""
    noise = normal(1000, 1)
    for log_std in (-10.0, -18.0):
        parameters = jnp.full((1000, 1), 3.0), jnp.full((1000, 1), log_std)
        _, log_prob = reparameterise(noise, parameters)
        u = 3 + np.exp(log_std) * np.asarray(noise, np.float64)[:, 0]
        exact = (
            stats.norm.logpdf(np.asarray(noise, np.float64)[:, 0]) - log_std - np.log1p(-(np.tanh(u) ** 2))
        )
        np.testing.assert_allclose(log_prob, exact, atol=2e-5)


def test_tanh_gaussian_is_finite_where_tanh_saturates() -> None:
    parameters = (jnp.zeros(2), jnp.zeros(2))
    for u in (jnp.array([20.0, -20.0]), jnp.array([80.0, -80.0])):
        assert np.all(np.abs(squash(u)) == 1)
        expected = (stats.norm.logpdf(u) + 2 * np.abs(u) - 2 * np.log(2)).sum()
        actual, gradient = jax.value_and_grad(tanh_gaussian.log_prob, 1)(parameters, u)
        np.testing.assert_allclose(actual, expected, rtol=1e-5)
        np.testing.assert_allclose(gradient, -np.asarray(u) + 2 * np.sign(u), rtol=1e-5)


@pytest.mark.parametrize("log_std", [-1.0, 0.0, 2.0])
def test_tanh_gaussian_entropy_is_that_of_the_squashed_action(log_std: float) -> None:
    """−∫ p log p of tanh(u), and its slopes in both parameters, by quadrature over u."""

    def exact(mean: float, log_std: float) -> float:
        u = np.linspace(mean - 12 * np.exp(log_std), mean + 12 * np.exp(log_std), 200_001)
        base = stats.norm.pdf(u, mean, np.exp(log_std))
        log_slope = 2 * (np.log(2) - np.abs(u) - np.log1p(np.exp(-2 * np.abs(u))))
        return float(stats.norm.entropy(0, np.exp(log_std)) + np.trapezoid(base * log_slope, u))

    spread = lambda mean, log_std: (jnp.broadcast_to(mean, (100_000, 1)), log_std[None])
    entropy = lambda mean, log_std: tanh_gaussian.entropy(spread(mean, log_std), KEY).mean()
    value, slopes = jax.value_and_grad(entropy, (0, 1))(jnp.float32(0.5), jnp.float32(log_std))
    size = 1 + np.exp(log_std)
    assert float(value) == pytest.approx(exact(0.5, log_std), abs=0.02 * size)
    if log_std == 2.0:
        assert value < -7
    for i, slope in enumerate(slopes):
        shift = np.eye(2)[i] * 1e-3
        right = (
            exact(*(np.array([0.5, log_std]) + shift)) - exact(*(np.array([0.5, log_std]) - shift))
        ) / 2e-3
        assert float(slope) == pytest.approx(right, abs=0.02 * size)


def test_tanh_gaussian_kl_is_exact() -> None:
    p, q = (jnp.array([0.5]), jnp.array([-0.5])), (jnp.array([-0.2]), jnp.array([0.1]))
    spread = (jnp.broadcast_to(p[0], (200_000, 1)), p[1])
    u = tanh_gaussian.sample(KEY, spread)
    log_p = tanh_gaussian.log_prob(spread, u)
    log_q = tanh_gaussian.log_prob((jnp.broadcast_to(q[0], u.shape), q[1]), u)
    assert np.mean(log_p - log_q) == pytest.approx(float(tanh_gaussian.kl(p, q)), rel=0.02)


FAMILIES = pytest.mark.parametrize(
    ("distribution", "parameters"),
    [
        (categorical, normal(4, 5)),
        (multi_categorical((2, 3)), normal(4, 5)),
        (diagonal_gaussian, gaussian(3, 4)),
        (tanh_gaussian, gaussian(4, 4)),
    ],
    ids=["categorical", "multi_categorical", "diagonal_gaussian", "tanh_gaussian"],
)


@FAMILIES
def test_jit_and_batches_agree_with_single_rows(distribution: Distribution, parameters: Any) -> None:
    action = jax.jit(distribution.sample)(KEY, parameters)
    np.testing.assert_array_equal(action, jax.jit(distribution.sample)(KEY, parameters))
    assert np.any(action != distribution.sample(jax.random.key(1), parameters))

    def row(i: int) -> Any:
        return (parameters[0][i], parameters[1]) if isinstance(parameters, tuple) else parameters[i]

    for i in range(4):
        single, batched = (
            distribution.log_prob(row(i), action[i]),
            distribution.log_prob(parameters, action)[i],
        )
        np.testing.assert_allclose(single, batched, rtol=1e-5)
        if distribution is not tanh_gaussian:  # whose estimates are of other samples
            single, batched = distribution.entropy(row(i)), distribution.entropy(parameters)[i]
            np.testing.assert_allclose(single, batched, rtol=1e-5)


@FAMILIES
def test_the_score_has_mean_zero(distribution: Distribution, parameters: Any) -> None:
    """E ∇log π(a) = 0: what makes a baseline free of bias, and false if sampler and density disagree."""
    one = jax.tree.map(lambda leaf: leaf[0] if leaf.ndim == 2 else leaf, parameters)
    keys = jax.random.split(KEY, 20_000)
    score = jax.jit(jax.vmap(lambda key: jax.grad(distribution.log_prob)(one, distribution.sample(key, one))))
    for leaf in jax.tree.leaves(score(keys)):
        error = leaf.std(axis=0) / np.sqrt(len(keys))
        assert np.all(np.abs(leaf.mean(axis=0)) < 4.5 * error + 1e-6)
