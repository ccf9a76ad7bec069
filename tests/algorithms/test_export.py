"""Policies are exported with a batch of any size, and give the same actions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from rljax import algorithms, envs

WORLDS = [("ppo", "CartPole-v1"), ("sac", "Pendulum-v1"), ("dqn", "CartPole-v1")]


@pytest.mark.parametrize(("name", "env"), WORLDS)
def test_a_policy_is_exported_with_a_symbolic_batch(name, env):
    world, module = envs.make(env), algorithms.find(name).module
    algorithm = module.make(world, module.Config(hidden_sizes=(8,)))
    state = jax.jit(algorithm.init)(jax.random.key(0))

    def act(obs):
        policy = algorithm.policy(state)
        return policy.act(jax.random.key(0), obs, policy.init(), True)[0]

    (batch,) = export.symbolic_shape("batch")
    shape = world.observation_space.shape
    exported = export.export(jax.jit(act))(jax.ShapeDtypeStruct((batch, *shape), jnp.float32))
    for size in (3, 200):  # below and above the size from which layers have another layout
        obs = jax.random.normal(jax.random.key(1), (size, *shape))
        np.testing.assert_allclose(exported.call(obs), act(obs), rtol=1e-5)
