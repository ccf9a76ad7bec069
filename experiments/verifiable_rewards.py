"""GRPO, RLOO, PPO and REINFORCE on strings to reverse, strings to sort and sums of two numbers below 100: the
reward is 1 for the right answer. On each task all begin with one model, `sft` on a fraction of the prompts.

    python experiments/verifiable_rewards.py [folder] [task] [algorithm]

TABLE
"""

import json
import sys
from pathlib import Path

import rljax

TASKS = ("reverse", "sort", "addition")
ALGORITHMS = ("grpo", "rloo", "rlhf_ppo", "text_reinforce")
SEEDS = 5
CONFIG: dict = {}  # the presets
PROMPTS = 256  # all that are held out


def main(out: str = "runs/verifiable-rewards", task: str = "", algorithm: str = "") -> None:
    for name in [task] if task else TASKS:
        start = Path(out) / f"sft-{name}"
        if not start.exists():
            rljax.train("sft", name, out=start)
        before = rljax.judge(start, name, prompts=PROMPTS)["return"]["mean"]
        print(json.dumps({"task": name, "algorithm": "sft", "mean": before}))
        for each in [algorithm] if algorithm else ALGORITHMS:
            folder = Path(out) / f"{each}-{name}"
            result = rljax.train(
                each, name, CONFIG, seeds=SEEDS, init=start, out=folder, evaluation_episodes=PROMPTS
            )
            print(json.dumps({"task": name, "algorithm": each, **result.summary["return"]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
