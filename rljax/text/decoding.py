"""The parts that generation is made of: how tokens are drawn, and a batch in the middle of its completions.

`begin` runs prompts and draws their first tokens, `advance` draws more. `rljax.text.generate` puts both in
one program, `stream` asks for one token at a time, `decode_many` for a few.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from rljax import checks
from rljax.math import sampling
from rljax.types import SIDE_BY_SIDE, Array, Key, LanguageModel, PyTree

# (logits (V,), tokens (P + T,), step ()) -> logits (V,), pure. `tokens` are the prompt and the completion so
# far, −1 where there is none (left padding, and what is to come); `step` counts the new tokens, so that the
# next one goes to column P + step. The logits are raw, after the repetition penalty, before the temperature.
Processor = Callable[[Array, Array, Array], Array]


# (tokens (P + T,) as above, step (), reference) -> the token that the world writes at this step, −1 where the
# model writes, pure. `reference` is of the row's prompt.
Observe = Callable[[Array, Array, PyTree], Array]


@struct.dataclass
class Sampling:
    """How tokens are drawn. Numbers are leaves; None leaves a step out. See `rljax.math.sampling`."""

    temperature: Any = 1.0  # 0: greedy
    top_k: Any = None
    top_p: Any = None
    min_p: Any = None
    repetition_penalty: Any = None  # over the tokens of prompt and completion
    max_new_tokens: int = struct.field(pytree_node=False, default=64)
    loop: Literal["while", "scan"] = struct.field(pytree_node=False, default="while")


class Decoding(NamedTuple):
    """A batch in the middle of its completions, all of its rows at the same step."""

    cache: PyTree
    token: Array  # (B,) int32, the last one, not in the cache yet
    alive: Array  # (B,) bool, rows without a stop token so far
    context: Array  # (B, P + T) int32, −1 where there is no token
    log_prob: Array  # (B, T)
    seen: Array | None  # (B, V) bool, tokens of prompt and completion, for the repetition penalty
    keys: Array  # (B,)
    step: Array  # () int32, tokens drawn so far
    reference: PyTree = None  # (B, ...), what `observe` is told
    observed: Array | None = None  # (B, T) bool, tokens that the world wrote; None without `observe`


def settings_are_right(settings: Sampling) -> None:
    """Raises: ValueError naming the field of `settings`, its value, and what would be right."""
    bounds = {"temperature": {}, "top_k": {}, "top_p": {"high": 1}, "min_p": {"high": 1}}
    for name, more in bounds.items():
        if getattr(settings, name) is not None:
            checks.number(settings, name, low=0, **more)
    if settings.top_k is not None:
        checks.integral(settings, "top_k")
    if settings.temperature is None:
        checks.complain(settings, "temperature", "must be a number; 0 is greedy, 1 the model's own")
    if settings.repetition_penalty is not None:
        checks.number(settings, "repetition_penalty", low=0, open_low=True)
    checks.count(settings, "max_new_tokens")
    checks.choice(settings, "loop", ("while", "scan"))


def bare(model: LanguageModel) -> LanguageModel:
    """Its functions alone, as the static argument of a program."""
    return model._replace(config=None)


def numbers(settings: Sampling) -> Sampling:
    """Leaves as float32 arrays, so that 1, 1.0 and a swept leaf are one program."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), settings)


def shaped(
    settings: Sampling,
    processors: tuple[Processor, ...],
    logits: Array,
    seen: Array | None,
    context: Array,
    step: Array,
) -> tuple[Array, Array]:
    """Logits (V,) of the distribution that is drawn from, and as they were before it was truncated."""
    if settings.repetition_penalty is not None and seen is not None:
        logits = sampling.repetition_penalty(logits, seen, settings.repetition_penalty)
    for processor in processors:
        logits = processor(logits, context, step)
    logits = whole = sampling.temper(logits, settings.temperature)
    if settings.top_k is not None:
        logits = sampling.top_k(logits, settings.top_k)
    if settings.top_p is not None:
        logits = sampling.top_p(logits, settings.top_p)
    if settings.min_p is not None:
        logits = sampling.min_p(logits, settings.min_p)
    return logits, whole


def _choose(
    state: Decoding,
    logits: Array,
    uniform: Array,
    settings: Sampling,
    stop_ids: Array,
    processors: tuple[Processor, ...],
    observe: Observe | None,
) -> Decoding:
    """The next token of every row that is alive, from logits (B, V) and uniforms (B, 2), or where the world
    writes one, that.
    """

    def row(logits: Array, uniform: Array, seen: Array | None, context: Array) -> tuple[Array, Array]:
        return sampling.draw(uniform, shaped(settings, processors, logits, seen, context, state.step)[0])

    token, log_prob = jax.vmap(row)(logits, uniform, state.seen, state.context)
    observed = state.observed
    if observe is not None and observed is not None:
        given = jax.vmap(observe, (0, None, 0))(state.context, state.step, state.reference)
        theirs = given >= 0
        token, log_prob = jnp.where(theirs, given, token), jnp.where(theirs, 0.0, log_prob)
        theirs = (theirs & state.alive)[:, None]
        observed = jax.lax.dynamic_update_slice_in_dim(observed, theirs, state.step, axis=1)
    token = jnp.where(state.alive, token, 0)
    column = state.context.shape[1] - settings.max_new_tokens + state.step
    put = lambda whole, part, at: jax.lax.dynamic_update_slice_in_dim(whole, part[:, None], at, axis=1)
    seen = state.seen
    if seen is not None:
        seen = seen.at[jnp.arange(token.size), token].max(state.alive)
    return state._replace(
        token=token,
        alive=state.alive & ~jnp.any(token[:, None] == stop_ids[None, :], axis=1),
        context=put(state.context, jnp.where(state.alive, token, -1), column),
        log_prob=put(state.log_prob, jnp.where(state.alive, log_prob, 0.0), state.step),
        seen=seen,
        step=state.step + 1,
        observed=observed,
    )


