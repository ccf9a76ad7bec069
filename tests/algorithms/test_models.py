"""rljax.models: layers against plain arrays, networks over every observation, heads over every action."""

import os
import subprocess
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from rljax.algorithms import ppo
from rljax.envs import probes, wrappers
from rljax.math import distributions
from rljax.models import (
    CNN,
    MLP,
    Dense,
    actor_critic,
    continuous_actions,
    from_linen,
    from_nnx,
    observations,
    orthogonal,
    policy_head,
)
from rljax.types import Box, Discrete, MultiDiscrete
from tests.algorithms.networks import compiled

KEY = jax.random.key(0)
SPACES = {
    "box": Box(-1.0, 1.0, (3,)),
    "matrix": Box(-1.0, 1.0, (2, 3)),
    "scalar": Box(0.0, 1.0, ()),
    "discrete": Discrete(4),
    "multi_discrete": MultiDiscrete((2, 3)),
    "tuple": (Discrete(4), Box(-1.0, 1.0, (2,))),
    "dict": {"b": MultiDiscrete((2, 3)), "a": {"inner": Box(-1.0, 1.0, (2, 2)), "other": (Discrete(2),)}},
}
WIDTHS = {"box": 3, "matrix": 6, "scalar": 1, "discrete": 4, "multi_discrete": 5, "tuple": 6, "dict": 11}


def draw(space: Any, batch: tuple[int, ...], seed: int = 0) -> Any:
    """A random observation of `space` with leading axes `batch`."""
    generator = np.random.default_rng(seed)

    def one(space: Any) -> Any:
        if isinstance(space, dict):
            return {name: one(child) for name, child in space.items()}
        if isinstance(space, tuple):
            return tuple(one(child) for child in space)
        if isinstance(space, Discrete):
            return np.asarray(generator.integers(space.n, size=batch), np.int32)
        if isinstance(space, MultiDiscrete):
            return np.asarray(generator.integers(space.sizes, size=(*batch, len(space.sizes))), np.int32)
        return np.asarray(generator.uniform(-1, 1, (*batch, *space.shape)), np.float32)

    return one(space)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).normal(size=shape).astype(np.float32)


def config(**fields: Any) -> ppo.Config:
    return ppo.Config(**{"hidden_sizes": (8, 5), **fields})


# Layers


def test_dense_is_a_matrix_product_on_columns() -> None:
    x = normal(3, 7)
    params = jax.jit(Dense(4).init)(KEY, x)["params"]
    assert params["kernel"].shape == (4, 3)
    np.testing.assert_array_equal(params["bias"], np.zeros((4, 1)))
    params["bias"] = normal(4, 1)
    expected = np.asarray(params["kernel"]) @ np.asarray(x) + np.asarray(params["bias"])
    np.testing.assert_allclose(Dense(4).apply({"params": params}, x), expected, rtol=1e-5, atol=1e-6)


