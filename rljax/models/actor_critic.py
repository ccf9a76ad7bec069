"""The actor-critic network of REINFORCE, A2C and PPO, and the ways in which a user brings another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rljax import checks
from rljax.models import observations
from rljax.models.heads import Head
from rljax.models.layers import ACTIVATIONS, CNN, INITIALIZATIONS, MLP, Dense, policy_gain
from rljax.types import Array, Key, Network, PyTree, Space


class _ActorCritic(nn.Module):
    """Policy parameters and value, from a torso each or from one for both."""

    make_torso: Callable[[], nn.Module]
    torso: str
    initialization: str
    policy_gain: float
    size: int
    continuous: bool
    initial_log_std: float

    @nn.compact
    def __call__(self, x: Array) -> tuple[Any, Array]:
        actor = self.make_torso()(x)
        critic = actor if self.torso == "shared" else self.make_torso()(x)
        kernel = INITIALIZATIONS[self.initialization].dense
        policy = Dense(self.size, kernel(self.policy_gain), name="policy")(actor).T
        value = Dense(1, kernel(1.0), name="value")(critic)[0]
        if not self.continuous:
            return policy, value
        constant = nn.initializers.constant(self.initial_log_std)
        log_std = self.param("log_std", constant, (self.size,), jnp.float32)
        return (policy, jnp.broadcast_to(log_std[None], policy.shape)), value


def _columns(space: Space, observation: PyTree) -> Array:
    return observations.vectorise(space, observation).T


_ARCHITECTURES: dict[str, tuple[type[nn.Module], Callable[[Space, PyTree], Array]]] = {
    "mlp": (MLP, _columns),
    "cnn": (CNN, observations.image),
}


def actor_critic(observation_space: Space, head: Head, config: Any) -> Network:
    """A network whose `apply(params, observation)` gives (policy parameters, value) for any leading batch
    shape.

    Policy parameters are logits (..., A), or for a continuous head (mean (..., A), log_std (..., A)) with a
    state-independent log_std; the value is (...). Kernels start as `initialization` says, see
    `layers.INITIALIZATIONS`: "orthogonal" with gain √2 in the hidden layers, 0.01 before the policy and 1
    before the value, or "lecun", which is Flax's default everywhere; `policy_gain` replaces the policy's.

    Args:
        observation_space: any space for the architecture "mlp", an image (H, W, C) for "cnn".
        head: the policy over the action space.
        config: has the fields architecture, hidden_sizes, activation, torso, initialization, policy_gain and
            initial_log_std.

    Raises: ValueError naming the field that is wrong, or where the architecture does not fit the observation
    space.
    """
    checks.sizes(config, "hidden_sizes")
    checks.choice(config, "architecture", _ARCHITECTURES)
    checks.choice(config, "activation", ACTIVATIONS)
    checks.choice(config, "torso", ("separate", "shared"))
    checks.number(config, "initial_log_std")
    gain = policy_gain(config)
    if config.architecture == "cnn":
        observations.check_image(observation_space)
    torso, prepare = _ARCHITECTURES[config.architecture]
    module = _ActorCritic(
        make_torso=lambda: torso(config.hidden_sizes, config.activation, config.initialization),
        torso=config.torso,
        initialization=config.initialization,
        policy_gain=gain,
        size=head.size,
        continuous=head.continuous,
        initial_log_std=config.initial_log_std,
    )

    def init(key: Key, observation: PyTree) -> PyTree:
        return module.init(key, prepare(observation_space, observation))["params"]

    def apply(params: PyTree, observation: PyTree) -> tuple[Any, Array]:
        batch = observations.batch_shape(observation_space, observation)
        outputs = module.apply({"params": params}, prepare(observation_space, observation))
        return jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), outputs)

    return Network(init, apply)


def from_linen(module: nn.Module) -> Network:
    """A user's own Flax Linen module as a Network: its `__call__` takes an observation, and what else the
    algorithm asks for (a critic the action, IQN's network fractions τ).
    """

    def init(key: Key, *inputs: PyTree) -> PyTree:
        return module.init(key, *inputs)["params"]

    def apply(params: PyTree, *inputs: PyTree) -> Any:
        return module.apply({"params": params}, *inputs)

    return Network(init, apply)


def from_nnx(make: Callable[[Any], Any]) -> Network:
    """A user's own Flax NNX module as a Network; `make(rngs)` builds it. It is called as in `from_linen`.

    Its state must be parameters only (no dropout or batch statistics), because a Network is a pure function
    of params.
    """
    from flax import nnx

    graph = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))[0]

    def init(key: Key, *inputs: PyTree) -> PyTree:
        del inputs
        return nnx.to_pure_dict(nnx.split(make(nnx.Rngs(key)))[1])

    def apply(params: PyTree, *inputs: Any) -> Any:
        module = nnx.merge(graph, nnx.State(params) if not isinstance(params, nnx.State) else params)
        return module(*inputs)

    return Network(init, apply)
