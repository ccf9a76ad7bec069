"""PPO, A2C, PQN and TRPO on steps made by hand: whole cycles computed again in numpy and float64.

`vector.rollout` is replaced by a `Tape` of 4 steps of 2 environments. The networks are linear in two numbers,
so that numpy needs nothing but the formulas of the docstrings, and differences for derivatives.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.algorithms import a2c, ppo, pqn, trpo
from rljax.learning import env_rollouts
from rljax.math.normalizers import REWARD_SCALERS
from rljax.types import Box, Discrete, Env, Network
from tests.updates import numeric
from tests.updates.numeric import Adam, Params, log_softmax

T, N, ACTIONS = 4, 2, 3
SIZES = {"num_envs": N, "num_steps": T}
RUN = {"total_steps": 10.0 * T * N, "discount": 0.9, "trace_decay": 0.7}
FIRST = 2  # the iteration that begins: a fifth of the run is over


class Tape(NamedTuple):
    """What a rollout would have brought."""

    obs: Any  # (T, N, 2)
    action: Any  # (T, N)
    reward: Any  # (T, N)
    terminated: Any  # (T, N)
    truncated: Any  # (T, N)
    final: Any  # (T, N, 2) true next observations
    last: Any  # (N, 2) after the last step


def tape(seed: int) -> Tape:
    """Of the first environment step 1 ends the episode (and is cut as well), of the second step 2 is cut."""
    rng = np.random.default_rng(seed)
    terminated, truncated = np.zeros((2, T, N), bool)
    terminated[1, 0] = truncated[1, 0] = truncated[2, 1] = True
    float32 = lambda *shape: rng.normal(size=shape).astype(np.float32)
    action = rng.integers(0, ACTIONS, (T, N)).astype(np.int32)
    return Tape(
        float32(T, N, 2), action, 2 * float32(T, N), terminated, truncated, float32(T, N, 2), float32(N, 2)
    )


TAPES = [tape(1), tape(2)]
POLICY = np.random.default_rng(3).normal(size=(2, ACTIONS)).astype(np.float32)
VALUE = np.array([0.3, -0.4], np.float32)


def reset(key: Any) -> Any:
    return jnp.zeros(2), ()


def step(key: Any, state: Any, action: Any) -> Any:
    return jnp.zeros(2), (), jnp.float32(0), jnp.bool_(False), jnp.bool_(False)


ENV = Env("nowhere", reset, step, Box(-1.0, 1.0, (2,)), Discrete(ACTIONS))


def network(policy: np.ndarray) -> Network:
    """Three logits and a value, linear in two numbers."""
    params = {"policy": jnp.asarray(policy), "value": jnp.asarray(VALUE)}
    of = lambda params, obs, name: jnp.tensordot(obs, params[name], 1)
    return Network(
        lambda *_: params, lambda params, obs: (of(params, obs, "policy"), of(params, obs, "value"))
    )


NETWORK = network(POLICY)
Q_NETWORK = Network(
    lambda key, obs: {"q": jnp.asarray(POLICY)}, lambda params, obs: jnp.tensordot(obs, params["q"], 1)
)


def cycles(module: Any, config: Any, network: Network, tapes: list[Tape]) -> Any:
    """The State after one iteration with each of the tapes, of a run that has come to iteration FIRST."""

    def rollout(tape: Tape) -> Any:
        def played(env: Any, policy: Any, bootstrap: Any, key: Any, worlds: Any, num_steps: int) -> Any:
            values = jax.vmap(bootstrap)(tape.final)
            final_value = jnp.where(tape.truncated & ~tape.terminated, values, 0.0)
            steps = env_rollouts.Rollout(*tape[:5], final_value)
            return worlds._replace(obs=tape.last), steps, env_rollouts.no_episodes()

        return played

    @jax.jit
    def step(key: Any, state: Any, tape: Tape) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(env_rollouts, "rollout", rollout(tape))
            return module.make(ENV, config, network).step(key, state)[0]

    state = module.make(ENV, config, network).init(jax.random.key(0)).replace(iteration=jnp.int32(FIRST))
    for number, each in enumerate(tapes):
        state = step(jax.random.key(number), state, jax.tree.map(jnp.asarray, each))
    assert int(state.iteration) == FIRST + len(tapes)
    return state


class Learner:
    """What A2C, PPO and TRPO have in common, by hand: statistics, advantages, targets, schedules."""

    def __init__(self, config: Any, params: Params) -> None:
        self.config, self.params, self.iteration = config, params, FIRST
        self.observations: list[np.ndarray] = []
        self.returns: list[np.ndarray] = []
        self.running = np.zeros(N)

    def see(self, obs: Any) -> np.ndarray:
        obs = np.asarray(obs, np.float64)
        if self.config.observation_normalization == "none":
            return obs
        seen = np.concatenate(self.observations) if self.observations else np.array([[1.0], [-1.0]])
        return np.clip((obs - seen.mean(0)) / np.sqrt(seen.var(0) + 1e-8), -10, 10)

    def scaled(self, tape: Tape) -> np.ndarray:
        reward = np.asarray(tape.reward, np.float64)
        if self.config.reward_scaling == "none":
            return reward
        for t in range(T):
            self.running = self.config.discount * self.running + reward[t]
            self.returns.append(self.running)
            self.running = np.where(tape.terminated[t] | tape.truncated[t], 0.0, self.running)
        return np.clip(reward / np.sqrt(np.var(self.returns) + 1e-8), -10, 10)

    def advantages(self, tape: Tape, reward: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Advantages and values (T, N), one environment after the other from its end on."""
        value = lambda obs: self.see(obs) @ self.params["value"]
        advantage = np.zeros((T, N))
        for n in range(N):
            carried = 0.0
            for t in reversed(range(T)):
                if tape.terminated[t, n]:
                    following, carried = 0.0, 0.0
                elif tape.truncated[t, n]:
                    following, carried = value(tape.final[t, n]), 0.0
                else:
                    following = value(tape.last[n] if t == T - 1 else tape.obs[t + 1, n])
                delta = reward[t, n] + self.config.discount * following - value(tape.obs[t, n])
                carried = delta + self.config.discount * self.config.trace_decay * carried
                advantage[t, n] = carried
        return advantage, value(tape.obs)

    def batch(self, tape: Tape) -> dict[str, np.ndarray]:
        """The T · N steps."""
        advantage, value = self.advantages(tape, self.scaled(tape))
        target = advantage + value
        if self.config.advantage_normalization == "batch":
            advantage = white(advantage)
        obs = self.see(tape.obs).reshape(-1, 2)
        self.observations.append(np.asarray(tape.obs, np.float64).reshape(-1, 2))
        rows = {"action": tape.action, "advantage": advantage, "value": value, "target": target}
        rows = {"obs": obs} | {name: each.reshape(-1) for name, each in rows.items()}
        return rows | {"old": log_prob(self.params, rows)[0]}

    def factor(self, kind: str) -> float:
        progress = self.iteration / 10
        return {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + np.cos(np.pi * progress)) / 2}[kind]


