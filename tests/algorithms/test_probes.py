"""Every algorithm solves the probes, whose answers are known; and identities between algorithms."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rljax
from rljax import algorithms, envs, models
from rljax.envs import wrappers
from rljax.types import Box, Discrete, Env, Network

GAMMA = 0.9
ITERATIONS = 400
# Compiles as fast as level 0, and runs of IQN take half as long.
FAST_COMPILATION = {"xla_backend_optimization_level": 1}


class Answer(NamedTuple):
    """What is right at each of the observations: the value of the best policy, and its action."""

    observations: list[float]
    values: list[float]
    actions: list[float] | None = None


ANSWERS = {
    "ValueConstant-probe": Answer([0], [1]),
    "ValueObservation-probe": Answer([-1, 1], [-1, 1]),
    "ValueDiscount-probe": Answer([0, 1], [GAMMA, 1]),
    "PolicyAdvantage-probe": Answer([0], [1], [1]),
    "PolicyObservation-probe": Answer([-1, 1], [1, 1], [0, 1]),
    "ContinuousAdvantage-probe": Answer([0], [0], [0.5]),
    "ContinuousObservation-probe": Answer([-1, 1], [0, 0], [-0.5, 0.5]),
    "Truncation-probe": Answer([0], [1 / (1 - GAMMA)]),
    "FinalObservation-probe": Answer([-1, 1], [GAMMA / (1 - GAMMA**2), 1 / (1 - GAMMA**2)]),
}

FIELDS: dict[str, dict[str, Any]] = {
    "reinforce": {"num_envs": 32, "num_steps": 5, "value_coefficient": 2.0},
    "a2c": {"num_envs": 32, "num_steps": 4, "entropy_coefficient": 0.0},
    "ppo": {"num_envs": 16, "num_steps": 8, "num_epochs": 2, "num_minibatches": 2},
    "trpo": {"num_envs": 16, "num_steps": 8, "num_minibatches": 2, "value_learning_rate": 1e-2},
    # Where observations are 0, layer norm leaves only the last bias to learn: hence larger steps.
    "pqn": {"num_envs": 16, "num_steps": 8, "num_epochs": 4, "num_minibatches": 2, "learning_rate": 3e-2},
}
REPLAY = {
    "num_envs": 4,
    "num_steps": 4,
    "batch_size": 64,
    "buffer_size": 4_000,
    "learning_starts": 64,
    "target_rate": 0.05,
    "schedule": "linear",
}
GREEDY = {
    "temperature": "fixed",
    "initial_temperature": 1e-3,
}  # values of the rewards alone
FIELDS |= {
    "ddpg": {**REPLAY, "noise_scale": 0.3},
    "td3": {**REPLAY, "noise_scale": 0.3, "target_noise": 0.05, "target_rate": 0.1},
    "sac": REPLAY | GREEDY,
    "discrete_sac": REPLAY | GREEDY,
}
QUANTILES = {**REPLAY, "num_updates": 2, "epsilon_end": 0.5, "target_rate": 0.1}
CATEGORICAL = {
    **REPLAY,
    "num_updates": 2,
    "epsilon_end": 0.5,
    "value_low": -2.0,
    "value_high": 12.0,
    "atoms": 29,
}
FIELDS |= {
    "dqn": {**QUANTILES, "num_updates": 4, "target_every": 1, "learning_rate": 1e-2},
    "c51": CATEGORICAL,
    "rainbow": CATEGORICAL,
    "qrdqn": {**QUANTILES, "num_updates": 4, "quantiles": 5},
    "iqn": {
        **QUANTILES,
        "batch_size": 32,
        "num_updates": 4,
        "hidden_sizes": (16, 16),
        "num_quantiles": 4,
        "num_target_quantiles": 4,
        "num_policy_quantiles": 4,
    },
}
POLICY_GRADIENT = ("reinforce", "a2c", "ppo")  # whose first gradient is known by hand
TABULAR = {"q_learning", "sarsa", "expected_sarsa", "monte_carlo", "td_lambda"}  # no observations of numbers
ONLY_DISCRETE = ("dqn", "pqn", "c51", "rainbow", "qrdqn", "iqn", "discrete_sac")
ONLY_CONTINUOUS = ("ddpg", "td3", "sac")


def test_every_probe_and_algorithm_is_here() -> None:
    assert set(ANSWERS) | {"NanReward-probe"} == set(envs.probes.PROBES)
    assert set(FIELDS) | TABULAR == {name for name in algorithms.NAMES if not algorithms.find(name).text}


def state_values(env: Any, config: Any) -> tuple[Network, Any]:
    """A network, and from its parameters and observations (B, ...) to the values (B,) of an actor-critic."""
    network = models.actor_critic(env.observation_space, models.policy_head(env.action_space), config)
    return network, lambda params, obs: network.apply(params, obs)[1]


def action_values(env: Any, config: Any) -> tuple[Network, Any]:
    """The same of Q(s, ·)."""
    network = models.q_network(env.observation_space, env.action_space.n, config)
    return network, lambda params, obs: network.apply(params, obs).max(axis=-1)


def categorical_values(env: Any, config: Any) -> tuple[Network, Any]:
    """The same of the means of distributions on fixed atoms."""
    network = models.q_network(env.observation_space, env.action_space.n, config, config.atoms)
    support = jnp.linspace(config.value_low, config.value_high, config.atoms)
    return network, lambda params, obs: (jax.nn.softmax(network.apply(params, obs)) @ support).max(axis=-1)


def quantile_values(env: Any, config: Any) -> tuple[Network, Any]:
    """The same of the means of quantiles."""
    network = models.q_network(env.observation_space, env.action_space.n, config, config.quantiles)
    return network, lambda params, obs: network.apply(params, obs).mean(axis=-1).max(axis=-1)


def implicit_quantile_values(env: Any, config: Any) -> tuple[Network, Any]:
    """The same of the means of quantiles at 99 fractions."""
    network = models.implicit_quantile_network(env.observation_space, env.action_space.n, config)

    def value(params: Any, obs: Any) -> Any:
        tau = jnp.broadcast_to(jnp.linspace(0.01, 0.99, 99)[None], (obs.shape[0], 99))
        return network.apply(params, obs, tau).mean(axis=-1).max(axis=-1)

    return network, value


def critics(make: Any, mean: Any, count: int, env: Any, config: Any) -> tuple[models.ActorCritic, Any]:
    """The same of q(s, μ(s)), the smallest of `count`; `mean` makes μ(s) of what an actor by `make` gives."""
    single = models.critic(env.observation_space, 1, config)
    networks = models.ActorCritic(make(env.observation_space, 1, config), single)
    ensemble = models.ensemble(single, count) if count > 1 else single

    def value(params: Any, obs: Any) -> Any:
        action = mean(networks.actor.apply(params.actor, obs))
        return ensemble.apply(params.critic, obs, action).reshape(count, -1).min(axis=0)

    return networks, value


def discrete_critics(env: Any, config: Any) -> tuple[models.ActorCritic, Any]:
    """The same of the smaller of two Q(s, ·)."""
    q = models.q_network(env.observation_space, env.action_space.n, config)
    twins = models.ensemble(q, 2)
    value = lambda params, obs: twins.apply(params.critic, obs).min(axis=0).max(axis=-1)
    return models.ActorCritic(q, q), value


NETWORKS: dict[str, Any] = {
    "dqn": action_values,
    "pqn": action_values,
    "c51": categorical_values,
    "rainbow": categorical_values,
    "qrdqn": quantile_values,
    "iqn": implicit_quantile_values,
    "ddpg": functools.partial(critics, models.deterministic_actor, lambda action: action, 1),
    "td3": functools.partial(critics, models.deterministic_actor, lambda action: action, 2),
    "sac": functools.partial(critics, models.gaussian_actor, lambda parameters: jnp.tanh(parameters[0]), 2),
    "discrete_sac": discrete_critics,
}


def one_of(choices: list[Env], which: Any) -> Env:
    """The environment `choices[which]`, where `which` may be an argument of a compiled program."""

    def select(*cases: Any) -> Any:
        return jax.tree.map(lambda *leaves: jax.lax.select_n(which, *leaves), *cases)

    def reset(key: Any) -> tuple[Any, Any]:
        observations, states = zip(*[env.reset(key) for env in choices], strict=True)
        return select(*observations), states

    def step(key: Any, states: Any, action: Any) -> tuple[Any, ...]:
        all_of_them = [env.step(key, state, action) for env, state in zip(choices, states, strict=True)]
        observation, *rest = select(*[(each[0], *each[2:]) for each in all_of_them])
        return observation, tuple(each[1] for each in all_of_them), *rest

    first, limit = choices[0], max(env.max_steps for env in choices)
    return Env("one of the probes", reset, step, first.observation_space, first.action_space, limit)


def number_of_actions(env: Env) -> int:
    """How many actions there are, 0 where they are numbers."""
    return env.action_space.n if isinstance(env.action_space, Discrete) else 0


def world(name: str, probe: str) -> Env:
    """A probe as the algorithm meets it: in place of the only action of a probe it may give a number."""
    env = envs.make(probe)
    if name in ONLY_CONTINUOUS and number_of_actions(env) == 1:
        return wrappers.map_action(env, lambda action: jnp.int32(0), Box(-1.0, 1.0, (1,)))
    return env


class Solver(NamedTuple):
    """A compiled function that trains on one of the probes that have as many actions."""

    probes: list[str]
    solve: Any  # which probe, observations (2,) -> values (2,), greedy actions (2, ...)


@functools.cache
def solver(name: str, actions: int) -> Solver:
    """Training from a fixed seed, for all probes of that many actions."""
    module = algorithms.find(name).module
    given = {"learning_rate": 1e-2, "discount": GAMMA, "hidden_sizes": (16,), "initial_log_std": -1.0}
    known = {field: value for field, value in given.items() if field in module.Config.__annotations__}
    config = module.Config(**known | FIELDS[name])
    config = config.replace(total_steps=float(ITERATIONS * config.steps_per_iteration))
    probes = [probe for probe in ANSWERS if number_of_actions(world(name, probe)) == actions]
    choices = [world(name, probe) for probe in probes]
    network, value_of = NETWORKS.get(name, state_values)(choices[0], config)

    @functools.partial(jax.jit, compiler_options=FAST_COMPILATION)
    def solve(which: Any, observations: Any) -> tuple[Any, Any]:
        algorithm = module.make(one_of(choices, which), config, network)
        init_key, run_key = jax.random.split(jax.random.key(0))
        state, _ = rljax.run(algorithm, run_key, algorithm.init(init_key), ITERATIONS)
        policy, seen = algorithm.policy(state), observations[:, None]
        actions, _ = policy.act(jax.random.key(1), seen, policy.init(), True)
        return value_of(state.params, seen), actions

    return Solver(probes, solve)


@pytest.mark.parametrize("probe", ANSWERS)
@pytest.mark.parametrize("name", FIELDS)
def test_a_probe_is_solved(name: str, probe: str) -> None:
    answer, actions = ANSWERS[probe], number_of_actions(world(name, probe))
    if name in ONLY_DISCRETE and actions == 0:
        pytest.skip("discrete actions only")
    if name in ONLY_CONTINUOUS and actions > 0:
        pytest.skip("continuous actions only")
    probes, solve = solver(name, actions)
    number = len(answer.observations)
    padded = np.resize(np.asarray(answer.observations, np.float32), 2)
    values, greedy = solve(np.int32(probes.index(probe)), padded)
    np.testing.assert_allclose(values[:number], answer.values, atol=0.1)
    if answer.actions is not None:
        np.testing.assert_allclose(np.asarray(greedy).reshape(2)[:number], answer.actions, atol=0.1)


class Rule(NamedTuple):
    """A network without layers on probes of one observation: two logits and a value."""

    logits: Any
    value: Any


def plain_network(actions: int) -> Network:
    def apply(params: Rule, obs: Any) -> tuple[Any, Any]:
        batch = obs.shape[:-1]
        return jnp.broadcast_to(params.logits, (*batch, actions)), jnp.broadcast_to(params.value, batch)

    return Network(lambda key, obs: Rule(jnp.zeros(actions), jnp.float32(0)), apply)


@pytest.mark.parametrize("name", POLICY_GRADIENT)
def test_the_gradient_is_the_one_computed_by_hand(name: str) -> None:
    """PolicyAdvantage at uniform logits and v = 0, so that A = r = ±1 for the actions 1 and 0.

    Whatever was drawn, −A ∇log π(a) = −r (e_a − ½) is (½, −½); the value's gradient is c_v (v − mean r).
    """
    module, env = algorithms.find(name).module, envs.make("PolicyAdvantage-probe")
    config = module.Config(
        learning_rate=1e-3, num_envs=16, num_steps=4, value_coefficient=0.7, advantage_normalization="none"
    )
    if name == "ppo":
        config = config.replace(num_epochs=1, num_minibatches=1)
    algorithm = module.make(env, config, plain_network(2))
    state, metrics = jax.jit(algorithm.step)(jax.random.key(1), algorithm.init(jax.random.key(0)))
    mean_reward = float(metrics.episode_return.value)
    assert 0 < abs(mean_reward) < 1
    expected = np.sqrt(0.5 + (0.7 * mean_reward) ** 2)
    np.testing.assert_allclose(metrics.gradient_norm.value, expected, rtol=1e-5)
    # The first step of Adam and RMSprop goes downhill in every parameter.
    assert state.params.logits[1] > 0 > state.params.logits[0]
    assert np.sign(state.params.value) == np.sign(mean_reward)


def test_ppo_adds_up_the_gradient_norms_of_all_minibatches() -> None:
    """ValueConstant: only v learns, by Adam on g = c_v (v − 1) in each minibatch; all of it by hand."""
    epochs, minibatches, rate, coefficient, epsilon = 3, 2, 0.1, 0.7, 1e-5
    config = algorithms.find("ppo").module.Config(
        learning_rate=rate,
        num_envs=4,
        num_steps=4,
        num_epochs=epochs,
        num_minibatches=minibatches,
        value_coefficient=coefficient,
        adam_epsilon=epsilon,
        max_grad_norm=10.0,
        value_loss="plain",
        schedule="constant",
    )
    algorithm = algorithms.find("ppo").module.make(envs.make("ValueConstant-probe"), config, plain_network(1))
    state, metrics = jax.jit(algorithm.step)(jax.random.key(1), algorithm.init(jax.random.key(0)))
    value = first = second = 0.0
    norms = []
    for step in range(1, epochs * minibatches + 1):
        gradient = coefficient * (value - 1)
        norms.append(abs(gradient))
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        direction = first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + epsilon)
        value -= rate * direction
    assert int(metrics.gradient_norm.count) == epochs * minibatches
    np.testing.assert_allclose(metrics.gradient_norm.total, sum(norms), rtol=1e-5)
    np.testing.assert_allclose(state.params.value, value, rtol=1e-5)


def test_a2c_is_ppo_with_one_epoch_and_one_minibatch() -> None:
    """Huang et al. 2022, arXiv:2205.09123: no ratio is clipped before the first step."""
    env = envs.make("CartPole-v1")
    shared = {
        "total_steps": 10_000.0,
        "learning_rate": 3e-3,
        "trace_decay": 1.0,
        "num_envs": 8,
        "num_steps": 16,
        "hidden_sizes": (16,),
        "advantage_normalization": "none",
    }
    a2c = algorithms.find("a2c").module.make(
        env, algorithms.find("a2c").module.Config(optimizer="adam", epsilon=1e-5, **shared)
    )
    ppo_config = algorithms.find("ppo").module.Config(
        num_epochs=1, num_minibatches=1, value_loss="plain", **shared
    )
    ppo = algorithms.find("ppo").module.make(env, ppo_config)

    @functools.partial(jax.jit, static_argnums=0)
    def parameters(of_ppo: bool) -> tuple[Any, Any]:
        algorithm = ppo if of_ppo else a2c
        step = lambda state, key: algorithm.step(key, state)  # of which both make the same key of the rollout
        start = algorithm.init(jax.random.key(0))
        state, _ = jax.lax.scan(step, start, jax.random.split(jax.random.key(1), 3))
        return start.params, state.params

    (start, ours), (same, theirs) = parameters(False), parameters(True)
    for one, two, first, second in zip(*map(jax.tree.leaves, (start, same, ours, theirs)), strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_allclose(first, second, atol=1e-6, rtol=0)
        assert np.abs(first - one).max() > 1e-4  # a hundred times the tolerance: they moved


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_the_ratio_is_one_before_the_policy_moves(name: str) -> None:
    """|ρ − 1| ≤ 1e-5 for every step of every minibatch, counted by a clip of 1e-5.

    The policy is a trained one, and is held by a learning rate that moves no float32. With |d| ≤ 1e-5 for
    d = log ρ, k3 = expm1(d) − d is at most d²/2 = 5e-11 and rounding of expm1(d), some ulps of 1e-5 ≈ 1e-12.
    """
    ppo, env = algorithms.find("ppo").module, envs.make(name)
    config = ppo.Config(
        learning_rate=1e-2,
        num_envs=8,
        num_steps=32,
        hidden_sizes=(16,),
        observation_normalization="running",
        total_steps=1e6,
    )
    held, moving = (1e-30, 1e-5), (1e-2, 0.2)

    @jax.jit
    def train(key: Any, numbers: Any) -> Any:
        def step(state: Any, numbers: Any) -> tuple[Any, Any]:
            learning_rate, clip = numbers
            algorithm = ppo.make(env, config.replace(learning_rate=learning_rate, clip=clip))
            return algorithm.step(jax.random.fold_in(run_key, state.iteration), state)

        init_key, run_key = jax.random.split(key)
        return jax.lax.scan(step, ppo.make(env, config).init(init_key), numbers)[1]

    metrics = train(jax.random.key(0), tuple(jnp.array([moving] * 5 + [held]).T))
    before, metrics = (jax.tree.map(lambda x, part=part: x[part], metrics) for part in (slice(5), 5))
    assert int(metrics.clip_fraction.count) == 4 * 4  # a mean per minibatch
    assert float(metrics.clip_fraction.total) == 0
    assert abs(float(metrics.kl.value)) <= 6e-11
    assert (before.kl.value > 1e-4).all()  # a policy that moves is seen to


def test_reinforce_counts_the_episodes_that_the_rollout_cut() -> None:
    """Episodes of 1, 3, 4 and 9 steps in rollouts of 3: of the four only the last two are cut, and that of 3
    steps, which ends with the rollout by itself, is not.
    """
    lengths = jnp.array([1, 3, 4, 9])

    def reset(key: Any) -> Any:
        length = lengths[jax.random.randint(key, (), 0, 4)]
        return jnp.zeros(1), (jnp.int32(0), length)

    def step(key: Any, state: Any, action: Any) -> Any:
        time, length = state[0] + 1, state[1]
        over = time >= length
        return jnp.zeros(1), (time, length), jnp.float32(1), over & (length != 3), over & (length == 3)

    env = Env("lengths", reset, step, Box(-1.0, 1.0, (1,)), Discrete(2))
    module, key = algorithms.find("reinforce").module, jax.random.key(1)
    algorithm = module.make(env, module.Config(num_envs=64, num_steps=3), plain_network(2))
    metrics = jax.jit(algorithm.step)(key, algorithm.init(jax.random.key(0)))[1]
    keys = jax.random.split(jax.random.split(key, 3)[0], 64)
    drawn = np.array([reset(each)[1][1] for each in keys])
    assert set(drawn) == {1, 3, 4, 9}
    assert (float(metrics.cut.total), int(metrics.cut.count)) == ((drawn > 3).sum(), 64)
    assert float(metrics.episode_length.total) == np.minimum(drawn, 3).sum()
