"""What auto-reset costs: whole rollouts with random actions, the same but for how an ended episode starts
again.

    every_step   Gymnax's own `step`: a full reset of every environment in every step, and a select
    cond         a reset of every environment in the steps in which at least one episode ended
    pool         ours (rljax/learning/env_rollouts.py): starts drawn ahead for a rollout, each handed out once

python benchmarks/auto_reset.py [--cores 0] [--rounds 7]     # interleaved medians, JSON under
benchmarks/results/
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
parser.add_argument("--cores", default="0", help="cores to run on, such as 0 or 0,1")
parser.add_argument("--rounds", type=int, default=7)
parser.add_argument("--steps", type=int, default=128, help="T of one rollout")

CASES = [("CartPole-v1", 64), ("CartPole-v1", 1024), ("Acrobot-v1", 64), ("Breakout-MinAtar", 64)]
MEMBERS = 8


def forms(name: str, num_envs: int, num_steps: int) -> dict[str, Callable[[Any], Any]]:
    """key -> a sum over everything that a rollout returns, so that nothing of it can be left out."""
    import jax
    import jax.numpy as jnp

    from rljax import envs
    from rljax.learning import env_rollouts

    env = envs.make(name)
    n = env.action_space.n  # type: ignore[union-attr]
    draw = lambda key: jax.random.randint(key, (num_envs,), 0, n)
    fresh = lambda key: jax.vmap(env.reset)(jax.random.split(key, num_envs))
    add = lambda tree: sum(jnp.sum(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(tree))

    def stepwise(again: Callable[[Any, Any, Any], Any]) -> Callable[[Any], Any]:
        def step(carry: Any, key: Any) -> Any:
            act_key, env_key, reset_key = jax.random.split(key, 3)
            keys = jax.random.split(env_key, num_envs)
            obs, state, reward, terminated, truncated = jax.vmap(env.step)(keys, carry[1], draw(act_key))
            done = terminated | truncated
            carry = again(reset_key, done, (obs, state))
            return carry, (obs, reward, done)

        def roll(key: Any) -> Any:
            first, rest = jax.random.split(key)
            carry, out = jax.lax.scan(step, fresh(first), jax.random.split(rest, num_steps))
            return add(carry) + add(out)

        return roll

    def select(key: Any, done: Any, now: Any) -> Any:
        rows = lambda x: done.reshape(done.shape + (1,) * (x.ndim - 1))
        return jax.tree.map(lambda new, old: jnp.where(rows(old), new, old), fresh(key), now)

    def cond(key: Any, done: Any, now: Any) -> Any:
        return jax.lax.cond(done.any(), lambda: select(key, done, now), lambda: now)

    def pool(key: Any) -> Any:
        first, rest = jax.random.split(key)
        zero = lambda obs: jnp.zeros(num_envs)
        policy = lambda key, obs: (draw(key), draw(key))
        worlds = env_rollouts.reset(env, first, num_envs)
        return add(env_rollouts.rollout(env, policy, zero, rest, worlds, num_steps))

    return {"every_step": stepwise(select), "cond": stepwise(cond), "pool": pool}


def main() -> None:
    options = parser.parse_args()
    cores = {int(core) for core in options.cores.split(",")}
    os.sched_setaffinity(0, cores)
    os.environ.setdefault("RLJAX_HOST_DEVICES", "1")
    import jax

    from rljax.runs.folder import files

    rows = []
    for name, num_envs in CASES:
        for mapping in ("one", "map", "vmap"):
            members = 1 if mapping == "one" else MEMBERS
            keys = jax.random.split(jax.random.key(0), members)
            compiled = {}
            for form, roll in forms(name, num_envs, options.steps).items():
                over = (
                    jax.vmap(roll) if mapping == "vmap" else lambda keys, roll=roll: jax.lax.map(roll, keys)
                )
                compiled[form] = jax.jit(over).lower(keys).compile()
                jax.block_until_ready(compiled[form](keys))
            seconds: dict[str, list[float]] = {form: [] for form in compiled}
            for _ in range(options.rounds):
                for form, function in compiled.items():
                    start = time.perf_counter()
                    jax.block_until_ready(function(keys))
                    seconds[form].append(time.perf_counter() - start)
            medians = {form: statistics.median(times) for form, times in seconds.items()}
            steps = members * num_envs * options.steps
            row = {"env": name, "num_envs": num_envs, "members": members, "mapping": mapping} | {
                form: round(steps / median) for form, median in medians.items()
            }
            rows.append(row)
            print(json.dumps(row), flush=True)
    slug = re.sub(r"\W+", "-", files.device()).strip("-").lower()
    path = Path(__file__).parent / "results" / f"auto_reset_{slug}.json"
    content = {
        "device": files.device(),
        "affinity": sorted(cores),
        "unit": "environment steps per second, medians",
    }
    path.write_text(json.dumps(content | {"versions": files.versions(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
