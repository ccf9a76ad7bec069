"""DDPG, TD3, SAC and discrete SAC: targets by hand, and what their updates promise.

Whole updates by hand are in tests/updates/test_replay_methods.py.
"""

import functools
import math
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import envs
from rljax.algorithms import ddpg, discrete_sac, sac, td3
from rljax.learning.replay import Batch
from rljax.math.distributions import reparameterise, tanh_gaussian
from rljax.models import ActorCritic
from rljax.types import Network

B = 4
SMALL: dict[str, Any] = {
    "num_envs": 2,
    "num_steps": 4,
    "learning_starts": 16,
    "batch_size": 8,
    "buffer_size": 64,
}
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiles faster
CONTINUOUS = (ddpg, td3, sac)
EVERY = (*CONTINUOUS, discrete_sac)


def environment(module: ModuleType) -> str:
    return "CartPole-v1" if module is discrete_sac else "Pendulum-v1"


def batch(action: Any = 0.0) -> Batch:
    """The third transition terminated, the last is of an episode cut off."""
    column = lambda values: jnp.asarray(values, jnp.float32)
    return Batch(
        obs=column([[0.1], [0.2], [0.3], [0.4]]),
        action=jnp.broadcast_to(action, (B, 1)),
        reward=column([1, -1, 2, 0.5]),
        discount=column([0.9, 0.9, 0.0, 0.81]),
        next_obs=column([[1], [-2], [3], [-4]]),
        weight=jnp.ones(B),
        index=jnp.arange(B),
    )


def linear(actor: Any, critic: Any) -> ActorCritic:
    """Networks without layers: what `actor` and `critic` make of their parameters."""
    return ActorCritic(Network(lambda key, obs: (), actor), Network(lambda *_: (), critic))


def test_the_target_of_ddpg_by_hand() -> None:
    """μ⁻(s) = m s, q⁻(s, a) = s + c a."""
    networks = linear(lambda m, obs: m * obs, lambda c, obs, action: (obs + c * action)[:, 0])
    found = ddpg.target(networks, ddpg.Params(jnp.float32(0.1), jnp.float32(2.0)), batch())
    following = np.array([1, -2, 3, -4]) * (1 + 0.2)
    expected = np.array([1, -1, 2, 0.5]) + np.array([0.9, 0.9, 0, 0.81]) * following
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_target_of_td3_by_hand() -> None:
    """Two critics s + a and s + 2a: the smaller counts, at the smoothed action, which stays within ±1."""
    networks = linear(
        lambda m, obs: jnp.clip(m * obs, -1, 1),
        lambda c, obs, action: jnp.stack([(obs + action)[:, 0], (obs + c * action)[:, 0]]),
    )
    params, key = td3.Params(jnp.float32(0.3), jnp.float32(2.0)), jax.random.key(0)
    config = td3.Config(target_noise=0.4, target_noise_clip=0.3)
    noise = np.clip(0.4 * np.asarray(jax.random.normal(key, (B, 1))), -0.3, 0.3)[:, 0]
    obs = np.array([1.0, -2, 3, -4])
    action = np.clip(np.clip(0.3 * obs, -1, 1) + noise, -1, 1)
    value = np.minimum(obs + action, obs + 2 * action)
    expected = np.array([1, -1, 2, 0.5]) + np.array([0.9, 0.9, 0, 0.81]) * value
    np.testing.assert_allclose(td3.target(key, networks, params, batch(), config), expected, rtol=1e-5)
    quiet = td3.Config(target_noise=0.0)
    action = np.clip(0.3 * obs, -1, 1)
    value = np.minimum(obs + action, obs + 2 * action)
    expected = np.array([1, -1, 2, 0.5]) + np.array([0.9, 0.9, 0, 0.81]) * value
    np.testing.assert_allclose(td3.target(key, networks, params, batch(), quiet), expected, rtol=1e-5)


