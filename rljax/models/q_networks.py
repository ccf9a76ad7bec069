"""Action-value networks: Q(s, ·), a distribution per action, or quantiles at any fractions τ (IQN).

All of them are a torso and a head. The torso has every hidden layer but the last, after a convolution for
images; the head has the last hidden layer and the outputs. So a dueling head (Wang et al. 2016,
arXiv:1511.06581) has a hidden layer of its own in each of its two streams, and IQN (Dabney et al. 2018,
arXiv:1806.06923) multiplies the torso's features by those of τ before the last hidden layer.

Kernels start as `initialization` says, see `layers`. The default, "lecun" (variance 1 / inputs), is that of
Flax, and so what Rejax's and PQN's published scores were obtained with; biases are 0. Values start small that
way: beside orthogonal layers of gain √2, hidden layers of ReLU halve the variance of their inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from rljax import checks
from rljax.math.action_values import epsilon_greedy
from rljax.models import observations
from rljax.models.layers import ACTIVATIONS, INITIALIZATIONS, MLP, Dense
from rljax.types import Array, Key, Network, Policy, PyTree, Space

COSINES = 64  # features of a fraction τ (Dabney et al. 2018, eq. 4)


class _Torso(nn.Module):
    """Observations to features (D, B): from columns (in, B), or from images (B, H, W, C) by one 3 × 3
    convolution of 16 channels (Young & Tian 2019), normalised over its channels.
    """

    sizes: tuple[int, ...]
    activation: str
    initialization: str
    normalization: str
    architecture: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.architecture == "cnn":
            start = INITIALIZATIONS[self.initialization]
            kernel_init = start.convolution(start.hidden_gain)
            x = nn.Conv(16, (3, 3), padding="VALID", kernel_init=kernel_init)(x)
            if self.normalization == "layer":
                x = nn.LayerNorm()(x)
            x = ACTIVATIONS[self.activation](x).reshape(x.shape[0], -1).T
        return MLP(self.sizes, self.activation, self.initialization, self.normalization)(x)


class _Head(nn.Module):
    """Features (D, B) to outputs (B, A, M): the last hidden layer, then a plain or a dueling linear layer.

    Dueling: v + a − mean_a a for each of the M outputs alone; each stream has a hidden layer of its own, or
    as "linear_dueling" none, so that both are linear in the features of all hidden layers (Rejax's form).
    """

    sizes: tuple[int, ...]
    activation: str
    initialization: str
    normalization: str
    kind: str
    actions: int
    outputs: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        def stream(name: str, width: int) -> Array:
            common = self.activation, self.initialization, self.normalization
            hidden = MLP(self.sizes, *common, name=f"{name}_hidden")(x)
            kernel_init = INITIALIZATIONS[self.initialization].dense(1.0)
            values = Dense(width * self.outputs, kernel_init, name=name)(hidden)
            return values.T.reshape(-1, width, self.outputs)

        if self.kind == "plain":
            return stream("value", self.actions)
        advantage = stream("advantage", self.actions)
        return stream("value", 1) + advantage - advantage.mean(axis=1, keepdims=True)


class _QNetwork(nn.Module):
    torso: _Torso
    head: _Head

    def __call__(self, x: Array) -> Array:
        return self.head(self.torso(x))


class _ImplicitQuantileNetwork(nn.Module):
    torso: _Torso
    head: _Head
    activation: str
    initialization: str

    @nn.compact
    def __call__(self, x: Array, tau: Array) -> Array:
        """Tau (B, K) -> (B, A, K)."""
        features = self.torso(x)  # (D, B)
        size, (batch, count) = features.shape[0], tau.shape
        cosines = jnp.cos(jnp.pi * jnp.arange(COSINES, dtype=jnp.float32)[:, None] * tau.reshape(1, -1))
        start = INITIALIZATIONS[self.initialization]
        embedding = Dense(size, start.dense(start.hidden_gain), name="embedding")(cosines)
        embedding = ACTIVATIONS[self.activation](embedding)
        product = features[:, :, None] * embedding.reshape(size, batch, count)
        values = self.head(product.reshape(size, batch * count))  # (B K, A, 1)
        return values.reshape(batch, count, -1).swapaxes(1, 2)


def q_network(observation_space: Space, num_actions: int, config: Any, atoms: int | None = None) -> Network:
    """A network whose `apply(params, observation)` gives Q(s, ·), (..., A), for any leading batch shape; with
    `atoms` = M it gives (..., A, M): logits of a distribution, or quantiles.

    Args:
        observation_space: any space for the architecture "mlp", an image (H, W, C) for "cnn".
        num_actions: A.
        config: has the fields hidden_sizes, activation, initialization, architecture, head ("plain" or
            "dueling": the mean advantage is taken off for each atom alone) and hidden_normalization ("none",
            or "layer": a layer norm over the features of each hidden layer, before its activation).
        atoms: M, or None.

    Raises: ValueError naming the field that is wrong, or where the architecture does not fit the observation
    space.
    """
    torso, head = _parts(observation_space, num_actions, config, atoms or 1)
    module = _QNetwork(torso, head)
    prepare = _prepare(observation_space, config)

    def init(key: Key, observation: PyTree) -> PyTree:
        return module.init(key, prepare(observation))["params"]

    def apply(params: PyTree, observation: PyTree) -> Array:
        batch = observations.batch_shape(observation_space, observation)
        values = module.apply({"params": params}, prepare(observation))
        assert not isinstance(values, tuple)
        return values.reshape(*batch, num_actions, *(() if atoms is None else (atoms,)))

    return Network(init, apply)


def implicit_quantile_network(observation_space: Space, num_actions: int, config: Any) -> Network:
    """IQN's network: `apply(params, observation, tau)` gives the quantiles of the return at the fractions
    `tau` (..., K) in [0, 1] for each action, (..., A, K).

    The features of the torso are multiplied by those of τ, φ_j(τ) = f(Σ_{i<64} w_ij cos(π i τ) + b_j), where
    f is the activation (ReLU in Dabney et al. 2018, eq. 4). Arguments and errors are those of `q_network`;
    the architecture "mlp" needs two hidden sizes, one before and one after the product.
    """
    torso, head = _parts(observation_space, num_actions, config, 1)
    if config.architecture == "mlp" and not torso.sizes:
        checks.complain(config, "hidden_sizes", "must be two or more, the last is after the product")
    module = _ImplicitQuantileNetwork(torso, head, config.activation, config.initialization)
    prepare = _prepare(observation_space, config)

    def init(key: Key, observation: PyTree, *tau: Array) -> PyTree:
        del tau  # any number of them: the parameters do not depend on it
        prepared = prepare(observation)
        batch = prepared.shape[0 if config.architecture == "cnn" else 1]
        return module.init(key, prepared, jnp.zeros((batch, 1), jnp.float32))["params"]

    def apply(params: PyTree, observation: PyTree, tau: Array) -> Array:
        count = tau.shape[-1]
        values = module.apply({"params": params}, prepare(observation), tau.reshape(-1, count))
        assert not isinstance(values, tuple)
        return values.reshape(*tau.shape[:-1], num_actions, count)

    return Network(init, apply)


def q_policy(to_env: Callable[[Array], Array], q: Callable[[PyTree], Array], epsilon: Array) -> Policy:
    """What evaluation runs, from a function of observations (B, ...) to action values (B, A): the action of
    most value, or where `greedy` does not hold ε-greedy with the scalar `epsilon`; `to_env` is that of
    `discrete_actions`.
    """

    def act(key: Key, obs: PyTree, carry: tuple, greedy: bool | Array) -> tuple[PyTree, tuple]:
        action = epsilon_greedy(key, q(obs), jnp.where(greedy, 0.0, epsilon))
        return to_env(action), carry

    return Policy(tuple, act)


def _parts(space: Space, num_actions: int, config: Any, outputs: int) -> tuple[_Torso, _Head]:
    checks.sizes(config, "hidden_sizes")
    checks.choice(config, "architecture", ("mlp", "cnn"))
    checks.choice(config, "activation", ACTIVATIONS)
    checks.choice(config, "initialization", INITIALIZATIONS)
    checks.choice(config, "head", ("plain", "dueling", "linear_dueling"))
    checks.choice(config, "hidden_normalization", ("none", "layer"))
    if config.architecture == "cnn":
        observations.check_image(space)
    common = config.activation, config.initialization, config.hidden_normalization
    # parent=None: each becomes a part of the network that it is given to.
    own = 0 if config.head == "linear_dueling" else 1  # hidden layers of the head
    below, above = config.hidden_sizes[: len(config.hidden_sizes) - own], config.hidden_sizes[-1:][:own]
    torso = _Torso(below, *common, config.architecture, parent=None)
    head = _Head(above, *common, config.head, num_actions, outputs, parent=None)
    return torso, head


def _prepare(space: Space, config: Any) -> Any:
    """Observations of any leading shape to what the torso takes."""
    if config.architecture == "cnn":
        return lambda observation: observations.image(space, observation)
    return lambda observation: observations.vectorise(space, observation).T
