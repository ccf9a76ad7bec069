"""Stable-Baselines3's and SBX's DQN, SAC and TD3 as a worker: `Algorithm(...).learn`, on Gymnasium.

Both are one at a time on one core, PyTorch with one thread. A case's "library" is "sb3" or "sbx". With one
seed, the model is made and learns a little past its warm-up while "compile" is timed (SBX compiles then,
for that model only), and a timing is `learn` of that model again with its steps counted from 0: random
actions first, as in a new run. With several seeds each is a new model, for its returns.

What cannot be made equal, in the peers' favour: their DQNs are neither double nor dueling, and SBX clips no
gradients. Both use Huber's loss in DQN. Their noise is where actions are in [-1, 1], so it is rescaled.
Returns are of the deterministic policy.
"""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Callable
from typing import Any

from worker import EPISODES, Trial, serve

LITTLE = 200  # rows past the warm-up while compiling


def load(arguments: argparse.Namespace) -> Callable[[dict[str, Any]], Trial]:
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    importlib.import_module("torch").set_num_threads(1)

    def prepare(case: dict[str, Any]) -> Trial:
        if case["seeds"] > 1:

            def train() -> list[Any]:
                models = [create(case, seed) for seed in range(case["seeds"])]
                return [model.learn(case["steps"], log_interval=None) for model in models]

            return Trial(train, lambda models: [mean_return(case, model) for model in models])
        model = create(case, 0)
        model.learn(case["learning_starts"] + LITTLE * case["num_envs"], log_interval=None)
        return Trial(
            lambda: [model.learn(case["steps"], log_interval=None)],
            lambda models: [mean_return(case, models[0])],
        )

    return prepare


def create(case: dict[str, Any], seed: int) -> Any:
    """A new model at a case's hyper-parameters."""
    vec_env = importlib.import_module("stable_baselines3.common.vec_env")
    envs = importlib.import_module("stable_baselines3.common.env_util")
    library = case["library"]
    world = envs.make_vec_env(case["env"], case["num_envs"], seed=seed)
    if case["normalize"]:
        world = vec_env.VecNormalize(world, norm_reward=False)
    if library == "sbx":
        package, activation = importlib.import_module("sbx"), importlib.import_module("jax").nn.silu
    else:
        package = importlib.import_module("stable_baselines3")
        activation = importlib.import_module("torch").nn.SiLU
    fields = {key: case[key] for key in ("learning_rate", "buffer_size", "batch_size", "learning_starts")} | {
        "gamma": case["discount"],
        "tau": 1 - case["keep"],
        "train_freq": 1,  # rows
        "gradient_steps": case["num_updates"],
        "policy_kwargs": {"net_arch": list(case["hidden_sizes"]), "activation_fn": activation},
        "seed": seed,
        "device": "cpu",
    }
    match case["algorithm"]:
        case "dqn":
            start, end, fraction = case["epsilon"]
            fields |= {"exploration_initial_eps": start, "exploration_final_eps": end}
            fields |= {"exploration_fraction": fraction, "target_update_interval": case["num_envs"]}
            fields |= {"max_grad_norm": case["max_grad_norm"]} if library == "sb3" else {}
        case "td3":
            noise = importlib.import_module("stable_baselines3.common.noise").NormalActionNoise
            high = case["action_high"]
            fields |= {"policy_delay": 2, "action_noise": noise([0.0], [case["exploration_noise"] / high])}
            fields |= {"target_policy_noise": case["target_noise"] / high}
            fields |= {"target_noise_clip": case["target_noise_clip"] / high}
    return getattr(package, case["algorithm"].upper())("MlpPolicy", world, **fields)


def mean_return(case: dict[str, Any], model: Any) -> float:
    """Of the first episode of each of EPISODES environments."""
    import numpy as np

    envs = importlib.import_module("stable_baselines3.common.env_util")
    world = envs.make_vec_env(case["env"], EPISODES, seed=EPISODES * (1 + model.seed))
    normalizer = model.get_vec_normalize_env()
    obs, returns, running = world.reset(), np.zeros(EPISODES), np.ones(EPISODES, bool)
    while running.any():
        seen = normalizer.normalize_obs(obs) if normalizer else obs
        obs, reward, done, _ = world.step(model.predict(seen, deterministic=True)[0])
        returns += reward * running
        running &= ~done
    return float(returns.mean())


if __name__ == "__main__":
    serve(load)
