"""A reward model of HH-RLHF's harmless pairs from scratch: five folds, pairs of one prompt in the same.

    python experiments/reward_model_hh.py DATA [folder]     # DATA: harmless-base-test.jsonl.gz

Took 32 minutes on one core of an AMD EPYC that other jobs shared. Of 2,187 pairs, each judged by the model of
the fold that had not seen its prompt, 0.610 are put in the right order, 95 % interval 0.590 to 0.630
over pairs.
"""

import json
import math
import sys

import rljax
from rljax import reward_model

FOLDS, VOCABULARY = 5, 2048
WARM_UP = 1_000_000  # tokens of sft on the preferred answers
CONFIG = reward_model.Config(
    total_steps=4_000,
    learning_rate=3e-4,
    weight_decay=0.1,
    hidden_size=64,
    num_layers=2,
)


def main(data: str, out: str = "runs/reward-model-hh") -> None:
    right = number = 0.0
    for fold in range(FOLDS):
        arguments = {"data": data, "folds": FOLDS, "fold": fold, "vocab_size": VOCABULARY}
        result = rljax.train(
            *("reward_model", "preferences", CONFIG),
            out=f"{out}/fold-{fold}",
            warm_up=WARM_UP,
            env_arguments=arguments,
            evaluation_episodes=10_000,  # all that are held out
        )
        found = result.summary["accuracy"]
        right, number = right + found["mean"] * found["episodes"], number + found["episodes"]
    accuracy = right / number
    half = 1.96 * math.sqrt(accuracy * (1 - accuracy) / number)
    print(json.dumps({"accuracy": accuracy, "ci95": [accuracy - half, accuracy + half], "pairs": number}))


if __name__ == "__main__":
    main(*sys.argv[1:])
