"""TRPO's promises: the bound on KL, the natural gradient, and a policy that a refused step leaves alone."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.flatten_util import ravel_pytree

from rljax import envs, models
from rljax.algorithms import ppo, trpo
from rljax.learning import env_rollouts
from rljax.math import returns
from rljax.types import Box, Discrete, Env, MultiDiscrete, Network

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiles faster
SMALL = {"num_envs": 4, "num_steps": 32, "hidden_sizes": (8,)}


def bandit(rewards: np.ndarray) -> Env:
    """One state, one step, a reward for each (multi-)discrete action."""
    table = jnp.asarray(rewards, jnp.float32)
    space = Discrete(table.size) if table.ndim == 1 else MultiDiscrete(table.shape)
    obs = jnp.zeros(1)

    def step(key: Any, state: Any, action: Any) -> tuple:
        reward = table[action] if table.ndim == 1 else table[tuple(action)]
        return obs, state, reward, jnp.bool_(True), jnp.bool_(False)

    return Env("bandit", lambda key: (obs, jnp.int32(0)), step, Box(-1.0, 1.0, (1,)), space, max_steps=1)


class Rule(NamedTuple):
    logits: Any
    value: Any


def rule(logits: Any) -> Network:
    """Logits and a value that are the same everywhere, each a parameter of its own."""

    def apply(params: Rule, obs: Any) -> tuple:
        batch = obs.shape[:-1]
        size = params.logits.shape[-1]
        return jnp.broadcast_to(params.logits, (*batch, size)), jnp.broadcast_to(params.value, batch)

    return Network(lambda key, obs: Rule(jnp.asarray(logits, jnp.float32), jnp.float32(0)), apply)


class Update(NamedTuple):
    """One `step`, and what its update saw: recomputed outside."""

    before: Any
    after: Any
    metrics: Any
    obs: Any  # (T, N, ...) normalised
    action: Any
    advantage: Any  # whitened by hand
    old: Any  # the policy's parameters on obs
    new: Any


def setup(env: Env, config: Any, network: Network | None = None) -> tuple[Any, Any, Any]:
    head = models.policy_head(env.action_space, config.action_distribution)
    network = network or models.actor_critic(env.observation_space, head, config)
    algorithm = trpo.make(env, config, network)
    observe = models.normalizer(env.observation_space, config)

    def step(key: Any, state: Any) -> Update:
        see = lambda obs: observe.apply(state.normalizer, obs)
        forward = lambda obs: network.apply(state.params, see(obs))

        def act(key: Any, obs: Any) -> tuple:
            raw = head.distribution.sample(key, forward(obs)[0])
            return raw, head.to_env(raw)

        worlds, steps, _ = env_rollouts.rollout(
            env,
            act,
            lambda obs: forward(obs)[1],
            jax.random.split(key)[0],
            state.worlds,
            config.num_steps,
        )
        value = forward(steps.obs)[1]
        boundaries = env_rollouts.boundaries(
            steps, value, forward(worlds.obs)[1], config.discount, config.trace_decay
        )
        advantage = jax.vmap(returns.gae, 1, 1)(steps.reward, boundaries[0], value, *boundaries[1:])
        if config.advantage_normalization == "batch":
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        after, metrics = algorithm.step(key, state)
        obs = see(steps.obs)
        old, new = (network.apply(each.params, obs)[0] for each in (state, after))
        return Update(state, after, metrics, obs, steps.action, advantage, old, new)

    return algorithm, network, step


def updates(env: Env, config: Any, number: int, network: Network | None = None, seed: int = 0) -> Update:
    """Many of them, stacked."""
    algorithm, _, step = setup(env, config, network)

    @jit
    def run(key: Any) -> Update:
        init_key, run_key = jax.random.split(key)

        def turn(state: Any, key: Any) -> tuple:
            update = step(key, state)
            return update.after, update

        return jax.lax.scan(turn, algorithm.init(init_key), jax.random.split(run_key, number))[1]

    return jax.tree.map(np.asarray, run(jax.random.key(seed)))


def exact_kl(old: Any, new: Any) -> np.ndarray:
    """KL(old ‖ new) in float64 by its definition, over a batch."""
    as_float64 = lambda tree: jax.tree.map(lambda x: np.asarray(x, np.float64), tree)
    old, new = as_float64(old), as_float64(new)
    if isinstance(old, tuple):
        (mean, log_std), (mean_new, log_std_new) = old, new
        squares = np.exp(2 * log_std) + (mean - mean_new) ** 2
        return (log_std_new - log_std + squares / (2 * np.exp(2 * log_std_new)) - 0.5).sum(-1)
    log_softmax = lambda x: (
        x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True)
    )
    log_p, log_q = log_softmax(old), log_softmax(new)
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)


@pytest.mark.parametrize(
    ("env", "fields"),
    [
        ("CartPole-v1", {}),
        ("CartPole-v1", {"max_kl": 0.2, "damping": 0.001}),
        ("CartPole-v1", {"fisher_stride": 4, "entropy_coefficient": 0.01}),
        ("Pendulum-v1", {"reward_scaling": "running"}),
        ("Pendulum-v1", {"observation_normalization": "running", "action_distribution": "tanh"}),
    ],
)
def test_no_update_leaves_the_trust_region(env: str, fields: dict) -> None:
    config = trpo.Config(**SMALL | fields)
    seen = updates(envs.make(env), config, 60)
    kl = exact_kl(seen.old, seen.new).mean(axis=(1, 2))
    assert (kl <= config.max_kl * (1 + 1e-4)).all()
    np.testing.assert_allclose(seen.metrics.kl.total / seen.metrics.kl.count, kl, rtol=2e-3, atol=1e-7)
    accepted = seen.metrics.accepted.total > 0
    assert accepted.mean() > 0.8
    assert np.median(kl[accepted]) > 0.3 * config.max_kl  # the region is used
    assert (seen.metrics.surrogate_improvement.total[accepted] > 0).all()


def policy_leaves(params: Any) -> dict[str, np.ndarray]:
    """Of the network of `models`: its first torso, the policy's layer, and log_std where there is one."""
    part = {name: params[name] for name in ("MLP_0", "policy", "log_std") if name in params}
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(part)}