def white(x: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / np.sqrt(x.var() + 1e-8)


def log_prob(params: Params, rows: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of the actions, and entropies."""
    logs = log_softmax(rows["obs"] @ params["policy"])
    return logs[np.arange(len(logs)), rows["action"]], -(np.exp(logs) * logs).sum(-1)


class PPO(Learner):
    def __init__(self, config: Any, params: Params) -> None:
        super().__init__(config, params)
        self.adam, self.outside = Adam(config.adam_epsilon), np.zeros(2, int)

    def loss(self, params: Params, rows: dict[str, np.ndarray]) -> float:
        config, epsilon = self.config, self.config.clip * self.factor(self.config.clip_schedule)
        new, entropy = log_prob(params, rows)
        ratio, advantage = np.exp(new - rows["old"]), rows["advantage"]
        if config.advantage_normalization == "minibatch":
            advantage = white(advantage)
        gain = np.minimum(ratio * advantage, np.clip(ratio, 1 - epsilon, 1 + epsilon) * advantage)
        value = rows["obs"] @ params["value"]
        near = rows["value"] + np.clip(value - rows["value"], -epsilon, epsilon)
        error = (value - rows["target"]) ** 2
        if config.value_loss == "clipped":
            error = np.maximum(error, (near - rows["target"]) ** 2)
        self.outside += np.sum(abs(ratio - 1) > epsilon), np.sum(near != value)
        losses = -gain + config.value_coefficient * error / 2 - config.entropy_coefficient * entropy
        return losses.mean()

    def cycle(self, tape: Tape, orders: list[list[int]]) -> None:
        """One epoch for each of `orders`, cut into minibatches."""
        rows = self.batch(tape)
        rate = self.config.learning_rate * self.factor(self.config.schedule)
        for order in orders:
            for part in np.reshape(order, (self.config.num_minibatches, -1)):
                some = {name: each[part] for name, each in rows.items()}
                gradients = numeric.gradient(lambda params, some=some: self.loss(params, some), self.params)
                gradients = numeric.clipped(gradients, self.config.max_grad_norm)
                self.params = self.adam.step(self.params, gradients, rate)
        self.iteration += 1


START = {"policy": POLICY, "value": VALUE}
ORDER = list(range(T * N))
PPO_FIELDS: dict[str, Any] = {
    **SIZES, **RUN, "learning_rate": 0.2, "clip": 0.15, "entropy_coefficient": 0.1, "value_coefficient": 0.8,
    "max_grad_norm": 0.3, "adam_epsilon": 0.05, "num_minibatches": 1,
}  # fmt: skip
PPO_ROWS: dict[str, dict[str, Any]] = {
    "clipped values, whitened minibatches": {"num_epochs": 3, "clip_schedule": "linear"},
    "plain values, whitened batch, running statistics": {
        "num_epochs": 2,
        "clip_schedule": "cosine",
        "schedule": "cosine",
        "value_loss": "plain",
        "advantage_normalization": "batch",
        "observation_normalization": "running",
        "reward_scaling": "running",
    },
    "advantages as they are": {
        "num_epochs": 2,
        "schedule": "constant",
        "advantage_normalization": "none",
        "max_grad_norm": 100.0,
    },
}


@pytest.mark.parametrize("name", PPO_ROWS)
def test_two_cycles_of_ppo(name: str) -> None:
    config = ppo.Config(**PPO_FIELDS | PPO_ROWS[name])
    by_hand = PPO(config, numeric.wide(START))
    for each in TAPES:
        by_hand.cycle(each, [ORDER] * config.num_epochs)
    assert (by_hand.outside > 0).all(), "nothing was clipped"
    numeric.agree(cycles(ppo, config, NETWORK, TAPES).params, by_hand.params, numeric.wide(START))


def test_minibatches_of_ppo_are_whitened_and_taken_one_after_the_other() -> None:
    """Whatever the order: of all ways to cut 8 steps into two minibatches one gives the same parameters."""
    config = ppo.Config(**PPO_FIELDS | {"num_epochs": 1, "num_minibatches": 2})
    found = cycles(ppo, config, NETWORK, TAPES[:1]).params
    distances = []
    for first in itertools.combinations(ORDER, T):
        by_hand = PPO(config, numeric.wide(START))
        by_hand.cycle(TAPES[0], [[*first, *(row for row in ORDER if row not in first)]])
        gaps = [np.abs(np.asarray(found[name]) - right).max() for name, right in by_hand.params.items()]
        distances.append(max(gaps))
    nearest, second, *_ = sorted(distances)
    assert nearest < 1e-5 < 1e-4 < second


class A2C(Learner):
    def __init__(self, config: Any, params: Params) -> None:
        super().__init__(config, params)
        self.adam, self.square = Adam(config.epsilon), dict.fromkeys(params, 0.0)

    def cycle(self, tape: Tape) -> None:
        config, rows = self.config, self.batch(tape)

        def loss(params: Params) -> float:
            new, entropy = log_prob(params, rows)
            error = (rows["obs"] @ params["value"] - rows["target"]) ** 2 / 2
            parts = -new * rows["advantage"] + config.value_coefficient * error
            return (parts - config.entropy_coefficient * entropy).mean()

        gradients = numeric.clipped(numeric.gradient(loss, self.params), config.max_grad_norm)
        rate = config.learning_rate * self.factor(config.schedule)
        if config.optimizer == "adam":
            self.params = self.adam.step(self.params, gradients, rate)
        else:
            for name, g in gradients.items():
                self.square[name] = 0.99 * self.square[name] + 0.01 * g**2
                self.params[name] = self.params[name] - rate * g / np.sqrt(self.square[name] + config.epsilon)
        self.iteration += 1


A2C_FIELDS: dict[str, Any] = {
    **SIZES, **RUN, "learning_rate": 0.02, "entropy_coefficient": 0.1, "value_coefficient": 0.8,
    "max_grad_norm": 0.3, "epsilon": 0.01,
}  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [
        {"optimizer": "rmsprop", "schedule": "linear"},
        {
            "optimizer": "adam",
            "max_grad_norm": 100.0,
            "schedule": "cosine",
            "advantage_normalization": "batch",
            "observation_normalization": "running",
            "reward_scaling": "running",
        },
    ],
    ids=["rmsprop", "adam"],
)
def test_two_cycles_of_a2c(fields: dict[str, Any]) -> None:
    config = a2c.Config(**A2C_FIELDS | fields)
    by_hand = A2C(config, numeric.wide(START))
    for each in TAPES:
        by_hand.cycle(each)
    numeric.agree(cycles(a2c, config, NETWORK, TAPES).params, by_hand.params, numeric.wide(START))


def test_two_cycles_of_pqn() -> None:
    """λ-returns of max q, and RAdam (Liu et al. 2020, algorithm 2), adaptive after the first few updates."""
    config = pqn.Config(
        **SIZES,
        **RUN,
        learning_rate=0.2,
        max_grad_norm=0.5,
        reward_scale=0.5,
        num_epochs=4,
        num_minibatches=1,
    )
    params, adam, norms = numeric.wide({"q": POLICY}), Adam(1e-8), []
    for iteration, each in enumerate(TAPES, FIRST):
        best = lambda obs, params=params: (np.asarray(obs, np.float64) @ params["q"]).max(-1)
        target = np.zeros((T, N))
        for n in range(N):
            for t in reversed(range(T)):
                reward = 0.5 * each.reward[t, n]
                if each.terminated[t, n]:
                    target[t, n] = reward
                elif each.truncated[t, n]:
                    target[t, n] = reward + 0.9 * best(each.final[t, n])
                elif t == T - 1:
                    target[t, n] = reward + 0.9 * best(each.last[n])
                else:
                    following = 0.3 * best(each.obs[t + 1, n]) + 0.7 * target[t + 1, n]
                    target[t, n] = reward + 0.9 * following

        def loss(params: Params, each: Tape = each, target: np.ndarray = target) -> float:
            q = np.asarray(each.obs, np.float64).reshape(-1, 2) @ params["q"]
            return ((q[np.arange(T * N), each.action.reshape(-1)] - target.reshape(-1)) ** 2).mean() / 2

        for _ in range(4):
            gradients = numeric.gradient(loss, params)
            norms.append(np.linalg.norm(gradients["q"]))
            gradients = numeric.clipped(gradients, 0.5)
            adaptive = adam.direction(gradients)["q"]
            t, last = adam.count, 2 / (1 - 0.999) - 1
            length = last - 2 * t * 0.999**t / (1 - 0.999**t)
            if length < 5:
                direction = adam.first["q"] / (1 - 0.9**t)
            else:
                size = (length - 4) * (length - 2) * last / ((last - 4) * (last - 2) * length)
                direction = np.sqrt(size) * adaptive
            params = {"q": params["q"] - 0.2 * (1 - iteration / 10) * direction}
    assert min(norms) < 0.5 < max(norms), "all gradients were clipped, or none"
    found = cycles(pqn, config, Q_NETWORK, TAPES).params
    numeric.agree(found, params, numeric.wide({"q": POLICY}))


class TRPO(Learner):
    """The Fisher matrix of a linear softmax policy in closed form, solved; the line search tried in turn."""

    def __init__(self, config: Any, params: Params) -> None:
        super().__init__(config, params)
        self.adam, self.tried = Adam(1e-5), []

    def cycle(self, tape: Tape) -> None:
        config, rows = self.config, self.batch(tape)
        old, start = log_softmax(rows["obs"] @ self.params["policy"]), self.params

        def objective(params: Params) -> float:
            new, entropy = log_prob(params, rows)
            gain = np.exp(new - rows["old"]) * rows["advantage"] + config.entropy_coefficient * entropy
            return gain.mean()

        def kl(params: Params) -> float:
            new = log_softmax(rows["obs"] @ params["policy"])
            return (np.exp(old) * (old - new)).sum(-1).mean()

        slope = numeric.gradient(objective, {"policy": start["policy"]})["policy"].reshape(-1)
        fisher = np.zeros((slope.size, slope.size))
        for obs, p in zip(rows["obs"], np.exp(old), strict=True):
            fisher += np.kron(np.outer(obs, obs), np.diag(p) - np.outer(p, p)) / len(old)
        fisher += config.damping * np.eye(slope.size)
        direction = np.linalg.solve(fisher, slope)
        direction *= np.sqrt(2 * config.max_kl / (direction @ fisher @ direction))
        for attempt in range(config.line_search_steps):
            step = config.line_search_factor**attempt * direction.reshape(start["policy"].shape)
            candidate = {**start, "policy": start["policy"] + step}
            if objective(candidate) > objective(start) and kl(candidate) <= config.max_kl:
                self.params = candidate
                self.tried.append(attempt)
                break
        error = lambda params: ((rows["obs"] @ params["value"] - rows["target"]) ** 2).mean() / 2
        for _ in range(config.num_value_epochs):
            gradients = numeric.gradient(error, {"value": self.params["value"]})
            moved = self.adam.step({"value": self.params["value"]}, gradients, config.value_learning_rate)
            self.params = self.params | moved
        self.iteration += 1


def test_two_cycles_of_trpo() -> None:
    config = trpo.Config(
        **SIZES, **RUN, max_kl=0.3, damping=0.01, entropy_coefficient=0.1, line_search_factor=0.7,
        value_learning_rate=0.05, num_value_epochs=3, num_minibatches=1, conjugate_gradient_iterations=8,
        reward_scaling="running",
    )  # fmt: skip
    start = {"policy": 2 * POLICY, "value": VALUE}  # sure enough that the second full step goes too far
    by_hand = TRPO(config, numeric.wide(start))
    for each in TAPES:
        by_hand.cycle(each)
    assert by_hand.tried == [0, 1]
    found = cycles(trpo, config, network(2 * POLICY), TAPES).params
    numeric.agree(found, by_hand.params, numeric.wide(start), tolerance=1e-3)


def test_scaled_rewards_are_bounded_and_every_environment_has_its_own_return() -> None:
    """One reward of 1 among 399 of 0 is 20 deviations and more; ±10 is all that is learnt from."""
    reward = np.zeros((200, 2), np.float32)
    reward[100, 1] = 1.0
    done = np.zeros((200, 2), bool)
    scaler = REWARD_SCALERS["running"]
    found, state = scaler.apply(scaler.init(2), jnp.asarray(reward), jnp.asarray(done), 0.5)
    assert 1 / np.sqrt(state.statistics.variance) > 15
    np.testing.assert_array_equal(found, 10 * reward)
    done[100, 1] = True
    ended = scaler.apply(scaler.init(2), jnp.asarray(reward), jnp.asarray(done), 0.5)[1]
    assert ended.statistics.variance < state.statistics.variance
    np.testing.assert_allclose(ended.statistics.variance, reward.var(), rtol=1e-4)