def of_any_member(holds: Array) -> Array:
    """Whether `holds` () is true here or of a member beside this one: then it is one number for all of them,
    and a loop with this condition no loop of selects between old and new caches.
    """
    try:
        return jax.lax.pmax(holds.astype(jnp.int32), SIDE_BY_SIDE) > 0
    except NameError:  # nothing is mapped under this name
        return holds


def _uniforms(keys: Array, steps: Array) -> Array:
    """(T, B, 2): those of a row depend on its key and the step alone. Drawn at once, before the loop: a
    hash within it would be one more loop on a CPU.
    """
    one = lambda step, key: jax.random.uniform(jax.random.fold_in(key, step), (2,))
    return jax.vmap(lambda step: jax.vmap(partial(one, step))(keys))(steps)


def row_keys(key: Key, prompts: int, group: int) -> Array:
    """(B · G,) keys from one key, or from one per prompt."""
    each = jax.vmap(jax.random.fold_in, (None, 0))
    keys = key if key.ndim else each(key, jnp.arange(prompts))
    return jax.vmap(each, (0, None))(keys, jnp.arange(group)).reshape(-1)


@partial(jax.jit, static_argnames=("model", "group", "processors", "observe"))
def begin(
    model: LanguageModel,
    params: PyTree,
    key: Key,
    prompt: Array,
    valid: Array,
    settings: Sampling,
    stop_ids: Array,
    adapters: PyTree,
    group: int,
    processors: tuple[Processor, ...],
    observe: Observe | None = None,
    reference: PyTree = None,
) -> Decoding:
    """Prompts (B, P) run, forked to B · G rows, and their first tokens drawn. `reference` is (B, ...)."""
    length, fork = settings.max_new_tokens, partial(jnp.repeat, repeats=group, axis=0)
    hidden, cache = model.prefill(params, prompt, valid, prompt.shape[1] + length, adapters)
    logits = model.logits(params, hidden)
    seen = None
    if settings.repetition_penalty is not None:
        seen = jnp.zeros(logits.shape, bool)
        seen = fork(seen.at[jnp.arange(logits.shape[0])[:, None], prompt].max(valid))
    rows = prompt.shape[0] * group
    context = jnp.pad(jnp.where(valid, prompt, -1), ((0, 0), (0, length)), constant_values=-1)
    state = Decoding(
        cache=model.fork(cache, group),
        token=jnp.zeros(rows, jnp.int32),
        alive=jnp.ones(rows, bool),
        context=fork(context),
        log_prob=jnp.zeros((rows, length), jnp.float32),
        seen=seen,
        keys=row_keys(key, prompt.shape[0], group),
        step=jnp.int32(0),
        reference=jax.tree.map(fork, reference),
        observed=None if observe is None else jnp.zeros((rows, length), bool),
    )
    uniform = _uniforms(state.keys, state.step[None])[0]
    return _choose(state, fork(logits), uniform, settings, stop_ids, processors, observe)


@partial(jax.jit, static_argnames=("model", "count", "processors", "observe"), donate_argnames="state")
def advance(
    model: LanguageModel,
    params: PyTree,
    state: Decoding,
    settings: Sampling,
    stop_ids: Array,
    adapters: PyTree,
    count: int,
    processors: tuple[Processor, ...],
    observe: Observe | None = None,
) -> Decoding:
    """`count` more tokens; with "while" until every row has stopped or is full. `state` is donated."""
    uniforms = _uniforms(state.keys, state.step + jnp.arange(count))

    def body(i: Array, state: Decoding) -> Decoding:
        hidden, cache = model.decode(params, state.token, state.cache, adapters)
        state = state._replace(cache=cache)
        logits = model.logits(params, hidden)
        return _choose(state, logits, uniforms[i], settings, stop_ids, processors, observe)

    if settings.loop == "scan":
        return jax.lax.fori_loop(0, count, body, state)

    def more(carry: tuple[Array, Decoding]) -> Array:
        i, state = carry
        return (i < count) & (state.step < settings.max_new_tokens) & of_any_member(state.alive.any())

    _, state = jax.lax.while_loop(more, lambda carry: (carry[0] + 1, body(*carry)), (jnp.int32(0), state))
    return state