def test_a_refused_step_leaves_the_policy_bit_for_bit() -> None:
    """One try of a step so long that the quadratic model is often wrong."""
    config = trpo.Config(max_kl=2.0, line_search_steps=1, **SMALL)
    seen = updates(envs.make("CartPole-v1"), config, 40)
    refused = seen.metrics.accepted.total == 0
    assert 3 <= refused.sum() <= 37
    before, after = policy_leaves(seen.before.params), policy_leaves(seen.after.params)
    for name, leaf in before.items():
        same = (leaf == after[name]).reshape(len(refused), -1).all(1)
        np.testing.assert_array_equal(same, refused, err_msg=name)
    fitted = (seen.before.params["value"]["kernel"] != seen.after.params["value"]["kernel"]).any(axis=(1, 2))
    assert fitted.all()
    improvement = seen.metrics.surrogate_improvement.total
    np.testing.assert_allclose(improvement[refused], 0, atol=1e-6)


def test_nan_in_the_data_is_seen_and_does_not_reach_the_policy() -> None:
    config = trpo.Config(**SMALL)
    algorithm, _, step = setup(envs.make("NanReward-probe", at=10), config)
    seen = jit(step)(jax.random.key(1), jit(algorithm.init)(jax.random.key(0)))
    for name in ("gradient_norm", "value_loss", "surrogate_improvement"):
        assert np.isnan(getattr(seen.metrics, name).total), name
    assert seen.metrics.accepted.total == 0
    before, after = policy_leaves(seen.before.params), policy_leaves(seen.after.params)
    for name, leaf in before.items():
        np.testing.assert_array_equal(leaf, after[name], err_msg=name)


