"""GRPO on sums of two numbers below 100, after `sft` on a quarter of the demonstrations.

python experiments/grpo_addition.py [folder]
"""

import json
import sys

import rljax

SEEDS = 5
CONFIG: dict = {}  # the preset of grpo on addition
PROMPTS = 256  # all that are held out


def main(out: str = "runs/grpo-addition") -> None:
    result = rljax.train("grpo", "addition", CONFIG, seeds=SEEDS, out=out, evaluation_episodes=PROMPTS)
    before = rljax.judge(f"{out}/sft", "addition", prompts=PROMPTS)["return"]["mean"]
    print(json.dumps({"before": before, "after": result.summary["return"]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
