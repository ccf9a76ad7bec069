"""The networks of DDPG, TD3 and SAC: policies over continuous actions, and critics that take the action too.

An action enters a critic beside the observation, or for images beside the features of the convolution; the
actions here are raw, (..., D) in [−1, 1]. Kernels start as `initialization` says, see `layers`: by default
hidden layers are orthogonal with gain √2, a policy's last layer with 0.01, so that a run starts in the middle
of the action space, a critic's with 1; biases are 0.

Several critics are one network with an axis of copies in front of its parameters (see `layers`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rljax import checks
from rljax.models import observations
from rljax.models.layers import ACTIVATIONS, CNN, INITIALIZATIONS, MLP, Dense, few, policy_gain
from rljax.types import Array, Key, Network, Policy, PyTree, Space

LOG_STD_BOUNDS = (-20.0, 2.0)  # of `gaussian_actor`, as in Haarnoja et al. 2018's code

_PREPARE: dict[str, Callable[[Space, PyTree], Array]] = {
    "mlp": lambda space, observation: observations.vectorise(space, observation).T,
    "cnn": observations.image,
}


class ActorCritic(NamedTuple):
    """What a user brings instead of the networks of this file; two critics are two copies of the one here."""

    actor: Network  # (params, observation) -> what the algorithm's policy needs
    critic: Network  # init(key, observation, action); (params, observation, action) -> one value, (...)


class _Torso(nn.Module):
    """Observations, as columns (in, B) or images (B, H, W, C), and other columns (D, B) to (features, B)."""

    architecture: str
    hidden_sizes: tuple[int, ...]
    activation: str
    initialization: str

    @nn.compact
    def __call__(self, x: Array, *beside: Array) -> Array:
        if self.architecture == "cnn":
            x = CNN((), self.activation, self.initialization)(x)
        return MLP(self.hidden_sizes, self.activation, self.initialization)(jnp.concatenate([x, *beside]))


class _Actor(nn.Module):
    make_torso: Callable[[], _Torso]
    size: int
    gain: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        torso = self.make_torso()
        kernel_init = INITIALIZATIONS[torso.initialization].dense(self.gain)
        return Dense(self.size, kernel_init, name="policy")(torso(x)).T


class _Critic(nn.Module):
    make_torso: Callable[[], _Torso]

    @nn.compact
    def __call__(self, x: Array, action: Array) -> Array:
        torso = self.make_torso()
        kernel_init = INITIALIZATIONS[torso.initialization].dense(1.0)
        return Dense(1, kernel_init, name="value")(torso(x, action))[0]


def critic(observation_space: Space, action_size: int, config: Any) -> Network:
    """A network of observation and action: `init(key, observation, action)`, and `apply(params, observation,
    action)` gives Q(s, a), (...), for any leading batch shape.

    Args:
        observation_space: any space for the architecture "mlp", an image (H, W, C) for "cnn".
        action_size: D of the raw actions (..., D).
        config: has the fields architecture, hidden_sizes, activation and initialization.

    Raises: ValueError naming the field that is wrong, or where the architecture does not fit the observation
    space.
    """
    module = _Critic(_torso(observation_space, config))
    prepare = _PREPARE[config.architecture]

    def init(key: Key, observation: PyTree, action: Array) -> PyTree:
        columns = action.reshape(-1, action_size).T
        return module.init(key, prepare(observation_space, observation), columns)["params"]

    def apply(params: PyTree, observation: PyTree, action: Array) -> Array:
        batch = observations.batch_shape(observation_space, observation)
        columns = action.reshape(-1, action_size).T
        value = module.apply({"params": params}, prepare(observation_space, observation), columns)
        assert not isinstance(value, tuple)
        return value.reshape(batch)

    return Network(init, apply)


def ensemble(network: Network, count: int) -> Network:
    """`count` independent copies at once: parameters and outputs have an axis (count, ...) in front."""

    def init(key: Key, *inputs: PyTree) -> PyTree:
        return jax.vmap(lambda each: network.init(each, *inputs))(jax.random.split(key, count))

    def apply(params: PyTree, *inputs: PyTree) -> Array:
        copies = [jax.tree.map(lambda x, i=i: x[i], params) for i in range(count)]
        if few(jax.eval_shape(network.apply, copies[0], *inputs).size):  # a batched product would be slower
            return jnp.stack([network.apply(copy, *inputs) for copy in copies])
        return jax.vmap(lambda each: network.apply(each, *inputs))(params)

    return Network(init, apply)


def deterministic_actor(observation_space: Space, action_size: int, config: Any) -> Network:
    """A network whose `apply(params, observation)` gives one action, (..., D) in (−1, 1), by a tanh.

    Arguments and errors are those of `critic`; `config` has the field policy_gain, too.
    """
    network = _actor(observation_space, action_size, config)
    return Network(network.init, lambda params, observation: jnp.tanh(network.apply(params, observation)))


def gaussian_actor(observation_space: Space, action_size: int, config: Any) -> Network:
    """A network whose `apply(params, observation)` gives (mean, log_std), both (..., D), of a Gaussian in the
    state, before squashing; log_std is clipped to [−20, 2].

    Arguments and errors are those of `critic`; `config` has the field policy_gain, too.
    """
    network = _actor(observation_space, 2 * action_size, config)

    def apply(params: PyTree, observation: PyTree) -> tuple[Array, Array]:
        mean, log_std = jnp.split(network.apply(params, observation), 2, axis=-1)
        return mean, jnp.clip(log_std, *LOG_STD_BOUNDS)

    return Network(network.init, apply)


def noisy_policy(
    actor: Callable[[PyTree], Array], to_env: Callable[[Array], Array], noise: Callable[..., Array]
) -> Policy:
    """What evaluation runs: the actor's action, with `noise(key, (B, D))` added unless greedy, clipped to
    [−1, 1], as the environment takes it.
    """

    def act(key: Key, obs: PyTree, carry: tuple, greedy: bool | Array) -> tuple[Array, tuple]:
        chosen = actor(obs)
        noisy = jnp.clip(chosen + noise(key, chosen.shape), -1.0, 1.0)
        rows = jnp.reshape(greedy, jnp.shape(greedy) + (1,) * (chosen.ndim - jnp.ndim(greedy)))
        return to_env(jnp.where(rows, chosen, noisy)), carry

    return Policy(tuple, act)


def _actor(observation_space: Space, size: int, config: Any) -> Network:
    module = _Actor(_torso(observation_space, config), size, policy_gain(config))
    prepare = _PREPARE[config.architecture]

    def init(key: Key, observation: PyTree) -> PyTree:
        return module.init(key, prepare(observation_space, observation))["params"]

    def apply(params: PyTree, observation: PyTree) -> Array:
        batch = observations.batch_shape(observation_space, observation)
        outputs = module.apply({"params": params}, prepare(observation_space, observation))
        assert not isinstance(outputs, tuple)
        return outputs.reshape(*batch, size)

    return Network(init, apply)


def _torso(observation_space: Space, config: Any) -> Callable[[], _Torso]:
    checks.sizes(config, "hidden_sizes")
    checks.choice(config, "architecture", _PREPARE)
    checks.choice(config, "activation", ACTIVATIONS)
    checks.choice(config, "initialization", INITIALIZATIONS)
    if config.architecture == "cnn":
        observations.check_image(observation_space)
    return lambda: _Torso(config.architecture, config.hidden_sizes, config.activation, config.initialization)
