"""Deep methods against the exact action values of a small MDP, solved by value iteration."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import algorithms, envs, models
from rljax.envs import tabular as mdps
from rljax.math import tabular
from rljax.runs.program import engine

pytestmark = pytest.mark.optimized
COMMON = {"discount": 0.9, "hidden_sizes": (64,), "learning_rate": 3e-3, "epsilon_end": 1.0}
REPLAY = {
    **COMMON,
    "total_steps": 40_000,
    "num_envs": 4,
    "num_steps": 64,
    "learning_starts": 1_000,
    "buffer_size": 40_000,
    "num_updates": 2,
    "batch_size": 64,
    "schedule": "linear",
}
METHODS = {
    "dqn": ("dqn", {**REPLAY, "loss": "squared"}),
    "dqn-prioritized": (  # β = 1 all along: less of it and rare ends, drawn too often, weigh too much
        "dqn",
        {**REPLAY, "loss": "squared", "replay": "prioritized", "importance_exponent": 1.0, "head": "dueling"},
    ),
    "qrdqn": ("qrdqn", {**REPLAY, "quantiles": 20, "kappa": 0.1}),
    "pqn": ("pqn", {**COMMON, "total_steps": 80_000, "num_envs": 16, "num_steps": 32, "trace_decay": 0.0}),
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_learnt_values_are_the_exact_ones(method: str) -> None:
    """With ε = 1 to the end every pair is seen, and what is learnt off-policy is q*.

    The MDP's episodes are cut every 10 steps, which q* knows nothing of: truncation must not be an end. The
    loss of DQN is squared, because the minimum of Huber's is not the mean: here it would be off by 3.7.
    """
    name, fields = METHODS[method]
    env = envs.make("RandomMDP-tabular", seed=3, num_states=5, num_actions=3, max_steps=10)
    module = algorithms.find(name).module
    config = module.Config(**fields)
    mdp = env.source
    assert isinstance(mdp, mdps.MDP)
    solved = mdps.arrays(mdp._replace(discount=0.9))
    exact = np.asarray(tabular.action_values(*solved, tabular.value_iteration(*solved).value))
    atoms = {"qrdqn": 20}.get(name)
    network = models.q_network(env.observation_space, 3, config, atoms)
    compiled = engine.build(module.make, env, config, {}, [0], network)
    iterations = int((config.total_steps - config.initial_steps) // config.steps_per_iteration)
    states, _, bad = compiled.advance(compiled.init(), iterations)
    assert int(bad[0]) == -1
    params = jax.tree.map(lambda x: x[0], states.params)
    learnt = np.asarray(network.apply(params, jnp.arange(5, dtype=jnp.int32)))
    learnt = learnt if atoms is None else learnt.mean(-1)
    spread = exact.max() - exact.min()
    np.testing.assert_allclose(learnt, exact, atol=0.1 * spread)


# With ε = 1 to the end, returns of several steps are those of random actions, and have a fixed point too.
SHORT = {**REPLAY, "total_steps": 16_000, "num_updates": 1, "learning_rate": 1e-2, "hidden_sizes": (32,)}
ATOMS = {"atoms": 21, "value_low": -10.0, "value_high": 20.0}
SEVERAL: dict[str, tuple[str, dict[str, Any]]] = {
    "c51": ("c51", {**SHORT, **ATOMS}),
    "iqn": (
        "iqn",
        {**SHORT, "num_quantiles": 8, "num_target_quantiles": 8, "kappa": 0.1, "hidden_sizes": (32, 32)},
    ),
    "dqn-3-step": ("dqn", {**SHORT, "n_step": 3, "target_every": 50}),
    "rainbow": ("rainbow", {**SHORT, **ATOMS, "importance_exponent": 1.0}),
    "pqn-lambda": (
        "pqn",
        {**COMMON, "total_steps": 160_000, "num_envs": 16, "num_steps": 64, "trace_decay": 0.65},
    ),
}


def fixed_point(mdp: Any, n: int, trace_decay: float) -> np.ndarray:
    """q (S, A) that is its own target: n steps, of which all but the first are random, or Peng's Q(λ)."""
    transition, reward = np.asarray(mdp.transition, np.float64), np.asarray(mdp.reward, np.float64)
    if reward.ndim == 3:
        reward = (transition * reward).sum(-1)
    q = np.zeros_like(reward)
    for _ in range(500):
        following = (1 - trace_decay) * q.max(1) + trace_decay * q.mean(1)
        target = reward + 0.9 * transition @ following
        for _ in range(n - 1):
            target = reward + 0.9 * transition @ target.mean(1)
        q = target
    return q


@pytest.mark.parametrize("method", SEVERAL)
def test_distributions_and_returns_of_several_steps_have_their_exact_values(method: str) -> None:
    """Episodes end at random and are never cut, so that every return has as many steps as it should."""
    name, fields = SEVERAL[method]
    env = envs.make("RandomMDP-tabular", seed=3, num_states=5, num_actions=3, max_steps=None, termination=0.1)
    module = algorithms.find(name).module
    config = module.Config(**fields)
    decay = getattr(config, "trace_decay", 0.0)
    steps = getattr(config, "n_step", 1)
    exact = fixed_point(env.source, steps, decay)
    spread = exact.max() - exact.min()
    for other in ((1, 0.0), (max(steps - 1, 1), decay / 2)):  # one step, and a step or half of λ too few
        apart = np.abs(fixed_point(env.source, *other) - exact).max()
        assert apart > 0.2 * spread or other == (steps, decay)
    atoms = getattr(config, "atoms", None)
    if name == "iqn":
        network = models.implicit_quantile_network(env.observation_space, 3, config)
    else:
        network = models.q_network(env.observation_space, 3, config, atoms)
    compiled = engine.build(module.make, env, config, {}, [0], network)
    iterations = int((config.total_steps - config.initial_steps) // config.steps_per_iteration)
    states, _, bad = compiled.advance(compiled.init(), iterations)
    assert int(bad[0]) == -1
    params, obs = jax.tree.map(lambda x: x[0], states.params), jnp.arange(5, dtype=jnp.int32)
    if name == "iqn":
        middle = jnp.broadcast_to((jnp.arange(16.0)[None] + 0.5) / 16, (5, 16))
        learnt = np.asarray(network.apply(params, obs, middle)).mean(-1)
    else:
        learnt = np.asarray(network.apply(params, obs))
    if atoms is not None:
        shares = np.exp(learnt - learnt.max(-1, keepdims=True))
        support = np.linspace(config.value_low, config.value_high, atoms)
        learnt = shares @ support / shares.sum(-1)
    np.testing.assert_allclose(learnt, exact, atol=0.1 * spread)