@pytest.mark.parametrize(
    ("env", "fields"),
    [
        ("CartPole-v1", {}),
        ("CartPole-v1", {"fisher_stride": 4, "entropy_coefficient": 0.3}),
        ("Pendulum-v1", {"initial_log_std": -0.5}),
        ("Pendulum-v1", {"action_distribution": "tanh", "entropy_coefficient": 0.1}),
        ("bandit", {"advantage_normalization": "none"}),
    ],
)
def test_the_step_is_the_one_of_the_explicit_fisher_matrix(env: str, fields: dict) -> None:
    """(∇²KL + damping)⁻¹ ∇L by numpy, at the length of the radius, against what `step` did."""
    config = trpo.Config(
        num_envs=4, num_steps=16, hidden_sizes=(3,), conjugate_gradient_iterations=60, **fields
    )
    world = bandit(np.arange(6.0).reshape(2, 3)) if env == "bandit" else envs.make(env)
    algorithm, network, step = setup(world, config)
    distribution = models.policy_head(world.action_space, config.action_distribution).distribution
    state = jit(algorithm.init)(jax.random.key(3))
    # A policy that is not almost uniform, with all parameters away from zero.
    noise = lambda x: np.random.default_rng(x.size).normal(size=x.shape).astype(np.float32)
    state = state.replace(params=jax.tree.map(lambda x: np.asarray(x) + 0.3 * noise(x), state.params))
    seen = jit(step)(jax.random.key(4), state)
    assert seen.metrics.accepted.total == 1
    flat, unravel = ravel_pytree(seen.before.params)
    kept = slice(None, None, config.fisher_stride)

    def kl(x: Any) -> Any:
        part, old = jax.tree.map(lambda x: x[kept], (seen.obs, seen.old))
        return distribution.kl(old, network.apply(unravel(x), part)[0]).mean()

    def objective(x: Any) -> Any:
        new = network.apply(unravel(x), seen.obs)[0]
        score = distribution.log_prob(new, seen.action) * seen.advantage  # ∇ρ = ∇log π at the old policy
        entropy = distribution.entropy(new, jax.random.split(jax.random.key(4), 3)[2])  # that of `step`
        return score.mean() + config.entropy_coefficient * entropy.mean()

    matrix = np.asarray(jit(jax.hessian(kl))(flat), np.float64) + config.damping * np.eye(flat.size)
    gradient = np.asarray(jit(jax.grad(objective))(flat), np.float64)
    direction = np.linalg.solve(matrix, gradient)
    tried = int(seen.metrics.line_search_steps.total)
    length = np.sqrt(2 * config.max_kl / (direction @ matrix @ direction))
    expected = config.line_search_factor ** (tried - 1) * length * direction
    moved = np.asarray(ravel_pytree(seen.after.params)[0] - flat)
    of_policy = np.concatenate(
        [
            np.full(leaf.size, not any(name in jax.tree_util.keystr(path) for name in ("MLP_1", "value")))
            for path, leaf in jax.tree_util.tree_leaves_with_path(seen.before.params)
        ]
    )
    np.testing.assert_allclose(moved[of_policy], expected[of_policy], atol=2e-3 * np.abs(expected).max())
    np.testing.assert_allclose(expected[~of_policy], 0, atol=1e-7)  # KL does not depend on the value's
    np.testing.assert_allclose(seen.metrics.gradient_norm.total, np.linalg.norm(gradient), rtol=1e-3)


def test_the_natural_gradient_of_a_bandit_is_its_closed_form() -> None:
    """F = diag(p) − p pᵀ, so F⁻¹ ∇L is the mean advantage of each action, weighted by f / p of its frequency
    f, with sum zero.
    """
    rewards, logits = np.array([1.0, -0.5, 0.2, 0.0]), np.array([0.3, -0.4, 0.0, 0.8])
    config = trpo.Config(
        num_envs=8,
        num_steps=32,
        damping=0.0,
        max_kl=1e-3,
        advantage_normalization="none",
    )
    algorithm, _, step = setup(bandit(rewards), config, rule(logits))
    seen = jit(step)(jax.random.key(0), jit(algorithm.init)(jax.random.key(0)))
    p = np.exp(logits) / np.exp(logits).sum()
    frequency = np.bincount(np.asarray(seen.action).reshape(-1), minlength=4) / 256
    natural = frequency * rewards / p
    natural -= natural.mean()
    fisher = np.diag(p) - np.outer(p, p)
    gradient = frequency * rewards - p * (frequency @ rewards)
    np.testing.assert_allclose(fisher @ natural, gradient, atol=1e-12)
    factor = config.line_search_factor ** (int(seen.metrics.line_search_steps.total) - 1)
    expected = factor * np.sqrt(2 * config.max_kl / (natural @ fisher @ natural)) * natural
    np.testing.assert_allclose(seen.after.params.logits - seen.before.params.logits, expected, rtol=1e-3)
    np.testing.assert_allclose(
        exact_kl(seen.old, seen.new).mean(), factor**2 * config.max_kl, rtol=0.1
    )  # the quadratic model


def test_the_entropy_bonus_alone_makes_the_policy_uniform() -> None:
    config = trpo.Config(num_envs=4, num_steps=8, entropy_coefficient=1.0, damping=1e-3)
    seen = updates(bandit(np.zeros(3)), config, 60, rule([1.0, 0.0, -1.0]))
    entropy = seen.metrics.entropy.total / seen.metrics.entropy.count
    assert entropy[0] < 0.95 * np.log(3)
    np.testing.assert_allclose(entropy[-1], np.log(3), rtol=1e-2)


