"""rljax's `grpo` as a worker: whole cycles in one program, or in two, or of several members in one."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from llamas import rljax_llama
from worker import Trial, serve


def load(arguments: argparse.Namespace) -> Callable[[dict[str, Any]], Trial]:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from rljax import backend
    from rljax.algorithms import grpo
    from rljax.learning import completions
    from rljax.runs.program import layout
    from rljax.text import rewards
    from rljax.text.decoding import advance, bare, begin, numbers
    from rljax.types import Prompts, Task

    def prepare(case: dict[str, Any]) -> Trial:
        size = case["shape"]["vocab_size"]
        tokens = np.random.default_rng(0).integers(0, size, (64, case["prompt"]), dtype=np.int32)
        prompts = Prompts(jnp.asarray(tokens), jnp.ones(tokens.shape, bool), jnp.arange(64))
        counted = rewards.of_tokens(
            lambda prompt, completion, reference: (completion < size // 2).sum(), "low"
        )
        task = Task("random", size, prompts, prompts, rewards=(counted,), max_new_tokens=case["new"])
        config = grpo.Config(
            total_steps=1e12, num_prompts=case["prompts"], group_size=case["group"], learning_rate=1e-6
        )
        model = rljax_llama(case["shape"], case["dtype"], "float32")
        make = lambda frozen: grpo.make(task, config, model, frozen)

        def split(frozen: Any) -> Any:
            return make(frozen).split

        frozen, options = task.frozen, backend.compiler_options(jax.local_devices()[0])
        keys = jax.random.split(jax.random.key(0), case["cycles"] + 1)
        several = case["system"] == "seeds"
        mapped = layout.mapping_for(jax.local_devices()[0])

        def over(function: Callable[..., Any]) -> Callable[..., Any]:
            """Of several members where that is asked for."""
            if not several:
                return function
            if mapped == "vmap":
                return lambda frozen, *rest: jax.vmap(partial(function, frozen))(*rest)
            return lambda frozen, *rest: jax.lax.map(lambda each: function(frozen, *each), rest)

        def compiled(function: Callable[..., Any], *given: Any, donate: tuple[int, ...] = ()) -> Any:
            lowered = jax.jit(over(function), donate_argnums=donate).lower(*given)
            return lowered.compile(options)

        start = jax.random.key(1)
        if several:
            start = jax.random.split(start, case["seeds"])
            keys = jax.vmap(lambda key: jax.random.split(key, case["seeds"]))(keys)
        state = jax.jit(over(lambda frozen, key: make(frozen).init(key)))(frozen, start)
        key = keys[0]
        parts = split(frozen)
        if case["system"] == "parts":
            sample = compiled(lambda frozen, key, state: split(frozen).sample(key, state), frozen, key, state)
            like = jax.eval_shape(parts.sample, key, state)
            told = lambda frozen, rollout: split(frozen).reward(rollout)
            reward = compiled(told, frozen, like)
            scores = jax.eval_shape(partial(told, frozen), like)
            learnt = lambda frozen, key, state, *rest: split(frozen).learn(key, state, *rest)
            learn = compiled(learnt, frozen, key, state, like, scores, donate=(2,))

            def cycle(key: Any, state: Any) -> Any:
                rollout = sample(frozen, key, state)
                return learn(frozen, key, state, rollout, reward(frozen, rollout))
        else:
            step = compiled(
                lambda frozen, key, state: make(frozen).step(key, state), frozen, key, state, donate=(2,)
            )
            cycle = partial(step, frozen)

        def run() -> Any:
            nonlocal state
            metrics: Any = None
            for key in keys[1:]:
                state, metrics = cycle(key, state)
            jax.block_until_ready(state)
            return metrics.reward

        def seconds_of(function: Callable[[], Any]) -> float:
            """The median of five calls after one that compiles."""
            jax.block_until_ready(function())
            found = []
            for _ in range(5):
                begun = time.perf_counter()
                jax.block_until_ready(function())
                found.append(time.perf_counter() - begun)
            return round(statistics.median(found), 4)

        def split_up(_: Any) -> dict[str, float] | None:
            """Seconds of the parts of a cycle, each a program of its own."""
            if case["system"] != "rljax":
                return None
            chosen = jax.tree.map(lambda x: x[: case["prompts"]], prompts)
            settings = numbers(completions.sampling_settings(config, task, 1.0))
            fixed = settings, jnp.zeros(0, jnp.int32), None
            first = lambda: begin(
                *(bare(model), state.params, keys[0], chosen.tokens, chosen.valid, *fixed, case["group"], ())
            )
            prefill = seconds_of(first)
            whole = seconds_of(
                lambda: advance(bare(model), state.params, first(), *fixed, case["new"] - 1, ())
            )
            rollout = jax.jit(parts.sample)(keys[0], state)
            judge, learn = jax.jit(parts.reward), jax.jit(parts.learn)
            scores = judge(rollout)
            return {
                "prefill": prefill,
                "decode": round(whole - prefill, 4),
                "reward": seconds_of(lambda: judge(rollout)),
                "update": seconds_of(lambda: learn(keys[0], state, rollout, scores)[0]),
            }

        state, _ = jax.block_until_ready(cycle(keys[0], state))
        return Trial(run, split_up)

    return prepare


if __name__ == "__main__":
    serve(load)
