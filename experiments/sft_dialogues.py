"""LoRA on dialogues: three learning rates share one frozen base, the real weights of stories260K.

    python experiments/sft_dialogues.py DATA MODEL [folder]    # Topical-Chat, valid_freq.json.gz; stories260K

Took 8 minutes on 2 cores of an AMD EPYC that other jobs shared; all eight members are one compilation.
Loss of the completions held out, the last tenth, mean of 2 seeds: 3.893 nats per token for the base, then
2.763, 2.581 and 2.464 nats at learning rates 0.001, 0.003 and 0.01.
"""

import gzip
import itertools
import json
import sys
import tempfile
from pathlib import Path

import rljax
from rljax import sft, text

SEEDS = 2
RATES = [1e-9, 1e-3, 3e-3, 1e-2]  # with the first, which changes nothing, the loss is the base's own
CONFIG = sft.Config(
    total_steps=600_000,
    train="lora",
    patterns=("attention/*", "mlp/*"),
    rank=8,
    batch_size=16,
)


def write(data: str, path: Path) -> None:
    """Every turn after the first as a completion of the turn before it, in JSON lines."""
    with gzip.open(data, "rt", encoding="utf-8") as file:
        dialogues = [[turn["message"] for turn in one["content"]] for one in json.load(file).values()]
    pairs = [pair for turns in dialogues for pair in itertools.pairwise(turns) if all(pair)]
    path.write_text("".join(json.dumps({"prompt": a + "\n", "completion": b}) + "\n" for a, b in pairs))


def main(data: str, model: str, out: str = "runs/sft-dialogues") -> None:
    path = Path(tempfile.mkdtemp()) / "dialogues.jsonl"
    write(data, path)
    corpus = text.Corpus(path, model=model, long="split")  # long pairs too, as for the numbers above
    grid = {"learning_rate": RATES}
    found = rljax.sweep("sft", corpus, grid, CONFIG, seeds=SEEDS, out=out, evaluation_episodes=10_000)
    mean = lambda rate: sum(m["loss"] for m in found.members if m["learning_rate"] == rate) / SEEDS
    losses = {f"{rate:g}": round(mean(rate), 4) for rate in RATES}
    print(json.dumps({"compilations": found.compilations, "loss": losses}))


if __name__ == "__main__":
    main(*sys.argv[1:])
