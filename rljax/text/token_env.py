"""The token stream as an Env: the state is the tokens so far, an action is the next one.

    env = text.token_env(text.tasks.make("reverse"))
    network = models.token_actor_critic(model, params)
    rljax.train("ppo", env, network=network)

With it every control algorithm for discrete actions runs on text. What `rlhf_ppo` computes of completions
control PPO computes of their tokens, one step each: the same log-probabilities, values, advantages and
gradient. It costs more, as an Env has no cache: each token is a forward pass over the whole context, and so
is each step of an update.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rljax.text import rewards
from rljax.text.problem import Problem
from rljax.text.problem import task as task_of
from rljax.types import Array, Box, Discrete, Env, Key, MultiDiscrete, Prompts, PyTree, Task


class TokenState(NamedTuple):
    context: Array  # (P + T,) int32, prompt and completion so far, −1 where there is no token
    step: Array  # () int32, tokens of the completion, those that the world wrote included
    row: Array  # () int32, of the prompt in its table


def token_env(
    task: Task | Problem,
    max_new_tokens: int | None = None,
    part: Literal["learn", "held_out"] = "learn",
) -> Env:
    """`task` with a token per step, for prompts that `reset` draws of `part` with equal probability.

    An observation is {"prompt" (P,) int32, "valid" (P,) bool, "completion" (T,) int32, "step" () int32}, as a
    LanguageModel's `completion` takes them: 0 where there is no token, `step` tokens of the completion so
    far. An action is one of the vocabulary's V tokens. Where the task is a conversation, `step` goes on to
    where the policy is to write again; what the world writes is in the observation and no step of its own.

    An episode ends with a stop token or after T = `max_new_tokens` (None: the task's) tokens. Both terminate:
    the reward is of the completion as it stands, so nothing that is left to come is worth anything, and text
    PPO bootstraps nothing there either. The reward is 0 before the end, there the weighted sum of the task's
    rewards; 0 if that is NaN, because an Env cannot say that nothing is to be learnt from an episode.

    The prompts, their references and the parameters of a reward model are closed over, as every Env closes
    over its parameters, and so are constants of a program. Where they are large, make the Env inside the
    traced function that is given the task's arrays.

    Raises: ValueError in one line for a task whose rewards are computed on the host, or that is wrong in
    another way, and for a conversation that ends before the policy has written.
    """
    task = task_of(task, "prompts") if isinstance(task, Problem) else task
    length = task.max_new_tokens if max_new_tokens is None else max_new_tokens
    if isinstance(length, bool) or not isinstance(length, int | np.integer) or length < 1:
        raise ValueError(f"token_env: max_new_tokens = {length}: must be an integer of at least 1")
    if part not in ("learn", "held_out"):
        raise ValueError(f"token_env: part = {part!r}: must be 'learn' or 'held_out'")
    for reward in task.rewards:
        if reward.host:
            raise ValueError(
                f"token_env: reward {reward.name} of the task {task.name} is computed on the host and an Env "
                "is one program: choose rewards of tokens, or an algorithm of text"
            )
    task = task._replace(max_new_tokens=int(length))
    rewards.check(task)
    prompts: Prompts = getattr(task, part)
    table = jnp.where(jnp.asarray(prompts.valid), jnp.asarray(prompts.tokens, jnp.int32), -1)
    reference = jax.tree.map(jnp.asarray, prompts.reference)
    number, width = table.shape
    stops, columns = jnp.asarray(task.stop_ids, jnp.int32), jnp.arange(width + length)
    weights = jnp.array([reward.weight for reward in task.rewards])

    def told(row: Array) -> PyTree:
        return jax.tree.map(lambda x: x[row], reference)

    def see(state: TokenState) -> dict[str, Array]:
        tokens = jnp.where(state.context >= 0, state.context, 0)
        valid = state.context[:width] >= 0
        return {"prompt": tokens[:width], "valid": valid, "completion": tokens[width:], "step": state.step}

    def write(state: TokenState, token: Array) -> tuple[TokenState, Array]:
        """The state with one more token, and whether that was the last."""
        context = jnp.where(columns == width + state.step, token.astype(jnp.int32), state.context)
        step = state.step + 1
        return TokenState(context, step, state.row), jnp.any(token == stops) | (step >= length)

    def listen(state: TokenState, over: Array) -> tuple[TokenState, Array]:
        """What the world writes before the policy is to."""
        observe = task.observe
        if observe is None:
            return state, over

        def reply(state: TokenState) -> Array:
            return jnp.asarray(observe(state.context, state.step, told(state.row)), jnp.int32)

        def turn(carry: tuple) -> tuple:
            state, over = write(carry[0], carry[2])
            return state, over, reply(state)

        theirs = lambda carry: ~carry[1] & (carry[2] >= 0)
        return jax.lax.while_loop(theirs, turn, (state, over, reply(state)))[:2]

    def worth(state: TokenState) -> Array:
        prompt, completion = state.context[None, :width], state.context[None, width:]
        given = jax.tree.map(lambda x: x[None], told(state.row))
        completion = rewards.one_stop(task.stop_ids, completion)
        values = [each.apply(each.params, prompt, completion, given) for each in task.rewards]
        total = rewards.combine(jnp.stack(values, axis=1).astype(jnp.float32), weights, 1)[0]
        return jnp.where(jnp.isfinite(total), total, 0.0)

    def begin(row: Array) -> tuple[TokenState, Array]:
        context = jnp.pad(table[row], (0, length), constant_values=-1)
        return listen(TokenState(context, jnp.int32(0), row), jnp.bool_(False))

    def reset(key: Key) -> tuple[dict[str, Array], TokenState]:
        state, _ = begin(jax.random.randint(key, (), 0, number))
        return see(state), state

    def step(
        key: Key, state: TokenState, action: Array
    ) -> tuple[dict[str, Array], TokenState, Array, Array, Array]:
        del key
        state, over = listen(*write(state, action))
        # a loop of at most one turn: under vmap it runs where some episode ends, and a cond always
        once = lambda carry: (jnp.bool_(False), worth(state))
        _, reward = jax.lax.while_loop(lambda carry: carry[0], once, (over, jnp.float32(0)))
        return see(state), state, reward, over, jnp.bool_(False)

    if task.observe is not None:
        silent = jax.vmap(lambda row: begin(row)[1])(jnp.arange(number))
        if not isinstance(silent, Tracer) and silent.any():
            raise ValueError(
                f"token_env: the world of the task {task.name} ends the conversation of prompt "
                f"{int(silent.argmax())} of {part} before the policy has written"
            )
    size = task.vocab_size
    return Env(
        name=f"{task.name}-tokens",
        reset=reset,
        step=step,
        observation_space={
            "prompt": MultiDiscrete((size,) * width),
            "valid": Box(False, True, (width,), np.bool_),
            "completion": MultiDiscrete((size,) * length),
            "step": Discrete(length + 1),
        },
        action_space=Discrete(size),
        max_steps=length,
        truncates_early=False,
    )
