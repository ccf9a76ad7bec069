"""torch transformers' `generate` as a worker, one thread per core."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from typing import Any

from llamas import serve_torch, torch_device, torch_llama
from worker import Trial


def load(arguments: argparse.Namespace) -> Callable[[dict[str, Any]], Trial]:
    torch, device = importlib.import_module("torch"), torch_device(arguments)

    def prepare(case: dict[str, Any]) -> Trial:
        model = torch_llama(case["shape"], case["dtype"], device).eval()
        size = case["batch"], case["prompt"]
        prompt = torch.randint(1, case["shape"]["vocab_size"], size, device=device)
        settings = {"max_new_tokens": case["new"], "min_new_tokens": None, "pad_token_id": 0}
        settings |= {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}

        def once() -> Any:
            with torch.inference_mode():
                return model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)

        def run() -> Any:
            found: Any = None
            for _ in range(case["repeats"]):
                found = once()
            return found.cpu()  # waits for the GPU

        once().cpu()
        return Trial(run, lambda output: output.shape[0] * (output.shape[1] - case["prompt"]))

    return prepare


if __name__ == "__main__":
    serve_torch(load)
