"""Every algorithm of control in a process where JAX computes in 64 bits if it is not told otherwise."""

import os
import subprocess
import sys

PROGRAM = """
import jax, numpy as np
from rljax import algorithms, envs
from rljax.types import Env

REPLAY = dict(num_envs=2, num_steps=4, learning_starts=8, batch_size=4, buffer_size=16)
ROLLOUT = dict(num_envs=2, num_steps=4)
TABLE = dict(num_envs=2, num_steps=4)
MORE = {"ppo": dict(num_minibatches=2), "trpo": dict(num_minibatches=2), "pqn": dict(num_minibatches=2)}
PRIORITIZED = dict(replay="prioritized", n_step=2)
KEY = jax.eval_shape(lambda: jax.random.key(0))

def lasting(name, env, fields):
    module = algorithms.find(name).module
    algorithm = module.make(env, module.Config(**fields))
    state = jax.eval_shape(algorithm.init, KEY)
    after, metrics = jax.eval_shape(algorithm.step, KEY, state)
    dtypes = lambda tree: jax.tree.map(lambda x: str(x.dtype), tree)
    assert dtypes(after) == dtypes(state), name
    learnt = dtypes((state.params, metrics))
    assert "float64" not in jax.tree.leaves(learnt), (name, learnt)

cartpole, pendulum = envs.make("CartPole-v1"), envs.make("Pendulum-v1")
table, own = envs.make("RandomMDP-tabular"), envs.make("Truncation-probe")  # whose observations are float64
names = [name for name in algorithms.NAMES if not algorithms.find(name).text]
for name in names:
    module = algorithms.find(name).module
    replays = hasattr(module.Config(), "replay")
    fields = (REPLAY if replays else ROLLOUT) | MORE.get(name, {})
    world = table if hasattr(module.Config(), "initial_value") else cartpole
    if name in ("ddpg", "td3", "sac"):
        world = pendulum
    lasting(name, world, fields | (PRIORITIZED if name in ("dqn", "sac") else {}))
RUNNING = dict(num_minibatches=2, observation_normalization="running", reward_scaling="running")
lasting("ppo", own, ROLLOUT | RUNNING)
lasting("ppo", pendulum, ROLLOUT | dict(num_minibatches=2, action_distribution="tanh"))
lasting("dqn", own, REPLAY)
print("done", len(names))
"""


def test_carries_keep_their_dtypes_in_a_process_of_64_bits() -> None:
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"JAX_ENABLE_X64": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.stdout.split() == ["done", "19"], told.stderr[-2000:]
