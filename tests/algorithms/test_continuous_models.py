"""rljax.models.continuous: actors and critics against plain arrays, for any space and leading axes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import models
from rljax.algorithms import sac
from rljax.types import Box, Discrete
from tests.algorithms.networks import compiled

KEY = jax.random.key(0)
VECTOR, IMAGE = Box(-1.0, 1.0, (3,)), Box(0, 1, (5, 4, 2), np.bool_)
MIXED = {"b": Discrete(4), "a": Box(-1.0, 1.0, (2, 2))}


def config(**fields: Any) -> sac.Config:
    return sac.Config(**{"hidden_sizes": (8, 5), **fields})


def draw(space: Any, batch: tuple[int, ...], seed: int = 0) -> Any:
    generator = np.random.default_rng(seed)
    if isinstance(space, dict):
        return {name: draw(child, batch, seed) for name, child in space.items()}
    if isinstance(space, Discrete):
        return generator.integers(space.n, size=batch, dtype=np.int32)
    uniform = generator.uniform(-1, 1, (*batch, *space.shape))
    return np.asarray(uniform > 0 if space.dtype == np.bool_ else uniform, space.dtype)


def actions(batch: tuple[int, ...], size: int = 2) -> Any:
    return np.random.default_rng(7).uniform(-1, 1, (*batch, size)).astype(np.float32)


CASES = [
    pytest.param(space, fields, id=name)
    for name, space, fields in (
        ("vector", VECTOR, {}),
        ("mixed", MIXED, {}),
        ("image", IMAGE, {"architecture": "cnn", "activation": "relu"}),
    )
]


@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (200,)])
@pytest.mark.parametrize(("space", "fields"), CASES)
def test_any_space_and_any_leading_axes(space: Any, fields: dict[str, Any], batch: tuple[int, ...]) -> None:
    obs, action = draw(space, batch), actions(batch)
    deterministic = compiled(models.deterministic_actor(space, 2, config(**fields)))
    gaussian = compiled(models.gaussian_actor(space, 2, config(**fields)))
    critic = compiled(models.ensemble(models.critic(space, 2, config(**fields)), 3))
    one = draw(space, ())
    chosen = deterministic.apply(deterministic.init(KEY, one), obs)
    mean, log_std = gaussian.apply(gaussian.init(KEY, one), obs)
    params = critic.init(KEY, one, np.zeros(2, np.float32))
    value = critic.apply(params, obs, action)
    assert chosen.shape == mean.shape == log_std.shape == (*batch, 2)
    assert value.shape == (3, *batch)
    for index in list(np.ndindex(*batch))[:6]:
        single = critic.apply(params, jax.tree.map(lambda x, i=index: x[i], obs), action[index])
        np.testing.assert_allclose(single, value[(slice(None), *index)], rtol=1e-4, atol=1e-5)


def layers(x: np.ndarray, torso: Any, last: Any) -> np.ndarray:
    """Columns through tanh layers, in float64."""
    wide = lambda layer: (np.asarray(layer["kernel"], np.float64), np.asarray(layer["bias"], np.float64))
    for layer in ("Dense_0", "Dense_1"):
        kernel, bias = wide(torso["MLP_0"][layer])
        x = np.tanh(kernel @ x + bias)
    kernel, bias = wide(last)
    return kernel @ x + bias


@pytest.mark.parametrize("batch", [6, 150])  # below and above where the layers change their products
def test_the_networks_are_the_formulas_of_their_docstrings(batch: int) -> None:
    obs, action = draw(VECTOR, (batch,)), actions((batch,))
    columns = np.asarray(obs, np.float64).T
    critic = compiled(models.ensemble(models.critic(VECTOR, 2, config(activation="tanh")), 2))
    params = jax.tree.map(lambda x: np.asarray(x) + 0.1, critic.init(KEY, obs[0], action[0]))  # biases too
    value = critic.apply(params, obs, action)
    for i in range(2):
        beside = np.concatenate([columns, np.asarray(action, np.float64).T])
        own = jax.tree.map(lambda x, i=i: x[i], params)
        expected = layers(beside, own["_Torso_0"], own["value"])
        np.testing.assert_allclose(value[i], expected[0], rtol=1e-4, atol=1e-5)
    for make, size in ((models.deterministic_actor, 2), (models.gaussian_actor, 4)):
        network = make(VECTOR, 2, config(activation="tanh"))
        params = jax.tree.map(lambda x: np.asarray(x) + 0.1, network.init(KEY, obs[0]))
        expected = layers(columns, params["_Torso_0"], params["policy"]).T
        assert expected.shape == (batch, size)
        outputs = network.apply(params, obs)
        if size == 2:
            np.testing.assert_allclose(outputs, np.tanh(expected), rtol=1e-4, atol=1e-5)
        else:
            np.testing.assert_allclose(np.hstack(outputs), expected, rtol=1e-4, atol=1e-5)


def test_an_image_meets_the_action_after_the_convolution() -> None:
    fields = {"architecture": "cnn", "activation": "relu"}
    critic = compiled(models.critic(IMAGE, 2, config(**fields)))
    params = critic.init(KEY, draw(IMAGE, ()), np.zeros(2, np.float32))
    kernels = params["_Torso_0"]
    assert kernels["CNN_0"]["Conv_0"]["kernel"].shape == (3, 3, 2, 16)
    assert kernels["MLP_0"]["Dense_0"]["kernel"].shape == (8, 3 * 2 * 16 + 2)
    slope = jax.grad(lambda action: critic.apply(params, draw(IMAGE, ()), action))(np.zeros(2, np.float32))
    assert (slope != 0).all()


def test_critics_are_independent() -> None:
    critic = compiled(models.ensemble(models.critic(VECTOR, 2, config()), 2))
    obs, action = draw(VECTOR, (5,)), actions((5,))
    params = critic.init(KEY, obs[0], action[0])
    one, two = critic.apply(params, obs, action)
    assert (one != two).all()
    gradients = jax.grad(lambda params: critic.apply(params, obs, action)[0].sum())(params)
    assert all((leaf[0] != 0).any() for leaf in jax.tree.leaves(gradients))
    assert all((leaf[1] == 0).all() for leaf in jax.tree.leaves(gradients))


def test_actions_and_deviations_stay_within_bounds() -> None:
    obs = 1e3 * draw(VECTOR, (50,))
    actor = compiled(models.deterministic_actor(VECTOR, 2, config(activation="relu")))
    chosen = actor.apply(jax.tree.map(lambda x: 30 * np.asarray(x), actor.init(KEY, obs[0])), obs)
    assert np.abs(chosen).max() == 1  # never beyond, and here on it
    actor = compiled(models.gaussian_actor(VECTOR, 2, config(activation="relu")))
    _, log_std = actor.apply(jax.tree.map(lambda x: 30 * np.asarray(x), actor.init(KEY, obs[0])), obs)
    assert (log_std.min(), log_std.max()) == (-20, 2)


def test_a_policy_starts_in_the_middle_and_values_small() -> None:
    obs = draw(VECTOR, (50,))
    actor = compiled(models.gaussian_actor(VECTOR, 2, config()))
    mean, log_std = actor.apply(actor.init(KEY, obs[0]), obs)
    assert 0 < np.abs(mean).max() < 0.05
    assert 0 < np.abs(log_std).max() < 0.05
    critic = compiled(models.ensemble(models.critic(VECTOR, 2, config()), 2))
    params = critic.init(KEY, obs[0], np.zeros(2, np.float32))
    for kernel in np.asarray(params["value"]["kernel"]):
        singular = np.linalg.svd(kernel, compute_uv=False)
        np.testing.assert_allclose(singular, 1.0, rtol=1e-4)
    kernel = np.asarray(params["_Torso_0"]["MLP_0"]["Dense_0"]["kernel"])[1]
    np.testing.assert_allclose(np.linalg.svd(kernel, compute_uv=False), 2**0.5, rtol=1e-4)


def test_several_seeds_start_without_a_batched_qr() -> None:
    """A batched LAPACK call can hang the CPU client, see layers."""
    critic = compiled(models.ensemble(models.critic(VECTOR, 2, config()), 2))
    init = jax.vmap(lambda key: critic.init(key, np.zeros(3, np.float32), np.zeros(2, np.float32)))
    keys = jax.random.split(KEY, 3)
    text = jax.jit(init).lower(keys).as_text()
    calls = [line for line in text.splitlines() if "geqrf" in line]
    assert calls
    assert all("tensor<3x" not in line for line in calls)
    several, alone = init(keys), critic.init(keys[1], np.zeros(3, np.float32), np.zeros(2, np.float32))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, atol=1e-6), several, alone)


def test_a_noisy_policy_is_the_actor_when_greedy_and_clipped_when_not() -> None:
    obs, actor = jnp.array([[0.95], [-0.5]]), lambda obs: obs
    policy = models.noisy_policy(actor, lambda raw: 2 * raw, lambda key, shape: jnp.full(shape, 0.25))
    act = lambda greedy: policy.act(KEY, obs, policy.init(), greedy)[0]
    np.testing.assert_allclose(act(True), [[1.9], [-1.0]])
    np.testing.assert_allclose(act(False), [[2.0], [-0.5]])
    np.testing.assert_allclose(act(jnp.array([True, False])), [[1.9], [-0.5]])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architecture": "mpl"}, "architecture = 'mpl'.*did you mean mlp"),
        ({"architecture": "cnn"}, "'cnn'.*height, width, channels.*'mlp'"),
        ({"activation": "Relu"}, "activation = 'Relu'.*did you mean relu"),
        ({"hidden_sizes": (64, -1)}, "hidden_sizes.*tuple of positive integers"),
    ],
)
@pytest.mark.parametrize("make", [models.deterministic_actor, models.gaussian_actor])
def test_errors_are_one_line(make: Any, fields: dict[str, Any], message: str) -> None:
    for build in (
        lambda: make(VECTOR, 2, config(**fields)),
        lambda: models.critic(VECTOR, 2, config(**fields)),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            build()
        assert "\n" not in str(caught.value)


def test_lecun_kernels_by_choice() -> None:
    """Variance 1 / inputs in every layer, of the policy's last one times the square of its gain."""
    fields = {"initialization": "lecun", "hidden_sizes": (100, 80), "policy_gain": 0.2}
    space, obs = Box(-1.0, 1.0, (50,)), jnp.zeros(50)
    actor = compiled(models.gaussian_actor(space, 20, config(**fields))).init(jax.random.key(0), obs)
    judge = compiled(models.critic(space, 20, config(**fields))).init(jax.random.key(0), obs, jnp.zeros(20))
    for params in (actor, judge):
        inputs = 50 if params is actor else 70
        (torso,) = [part for name, part in params.items() if name not in ("policy", "value")]
        layers = [(torso["MLP_0"]["Dense_0"], inputs, 1.0), (torso["MLP_0"]["Dense_1"], 100, 1.0)]
        layers.append((params["policy"], 80, 0.2) if params is actor else (params["value"], 80, 1.0))
        for layer, size, gain in layers:
            kernel = np.asarray(layer["kernel"])
            assert kernel.shape[1] == size
            assert kernel.std() == pytest.approx(gain * size**-0.5, rel=4 / (2 * kernel.size) ** 0.5)
    with pytest.raises(ValueError, match="policy_gain = -1: must be above 0"):
        models.gaussian_actor(space, 20, config(policy_gain=-1))
