"""Action values against definitions in float64 loops, identities, and what each loss is minimised by."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rljax.math import action_values as av
from rljax.math.schedules import interpolate

KEY = jax.random.key(0)
many = settings(deadline=None, max_examples=50)
# without subnormal numbers, which XLA takes for zero on a CPU
values = hnp.arrays(np.float32, (5,), elements=st.floats(-10, 10, width=32, allow_subnormal=False))
weights = hnp.arrays(np.float32, (11,), elements=st.floats(0, 1, width=32, allow_subnormal=False)).filter(
    lambda x: x.sum() > 0.1
)


def f32(*arrays: np.ndarray | list[float]) -> list[jax.Array]:
    return [jnp.asarray(array, jnp.float32) for array in arrays]


# Acting


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_epsilon_greedy_takes_every_action_as_often_as_it_should(epsilon: float) -> None:
    n, actions, best = 40_000, 3, 1
    q = jnp.broadcast_to(jnp.array([[0.0, 2.0, 1.0]]), (n, actions))
    action = np.asarray(av.epsilon_greedy(KEY, q, epsilon))
    assert action.dtype == np.int32
    chance = np.full(actions, epsilon / actions)
    chance[best] += 1 - epsilon
    np.testing.assert_allclose(np.bincount(action, minlength=actions) / n, chance, atol=5 * 0.5 / n**0.5)


def test_epsilon_can_be_one_per_row_and_rows_explore_on_their_own() -> None:
    q = jnp.broadcast_to(jnp.array([[0.0, 1.0]]), (1000, 2))
    epsilon = jnp.where(jnp.arange(1000) < 500, 0.0, 1.0)
    action = np.asarray(av.epsilon_greedy(KEY, q, epsilon))
    assert (action[:500] == 1).all()
    assert 200 < action[500:].sum() < 300
    whole = av.epsilon_greedy(KEY, q.reshape(10, 100, 2), 1.0)
    np.testing.assert_array_equal(whole.reshape(-1), av.epsilon_greedy(KEY, q, 1.0))


def test_whether_and_which_are_independent() -> None:
    """Among rows that explore, all A actions are equally likely, also where few explore."""
    n, actions = 200_000, 4
    q = jnp.broadcast_to(jnp.array([[0.0, 0.0, 0.0, 1.0]]), (n, actions))
    counts = np.bincount(np.asarray(av.epsilon_greedy(KEY, q, 0.05)), minlength=actions)[:3]
    np.testing.assert_allclose(counts / n, 0.05 / 4, rtol=0.1)


def test_a_forbidden_action_is_never_explored_and_the_others_alike() -> None:
    n, allowed = 40_000, [0, 2, 4]
    q = jnp.broadcast_to(jnp.full(5, -jnp.inf).at[jnp.array(allowed)].set(f32([1.0, -3.0, 2.0])[0]), (n, 5))
    counts = np.bincount(np.asarray(av.epsilon_greedy(KEY, q, 0.6)), minlength=5)
    np.testing.assert_allclose(counts / n, [0.2, 0, 0.2, 0, 0.6], atol=5 * 0.5 / n**0.5)
    assert counts[[1, 3]].tolist() == [0, 0]


def test_ties_go_to_the_first() -> None:
    assert av.greedy(jnp.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])).tolist() == [1, 0]


# Bootstrap values


def test_selection_and_its_gradient() -> None:
    rng = np.random.default_rng(0)
    q, atoms, action = rng.normal(size=(4, 6, 3)), rng.normal(size=(4, 6, 3, 7)), rng.integers(3, size=(4, 6))
    expected = np.zeros((4, 6))
    for i in np.ndindex(4, 6):
        expected[i] = q[i][action[i]]
    single = lambda q: av.select(q, jnp.asarray(action, jnp.int32))
    np.testing.assert_array_equal(single(f32(q)[0]), expected.astype(np.float32))
    slope = jax.grad(lambda q: single(q).sum())(f32(q)[0])
    np.testing.assert_array_equal(slope, np.arange(3)[None, None] == action[..., None])
    several = np.asarray(av.select(f32(atoms)[0], jnp.asarray(action, jnp.int32)))
    for i in np.ndindex(4, 6):
        np.testing.assert_array_equal(several[i], atoms[i][action[i]].astype(np.float32))


@many
@given(values, values)
def test_bootstrap_values_are_their_definitions(q: np.ndarray, other: np.ndarray) -> None:
    x, y = f32(q, other)
    assert float(av.max_value(x)) == q.max()
    assert float(av.double_value(x, y)) == q[other.argmax()]
    assert float(av.double_value(x, x)) == q.max()
    assert float(av.double_value(x, y)) <= q.max()
    probability = np.exp(other - other.max()) / np.exp(other - other.max()).sum()
    expected = float(av.expected_value(x, f32(probability)[0]))
    np.testing.assert_allclose(expected, (probability.astype(np.float64) * q).sum(), rtol=1e-4, atol=1e-4)


@many
@given(values, st.floats(0.03125, 5, width=32, allow_subnormal=False), st.integers(0, 4))
def test_soft_values_are_their_definitions(q: np.ndarray, temperature: float, action: int) -> None:
    wide = q.astype(np.float64)
    scaled = (wide - wide.max()) / temperature
    log_policy = scaled - np.log(np.exp(scaled).sum())
    policy = np.exp(log_policy)
    (x,) = f32(q)
    np.testing.assert_allclose(
        av.soft_value(x, temperature),
        (policy * (wide - temperature * log_policy)).sum(),
        rtol=1e-5,
        atol=1e-5,
    )
    np.testing.assert_allclose(
        av.scaled_log_policy(x, temperature), temperature * log_policy, rtol=1e-5, atol=1e-5
    )
    bonus = av.munchausen_bonus(x, jnp.int32(action), temperature, 0.9, -1.0)
    np.testing.assert_allclose(
        bonus, 0.9 * np.clip(temperature * log_policy[action], -1, 0), rtol=1e-4, atol=1e-5
    )
    assert q.max() - 1e-4 <= float(av.soft_value(x, temperature))
    assert float(av.soft_value(x, temperature)) <= q.max() + temperature * np.log(5) + 1e-4


def test_soft_quantiles_are_their_definition_and_their_mean_is_the_soft_value() -> None:
    z = np.random.default_rng(6).normal(size=(7, 3, 4))
    q = z.mean(axis=-1)
    expected = np.zeros((7, 4))
    for i in range(7):
        policy = np.exp(q[i] / 0.5) / np.exp(q[i] / 0.5).sum()
        for a in range(3):
            expected[i] += policy[a] * (z[i, a] - 0.5 * np.log(policy[a]))
    quantiles, means = f32(z, q)
    soft = av.soft_quantiles(quantiles, means, 0.5)
    np.testing.assert_allclose(soft, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(soft.mean(axis=-1), av.soft_value(means, 0.5), rtol=1e-4, atol=1e-5)


def test_forbidden_actions_are_as_if_they_were_not_there() -> None:
    z, allowed = np.random.default_rng(6).normal(size=(7, 4, 4)), np.array([True, False, True, True])
    (few,) = f32(z[:, allowed])
    every = jnp.where(allowed[None, :, None], f32(z)[0], -jnp.inf)
    soft = av.soft_quantiles(every, every.mean(axis=-1), 0.5)
    np.testing.assert_allclose(soft, av.soft_quantiles(few, few.mean(axis=-1), 0.5), rtol=1e-5, atol=1e-6)
    weight = jnp.array([[0.2, 0.0, 0.5, 0.3]])
    np.testing.assert_allclose(
        av.expected_value(every[..., 0], jnp.broadcast_to(weight, (7, 4))),
        few[..., 0] @ weight[0, allowed],
        rtol=1e-5,
    )
    slopes = jax.grad(lambda x: av.expected_value(x, weight[0]))(every[0, :, 0])
    np.testing.assert_array_equal(slopes, weight[0])


def test_what_follows_an_end_is_not_looked_at() -> None:
    reward, discount = f32([1.0, 2.0, 3.0], [0.0, 0.0, 0.5])
    value = jnp.array([-jnp.inf, jnp.nan, 4.0])
    assert av.bootstrap(reward, discount, value).tolist() == [1, 2, 5]
    assert av.bootstrap(reward, discount, jnp.stack([value, value], -1)).tolist() == [[1, 1], [2, 2], [5, 5]]


def test_munchausen_without_bonus_and_temperature_is_q_learning() -> None:
    (q,) = f32(np.random.default_rng(1).normal(size=(50, 4)))
    action = jnp.zeros(50, jnp.int32)
    np.testing.assert_allclose(av.soft_value(q, 1e-6), av.max_value(q), atol=1e-5)
    np.testing.assert_array_equal(av.munchausen_bonus(q, action, 0.03, 0.0, -1.0), np.zeros(50))
    # As τ → 0 the bonus of the best action is 0 and that of another minus its gap, α times.
    gap = np.asarray(q[:, 0] - q.max(axis=1))
    bonus = av.munchausen_bonus(q, action, 1e-6, 0.9, -1.0)
    np.testing.assert_allclose(bonus, 0.9 * np.maximum(gap, -1), atol=1e-5)


# Losses


@many
@given(st.floats(-5, 5, width=32, allow_subnormal=False), st.floats(0.25, 3, width=32, allow_subnormal=False))
def test_huber_and_its_slope(error: float, delta: float) -> None:
    inside = abs(error) <= delta
    expected = error**2 / 2 if inside else delta * (abs(error) - delta / 2)
    value, slope = jax.value_and_grad(lambda e: av.huber(e, delta))(jnp.float32(error))
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
    if abs(abs(error) - delta) > 1e-6:
        np.testing.assert_allclose(slope, np.clip(error, -delta, delta), rtol=1e-5, atol=1e-6)


SUPPORT = np.linspace(-2, 8, 11)


def project(support: np.ndarray, weight: np.ndarray, reward: float, discount: float) -> np.ndarray:
    """Algorithm 1 of Bellemare et al. 2017: the mass of each atom to the two it falls between."""
    width = support[1] - support[0]
    result = np.zeros(len(support))
    for value, mass in zip(support, weight, strict=True):
        moved = min(max(reward + discount * value, support[0]), support[-1])
        position = (moved - support[0]) / width
        lower = min(int(np.floor(position)), len(support) - 2)
        result[lower] += mass * (1 - (position - lower))
        result[lower + 1] += mass * (position - lower)
    return result


@many
@given(
    weights,
    st.floats(-20, 20, width=32, allow_subnormal=False),
    st.floats(0, 1, width=32, allow_subnormal=False),
)
def test_the_projection_is_the_papers_algorithm(weight: np.ndarray, reward: float, discount: float) -> None:
    probability = weight / weight.sum()
    support, mass, r, g = f32(SUPPORT, probability, [reward], [discount])
    result = np.asarray(av.categorical_projection(support, mass, r[0], g[0]))
    np.testing.assert_allclose(result, project(SUPPORT, probability, reward, discount), atol=2e-5)
    np.testing.assert_allclose(result.sum(), probability.sum(), rtol=1e-6)
    assert (result >= 0).all()


@many
@given(
    weights,
    st.floats(0, 1, width=32, allow_subnormal=False),
    st.floats(0, 1, width=32, allow_subnormal=False),
)
def test_the_projection_keeps_the_mean_inside_the_support(
    weight: np.ndarray, discount: float, where: float
) -> None:
    probability = weight / weight.sum()
    low, high = SUPPORT[0] * (1 - discount), SUPPORT[-1] * (1 - discount)
    reward = low + where * (high - low)  # low ≤ r + γ z ≤ high for every atom
    support, mass, r, g = f32(SUPPORT, probability, [reward], [discount])
    result = np.asarray(av.categorical_projection(support, mass, r[0], g[0]))
    mean = (probability * SUPPORT).sum()
    np.testing.assert_allclose((result * SUPPORT).sum(), reward + discount * mean, atol=1e-4)


def test_the_projection_of_a_point_and_at_the_ends() -> None:
    support = jnp.asarray(SUPPORT, jnp.float32)
    move = lambda p, r, g: np.asarray(
        av.categorical_projection(support, jnp.asarray(p, jnp.float32), jnp.float32(r), jnp.float32(g))
    )
    unit = np.eye(11)
    for i in range(11):
        np.testing.assert_array_equal(move(unit[i], 0.0, 1.0), unit[i])  # nothing moves
        np.testing.assert_array_equal(move(unit[i], SUPPORT[3], 0.0), unit[3])  # terminal: r alone
    np.testing.assert_array_equal(move(unit[4], 1.0, 1.0), unit[5])
    np.testing.assert_allclose(move(unit[4], 0.25, 1.0), 0.75 * unit[4] + 0.25 * unit[5], atol=1e-6)
    np.testing.assert_array_equal(move(np.full(11, 1 / 11), 99.0, 1.0).round(6), unit[10])
    np.testing.assert_array_equal(move(np.full(11, 1 / 11), -99.0, 1.0).round(6), unit[0])


@many
@given(weights, hnp.arrays(np.float32, (11,), elements=st.floats(-5, 5, width=32, allow_subnormal=False)))
def test_cross_entropy_and_kl(weight: np.ndarray, logits: np.ndarray) -> None:
    weight[0] = 0  # 0 log 0 = 0
    if weight.sum() < 0.1:
        weight[1] = 1
    p = (weight / weight.sum()).astype(np.float64)
    wide = logits.astype(np.float64)
    log_q = wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())
    target, x = f32(p, logits)
    np.testing.assert_allclose(av.categorical_cross_entropy(target, x), -(p * log_q).sum(), rtol=1e-4)
    kl = sum(mass * (np.log(mass) - lq) for mass, lq in zip(p, log_q, strict=True) if mass > 0)
    np.testing.assert_allclose(av.categorical_kl(target, x), kl, rtol=1e-4, atol=1e-4)
    slope = jax.grad(av.categorical_cross_entropy, 1)(target, x)
    np.testing.assert_allclose(slope, np.exp(log_q) - p, atol=1e-5)
    same = jax.grad(av.categorical_kl, 1)(target, x)
    np.testing.assert_allclose(slope, same, atol=1e-6)


def test_kl_of_a_distribution_to_itself_is_nothing() -> None:
    (logits,) = f32(np.random.default_rng(2).normal(size=(6, 11)))
    np.testing.assert_allclose(av.categorical_kl(jax.nn.softmax(logits), logits), 0, atol=1e-6)


@many
@given(
    values,
    hnp.arrays(np.float32, (3,), elements=st.floats(-10, 10, width=32, allow_subnormal=False)),
    st.floats(0.25, 3),
)
def test_quantile_huber_is_its_definition(quantiles: np.ndarray, target: np.ndarray, kappa: float) -> None:
    tau = (np.arange(5) + 0.5) / 5
    expected = 0.0
    for i in range(5):
        for j in range(3):
            error = float(target[j]) - float(quantiles[i])
            size = abs(error)
            huber = error**2 / 2 if size <= kappa else kappa * (size - kappa / 2)
            expected += abs(tau[i] - (error < 0)) * huber / kappa / 3
    loss = av.quantile_huber(*f32(quantiles, target, tau), kappa)
    np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-5)


def test_quantile_huber_is_least_at_the_quantiles() -> None:
    """Gradient descent on it finds the τ-quantiles of the targets."""
    sample = np.random.default_rng(3).exponential(size=501)
    tau = np.array([0.1, 0.5, 0.9])
    target, fractions = f32(sample, tau)
    slope = jax.grad(lambda quantiles: av.quantile_huber(quantiles, target, fractions, 1e-3))
    descend = lambda i, x: x - 0.5 / (1.0 + 0.01 * i.astype(jnp.float32)) * slope(x)
    found = jax.jit(lambda x: jax.lax.fori_loop(0, 3000, descend, x))(jnp.zeros(3))
    np.testing.assert_allclose(found, np.quantile(sample, tau), atol=0.02)


def test_with_a_large_kappa_every_quantile_is_an_expectile() -> None:
    """δ² weights: at τ = ½ the least is the mean."""
    target, half = f32(np.random.default_rng(4).exponential(size=101), [0.5])
    slope = jax.grad(lambda x: av.quantile_huber(x, target, half, 1e3))(target.mean()[None])
    np.testing.assert_allclose(slope, 0, atol=1e-6)


def test_a_sample_at_a_time_equals_a_batch_of_them() -> None:
    rng = np.random.default_rng(5)
    support, p, r = f32(SUPPORT, rng.dirichlet(np.ones(11), 4), rng.normal(size=4))
    batched = jax.vmap(av.categorical_projection, (None, 0, 0, None))(support, p, r, jnp.float32(0.9))
    for i in range(4):
        alone = av.categorical_projection(support, p[i], r[i], jnp.float32(0.9))
        np.testing.assert_allclose(batched[i], alone, rtol=1e-6)


# The schedule of ε


@many
@given(
    st.floats(0, 1, width=32, allow_subnormal=False), st.floats(0.0625, 1, width=32, allow_subnormal=False)
)
def test_interpolation_is_linear_and_then_constant(progress: float, fraction: float) -> None:
    result = interpolate(1.0, 0.05, jnp.float32(progress), fraction)
    expected = np.interp(progress, [0, fraction], [1.0, 0.05])
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_interpolation_stays_at_the_end() -> None:
    assert float(interpolate(1.0, 0.25, jnp.float32(7.0), 0.5)) == 0.25
