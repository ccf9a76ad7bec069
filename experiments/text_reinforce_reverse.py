"""REINFORCE on reverse, after `sft` on a quarter of the demonstrations.

python experiments/text_reinforce_reverse.py [folder]
"""

import json
import sys

import rljax

SEEDS = 5
CONFIG: dict = {}  # the preset of text_reinforce on reverse
PROMPTS = 256  # all that are held out


def main(out: str = "runs/text_reinforce-reverse") -> None:
    result = rljax.train(
        "text_reinforce", "reverse", CONFIG, seeds=SEEDS, out=out, evaluation_episodes=PROMPTS
    )
    before = rljax.judge(f"{out}/sft", "reverse", prompts=PROMPTS)["return"]["mean"]
    print(json.dumps({"before": before, "after": result.summary["return"]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
