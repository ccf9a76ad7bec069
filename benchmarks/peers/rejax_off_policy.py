"""Rejax's DQN, SAC, TD3 and PQN as a worker: `create(...).train` as published, or with its sampler patched.

Rejax evaluates as it trains. Here it does not: see rejax_ppo.py. Published, every minibatch is drawn without
replacement by a Gumbel top-k over the whole buffer; where a case says "patched", ReplayBuffer.sample is
replaced while this process runs by indices drawn independently, with replacement, so that what remains is
Rejax without its one expensive line.

What cannot be made equal without changing it, none of it dear: gradients are clipped by value instead of by
global norm; an episode cut by its time limit counts as terminated; while the replay fills, SAC acts with its
policy instead of at random; running statistics of observations move after every step instead of once per
iteration. Returns are of the greedy policy (SAC: the squashed mean), which Rejax's own callback does not run.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from typing import Any

from worker import EPISODES, Trial, compile_mapped, serve

ALGORITHMS = {"dqn": "DQN", "sac": "SAC", "td3": "TD3", "pqn": "PQN"}


def load(arguments: argparse.Namespace) -> Callable[[dict[str, Any]], Trial]:
    import jax

    rejax = importlib.import_module("rejax")
    replay = importlib.import_module("rejax.buffers").ReplayBuffer
    evaluate = importlib.import_module("rejax.evaluate").evaluate
    published = replay.sample

    def prepare(case: dict[str, Any]) -> Trial:
        replay.sample = sample if case.get("sampler") == "patched" else published
        train = create(rejax, case).replace(eval_callback=lambda algorithm, state, key: ())

        def measure(states: Any) -> list[float]:
            batch = jax.numpy.shape(states.global_step)  # (), (S,) or (devices, S / devices)
            states = jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(batch) :]), states)

            @jax.jit
            def judge(key: Any, state: Any) -> Any:
                act = greedy(case["algorithm"], train, state)
                limit = train.env_params.max_steps_in_episode
                return evaluate(act, key, train.env, train.env_params, EPISODES, limit)[1].mean()

            # other starts for each seed, or the luck of the starts would not be in the interval
            one = lambda seed: jax.tree.map(lambda x: x[seed], states)
            return [float(judge(jax.random.key(seed), one(seed))) for seed in range(case["seeds"])]

        return Trial(compile_mapped(lambda key: train.train(key)[0], case["seeds"]), measure)

    return prepare


def create(rejax: Any, case: dict[str, Any]) -> Any:
    """The algorithm at a case's hyper-parameters, with one evaluation, after the last step."""
    name, agent = case["algorithm"], {"activation": case["activation"]}
    same = ("env", "num_envs", "learning_rate", "max_grad_norm")
    fields = {field: case[field] for field in same if case[field] is not None} | {
        "total_timesteps": case["steps"],
        "eval_freq": case["steps"],
        "skip_initial_evaluation": True,
        "gamma": case["discount"],
        "num_epochs": case["num_updates"],
        "normalize_observations": case["normalize"],
    }
    if name in ("dqn", "pqn"):
        start, end, fraction = case["epsilon"]
        fields |= {"eps_start": start, "eps_end": end, "exploration_fraction": fraction}
    if name == "pqn":
        fields |= {key: case[key] for key in ("num_steps", "num_minibatches")}
        fields |= {"td_lambda": case["trace_decay"]}
    else:
        fields |= {key: case[key] for key in ("buffer_size", "batch_size")}
        fields |= {"fill_buffer": case["learning_starts"], "polyak": case["keep"]}
    match name:
        case "dqn":
            fields |= {"agent": "DuelingQNetwork", "agent_kwargs": agent, "ddqn": True}
        case "sac":
            fields |= {"agent_kwargs": agent}
        case "td3":
            fields |= {"actor_kwargs": agent, "critic_kwargs": dict(agent), "policy_delay": 2}
            fields |= {key: case[key] for key in ("exploration_noise", "target_noise", "target_noise_clip")}
    return getattr(rejax, ALGORITHMS[name]).create(**fields)


def sample(buffer: Any, num: int, rng: Any) -> Any:
    """A minibatch of independent, uniform rows among those that are filled: work that only `num` decides."""
    import jax

    index = jax.random.randint(rng, (num,), 0, buffer.num_entries)
    return jax.tree.map(lambda rows: rows[index], buffer.data)


def greedy(name: str, algorithm: Any, state: Any) -> Callable[[Any, Any], Any]:
    """(observation, key) -> the action that the policy prefers."""
    import jax.numpy as jnp

    def act(obs: Any, key: Any) -> Any:
        if algorithm.normalize_observations:
            obs = algorithm.normalize_obs(state.obs_rms_state, obs)
        if name in ("dqn", "pqn"):
            return algorithm.agent.apply(state.q_ts.params, obs[None])[0].argmax()
        actor, params = algorithm.actor, state.actor_ts.params
        if name == "td3":
            return actor.apply(params, obs[None]).squeeze()
        mean = actor.apply(params, obs[None], method="_action_dist").mean()
        return (jnp.tanh(mean) * actor.action_scale + actor.action_loc).squeeze()

    return act


if __name__ == "__main__":
    serve(load)
