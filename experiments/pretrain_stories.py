"""The real weights of stories260K, which writes stories for children, learn to write Shakespeare.

    python experiments/pretrain_stories.py DATA MODEL [folder]     # input.txt, and llama2.c's stories260K

TODO
"""

import dataclasses
import json
import sys

import rljax
from rljax import pretrain, text

SEEDS = 2
CONFIG = pretrain.Config(
    total_steps=2_000_000,
    learning_rate=2e-3,
    batch_size=16,
)


def main(data: str, model: str, out: str = "runs/pretrain-stories") -> None:
    corpus = text.Corpus(data, model=model)
    still = dataclasses.replace(CONFIG, learning_rate=1e-12, total_steps=1)
    before = rljax.train("pretrain", corpus, still, evaluation_episodes=10_000)
    after = rljax.train("pretrain", corpus, CONFIG, seeds=SEEDS, out=out, evaluation_episodes=10_000)
    print(json.dumps({"before": before.summary["loss"]["mean"], "after": after.summary["loss"]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
