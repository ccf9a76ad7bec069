"""Losses against their definitions, their gradients, and the limits where one becomes another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rljax.math.losses import (
    cispo,
    clipped_surrogate,
    clipped_value_loss,
    policy_gradient,
    sequence_log_ratio,
    value_loss,
    without_gradient,
)


def samples(seed: int, *shape: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for _ in range(3)]


def f32(*arrays: np.ndarray) -> list[jax.Array]:
    return [jnp.asarray(array, jnp.float32) for array in arrays]


@pytest.mark.parametrize("shape", [(), (40,), (3, 40)], ids=str)
def test_losses_are_their_definitions_step_by_step(shape: tuple[int, ...]) -> None:
    a, b, c = samples(0, *shape)
    surrogate, symmetric, gradient, value, clipped_value = (np.zeros(shape) for _ in range(5))
    for i in np.ndindex(shape):
        ratio = np.exp(a[i] - b[i])
        surrogate[i] = -min(ratio * c[i], min(max(ratio, 0.8), 1.5) * c[i])
        symmetric[i] = -min(ratio * c[i], min(max(ratio, 0.8), 1.2) * c[i])
        gradient[i] = -a[i] * c[i]
        value[i] = (a[i] - c[i]) ** 2 / 2
        near = b[i] + min(max(a[i] - b[i], -0.2), 0.2)
        clipped_value[i] = max((a[i] - c[i]) ** 2, (near - c[i]) ** 2) / 2
    x, y, z = f32(a, b, c)
    np.testing.assert_allclose(clipped_surrogate(x, y, z, 0.2, 0.5), surrogate, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(clipped_surrogate(x, y, z, 0.2), symmetric, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(policy_gradient(x, z), gradient, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(value_loss(x, z), value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(clipped_value_loss(x, y, z, 0.2), clipped_value, rtol=1e-5, atol=1e-6)


def test_a_ratio_of_one_gives_the_policy_gradient() -> None:
    log_prob, _, advantage = f32(*samples(1, 50))
    surrogate = jax.grad(lambda x: clipped_surrogate(x, log_prob, advantage, 0.2).sum())(log_prob)
    reinforce = jax.grad(lambda x: policy_gradient(x, advantage).sum())(log_prob)
    np.testing.assert_allclose(surrogate, reinforce, rtol=1e-6)
    np.testing.assert_allclose(surrogate, -advantage, rtol=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope"),
    [
        (1.3, 1.0, 0.0),  # good and already likelier than 1 + ε: leave it
        (1.3, -1.0, 1.3),  # bad and likelier: push down
        (0.7, -1.0, 0.0),  # bad and already rarer than 1 − ε: leave it
        (0.7, 1.0, -0.7),  # good and rarer: push up
        (1.1, 1.0, -1.1),
        (0.9, -1.0, 0.9),
    ],
)
def test_the_clip_stops_only_gradients_that_would_go_further(
    ratio: float, advantage: float, slope: float
) -> None:
    gradient = jax.grad(clipped_surrogate)(jnp.log(ratio), jnp.float32(0), jnp.float32(advantage), 0.2)
    np.testing.assert_allclose(gradient, slope, rtol=1e-5)


def test_the_upper_clip_is_separate() -> None:
    slope = jax.grad(clipped_surrogate)
    log_ratio, zero, one = jnp.log(jnp.float32(1.25)), jnp.float32(0), jnp.float32(1)
    assert slope(log_ratio, zero, one, 0.2, 0.28) == pytest.approx(-1.25)
    assert slope(log_ratio, zero, one, 0.2) == 0
    assert slope(-log_ratio, zero, -one, 0.3, 0.0) == pytest.approx(0.8)


def test_the_dual_clip_is_its_definition() -> None:
    """−max(min(ρ A, clip(ρ) A), c A) where A < 0, and −min(ρ A, clip(ρ) A) elsewhere."""
    a, b, c = samples(4, 200)
    expected = []
    for log_ratio, advantage in zip(2 * (a - b), c, strict=True):
        ratio = np.exp(log_ratio)
        objective = min(ratio * advantage, min(max(ratio, 0.8), 1.28) * advantage)
        expected.append(-max(objective, 3 * advantage) if advantage < 0 else -objective)
    x, y, z = f32(2 * a, 2 * b, c)
    actual = clipped_surrogate(x, y, z, 0.2, 0.28, 3.0)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    assert np.any(np.asarray(actual) < np.asarray(clipped_surrogate(x, y, z, 0.2, 0.28)))
    traced = jax.jit(clipped_surrogate)(x, y, z, 0.2, 0.28, jnp.float32(3))
    np.testing.assert_allclose(traced, actual, rtol=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (5.0, -2.0, 6.0, 0.0),  # bad and much likelier: bounded, and no gradient
        (2.5, -2.0, 5.0, 5.0),  # bad and likelier: as without the bound
        (5.0, 2.0, -2.4, 0.0),  # good: the ordinary clip
        (0.5, -2.0, 1.6, 0.0),
        (1.0, -2.0, 2.0, 2.0),
    ],
)
def test_the_dual_clip_bounds_only_bad_actions(
    ratio: float, advantage: float, loss: float, slope: float
) -> None:
    arguments = jnp.log(jnp.float32(ratio)), jnp.float32(0), jnp.float32(advantage), 0.2, None, 3.0
    value, gradient = jax.value_and_grad(clipped_surrogate)(*arguments)
    assert value == pytest.approx(loss, rel=1e-5)
    assert gradient == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize(
    ("ratio", "advantage", "cut"),
    [
        (1.3, 1.0, True),  # good and likelier already
        (1.3, -1.0, False),  # bad and likelier: pulled back in full
        (0.7, 1.0, False),
        (0.7, -1.0, True),
        (1.1, 1.0, False),
        (0.9, -1.0, False),
        (1.3, 0.0, False),  # there is nothing to cut off
        (3.5, -1.0, True),  # beyond the dual clip
        (3.5, 1.0, True),
        (2.5, -1.0, False),
    ],
)
def test_where_a_gradient_is_cut_off(ratio: float, advantage: float, cut: bool) -> None:
    r, a = jnp.float32(ratio), jnp.float32(advantage)
    assert bool(without_gradient(r, a, 0.2, 0.28, 3.0)) == cut
    slope = jax.grad(clipped_surrogate)(jnp.log(r), jnp.float32(0), a, 0.2, 0.28, 3.0)
    assert (slope == 0) == (cut or advantage == 0)


def test_only_the_upper_clip_is_separate() -> None:
    ratio, advantage = jnp.array([1.25, 1.25, 0.75]), jnp.array([1.0, 1.0, -1.0])
    assert without_gradient(ratio, advantage, 0.2).tolist() == [True, True, True]
    assert without_gradient(ratio, advantage, 0.2, 0.3).tolist() == [False, False, True]


def test_cispo_weighs_the_policy_gradient_and_drops_no_token() -> None:
    a, b, c = samples(5, 100)
    x, y, z = f32(a, b, c)
    ratio = np.exp(a - b)
    for low, high, bounds in ((None, 0.28, (0.0, 1.28)), (0.2, 4.0, (0.8, 5.0))):
        weight = np.clip(ratio, *bounds)
        value = cispo(x, y, z, high, low)
        np.testing.assert_allclose(value, -weight * c * a, rtol=1e-5, atol=1e-6)
        gradient = jax.grad(lambda x, high=high, low=low: cispo(x, y, z, high, low).sum())(x)
        np.testing.assert_allclose(gradient, -weight * c, rtol=1e-5)
    np.testing.assert_allclose(cispo(x, x, z, 0.2), policy_gradient(x, z), rtol=1e-6)
    overflow = jax.grad(lambda x: cispo(x, jnp.float32(-200), jnp.float32(1), 0.28))(jnp.float32(0))
    assert overflow == pytest.approx(-1.28)  # the ratio is infinite, its bound is not


def test_the_sequence_ratio_is_the_geometric_mean_at_every_place() -> None:
    a, b, _ = samples(6, 9)
    mask = np.array([0, 1, 1, 0, 1, 1, 1, 0, 0], bool)
    expected = np.log(np.prod(np.exp(a - b)[mask]) ** (1 / mask.sum()))
    x, y = f32(a, b)
    actual = sequence_log_ratio(x, y, jnp.asarray(mask))
    np.testing.assert_allclose(actual, np.full(9, expected), rtol=1e-5)
    poisoned = jnp.where(mask, x, jnp.nan)
    value, gradient = jax.value_and_grad(lambda x: sequence_log_ratio(x, y, jnp.asarray(mask))[0])(poisoned)
    assert value == actual[0]
    np.testing.assert_allclose(gradient, mask / mask.sum(), rtol=1e-6)
    np.testing.assert_array_equal(sequence_log_ratio(x, y, jnp.zeros(9, bool)), np.zeros(9))


def test_gspo_is_the_clipped_surrogate_of_the_sequence_ratio() -> None:
    """The mean over tokens has the gradient s A Σ ∇log π / |y| inside the clip (Zheng et al. 2025)."""
    a, b, _ = samples(7, 6)
    mask, zeros = jnp.array([True, True, True, True, False, False]), jnp.zeros(6)
    x, y = f32(b + 0.01 * a, b)

    def loss(x: jax.Array, clip: float) -> jax.Array:
        values = clipped_surrogate(sequence_log_ratio(x, y, mask), zeros, jnp.full(6, 1.5), clip)
        return jnp.sum(jnp.where(mask, values, 0)) / 4

    ratio = np.exp(0.01 * a[:4].mean())
    value, gradient = jax.value_and_grad(loss)(x, 0.2)
    assert value == pytest.approx(-1.5 * ratio, rel=1e-5)
    np.testing.assert_allclose(gradient, np.where(mask, -1.5 * ratio / 4, 0), rtol=1e-5)
    up = b + np.where(
        mask, 0.01, 0
    )  # the whole sequence likelier than its clip allows: no token has a gradient
    np.testing.assert_array_equal(jax.grad(loss)(*f32(up), 3e-4), np.zeros(6))


finite = st.floats(-5, 5, width=32, allow_subnormal=False)


@settings(deadline=None, max_examples=50)
@given(finite, finite, finite, st.floats(0, 1, width=32, allow_subnormal=False))
def test_pessimism(new: float, old: float, advantage: float, clip: float) -> None:
    """Clipping never lowers a loss: the surrogate is a lower bound of the objective."""
    x, y, z = (jnp.float32(number) for number in (new, old, advantage))
    assert clipped_surrogate(x, y, z, clip) >= -jnp.exp(x - y) * z
    assert clipped_value_loss(x, y, z, clip) >= value_loss(x, z)


def test_clipped_value_loss_inside_and_outside_its_clip() -> None:
    value, old, target = f32(*samples(2, 60))
    near = old + 0.1 * jnp.tanh(value)
    np.testing.assert_allclose(
        clipped_value_loss(near, old, target, 0.2), value_loss(near, target), rtol=1e-5
    )
    slope = jax.grad(clipped_value_loss)
    zero, one = jnp.float32(0), jnp.float32(1)
    assert slope(0.5 * one, zero, one, 0.2) == 0  # moved far towards the target: stop
    assert slope(-0.5 * one, zero, one, 0.2) == pytest.approx(-1.5)  # moved far away from it: come back
    assert jax.grad(value_loss)(0.5 * one, one) == pytest.approx(-0.5)


def test_the_clip_may_be_traced_and_mapped() -> None:
    log_prob, old, advantage = f32(*samples(3, 10))
    clips = jnp.array([0.1, 0.3])
    mapped = jax.jit(jax.vmap(clipped_surrogate, (None, None, None, 0)))(log_prob, old, advantage, clips)
    for row, clip in zip(mapped, (0.1, 0.3), strict=True):
        np.testing.assert_allclose(row, clipped_surrogate(log_prob, old, advantage, clip), rtol=1e-5)