def test_the_value_is_fitted_by_adam_over_all_minibatches() -> None:
    """A reward of 1 whatever is done: only v learns, by Adam on g = v − 1 in each minibatch, by hand."""
    epochs, minibatches, rate, epsilon = 3, 2, 0.1, 1e-5
    config = trpo.Config(
        num_envs=4,
        num_steps=4,
        num_value_epochs=epochs,
        num_minibatches=minibatches,
        value_learning_rate=rate,
    )
    seen = updates(bandit(np.ones(2)), config, 1, rule([0.0, 0.0]))
    value = first = second = 0.0
    errors = []
    for step in range(1, epochs * minibatches + 1):
        gradient = value - 1
        errors.append(gradient**2 / 2)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        value -= rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + epsilon)
    np.testing.assert_allclose(seen.after.params.value[0], value, rtol=1e-5)
    assert int(seen.metrics.value_loss.count[0]) == len(errors)
    np.testing.assert_allclose(seen.metrics.value_loss.total[0], sum(errors), rtol=1e-5)
    np.testing.assert_array_equal(seen.after.params.logits, seen.before.params.logits)


def test_layers_in_common_belong_to_the_policy() -> None:
    """A network with one torso: the fit moves the value's last layer alone, and the bound holds."""
    env = envs.make("CartPole-v1")
    head = models.policy_head(env.action_space)
    network = models.actor_critic(env.observation_space, head, ppo.Config(torso="shared", hidden_sizes=(8,)))
    config = trpo.Config(value_learning_rate=0.1, max_kl=2.0, line_search_steps=1, **SMALL)
    seen = updates(env, config, 40, network)
    assert (exact_kl(seen.old, seen.new).mean(axis=(1, 2)) <= config.max_kl * (1 + 1e-4)).all()
    refused = seen.metrics.accepted.total == 0
    assert refused.any()
    assert not refused.all()
    for name, leaf in policy_leaves(seen.before.params).items():
        same = (leaf == policy_leaves(seen.after.params)[name]).reshape(len(refused), -1).all(1)
        np.testing.assert_array_equal(same, refused, err_msg=name)
    for part in ("kernel", "bias"):
        assert (seen.before.params["value"][part] != seen.after.params["value"][part]).any(axis=(1, 2)).all()


def test_a_value_without_parameters_of_its_own_is_refused() -> None:
    own = rule([0.0, 0.0])
    network = Network(own.init, lambda params, obs: own.apply(params._replace(value=params.logits[0]), obs))
    algorithm = trpo.make(envs.make("CartPole-v1"), trpo.Config(**SMALL), network)
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    with pytest.raises(ValueError, match="value has no parameter") as caught:
        jax.eval_shape(algorithm.step, jax.random.key(0), state)
    assert "\n" not in str(caught.value)


def test_wrong_fields_are_named() -> None:
    env = envs.make("CartPole-v1")
    for field, value in {
        "max_kl": 0.0,
        "damping": -0.1,
        "line_search_factor": 1.5,
        "line_search_steps": 0,
        "conjugate_gradient_iterations": 2.5,
        "fisher_stride": 0,
        "num_value_epochs": 0,
        "num_minibatches": 3,
        "value_learning_rate": 0.0,
        "advantage_normalization": "minibatch",
        "reward_scaling": "on",
    }.items():
        with pytest.raises(ValueError, match=rf"trpo\.Config\.{field} = ") as caught:
            trpo.make(env, trpo.Config(**{field: value}))
        assert "\n" not in str(caught.value)
    assert trpo.Config().initial_steps == 0


def test_products_with_the_fisher_matrix_are_exact_on_accelerators() -> None:
    """Every product in the loop of conjugate gradients is in full float32; GPUs would round to 10 bits."""
    config = trpo.Config(conjugate_gradient_iterations=7, **SMALL)
    algorithm = trpo.make(envs.make("CartPole-v1"), config)
    key = jax.random.key(0)
    program = jax.make_jaxpr(algorithm.step)(key, jax.eval_shape(algorithm.init, key))

    def equations(jaxpr: Any) -> Any:
        for equation in jaxpr.eqns:
            yield equation
            for part in jaxprs_in_params(equation.params):
                yield from equations(part)

    loops = [each for each in equations(program.jaxpr) if each.params.get("length") == 7]
    assert len(loops) == 1
    body = list(equations(loops[0].params["jaxpr"].jaxpr))
    found = [each.params["precision"] for each in body if each.primitive.name == "dot_general"]
    assert len(found) >= 6  # three layers, forwards and backwards
    assert set(found) == {(jax.lax.Precision.HIGHEST,) * 2}
