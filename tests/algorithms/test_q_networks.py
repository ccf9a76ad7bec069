"""Action-value networks against the formulas of their docstrings, and which action spaces a method takes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import models
from rljax.algorithms import c51, dqn, iqn
from rljax.types import Box, Discrete, MultiDiscrete
from tests.algorithms.networks import compiled

KEY = jax.random.key(0)
VECTOR = Box(-1.0, 1.0, (3,))
IMAGE = Box(0, 1, (10, 10, 4), np.bool_)
HEADS = ("plain", "dueling", "linear_dueling")


def config(**fields: Any) -> dqn.Config:
    return dqn.Config(**{"hidden_sizes": (8, 5), "activation": "tanh", **fields})


def dense(params: Any, x: np.ndarray) -> np.ndarray:
    """Columns (D, B) through one layer."""
    return np.asarray(params["kernel"]) @ x + np.asarray(params["bias"])


def hidden(params: Any, x: np.ndarray) -> np.ndarray:
    """Columns through the hidden layers of a part, with layer norms where it has some."""
    for i in range(len([name for name in params if name.startswith("Dense")])):
        x = dense(params[f"Dense_{i}"], x)
        if "LayerNorm_0" in params:
            norm = params[f"LayerNorm_{i}"]
            x = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-6)
            x = x * np.asarray(norm["scale"])[:, None] + np.asarray(norm["bias"])[:, None]
        x = np.tanh(x)
    return x


def head(params: Any, features: np.ndarray, kind: str, actions: int, outputs: int) -> np.ndarray:
    """Features (D, B) to (B, A, M)."""

    def stream(name: str, width: int) -> np.ndarray:
        own = hidden(params.get(f"{name}_hidden", {}), features)
        return dense(params[name], own).T.reshape(-1, width, outputs)

    if kind == "plain":
        return stream("value", actions)
    advantage = stream("advantage", actions)
    return stream("value", 1) + advantage - advantage.mean(axis=1, keepdims=True)


def perturbed(params: Any) -> Any:
    """Away from biases of 0 and scales of 1, which hide mistakes."""
    rng = np.random.default_rng(7)
    return jax.tree.map(lambda x: np.asarray(x) + 0.3 * rng.normal(size=x.shape).astype(x.dtype), params)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("normalization", ["none", "layer"])
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("atoms", [None, 4])
def test_a_q_network_is_its_formula(kind: str, normalization: str, atoms: int | None) -> None:
    settings = config(head=kind, hidden_normalization=normalization)
    network = compiled(models.q_network(VECTOR, 2, settings, atoms))
    obs = normal(6, 3)
    params = perturbed(network.init(KEY, obs[0]))
    values = network.apply(params, obs)
    assert values.shape == ((6, 2) if atoms is None else (6, 2, 4))
    features = hidden(params["torso"]["MLP_0"], np.asarray(obs).T) if "torso" in params else None
    assert features is not None
    expected = head(params["head"], features, kind, 2, atoms or 1)
    np.testing.assert_allclose(values.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["dueling", "linear_dueling"])
def test_a_dueling_head_has_the_values_mean_for_every_atom(kind: str) -> None:
    """The mean over actions is the value stream: a number added to all advantages changes nothing."""
    network = compiled(models.q_network(VECTOR, 3, config(head=kind), 4))
    obs = normal(6, 3)
    params = perturbed(network.init(KEY, obs[0]))
    before = network.apply(params, obs)
    bias = params["head"]["advantage"]["bias"]
    params["head"]["advantage"]["bias"] = bias + np.tile(np.arange(4.0, dtype=np.float32), 3)[:, None]
    np.testing.assert_allclose(network.apply(params, obs), before, atol=1e-5)


def test_hidden_layers_are_where_the_head_wants_them() -> None:
    init = lambda kind: jax.eval_shape(models.q_network(VECTOR, 2, config(head=kind)).init, KEY, np.zeros(3))
    layers = lambda params: {jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)}
    assert sum("kernel" in name for name in layers(init("plain"))) == 3
    assert (
        sum("kernel" in name for name in layers(init("dueling"))) == 5
    )  # both streams have one of their own
    assert sum("kernel" in name for name in layers(init("linear_dueling"))) == 4


@pytest.mark.parametrize("space", [VECTOR, IMAGE], ids=["mlp", "cnn"])
@pytest.mark.parametrize("normalization", ["none", "layer"])
def test_any_leading_axes(space: Box, normalization: str) -> None:
    settings = config(
        architecture="cnn" if space is IMAGE else "mlp", head="dueling", hidden_normalization=normalization
    )
    whole = normal(2, 3, *space.shape)
    tau = np.random.default_rng(1).uniform(size=(2, 3, 7)).astype(np.float32)
    q = compiled(models.q_network(space, 4, settings))
    implicit = compiled(models.implicit_quantile_network(space, 4, settings))
    q_params, implicit_params = q.init(KEY, whole[0, 0]), implicit.init(KEY, whole[0, 0])
    values, quantiles = q.apply(q_params, whole), implicit.apply(implicit_params, whole, tau)
    assert (values.shape, quantiles.shape) == ((2, 3, 4), (2, 3, 4, 7))
    for i, j in np.ndindex(2, 3):
        alone = q.apply(q_params, whole[i, j])
        np.testing.assert_allclose(alone, values[i, j], rtol=1e-4, atol=1e-5)
        alone = implicit.apply(implicit_params, whole[i, j], tau[i, j])
        np.testing.assert_allclose(alone, quantiles[i, j], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", HEADS)
def test_an_implicit_quantile_network_is_its_formula(kind: str) -> None:
    network = compiled(models.implicit_quantile_network(VECTOR, 2, config(head=kind)))
    obs, tau = normal(3, 3), np.array([[0.1, 0.9], [0.5, 0.5], [0.0, 1.0]])
    params = perturbed(network.init(KEY, obs[0]))
    quantiles = network.apply(params, obs, jnp.asarray(tau, jnp.float32))
    assert quantiles.shape == (3, 2, 2)
    features = hidden(params["torso"]["MLP_0"], np.asarray(obs).T)
    for b, k in np.ndindex(3, 2):
        cosines = np.cos(np.pi * np.arange(64) * tau[b, k])[:, None]
        product = features[:, b : b + 1] * np.tanh(dense(params["embedding"], cosines))
        expected = head(params["head"], product, kind, 2, 1)[0, :, 0]
        np.testing.assert_allclose(quantiles[b, :, k], expected, rtol=1e-4, atol=1e-5)


def test_initial_kernels_have_the_variance_of_their_inputs() -> None:
    network = models.q_network(Box(-1.0, 1.0, (200,)), 2, config(hidden_sizes=(300, 100)))
    params = network.init(KEY, jnp.zeros(200))
    first = np.asarray(params["torso"]["MLP_0"]["Dense_0"]["kernel"])
    second = np.asarray(params["head"]["value_hidden"]["Dense_0"]["kernel"])
    assert (first.shape, second.shape) == ((300, 200), (100, 300))
    np.testing.assert_allclose([first.var() * 200, second.var() * 300], 1.0, rtol=0.05)


def test_wrong_fields_are_named() -> None:
    for fields in ({"head": "duelling"}, {"hidden_normalization": "batch"}, {"hidden_sizes": (0,)}):
        for make in (models.q_network, models.implicit_quantile_network):
            with pytest.raises(ValueError, match=next(iter(fields))) as caught:
                make(VECTOR, 2, config(**fields))
            assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"iqn\.Config\.hidden_sizes = \(8,\): must be two or more"):
        models.implicit_quantile_network(VECTOR, 2, iqn.Config(hidden_sizes=(8,)))
    with pytest.raises(ValueError, match=r"'cnn'.*height"):
        models.q_network(VECTOR, 2, config(architecture="cnn"))


def test_atoms_need_room() -> None:
    from rljax import envs

    env = envs.make("CartPole-v1")
    for fields in ({"value_low": 10.0, "value_high": 10.0}, {"value_low": 11.0}):
        with pytest.raises(ValueError, match=r"c51\.Config\.value_high = 10: must be above value_low = 1"):
            c51.make(env, c51.Config(**fields))


def test_a_policy_of_action_values() -> None:
    q = lambda obs: jnp.broadcast_to(jnp.array([[0.0, 2.0, 1.0]]), (obs.shape[0], 3))
    _, to_env = models.discrete_actions(Discrete(3, np.int16), "dqn")
    policy, obs = models.q_policy(to_env, q, jnp.float32(0.3)), jnp.zeros((20_000, 4))
    greedy, carry = policy.act(KEY, obs, policy.init(), True)
    assert greedy.dtype == np.int16
    assert (np.asarray(greedy) == 1).all()
    assert jax.tree.leaves(carry) == []
    sampled = np.asarray(jax.jit(policy.act)(KEY, obs, (), False)[0])
    np.testing.assert_allclose(np.bincount(sampled) / len(sampled), [0.1, 0.8, 0.1], atol=0.015)


@pytest.mark.parametrize(
    ("space", "fits", "not_fits"),
    [
        (Box(-1.0, 1.0, (2,)), ("ddpg", "td3", "sac", "ppo"), ("dqn", "pqn")),
        (MultiDiscrete((2, 3)), ("ppo", "a2c", "reinforce", "trpo"), ("dqn", "sac")),
        ((Discrete(2),), ("wrap",), ("ppo",)),
    ],
    ids=["box", "multi_discrete", "tuple"],
)
def test_a_discrete_method_names_those_that_fit(space: Any, fits: Any, not_fits: Any) -> None:
    assert models.discrete_actions(Discrete(5), "dqn")[0] == 5
    with pytest.raises(ValueError, match="dqn needs a Discrete action space") as caught:
        models.discrete_actions(space, "dqn")
    message, _, hint = str(caught.value).rpartition(": ")
    assert "\n" not in message
    names = hint.replace(",", "").split()
    assert set(fits) <= set(names)
    assert not set(not_fits) & set(names)


def test_a_continuous_method_names_those_that_fit() -> None:
    size, to_env = models.continuous_actions(Box(np.array([-2.0, 0.0]), np.array([2.0, 10.0]), (2,)), "sac")
    assert size == 2
    np.testing.assert_allclose(to_env(jnp.array([[0.5, -1.0]])), [[1.0, 0.0]])
    with pytest.raises(ValueError, match=r"td3 needs a Box.*use dqn, .*ppo"):
        models.continuous_actions(Discrete(2), "td3")
    with pytest.raises(ValueError, match=r"sac needs finite action bounds.*use ppo, a2c"):
        models.continuous_actions(Box(-np.inf, np.inf, (2,)), "sac")


def test_orthogonal_kernels_by_choice_and_lecun_by_default() -> None:
    """Orthogonal: gain √2 in hidden layers, of τ too, and 1 at the end; LeCun: variance 1 / inputs."""
    box, obs = Box(-1.0, 1.0, (50,)), jnp.zeros(50)
    fields = {"hidden_sizes": (100, 80), "head": "dueling"}
    tau = jnp.full(3, 0.5)
    make = lambda name: models.implicit_quantile_network(box, 4, config(initialization=name, **fields))
    starts = {
        name: compiled(make(name)).init(jax.random.key(0), obs, tau) for name in ("orthogonal", "lecun")
    }
    default = compiled(models.implicit_quantile_network(box, 4, config(**fields))).init(
        jax.random.key(0), obs, tau
    )
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), default, starts["lecun"])))
    parts = lambda params: {
        "torso": params["torso"]["MLP_0"]["Dense_0"], "embedding": params["embedding"],
        "hidden": params["head"]["value_hidden"]["Dense_0"], "value": params["head"]["value"],
        "advantage": params["head"]["advantage"],
    }  # fmt: skip
    for name, layer in parts(starts["orthogonal"]).items():
        gain = 1.0 if name in ("value", "advantage") else 2**0.5
        singular = np.linalg.svd(np.asarray(layer["kernel"]), compute_uv=False)
        np.testing.assert_allclose(singular, gain, rtol=1e-4)
    for name, layer in parts(starts["lecun"]).items():
        kernel = np.asarray(layer["kernel"])
        tolerance = 4 / (2 * kernel.size) ** 0.5  # four standard errors of a deviation
        assert kernel.std() == pytest.approx(kernel.shape[1] ** -0.5, rel=tolerance), name
    with pytest.raises(ValueError, match="initialization = 'glorot': must be one of orthogonal, lecun"):
        make("glorot")
