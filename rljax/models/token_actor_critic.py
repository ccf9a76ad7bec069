"""A language model as the network of control algorithms on `rljax.text.token_env`."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.core import Tracer

from rljax.models.language_heads import value_head
from rljax.types import Array, Key, LanguageModel, Network, PyTree


def token_actor_critic(
    model: LanguageModel,
    params: PyTree = None,
    *,
    critic: Literal["head", "separate"] = "head",
    temperature: Any = 1.0,
) -> Network:
    """A network whose `apply(params, observation)` gives (logits (..., V) of the next token, value (...)) for
    observations of a `token_env` with any leading batch shape.

    Its parameters are those of `rlhf_ppo`: {"policy", "head"}, and "critic" where that is a model of its own.

    Args:
        model: decoder-only, encoder-decoder or recurrent; with `rljax.models.adapters.attach` its adapters
            alone are trained, and the base is closed over: a constant of the program.
        params: that policy and critic begin with; None: drawn by `model.init`.
        critic: the value is a head on the policy's hidden states, or on those of a second model.
        temperature: above 0, what logits are divided by: of the policy, when it acts and when it learns.

    Raises: ValueError in one line for another critic, or a temperature that is not above 0.
    """
    if critic not in ("head", "separate"):
        raise ValueError(f"token_actor_critic: critic = {critic!r}: must be 'head' or 'separate'")
    if not isinstance(temperature, Tracer) and not temperature > 0:
        raise ValueError(f"token_actor_critic: temperature = {temperature}: must be above 0")
    head = value_head(model.config.hidden_size)
    begin = model.init if params is None else lambda key: jax.tree.map(jnp.copy, params)

    def init(key: Key, observation: PyTree) -> PyTree:
        del observation
        policy_key, head_key, critic_key = jax.random.split(key, 3)
        drawn = {"policy": begin(policy_key), "head": head.init(head_key)}
        return drawn | ({"critic": begin(critic_key)} if critic == "separate" else {})

    def apply(params: PyTree, observation: PyTree) -> tuple[Array, Array]:
        batch = observation["step"].shape
        rows = lambda name: observation[name].reshape(-1, *observation[name].shape[len(batch) :])
        inputs = rows("prompt"), rows("valid"), rows("completion")
        # after the last token there is no other to predict, and what is said there is never used
        place = jnp.minimum(rows("step"), inputs[2].shape[1] - 1)[:, None, None]
        here = lambda hidden: jnp.take_along_axis(hidden, place, axis=1)[:, 0]
        hidden = here(model.completion(params["policy"], *inputs))
        seen = here(model.completion(params["critic"], *inputs)) if critic == "separate" else hidden
        logits, value = model.logits(params["policy"], hidden) / temperature, head.apply(params["head"], seen)
        return logits.reshape(*batch, -1), value.reshape(batch)

    return Network(init, apply)
