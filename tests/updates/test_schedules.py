"""What changes over a run, by iteration: learning rates with their warm-up, ε, β of prioritised replay."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.algorithms import c51, ddpg, discrete_sac, dqn, iqn, pqn, qrdqn, rainbow, reinforce, sac, td3
from rljax.learning import env_rollouts, off_policy, replay, trainable
from rljax.learning.replay import Batch, Replay
from rljax.math import action_values
from rljax.types import Box, Discrete, Env

VALUED = {"dqn": dqn, "c51": c51, "qrdqn": qrdqn, "iqn": iqn, "rainbow": rainbow}
REPLAY: dict[str, Any] = VALUED | {"ddpg": ddpg, "td3": td3, "sac": sac, "discrete_sac": discrete_sac}
CONTINUOUS = ("ddpg", "td3", "sac")
CHOICES = 1001  # actions: number a stands for ε = a / 1000


def world(continuous: bool = False, max_steps: int | None = None) -> Env:
    """Nothing but a reward that is the action's number; it ends only where there is a limit."""

    def step(key: Any, state: Any, action: Any) -> Any:
        over = jnp.bool_(False) if max_steps is None else state + 1 >= max_steps
        return jnp.ones(2), state + 1, jnp.float32(action).sum(), jnp.bool_(False), over

    actions = Box(-1.0, 1.0, (1,)) if continuous else Discrete(CHOICES if max_steps is None else 2)
    reset = lambda key: (jnp.ones(2), jnp.int32(0))
    return Env("nothing", reset, step, Box(-1.0, 1.0, (2,)), actions, max_steps)


def linear(progress: np.ndarray) -> np.ndarray:
    return 1 - progress


def cosine(progress: np.ndarray) -> np.ndarray:
    return (1 + np.cos(np.pi * progress)) / 2


PROGRESS = np.array([0.0, 0.25, 0.5, 0.9])
SIZES = {"num_envs": 2, "num_steps": 4, "learning_starts": 8, "batch_size": 3, "buffer_size": 64}


@pytest.mark.parametrize("name", REPLAY)
def test_learning_rates_of_methods_with_a_replay(name: str) -> None:
    """Of one minibatch: Adam's first step is as long as the rate, whatever the gradient.

    The warm-up is a thousandth of the run, so that it does not matter whether the schedule counts it.
    """
    env = world(continuous=name in CONTINUOUS, max_steps=None if name in CONTINUOUS else 5)
    more = {"policy_delay": 1} if name == "td3" else {}
    config = REPLAY[name].Config(**SIZES, **more, total_steps=8000.0, schedule="cosine", hidden_sizes=(4, 4))
    action = jnp.full((3, 1), 0.5) if name in CONTINUOUS else jnp.zeros(3, jnp.int32)
    numbers = action, jnp.array([1.0, 2.0, 3.0]), jnp.ones(3), jnp.full((3, 2), 0.5), jnp.ones(3)
    batch = Batch(jnp.ones((3, 2)), *numbers, index=jnp.zeros(3, jnp.int32))

    def cycle(
        env: Any, replay: Any, act: Any, learn: Any, key: Any, worlds: Any, ring: Any, *rest: Any
    ) -> Any:
        learner, noise, *_ = rest
        learner, _, measures = learn(key, learner, batch, jnp.int32(0))
        episodes, measures = env_rollouts.no_episodes(), measures[None]
        return off_policy.Cycle(worlds, ring, learner, noise, worlds.obs[None], episodes, measures)

    @jax.jit
    def moves(iterations: Any) -> Any:
        algorithm = REPLAY[name].make(env, config)
        state = algorithm.init(jax.random.key(0))
        step = lambda i: algorithm.step(jax.random.key(1), state.replace(iteration=i))[0].params
        after = jax.lax.map(step, iterations)
        size = lambda new, old: jnp.abs(new - old[None]).reshape(len(PROGRESS), -1).max(axis=1)
        return jax.tree.map(size, after, state.params)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(off_policy, "warm_up", lambda *given: (given[5], (), given[5].obs[None]))
        patch.setattr(off_policy, "cycle", cycle)
        found = moves(jnp.asarray(1000 * PROGRESS, jnp.int32))
    sizes = [np.asarray(leaf) for leaf in jax.tree.leaves(found) if (np.asarray(leaf) > 1e-6).all()]
    assert len(sizes) >= (4 if name in (*CONTINUOUS, "discrete_sac") else 2)
    for size in sizes:
        np.testing.assert_allclose(size / size[0], cosine(PROGRESS), atol=0.01)


