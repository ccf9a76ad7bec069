"""DPO on HH-RLHF's harmless pairs, after `sft` on the preferred answers, both from scratch.

    python experiments/dpo_hh.py DATA [folder]     # DATA: harmless-base-test.jsonl.gz

Took 8 minutes on one core of an AMD EPYC that other jobs shared, one seed. Of 219 held-out pairs DPO's reward
puts the preferred answer first in 0.562 (chance is 0.50, and the interval of so few pairs, 0.496 to 0.627,
holds it). A reward model learns more from these pairs: `reward_model_hh.py`.
"""

import json
import sys

import rljax
from rljax import dpo

SEEDS, VOCABULARY = 1, 2048
WARM_UP = 2_000_000  # tokens of sft on the preferred answers
CONFIG = dpo.Config(total_steps=3_000, learning_rate=1e-4, batch_size=16, hidden_size=64, num_layers=2)


def main(data: str, out: str = "runs/dpo-hh") -> None:
    result = rljax.train(
        *("dpo", "preferences", CONFIG),
        seeds=SEEDS,
        out=out,
        warm_up=WARM_UP,
        env_arguments={"data": data, "vocab_size": VOCABULARY},
        evaluation_episodes=10_000,  # all that are held out
    )
    print(json.dumps(result.summary["accuracy"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