def test_gradients_of_dense_are_those_of_the_plain_formula() -> None:
    x, target = normal(3, 7), normal(4, 7)
    params = jax.jit(Dense(4).init)(KEY, x)["params"]

    def ours(params: Any, x: Any) -> Any:
        return jnp.sum(jnp.sin(Dense(4).apply({"params": params}, x)) * target)

    def plain(params: Any, x: Any) -> Any:
        return jnp.sum(jnp.sin(params["kernel"] @ x + jnp.broadcast_to(params["bias"], (4, 7))) * target)

    got, expected = (jax.jit(jax.grad(function, (0, 1)))(params, x) for function in (ours, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, expected)


def test_a_layer_is_differentiable_twice_and_under_vmap() -> None:
    x = normal(3, 7)
    params = jax.jit(Dense(1).init)(KEY, x)["params"]
    energy = lambda params, column: jnp.tanh(Dense(1).apply({"params": params}, column[:, None]))[0, 0]
    slopes = jax.jit(jax.vmap(jax.grad(energy, 1), (None, 1)))(params, x)
    output = np.tanh(np.asarray(params["kernel"]) @ x)
    np.testing.assert_allclose(slopes, (1 - output**2).T * np.asarray(params["kernel"]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(64, 4), (4, 64), (8, 8), (3, 3, 4, 16), (1, 5)])
@pytest.mark.parametrize("scale", [1.0, 2**0.5])
def test_the_initialiser_is_orthogonal(shape: tuple[int, ...], scale: float) -> None:
    init = jax.jit(lambda key: orthogonal(scale)(key, shape))
    kernel = np.asarray(init(KEY)).reshape(-1, shape[-1])
    rows, columns = kernel.shape
    gram = kernel.T @ kernel if rows >= columns else kernel @ kernel.T
    np.testing.assert_allclose(gram, scale**2 * np.eye(min(rows, columns)), atol=1e-5)


def test_the_initialiser_favours_no_direction() -> None:
    init = jax.jit(jax.vmap(lambda key: orthogonal()(key, (3, 3))))
    kernels = np.asarray(init(jax.random.split(KEY, 2000)))
    assert np.abs(kernels.mean(0)).max() < 5 * 3**-0.5 / 2000**0.5  # each entry: mean 0, deviation 1/√3
    assert (
        abs((np.linalg.det(kernels) > 0).mean() - 0.5) < 5 * 0.5 / 2000**0.5
    )  # rotations and reflections alike


def test_the_initialiser_gives_the_same_under_vmap_and_jit() -> None:
    init = lambda key: orthogonal(2.0)(key, (6, 4))
    keys = jax.random.split(KEY, 5)
    alone = np.stack([init(key) for key in keys])
    for mapped in (jax.vmap(init), jax.jit(jax.vmap(init)), jax.vmap(jax.jit(init))):
        np.testing.assert_allclose(mapped(keys), alone, atol=1e-6)
    nested = jax.vmap(jax.vmap(init))(keys[:4].reshape(2, 2))
    np.testing.assert_allclose(nested.reshape(4, 6, 4), alone[:4], atol=1e-6)


SHARDED = """
import jax, numpy as np
from jax.sharding import PartitionSpec
from rljax.algorithms import ppo
from rljax.models import actor_critic, policy_head
from rljax.types import Box, Discrete

assert jax.device_count() == 2
network = actor_critic(Box(-1.0, 1.0, (4,)), policy_head(Discrete(2)), ppo.Config(hidden_sizes=(64, 64)))
init = jax.vmap(lambda key: network.init(key, np.zeros(4, np.float32)))
seeds = PartitionSpec("seeds")
mesh = jax.make_mesh((2,), ("seeds",), axis_types=(jax.sharding.AxisType.Auto,))
sharded = jax.jit(jax.shard_map(init, mesh=mesh, in_specs=seeds, out_specs=seeds, check_vma=False))
keys = jax.random.split(jax.random.key(0), 8)
for _ in range(5):
    params = jax.block_until_ready(sharded(keys))
single = jax.device_get(init(keys))
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), jax.device_get(params), single)
print("initialised")
"""


def test_eight_seeds_on_two_devices_do_not_wait_for_each_other_for_ever() -> None:
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", SHARDED],
        env=environment,
        timeout=120,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "initialised", done.stderr


def test_mlp_and_cnn_shapes() -> None:
    shapes = lambda module, shape: jax.eval_shape(module.init_with_output, KEY, np.zeros(shape, np.float32))
    assert shapes(MLP((8, 5)), (3, 7))[0].shape == (5, 7)
    output, variables = shapes(CNN((6,)), (2, 10, 10, 4))
    assert output.shape == (6, 2)
    assert variables["params"]["Conv_0"]["kernel"].shape == (3, 3, 4, 16)
    assert variables["params"]["MLP_0"]["Dense_0"]["kernel"].shape == (6, 8 * 8 * 16)


# Observations


def test_observations_become_rows_of_numbers() -> None:
    row = lambda space, observation: observations.vectorise(space, observation).tolist()
    assert row(Discrete(3), jnp.int32(1)) == [[0, 1, 0]]
    assert row(Discrete(3), jnp.int32([0, 2])) == [[1, 0, 0], [0, 0, 1]]
    assert row(MultiDiscrete((2, 3)), jnp.int32([1, 0])) == [[0, 1, 1, 0, 0]]
    assert row(Box(0, 9, (2, 2), np.int32), jnp.int32([[1, 2], [3, 4]])) == [[1, 2, 3, 4]]
    assert row((Discrete(2), Box(0, 9, ())), (jnp.int32(1), jnp.float32(7))) == [[0, 1, 7]]
    space = {"b": Box(0, 9, (1,)), "a": Box(0, 9, (1,))}
    assert row(space, {"b": jnp.ones(1), "a": jnp.zeros(1)}) == [[0, 1]]  # in the order of the names


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("torso", ["separate", "shared"])
def test_a_network_takes_any_space_and_any_leading_axes(name: str, torso: str) -> None:
    space = SPACES[name]
    network = compiled(actor_critic(space, policy_head(Discrete(2)), config(torso=torso)))
    params = jax.tree.map(np.asarray, network.init(KEY, draw(space, ())))
    first = params["MLP_0"]["Dense_0"]["kernel"]
    assert first.shape == (8, WIDTHS[name])
    assert ("MLP_1" in params) == (torso == "separate")
    whole = draw(space, (2, 3))
    logits, value = network.apply(params, whole)
    assert (logits.shape, value.shape) == ((2, 3, 2), (2, 3))
    for i, j in np.ndindex(2, 3):
        one = jax.tree.map(lambda x, i=i, j=j: x[i, j], whole)
        logits_one, value_one = network.apply(params, one)
        assert (logits_one.shape, value_one.shape) == ((2,), ())
        np.testing.assert_allclose(logits_one, logits[i, j], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(value_one, value[i, j], rtol=1e-5, atol=1e-6)


def test_the_network_is_the_formula_of_its_docstring() -> None:
    network = compiled(actor_critic(SPACES["box"], policy_head(Discrete(2)), config(activation="tanh")))
    x = draw(SPACES["box"], (6,))
    params = jax.tree.map(np.asarray, network.init(KEY, x[0]))
    outputs = []
    for torso, head in (("MLP_0", "policy"), ("MLP_1", "value")):
        y = np.asarray(x).T
        for layer in ("Dense_0", "Dense_1"):
            y = np.tanh(params[torso][layer]["kernel"] @ y + params[torso][layer]["bias"])
        outputs.append(params[head]["kernel"] @ y + params[head]["bias"])
    logits, value = network.apply(params, x)
    np.testing.assert_allclose(logits, outputs[0].T, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(value, outputs[1][0], rtol=1e-4, atol=1e-6)


def test_gains_of_the_layers() -> None:
    network = compiled(actor_critic(Box(-1.0, 1.0, (4,)), policy_head(Discrete(3)), config()))
    params = network.init(KEY, jnp.zeros(4))
    kernels = [params["MLP_0"]["Dense_0"], params["MLP_1"]["Dense_1"], params["policy"], params["value"]]
    for layer, gain in zip(kernels, (2**0.5, 2**0.5, 0.01, 1.0), strict=True):
        singular = np.linalg.svd(np.asarray(layer["kernel"]), compute_uv=False)
        np.testing.assert_allclose(singular, gain, rtol=1e-4)


def spread(layer: Any) -> float:
    """The standard deviation of a kernel, of which there are enough elements to know it; the biases are 0."""
    assert (np.asarray(layer["bias"]) == 0).all()
    return float(np.asarray(layer["kernel"]).std())


@pytest.mark.parametrize(("gain", "policy"), [(None, 1.0), (0.25, 0.25)])
def test_lecun_kernels_have_the_variance_of_one_over_their_inputs(gain: float | None, policy: float) -> None:
    """As Flax's `nn.Dense` and `nn.Conv` start, normal but cut at two deviations of the uncut normal."""
    fields = {"initialization": "lecun", "policy_gain": gain, "torso": "shared", "hidden_sizes": (200, 100)}
    mlp = compiled(actor_critic(Box(-1.0, 1.0, (50,)), policy_head(Discrete(40)), config(**fields)))
    params = mlp.init(KEY, jnp.zeros(50))
    assert spread(params["MLP_0"]["Dense_0"]) == pytest.approx(50**-0.5, rel=0.04)
    assert spread(params["MLP_0"]["Dense_1"]) == pytest.approx(200**-0.5, rel=0.04)
    assert spread(params["policy"]) == pytest.approx(policy * 100**-0.5, rel=0.06)
    assert spread(params["value"]) == pytest.approx(100**-0.5, rel=0.3)
    first = np.asarray(params["MLP_0"]["Dense_0"]["kernel"]) * 50**0.5
    cut = scipy.stats.truncnorm(-2, 2)
    assert scipy.stats.kstest(first.ravel() * cut.std(), cut.cdf).pvalue > 1e-3
    image = Box(0, 1, (10, 10, 20), np.bool_)
    cnn = compiled(actor_critic(image, policy_head(Discrete(40)), config(architecture="cnn", **fields)))
    params = cnn.init(KEY, jnp.zeros((10, 10, 20), bool))["CNN_0"]
    assert spread(params["Conv_0"]) == pytest.approx((9 * 20) ** -0.5, rel=0.06)
    assert spread(params["MLP_0"]["Dense_0"]) == pytest.approx((64 * 16) ** -0.5, rel=0.02)


def test_a_gain_of_the_policy_is_that_of_its_last_layer_alone_and_can_be_swept() -> None:
    build = lambda gain: actor_critic(
        Box(-1.0, 1.0, (4,)), policy_head(Discrete(3)), config(policy_gain=gain)
    ).init(KEY, jnp.zeros(4))
    usual, (small, large) = build(None), jax.vmap(build)(jnp.array([0.01, 0.5]))["policy"]["kernel"]
    singular = np.linalg.svd(np.asarray(large), compute_uv=False)
    np.testing.assert_allclose(singular, 0.5, rtol=1e-4)
    np.testing.assert_allclose(small, usual["policy"]["kernel"], rtol=1e-5)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), usual, build(0.5))
    assert same["policy"] == {"kernel": False, "bias": True}
    assert all(jax.tree.leaves({name: part for name, part in same.items() if name != "policy"}))


def test_a_continuous_network_has_one_log_std_for_all_states() -> None:
    head = policy_head(Box(-1.0, 1.0, (2,)))
    network = compiled(actor_critic(SPACES["box"], head, config(initial_log_std=-0.5)))
    params = network.init(KEY, jnp.zeros(3))
    (mean, log_std), value = network.apply(params, draw(SPACES["box"], (4, 6)))
    assert (mean.shape, log_std.shape, value.shape) == ((4, 6, 2), (4, 6, 2), (4, 6))
    np.testing.assert_array_equal(log_std, np.full((4, 6, 2), -0.5))


def test_initial_log_std_can_be_swept() -> None:
    build = lambda log_std: actor_critic(
        SPACES["box"], policy_head(Box(-1.0, 1.0, (2,))), config(initial_log_std=log_std)
    ).init(KEY, jnp.zeros(3))
    swept = jax.vmap(build)(jnp.array([-1.0, 0.5]))
    np.testing.assert_array_equal(swept["log_std"], [[-1.0, -1.0], [0.5, 0.5]])


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_a_cnn_takes_the_images_of_minatar(batch: tuple[int, ...]) -> None:
    space = Box(0, 1, (10, 10, 4), np.bool_)
    network = compiled(
        actor_critic(space, policy_head(Discrete(6)), config(architecture="cnn", activation="relu"))
    )
    image = jnp.zeros((*batch, 10, 10, 4), bool)
    logits, value = network.apply(network.init(KEY, jnp.zeros((10, 10, 4), bool)), image)
    assert (logits.shape, value.shape) == ((*batch, 6), batch)


@pytest.mark.parametrize("space", [Box(-1.0, 1.0, (4,)), Discrete(3), {"image": Box(0, 1, (10, 10, 4))}])
def test_a_cnn_refuses_what_is_no_image(space: Any) -> None:
    with pytest.raises(ValueError, match=r"'cnn'.*height, width, channels.*'mlp'") as caught:
        actor_critic(space, policy_head(Discrete(2)), config(architecture="cnn")).init(KEY, draw(space, ()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architecture": "mpl"}, "architecture = 'mpl'.*did you mean mlp"),
        ({"activation": "Tanh"}, "activation = 'Tanh'.*did you mean tanh"),
        ({"torso": "both"}, "torso = 'both'.*separate, shared"),
        ({"hidden_sizes": "64"}, "hidden_sizes.*tuple of positive integers"),
        ({"hidden_sizes": (64, 0)}, "hidden_sizes.*tuple of positive integers"),
        ({"initial_log_std": float("nan")}, "initial_log_std = nan.*finite"),
        ({"initialization": "lecum"}, "initialization = 'lecum': .*did you mean lecun"),
        ({"policy_gain": 0.0}, "policy_gain = 0: must be above 0"),
    ],
)
def test_errors_of_the_network(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        actor_critic(SPACES["box"], policy_head(Discrete(2)), config(**fields))


# Heads


def test_discrete_heads() -> None:
    head = policy_head(Discrete(3, np.int16))
    assert (head.size, head.continuous) == (3, False)
    assert head.distribution is distributions.categorical
    assert head.to_env(jnp.int32([2, 0])).dtype == np.int16
    head = policy_head(MultiDiscrete((2, 3)))
    assert (head.size, head.continuous) == (5, False)
    assert head.distribution.sample(KEY, jnp.zeros((7, 5))).shape == (7, 2)


def test_a_gaussian_action_is_rescaled_and_clipped_to_the_bounds() -> None:
    head = policy_head(Box(np.array([-2.0, 0.0]), np.array([2.0, 10.0]), (2,)))
    assert (head.size, head.continuous) == (2, True)
    raw = jnp.array([[0.0, 0.0], [1.0, -1.0], [0.5, 0.5], [3.0, -7.0]])
    np.testing.assert_allclose(head.to_env(raw), [[0, 5], [2, 0], [1, 7.5], [2, 0]])
    np.testing.assert_allclose(head.to_env(raw[2]), [1, 7.5])
    np.testing.assert_allclose(head.to_env(raw[:, None])[:, 0], head.to_env(raw))


def test_a_tanh_action_lies_inside_the_bounds() -> None:
    head = policy_head(Box(-2.0, 6.0, (1,)), "tanh")
    assert head.distribution is distributions.tanh_gaussian
    raw = jnp.array([[0.0], [np.arctanh(0.5)], [50.0], [-50.0]])
    np.testing.assert_allclose(head.to_env(raw), [[2.0], [4.0], [6.0], [-2.0]], rtol=1e-6)


def test_unbounded_components_are_passed_on() -> None:
    low, high = np.array([-np.inf, 0.0, -1.0]), np.array([np.inf, np.inf, 3.0])
    raw = jnp.array([[-5.0, -5.0, 0.5], [5.0, 5.0, 5.0]])
    np.testing.assert_allclose(policy_head(Box(low, high, (3,))).to_env(raw), [[-5, 0, 2], [5, 5, 3]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_largest_number_as_a_bound_is_none(dtype: Any) -> None:
    """Gymnasium's way to say so: the sizes of numbers beyond it, NaN before, are those of the raw action."""
    space = Box(-np.finfo(dtype).max, np.array([np.finfo(dtype).max, 2.0]), (2,))
    assert np.ravel(space.low).tolist() == [-np.inf]
    assert np.ravel(space.high).tolist() == [np.inf, 2.0]
    raw = jnp.array([[-5.0, 1.0], [7.0, 9.0]])
    np.testing.assert_array_equal(policy_head(space).to_env(raw), [[-5, 1], [7, 2]])
    with pytest.raises(ValueError, match="sac needs finite action bounds"):
        continuous_actions(space, "sac")
    assert Box(0, np.iinfo(np.uint8).max, (2,), np.uint8).high == 255


@pytest.mark.parametrize("kind", ["gaussian", "tanh"])
def test_bounds_whose_difference_overflows_are_bounds(kind: str) -> None:
    head = policy_head(Box(-3e38, 3e38, (1,)), kind)
    np.testing.assert_array_equal(
        head.to_env(jnp.array([[-20.0], [0.0], [20.0]])), np.float32([[-3e38], [0], [3e38]])
    )


@pytest.mark.parametrize(("low", "high", "dtype"), [(0, 3, np.int32), (-2, 2, np.int16), (0, 1, np.bool_)])
def test_integer_actions_get_equal_parts(low: int, high: int, dtype: Any) -> None:
    head = policy_head(Box(low, high, (1,), dtype))
    action = np.asarray(head.to_env(jnp.linspace(-1, 1, 4001)[:, None]))[:, 0]
    assert action.dtype == dtype
    counts = np.bincount(action.astype(int) - low, minlength=high - low + 1)
    np.testing.assert_allclose(counts, 4001 / (high - low + 1), atol=1.5)
    assert head.to_env(jnp.array([[-9.0], [9.0]])).reshape(-1).tolist() == [low, high]


def test_unbounded_integers_are_rounded() -> None:
    head = policy_head(Box(-np.inf, np.array([np.inf, 3]), (2,), np.int32))
    raw = jnp.array([[-2.6, 2.6], [0.4, 9.0], [1.7, 3.2]])
    assert head.to_env(raw).tolist() == [[-3, 3], [0, 3], [2, 3]]


def test_an_action_has_the_shape_and_type_of_its_space() -> None:
    head = policy_head(Box(-1.0, 1.0, (2, 3), np.float16))
    assert head.size == 6
    action = head.to_env(jnp.arange(24.0).reshape(4, 6) / 24)
    assert (action.shape, action.dtype) == ((4, 2, 3), np.float16)
    np.testing.assert_allclose(action[1].reshape(-1), np.arange(6, 12) / 24, rtol=1e-3)
    assert policy_head(Box(-1.0, 1.0, ())).to_env(jnp.zeros((4, 1))).shape == (4,)


@pytest.mark.parametrize(
    ("space", "kind", "message"),
    [
        ({"a": Discrete(2)}, "gaussian", "Discrete, MultiDiscrete or Box"),
        ((Discrete(2),), "gaussian", "Discrete, MultiDiscrete or Box"),
        (Box(-np.inf, np.inf, (1,)), "tanh", "finite action bounds.*'gaussian'"),
        (Box(0.0, np.inf, (1,)), "tanh", "finite action bounds.*'gaussian'"),
        (Box(0, 2**31 - 1, (1,), np.int32), "gaussian", "below 2\\*\\*23 or unbounded.*map_action"),
    ],
)
def test_errors_of_heads(space: Any, kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        policy_head(space, kind)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["gaussian", "tanh"])
def test_a_continuous_policy_greedy_and_sampled(kind: str) -> None:
    head = policy_head(Box(-2.0, 2.0, (2,)), kind)
    policy = head.policy(lambda obs: (obs, jnp.full_like(obs, np.log(0.1))))
    obs = jnp.tile(jnp.array([[0.3, -0.2]]), (5000, 1))
    carry = policy.init()
    assert jax.tree.leaves(carry) == []
    greedy, carry = policy.act(KEY, obs, carry, True)
    middle = head.to_env(obs)
    np.testing.assert_allclose(greedy, middle)
    sampled, _ = policy.act(KEY, obs, carry, False)
    again, _ = policy.act(jax.random.key(1), obs, carry, jnp.bool_(False))
    assert sampled.shape == (5000, 2)
    assert not np.array_equal(sampled, again)
    np.testing.assert_allclose(sampled.mean(0), middle[0], atol=0.03)
    assert (np.abs(sampled) <= 2).all()


def test_a_discrete_policy_greedy_and_sampled() -> None:
    head = policy_head(Discrete(3))
    chance = np.array([0.2, 0.5, 0.3])
    policy = head.policy(lambda obs: jnp.broadcast_to(jnp.log(jnp.asarray(chance))[None], (obs.shape[0], 3)))
    obs = jnp.zeros((5000, 4))
    greedy, carry = policy.act(KEY, obs, policy.init(), True)
    assert greedy.dtype == np.int32
    assert set(np.asarray(greedy).tolist()) == {1}
    sampled, _ = jax.jit(policy.act)(KEY, obs, carry, False)  # a traced `greedy`
    np.testing.assert_allclose(np.bincount(sampled, minlength=3) / 5000, chance, atol=0.03)


# A user's own networks


class Linen(nn.Module):
    """The network of README's example: Flax's own layers, features last."""

    @nn.compact
    def __call__(self, obs: Any) -> Any:
        x = nn.relu(nn.Dense(16)(obs))
        return nn.Dense(2)(x), nn.Dense(1)(x)[..., 0]


def nnx_network(rngs: Any) -> Any:
    from flax import nnx

    class Module(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.hidden = nnx.Linear(4, 16, rngs=rngs)
            self.policy = nnx.Linear(16, 2, rngs=rngs)
            self.value = nnx.Linear(16, 1, rngs=rngs)

        def __call__(self, obs: Any) -> Any:
            x = nnx.relu(self.hidden(obs))
            return self.policy(x), self.value(x)[..., 0]

    return Module(rngs)


@pytest.mark.parametrize(
    "make", [lambda: from_linen(Linen()), lambda: from_nnx(nnx_network)], ids=["linen", "nnx"]
)
def test_a_users_own_network(make: Any) -> None:
    network = compiled(make())
    params = network.init(KEY, jnp.zeros(4))
    obs = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    logits, value = network.apply(params, obs)
    assert (logits.shape, value.shape) == ((2, 3, 2), (2, 3))
    alone = network.apply(params, obs[1, 2])
    np.testing.assert_allclose(alone[0], logits[1, 2], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(alone[1], value[1, 2], rtol=1e-5, atol=1e-6)

    seeds = jax.vmap(lambda key: network.init(key, jnp.zeros(4)))(jax.random.split(KEY, 3))
    kernels = max(jax.tree.leaves(seeds), key=lambda leaf: leaf.size)
    assert kernels.shape[0] == 3
    assert not np.array_equal(kernels[0], kernels[1])
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape[1:], b.shape), seeds, params)

    slopes = jax.grad(lambda params: jnp.sum(network.apply(params, obs)[1] ** 2))(params)
    moved = jax.tree.map(lambda p, g: p - 0.001 * g, params, slopes)
    loss = lambda params: float(jnp.sum(network.apply(params, obs)[1] ** 2))
    assert loss(moved) < loss(params)


@pytest.mark.parametrize(
    "make", [lambda: from_linen(Linen()), lambda: from_nnx(nnx_network)], ids=["linen", "nnx"]
)
def test_ppo_takes_a_users_own_network(make: Any) -> None:
    probe = probes.policy_observation()
    env = wrappers.map_observation(probe, lambda x: jnp.tile(x, 4), Box(-1.0, 1.0, (4,)))
    small = config(num_envs=2, num_steps=8, num_epochs=1, num_minibatches=2)
    algorithm = ppo.make(env, small, network=make())
    state = jax.jit(algorithm.init)(KEY)
    after, metrics = jax.jit(algorithm.step)(KEY, state)
    assert np.isfinite(metrics.policy_loss.value)
    changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), state.params, after.params)
    assert any(jax.tree.leaves(changed))
    action, _ = algorithm.policy(after).act(KEY, jnp.zeros((3, 4)), (), True)
    assert action.shape == (3,)
