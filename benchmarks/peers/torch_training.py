"""A plain PyTorch training step of transformers' Llama as a worker.

Rows drawn from a text that lies on the device, cross-entropy, gradients clipped to norm 1, fused AdamW.
Products of bfloat16 are autocast's, with float32 parameters, which is what `pretrain` does; "torch-compiled"
is the model under torch.compile.
"""

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
        model = torch_llama(case["shape"], "float32", device).train()
        forward = torch.compile(model) if case["system"] == "torch-compiled" else model
        parameters = list(model.parameters())
        optimizer = torch.optim.AdamW(
            parameters, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True
        )
        text = torch.randint(case["shape"]["vocab_size"], (case["text"],), device=device)
        columns = torch.arange(case["length"] + 1, device=device)
        half = case["dtype"] == "bfloat16"

        def step() -> Any:
            starts = torch.randint(len(text) - case["length"], (case["batch"], 1), device=device)
            rows = text[starts + columns]
            with torch.autocast(device, dtype=torch.bfloat16, enabled=half):
                logits = forward(rows[:, :-1], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.detach()

        def run() -> Any:
            loss: Any = None
            for _ in range(case["steps"]):
                loss = step()
            return float(loss)  # waits for the GPU

        float(step())
        return Trial(run, lambda loss: loss)

    return prepare


if __name__ == "__main__":
    serve_torch(load)
