"""Losses against their definitions, their gradients, and the limits where one becomes another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rljax.math.losses import clipped_surrogate, clipped_value_loss, policy_gradient, value_loss


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
