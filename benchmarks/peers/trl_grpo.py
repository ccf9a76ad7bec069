"""TRL's GRPOTrainer as a worker: transformers' Llama, `generate` with a cache, a reward on the host.

Its defaults but for what the case says: no KL penalty, one iteration, no truncation of samples, no logging.
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
from collections.abc import Callable
from typing import Any

from llamas import serve_torch, torch_device, torch_llama
from worker import Trial


def load(arguments: argparse.Namespace) -> Callable[[dict[str, Any]], Trial]:
    torch, device = importlib.import_module("torch"), torch_device(arguments)
    trl, datasets = importlib.import_module("trl"), importlib.import_module("datasets")
    transformers, tokenizers = importlib.import_module("transformers"), importlib.import_module("tokenizers")

    def words(size: int) -> Any:
        """A tokenizer of `size` words; the last ends a text, the first pads."""
        vocabulary = {f"w{i}": i for i in range(size)}
        backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w1"))
        backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        return transformers.PreTrainedTokenizerFast(
            tokenizer_object=backend, eos_token=f"w{size - 1}", pad_token="w0", padding_side="left"
        )

    def prepare(case: dict[str, Any]) -> Trial:
        size, rows = case["shape"]["vocab_size"], case["prompts"] * case["group"]
        model = torch_llama(case["shape"], "float32", device)
        generator = torch.Generator().manual_seed(0)
        prompts = torch.randint(2, size - 1, (64, case["prompt"]), generator=generator)
        data = datasets.Dataset.from_dict(
            {"prompt": [" ".join(f"w{token}" for token in row) for row in prompts.tolist()]}
        )

        def low(completion_ids: list[list[int]], **_: Any) -> list[float]:
            return [float(sum(token < size // 2 for token in row)) for row in completion_ids]

        folder = tempfile.mkdtemp()
        settings = trl.GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=rows,
            num_generations=case["group"],
            max_completion_length=case["new"],
            max_steps=case["cycles"],
            learning_rate=1e-6,
            beta=0.0,
            temperature=1.0,
            bf16=case["dtype"] == "bfloat16",
            gradient_checkpointing=False,
            use_cpu=device == "cpu",
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = trl.GRPOTrainer(
            model=model, reward_funcs=low, args=settings, train_dataset=data, processing_class=words(size)
        )

        def run() -> Any:
            trainer.train()
            return None

        run()
        return Trial(run, lambda _: None)

    return prepare


if __name__ == "__main__":
    serve_torch(load)