def test_the_target_of_sac_by_hand() -> None:
    """a' = tanh(mean + std ε) with its density by the change of variables, in float64."""
    networks = linear(
        lambda m, obs: (m * obs, jnp.full_like(obs, -0.5)),
        lambda c, obs, action: jnp.stack([(obs + action)[:, 0], (obs + c * action)[:, 0]]),
    )
    params = sac.Params(jnp.float32(0.3), (), jnp.log(jnp.float32(0.2)))
    noise = jax.random.normal(jax.random.key(0), (B, 1))
    obs, std, normal = np.array([1.0, -2, 3, -4]), math.exp(-0.5), np.asarray(noise, np.float64)[:, 0]
    action = np.tanh(0.3 * obs + std * normal)
    log_prob = -0.5 * normal**2 - np.log(std) - 0.5 * np.log(2 * np.pi) - np.log(1 - action**2)
    value = np.minimum(obs + action, obs + 2 * action) - 0.2 * log_prob
    expected = np.array([1, -1, 2, 0.5]) + np.array([0.9, 0.9, 0, 0.81]) * value
    found = sac.target(noise, networks, params, jnp.float32(2.0), batch())
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_reparameterised_density_is_a_density() -> None:
    """∫ exp(log p(a)) da = 1 over the actions in (−1, 1), and it is that of tanh_gaussian."""
    noise = jnp.linspace(-6, 6, 20_001)[:, None]
    parameters = (jnp.full_like(noise, 0.4), jnp.full_like(noise, -0.3))
    action, log_prob = reparameterise(noise, parameters)
    total = np.trapezoid(np.exp(np.asarray(log_prob, np.float64)), np.asarray(action, np.float64)[:, 0])
    np.testing.assert_allclose(total, 1, atol=1e-3)
    mean, log_std = parameters
    again = tanh_gaussian.log_prob(parameters, mean + jnp.exp(log_std) * noise)
    np.testing.assert_allclose(log_prob, again, rtol=1e-5, atol=1e-5)


def test_the_value_of_discrete_sac_is_the_expectation_by_enumeration() -> None:
    generator, temperature = np.random.default_rng(0), 0.3
    logits, value = generator.normal(size=(B, 3)), generator.normal(size=(2, B, 3))
    expected = np.zeros(B)
    for row in range(B):
        p = np.exp(logits[row]) / np.exp(logits[row]).sum()
        for a in range(3):
            expected[row] += p[a] * (min(value[0, row, a], value[1, row, a]) - temperature * np.log(p[a]))
    found = discrete_sac.soft_value(jnp.float32(logits), jnp.float32(value), jnp.float32(temperature))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_policy_of_discrete_sac_that_loses_least_is_the_softmax_of_values() -> None:
    """−V as a loss of the logits has its minimum −α log Σ exp(q / α) at q / α."""
    value, temperature = jnp.array([[[1.0, -0.5, 0.2]], [[0.8, 0.1, 0.3]]]), jnp.float32(0.3)
    q = np.minimum(*np.asarray(value))[0]
    loss = lambda logits: -discrete_sac.soft_value(logits, value, temperature)[0]
    best = jnp.asarray(q / 0.3)[None]
    np.testing.assert_allclose(loss(best), -0.3 * np.log(np.exp(q / 0.3).sum()), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(loss)(best), np.zeros((1, 3)), atol=1e-6)
    assert loss(best + jnp.array([[0.5, 0, 0]])) > loss(best)


def test_the_target_of_discrete_sac_by_hand() -> None:
    networks = linear(
        lambda m, obs: jnp.concatenate([m * obs, -m * obs], -1),
        lambda c, obs: jnp.stack([jnp.concatenate([obs, c * obs], -1), jnp.concatenate([c * obs, obs], -1)]),
    )
    params = discrete_sac.Params(jnp.float32(0.5), (), jnp.log(jnp.float32(0.2)))
    obs = np.array([1.0, -2, 3, -4])
    p = 1 / (1 + np.exp(-obs))
    low = np.minimum(obs, 0.5 * obs)
    value = low + 0.2 * -(p * np.log(p) + (1 - p) * np.log(1 - p))
    expected = np.array([1, -1, 2, 0.5]) + np.array([0.9, 0.9, 0, 0.81]) * value
    found = discrete_sac.target(networks, params, jnp.float32(0.5), batch())
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@functools.cache
def programs(module: Any, **fields: Any) -> tuple[Any, Any]:
    """The initial state on a small Config, and the compiled step."""
    config = module.Config(hidden_sizes=(8,), **{**SMALL, **fields})
    algorithm = module.make(envs.make(environment(module)), config)
    return jit(algorithm.init)(jax.random.key(0)), jit(algorithm.step)


