"""What to do with an object of another library that is given where an environment or a problem belongs."""

from __future__ import annotations

from typing import Any

from rljax import envs


def hint(world: Any, text: bool) -> str:
    """One line about an object that rljax does not train on; empty where nothing is known of it.

    Classes of other libraries are known by their methods, as importing them to ask costs seconds.
    """
    if hasattr(world, "reset_env"):
        return "is an environment of Gymnax: wrap it in rljax.envs.from_gymnax(env)"
    if isinstance(world, tuple) and world and hasattr(world[0], "reset_env"):
        return "is what gymnax.make returns: wrap it in rljax.envs.from_gymnax(env, params)"
    if hasattr(world, "reset") and hasattr(world, "step") and hasattr(world, "action_space"):
        name = getattr(getattr(world, "spec", None), "id", None)
        if name in envs.names():
            return f'is an environment of Gymnasium, in Python: rljax.envs.make("{name}") is the same in JAX'
        return "is an environment of Gymnasium, in Python: write it as a rljax.types.Env, in JAX"
    if text and isinstance(world, list | tuple | dict):
        return "holds records: rljax.text.problem(name, tokenizer, records, rewards) makes a problem of them"
    if text and callable(world):
        return "is a function: rljax.text.rewards.of_text makes a reward of it, rljax.text.problem a problem"
    return ""
