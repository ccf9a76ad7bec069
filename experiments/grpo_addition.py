"""GRPO on sums of two numbers below 100, after `sft` on 1,024 of the 4,096 demonstrations.

    python experiments/grpo_addition.py [folder]

Took 27 minutes on one core of an AMD EPYC that other jobs shared, 5 seeds of 768,000 completions.
Greedy completions of 256 held-out sums that are right: 0.38 before, 0.857 after and still rising (IQM over
seeds, 95 % interval 0.841 to 0.871; seeds 0.863, 0.863, 0.875, 0.840, 0.844). All seeds begin with one model.
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