@functools.cache
def run(module: Any, iterations: int = 1, **fields: Any) -> tuple[Any, Any, Any]:
    """(initial state, state after some iterations, metrics of the last) on a small Config."""
    first, step = programs(module, **fields)
    state, metrics = first, None
    for i in range(iterations):
        state, metrics = step(jax.random.key(i + 1), state)
    return first, state, metrics


def same(a: Any, b: Any) -> bool:
    return all((x == y).all() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize("module", EVERY)
def test_the_target_networks_follow_at_their_rate(module: ModuleType) -> None:
    """One update: target' = target + rate (params' − target)."""
    fields = {"num_steps": 1, "target_rate": 0.25}
    if module is td3:
        fields["policy_delay"] = 1
    first, state, _ = run(module, **fields)
    params = state.params.critic if module in (sac, discrete_sac) else state.params
    expected = jax.tree.map(lambda old, new: old + 0.25 * (new - old), first.target_params, params)
    assert not same(first.target_params, params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.target_params, expected
    )


def test_td3_delays_the_policy_and_the_targets() -> None:
    """Of 4 updates of the critics with a delay of 3 only the third moves actor and targets."""
    cases = ((1, 1, 0, 0), (2, 1, 0, 0), (3, 1, 1, 1), (4, 1, 1, 0), (1, 4, 1, 1))
    for iterations, num_steps, improved, improved_last in cases:
        first, state, metrics = run(td3, iterations, num_steps=num_steps, policy_delay=3)
        assert not same(state.params.critic, first.params.critic)
        assert same(state.params.actor, first.params.actor) == (not improved)
        assert same(state.target_params, first.target_params) == (not improved)
        assert int(state.opt_state.actor.count) == improved
        assert int(state.opt_state.critic.count) == iterations * num_steps
        assert int(metrics.actor_loss.count) == improved_last


def test_td3_counts_updates_across_iterations() -> None:
    _, state, _ = run(td3, iterations=4, num_steps=2, policy_delay=3)  # 8 updates
    assert int(state.opt_state.actor.count) == 2


def test_the_delay_is_a_branch_also_for_a_sweep() -> None:
    """No `select` of both sides: mapped over members, of which all are at one iteration, a conditional is
    left. Where each had its own, as a user's `vmap` over States may want, there could be none.
    """
    algorithm = td3.make(envs.make("Pendulum-v1"), td3.Config(hidden_sizes=(8,), **SMALL))
    keys = jax.random.split(jax.random.key(0), 2)
    states = jax.eval_shape(jax.vmap(algorithm.init), keys)

    def conditionals(iteration: Any, axis: int | None) -> int:
        member = lambda iteration, key, state: algorithm.step(key, state.replace(iteration=iteration))
        return str(jax.make_jaxpr(jax.vmap(member, (axis, 0, 0)))(iteration, keys, states)).count("cond[")

    assert conditionals(jnp.int32(0), None) == 1 + conditionals(jnp.zeros(2, jnp.int32), 0)


@pytest.mark.parametrize("module", [sac, discrete_sac])
@pytest.mark.parametrize(("ratio", "sign"), [(50.0, -1), (-50.0, 1)])
def test_the_temperature_moves_entropy_towards_its_target(
    module: ModuleType, ratio: float, sign: int
) -> None:
    """Where the policy is more random than asked for, α falls; where it is less, α grows."""
    target = -ratio if module is sac else math.log(2) * -ratio
    first, state, metrics = run(module, target_entropy_ratio=ratio if module is sac else -ratio)
    assert (target < metrics.entropy.value) == (sign < 0)
    change = state.params.log_temperature - first.params.log_temperature
    assert np.sign(change) == sign


def test_the_gradient_of_the_temperature_is_that_of_its_loss() -> None:
    """One Adam step of dL_α/d log α, L_α = −α (log π + H): its moment is (1 − β₁) times the gradient."""
    first, state, metrics = run(sac, num_steps=1, initial_temperature=0.5)
    log_prob = -metrics.entropy.value
    loss = lambda log_temperature: -jnp.exp(log_temperature) * (log_prob - 1.0)
    gradient = jax.grad(loss)(first.params.log_temperature)
    np.testing.assert_allclose(state.opt_state.log_temperature.mu, 0.1 * gradient, rtol=1e-5)


@pytest.mark.parametrize("module", [sac, discrete_sac])
def test_a_fixed_temperature_stays(module: ModuleType) -> None:
    _, state, metrics = run(module, temperature="fixed", initial_temperature=0.3)
    np.testing.assert_allclose(jnp.exp(state.params.log_temperature), 0.3, rtol=1e-6)
    np.testing.assert_allclose(metrics.temperature.value, 0.3, rtol=1e-6)


@pytest.mark.parametrize("module", EVERY)
@pytest.mark.parametrize("replay", ["uniform", "prioritized"])
def test_every_replay_and_length_of_target_trains(module: ModuleType, replay: str) -> None:
    first, state, metrics = run(module, iterations=2, replay=replay, n_step=3)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    assert not same(first.params, state.params)
    assert metrics.critic_loss.value > 0
    assert int(metrics.critic_loss.count) == SMALL["num_steps"]


@pytest.mark.parametrize("module", CONTINUOUS)
def test_the_replay_holds_raw_actions_within_bounds(module: ModuleType) -> None:
    first, state, _ = run(module, iterations=4, noise="ornstein-uhlenbeck")
    actions = np.asarray(state.ring.action)
    assert actions.shape[-1] == 1
    assert np.abs(actions).max() <= 1
    assert np.abs(np.asarray(first.ring.action)).max() > 0.5  # uniform at the start
    assert state.noise.shape == (2, 1)
    assert (state.noise != 0).all()


@pytest.mark.parametrize("module", EVERY)
def test_the_other_actions_are_refused_with_the_methods_that_fit(module: ModuleType) -> None:
    wrong, fitting = (
        ("Pendulum-v1", "ddpg, td3, sac") if module is discrete_sac else ("CartPole-v1", "discrete_sac")
    )
    name = module.__name__.rpartition(".")[2]
    with pytest.raises(ValueError, match=rf"^{name} needs .*{fitting}") as caught:
        module.make(envs.make(wrong), module.Config())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("module", EVERY)
def test_wrong_fields_are_one_line(module: ModuleType) -> None:
    for field, value in {
        "target_rate": 1.5,
        "adam_epsilon": 0.0,
        "learning_starts": 10**9,
        "train_every": 3,
        "batch_size": 10**9,
        "replay": "prioritised",
        "noise": "pink",
        "noise_reversion": 0.0,
        "noise_scale": -0.1,
        "target_noise_clip": -0.5,
        "actor_learning_rate": -1.0,
        "policy_delay": 0,
        "target_every": 0,
        "initial_temperature": 0.0,
        "temperature": "auto",
        "target_entropy_ratio": float("nan"),
    }.items():
        if not hasattr(module.Config(), field):
            continue
        with pytest.raises(ValueError, match=r".") as caught:
            module.make(envs.make(environment(module)), module.Config(**{field: value}))
        assert "\n" not in str(caught.value)
        assert field in str(caught.value), str(caught.value)


def test_a_network_of_the_users_own() -> None:
    """A linear actor and critic behind `Network`; their parameters are what the State then has."""
    networks = ActorCritic(
        Network(lambda key, obs: jnp.zeros(3), lambda w, obs: jnp.tanh(obs @ w)[..., None]),
        Network(
            lambda key, obs, action: jnp.zeros(4),
            lambda w, obs, action: jnp.concatenate([obs, action], -1) @ w,
        ),
    )
    algorithm = ddpg.make(envs.make("Pendulum-v1"), ddpg.Config(**SMALL), networks)
    state, metrics = jit(algorithm.step)(jax.random.key(1), jit(algorithm.init)(jax.random.key(0)))
    assert state.params.critic.shape == (4,)
    assert (state.params.critic != 0).all()
    assert np.isfinite(metrics.critic_loss.value)
