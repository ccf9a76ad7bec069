"""rljax's generation as a worker: `generate` for prompts of one length, and two ways of going through prompts
of many lengths with completions that end at many.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from llamas import rljax_llama
from worker import Trial, serve

SHORTEST = 8  # prompt of a dataset of mixed lengths; lengths are uniform in their logarithms
FLAT = 100.0  # temperature at which random weights draw all tokens about equally often


def load(arguments: argparse.Namespace) -> Callable[[dict[str, Any]], Trial]:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from rljax.text.batched_generation import decode_many
    from rljax.text.data import pad_prompts
    from rljax.text.decoding import Sampling
    from rljax.text.generate import generate

    def prepare(case: dict[str, Any]) -> Trial:
        model = rljax_llama(case["shape"], case["dtype"], case["dtype"])
        params = jax.jit(model.init)(jax.random.key(0))
        return (mixed if case["kind"] == "mixed" else alike)(model, params, case)

    def alike(model: Any, params: Any, case: dict[str, Any]) -> Trial:
        settings = Sampling(temperature=1.0, max_new_tokens=case["new"])
        size = case["batch"], case["prompt"]
        prompt = np.random.default_rng(0).integers(1, case["shape"]["vocab_size"], size=size)
        prompt = jnp.asarray(prompt, jnp.int32)
        valid, keys = jnp.ones(prompt.shape, bool), jax.random.split(jax.random.key(0), case["repeats"])

        def run() -> Any:
            found = None
            for key in keys:  # one after the other, as a rollout would ask for them
                found = jax.block_until_ready(generate(model, params, key, prompt, valid, settings))
            return found

        jax.block_until_ready(generate(model, params, keys[0], prompt, valid, settings))  # compiles
        return Trial(run, lambda output: output.tokens.size)

    def mixed(model: Any, params: Any, case: dict[str, Any]) -> Trial:
        random, size, longest = np.random.default_rng(0), case["shape"]["vocab_size"], case["prompt"]
        lengths = np.exp(random.uniform(np.log(SHORTEST), np.log(longest + 1), size=case["prompts"]))
        prompts = [random.integers(1, size, size=int(length)).tolist() for length in lengths]
        stop_ids = random.choice(size, size=max(1, size // case["mean"]), replace=False).tolist()
        settings, key = Sampling(temperature=FLAT, max_new_tokens=case["new"]), jax.random.key(0)

        def bucketed() -> int:
            found = decode_many(model, params, key, prompts, settings, stop_ids, batch=case["batch"])
            return sum(len(sample.tokens) for sample in found)

        def padded() -> int:
            """Batches of prompts in their order, all padded to the longest: one program."""
            total = 0
            for start in range(0, len(prompts), case["batch"]):
                members = np.arange(start, start + case["batch"])
                tokens, valid = pad_prompts([prompts[n] for n in members], longest)
                keys = jax.vmap(jax.random.fold_in, (None, 0))(key, members)
                batch = jnp.asarray(tokens), jnp.asarray(valid)
                found = jax.device_get(generate(model, params, keys, *batch, settings, stop_ids))
                total += int(found.mask.sum())
            return total

        run = padded if case["system"] == "padded" else bucketed
        run()  # compiles
        return Trial(run, lambda total: total)

    return prepare


if __name__ == "__main__":
    serve(load)
