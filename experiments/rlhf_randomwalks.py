"""All of RLHF in one script, on shortest paths of a graph of 21 nodes (the task `randomwalks`).

python experiments/rlhf_randomwalks.py [folder]
"""

import json
import sys
from pathlib import Path

import rljax
from rljax import dpo, pretrain, reward_model, rlhf_ppo, sft, text

SEEDS = 5
PRETRAIN = pretrain.Config(
    total_steps=500_000, learning_rate=2e-3, batch_size=32, length=32, hidden_size=64, num_layers=2
)
SFT = sft.Config(total_steps=300_000, learning_rate=1e-3, batch_size=64)
REWARD_MODEL = reward_model.Config(total_steps=20_000, learning_rate=1e-3, batch_size=64)
PPO = rlhf_ppo.Config(total_steps=30_000, learning_rate=5e-4, kl=0.02, num_prompts=128)
DPO = dpo.Config(total_steps=20_000, learning_rate=2e-4, batch_size=64)


def main(folder: str = "runs/randomwalks") -> None:
    task, out = text.tasks.make("randomwalks"), Path(folder)
    rljax.train("pretrain", task, PRETRAIN, out=out / "pretrain")
    rljax.train("sft", task, SFT, init=out / "pretrain", out=out / "sft")
    rljax.train("reward_model", task, REWARD_MODEL, seeds=3, init=out / "sft", out=out / "reward")
    start = {"seeds": SEEDS, "init": out / "sft"}
    rljax.train("rlhf_ppo", task, PPO, **start, reward=out / "reward", out=out / "ppo")
    rljax.train("rlhf_ppo", task, PPO, **start, out=out / "ppo-true")
    rljax.train("dpo", task, DPO, **start, out=out / "dpo")
    for name in ("sft", "ppo", "ppo-true", "dpo"):
        print(name, json.dumps(rljax.judge(out / name, task)["return"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
