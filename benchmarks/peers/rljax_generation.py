"""rljax's `generate` as a worker: a Hugging Face checkpoint loaded by rljax, random prompts of one length."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from worker import Trial, serve


def load(arguments: argparse.Namespace) -> Callable[[dict[str, Any]], Trial]:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from rljax.models import huggingface
    from rljax.text.decoding import Sampling
    from rljax.text.generate import generate

    def prepare(case: dict[str, Any]) -> Trial:
        model, params, *_ = huggingface.load(case["folder"])
        settings = Sampling(temperature=case["temperature"], max_new_tokens=case["new"])
        prompt = np.random.default_rng(0).integers(
            1, case["vocab_size"], size=(case["batch"], case["prompt"])
        )
        prompt = jnp.asarray(prompt, jnp.int32)
        valid, keys = jnp.ones(prompt.shape, bool), jax.random.split(jax.random.key(0), case["repeats"])

        def run() -> Any:
            found = None
            for key in keys:  # one after the other, as a rollout would ask for them
                found = jax.block_until_ready(generate(model, params, key, prompt, valid, settings))
            return found

        jax.block_until_ready(generate(model, params, keys[0], prompt, valid, settings))  # compiles
        return Trial(run, lambda output: output.tokens.shape[1])

    return prepare


if __name__ == "__main__":
    serve(load)
