"""torch transformers' `generate` as a worker, one thread per core; and what writes the checkpoint of a case.

python peers/torch_generation.py --write FOLDER '{"hidden_size": 64, ...}'
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from worker import Trial, serve


def write(folder: str, fields: dict[str, Any]) -> None:
    """A Llama with random weights that never meets a stop token."""
    torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    torch.manual_seed(0)
    never = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    config = transformers.LlamaConfig(
        tie_word_embeddings=True, max_position_embeddings=4096, **never, **fields
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


def load(arguments: argparse.Namespace) -> Callable[[dict[str, Any]], Trial]:
    torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    on_gpu = not arguments.cores
    if not on_gpu:
        torch.set_num_threads(len(os.sched_getaffinity(0)))

    def prepare(case: dict[str, Any]) -> Trial:
        model = transformers.AutoModelForCausalLM.from_pretrained(case["folder"], dtype=torch.float32)
        model = model.eval().to("cuda" if on_gpu else "cpu")
        numpy = importlib.import_module("numpy")
        prompt = numpy.random.default_rng(0).integers(
            1, case["vocab_size"], size=(case["batch"], case["prompt"])
        )
        prompt = torch.tensor(prompt).to(model.device)
        chosen = {"do_sample": True, "temperature": case["temperature"], "top_k": 0, "top_p": 1.0}
        settings = {"max_new_tokens": case["new"], "min_new_tokens": None, "pad_token_id": 0}
        settings |= chosen if case["temperature"] else {"do_sample": False}

        def once() -> Any:
            with torch.inference_mode():
                return model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)

        def run() -> Any:
            found = None
            for _ in range(case["repeats"]):
                found = once()
            if on_gpu:
                torch.cuda.synchronize()
            return found

        once()
        return Trial(run, lambda output: output.shape[1] - case["prompt"])

    return prepare


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        write(sys.argv[2], json.loads(sys.argv[3]))
    else:
        serve(load)
