"""RLOO on sort, after `sft` on a quarter of the demonstrations.

python experiments/rloo_sort.py [folder]
"""

import json
import sys

import rljax

SEEDS = 5
CONFIG: dict = {}  # the preset of rloo on sort
PROMPTS = 256  # all that are held out


def main(out: str = "runs/rloo-sort") -> None:
    result = rljax.train("rloo", "sort", CONFIG, seeds=SEEDS, out=out, evaluation_episodes=PROMPTS)
    before = rljax.judge(f"{out}/sft", "sort", prompts=PROMPTS)["return"]["mean"]
    print(json.dumps({"before": before, "after": result.summary["return"]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