def test_the_learning_rate_of_reinforce() -> None:
    config = reinforce.Config(
        num_envs=4, num_steps=5, total_steps=200.0, hidden_sizes=(4,), schedule="linear"
    )

    @jax.jit
    def moves(iterations: Any) -> Any:
        algorithm = reinforce.make(world(max_steps=5), config)
        state = algorithm.init(jax.random.key(0))
        step = lambda i: algorithm.step(jax.random.key(1), state.replace(iteration=i))[0].params
        return jax.tree.map(lambda new, old: new - old[None], jax.lax.map(step, iterations), state.params)

    for move in jax.tree.leaves(moves(jnp.array([0, 2, 5, 9]))):
        size = np.abs(np.asarray(move)).reshape(4, -1).max(axis=1)
        np.testing.assert_allclose(size / size[0], [1, 0.8, 0.5, 0.1], rtol=1e-2)


def told(key: Any, q: Any, epsilon: Any) -> Any:
    """In place of ε-greedy actions, ε itself."""
    return jnp.full(q.shape[:-1], jnp.round(1000 * epsilon), jnp.int32)


EPSILON = {"epsilon_start": 0.9, "epsilon_end": 0.1, "exploration_fraction": 0.5}


@pytest.mark.parametrize("name", VALUED)
def test_epsilon_of_methods_with_a_replay(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a straight line over the first half of the run, and then as it is."""

    def cycle(
        env: Any, replay: Any, act: Any, learn: Any, key: Any, worlds: Any, ring: Any, *rest: Any
    ) -> Any:
        learner, noise, *_ = rest
        every = lambda progress: act(key, learner, worlds.obs, noise, progress)[0]
        actions = jax.lax.map(every, jnp.asarray(PROGRESS, jnp.float32))
        measures = jnp.zeros((1, 4))
        return off_policy.Cycle(
            worlds, actions, learner, noise, worlds.obs[None], env_rollouts.no_episodes(), measures
        )

    monkeypatch.setattr(off_policy, "warm_up", lambda *given: (given[5], (), given[5].obs[None]))
    monkeypatch.setattr(off_policy, "cycle", cycle)
    monkeypatch.setattr(action_values, "epsilon_greedy", told)
    config = VALUED[name].Config(**SIZES, **EPSILON, hidden_sizes=(4, 4))

    @jax.jit
    def acted(key: Any) -> Any:
        algorithm = VALUED[name].make(world(), config)
        return algorithm.step(key, algorithm.init(key))[0].ring

    expected = [900, 500, 100, 100]
    np.testing.assert_array_equal(acted(jax.random.key(0)), np.repeat(expected, 2).reshape(4, 2))


def test_epsilon_of_pqn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every iteration of a run of ten: rewards tell which ε was acted with."""
    monkeypatch.setattr(pqn.action_values, "epsilon_greedy", told)
    sizes = {"num_envs": 2, "num_steps": 4, "num_minibatches": 1, "num_epochs": 1, "hidden_sizes": (4, 4)}
    config = pqn.Config(**sizes, **EPSILON, total_steps=80.0)
    algorithm = pqn.make(world(), config)

    @jax.jit
    def run(key: Any) -> Any:
        step = lambda state, key: ((new := algorithm.step(key, state)[0]), new.worlds.episode_return)
        return jax.lax.scan(step, algorithm.init(key), jax.random.split(key, 10))[1]

    total = np.asarray(run(jax.random.key(0)))[:, 0]
    seen = np.diff(total, prepend=0) / 4
    np.testing.assert_allclose(seen, [900, 740, 580, 420, 260, 100, 100, 100, 100, 100], atol=0.5)


def test_what_acting_sampling_and_learning_are_told_of_the_time() -> None:
    """Iteration 3 of a run of 100 steps: 2 environments, 3 rows of warm-up, 4 rows and 2 × 2 updates each."""
    config = SimpleNamespace(
        total_steps=100.0, num_envs=2, num_steps=4, train_every=2, num_updates=2, initial_steps=6
    )

    def add(ring: Any, time: Any, raw: Any, outcome: Any, obs: Any) -> Any:
        del outcome, obs
        return ring.at[time].set(raw[0, 0])

    def sample(key: Any, ring: Any, time: Any, progress: Any) -> Batch:
        nothing = jnp.zeros(1)
        return Batch(nothing, nothing, jnp.stack([time, progress]), nothing, nothing, nothing, nothing)

    def act(key: Any, learner: Any, obs: Any, noise: Any, progress: Any) -> Any:
        raw = jnp.full((2, 1), progress)
        return raw, raw, noise

    def learn(key: Any, learner: Any, batch: Batch, count: Any) -> Any:
        return learner, jnp.ones(1), jnp.append(batch.reward, count)

    env = world(continuous=True)
    memory = Replay(lambda *_: (), add, sample, lambda ring, index, priority: ring)

    @jax.jit
    def cycle(key: Any) -> Any:
        worlds = env_rollouts.reset(env, key, 2)
        ring, iteration = jnp.full(30, -1.0), jnp.int32(3)
        return off_policy.cycle(env, memory, act, learn, key, worlds, ring, (), (), iteration, config)

    done = cycle(jax.random.key(0))
    expected = np.full(30, -1.0)
    expected[15:19] = [0.30, 0.32, 0.34, 0.36]
    np.testing.assert_allclose(done.ring, expected, rtol=1e-5)
    measures = [[17, 0.34, 12], [17, 0.34, 13], [19, 0.38, 14], [19, 0.38, 15]]
    np.testing.assert_allclose(done.measures, measures, rtol=1e-5)


def test_beta_of_prioritised_replay_grows_to_one() -> None:
    """Weights (p / Σ p)^−β over their largest, p = priority^α, with β from 0.4 at first to 1 at the end."""
    config = SimpleNamespace(
        replay="prioritized", buffer_size=8, batch_size=16, n_step=1, num_envs=1, discount=0.9,
        learning_starts=8, priority_exponent=0.5, importance_exponent=0.4,
    )  # fmt: skip
    made = replay.KINDS["prioritized"](config, 1)
    priority = np.array([1.0, 4.0, 9.0, 0.25, 2.0, 1.0, 16.0, 3.0], np.float32)

    @jax.jit
    def weights(key: Any, progress: Any) -> Any:
        ring = made.init(jnp.zeros((1, 1)), jnp.zeros(1, jnp.int32))
        false = jnp.zeros(1, bool)
        outcome = env_rollouts.Outcome(
            jnp.zeros((1, 1)), jnp.zeros(1), false, false, env_rollouts.no_episodes()
        )
        for time in range(8):
            ring = made.add(ring, jnp.int32(time), jnp.zeros(1, jnp.int32), outcome, jnp.zeros((1, 1)))
        ring = made.update(ring, jnp.arange(8), jnp.asarray(priority))
        batch = made.sample(key, ring, jnp.int32(8), progress)
        return batch.index, batch.weight

    for progress, beta in ((0.0, 0.4), (0.5, 0.7), (1.0, 1.0), (2.0, 1.0)):
        index, weight = map(np.asarray, weights(jax.random.key(1), progress))
        assert len(set(index)) > 4
        share = np.sqrt(priority)[index] / np.sqrt(priority).sum()
        expected = share**-beta / (share**-beta).max()
        np.testing.assert_allclose(weight, expected, rtol=1e-5)


@pytest.mark.parametrize(("schedule", "factor"), [("linear", linear), ("cosine", cosine)])
def test_learning_rates_of_language_models_rise_and_fall(schedule: str, factor: Any) -> None:
    """Over a run of 20 updates with a warm-up of 5: that of update i is reached at its end."""
    config = SimpleNamespace(
        steps_per_iteration=3, total_steps=60.0, learning_rate=0.1, warmup_fraction=0.25, schedule=schedule,
        max_grad_norm=1.0, beta1=0.9, beta2=0.999, adam_epsilon=1e-12, weight_decay=0.0,
    )  # fmt: skip
    params, iteration = {"kernel": jnp.array([[0.0]])}, np.arange(20)

    @jax.jit
    def moved(iteration: Any) -> Any:
        state = trainable.optimizer(config).init(params)
        return trainable.move(config, params, state, {"kernel": jnp.array([[2.0]])}, iteration)[0]

    found = [-float(moved(jnp.int32(i))["kernel"][0, 0]) for i in iteration]
    warm = np.minimum(1, (iteration + 1) / 5)
    np.testing.assert_allclose(found, 0.1 * warm * factor(iteration / 20), rtol=1e-4)
