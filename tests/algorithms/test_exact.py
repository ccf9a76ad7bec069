"""Deep methods against the exact action values of a small MDP, solved by value iteration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import algorithms, envs, models
from rljax.envs import tabular as mdps
from rljax.math import tabular
from rljax.runs import engine

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
    module = algorithms.get(name)
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
