"""Methods with a replay on minibatches made by hand: their updates computed again in numpy and float64.

`off_policy.cycle` is replaced by one that hands three minibatches to `learn`, with importance weights, some
transitions that end and some of several steps. Networks are linear, and target networks are not copies.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.algorithms import c51, ddpg, discrete_sac, dqn, iqn, qrdqn, rainbow, sac, td3
from rljax.learning import env_rollouts, off_policy
from rljax.learning.replay import Batch
from rljax.models import ActorCritic
from rljax.types import Box, Discrete, Env, Network
from tests.updates import numeric
from tests.updates.numeric import Adam, Params, log_softmax

B, UPDATES, ACTIONS = 5, 3, 3
FIRST = 3  # updates before these, so that the second of them is a multiple of 5, and the first one of 4
SIZES: dict[str, Any] = {
    "num_envs": 2, "num_steps": 4, "learning_starts": 16, "batch_size": B, "buffer_size": 64,
    "schedule": "constant",
}  # fmt: skip
LEARNT = {**SIZES, "learning_rate": 0.1, "adam_epsilon": 0.1, "target_rate": 0.3}
VALUED = {**LEARNT, "max_grad_norm": 0.2, "target_every": 2}
UNCLIPPED = {"max_grad_norm": 100.0}  # where a gradient is clipped, its scale shows nowhere


class Minibatch(NamedTuple):
    """As float64, what `Batch` has as float32."""

    obs: Any  # (B, 2)
    action: Any  # (B,) or (B, 1)
    reward: Any  # (B,)
    discount: Any  # (B,)
    next_obs: Any  # (B, 2)
    weight: Any  # (B,)


def minibatches(continuous: bool = False) -> list[Minibatch]:
    rng, found = np.random.default_rng(4), []
    for _ in range(UPDATES):
        normal = lambda *shape: rng.normal(size=shape).astype(np.float32).astype(np.float64)
        action = np.tanh(normal(B, 1)) if continuous else rng.integers(0, ACTIONS, B)
        if continuous:
            action = action.astype(np.float32).astype(np.float64)
        weight = rng.uniform(0.2, 1, B).astype(np.float32).astype(np.float64)
        discount = np.float32([0.9, 0.0, 0.81, 0.9, 0.9]).astype(np.float64)
        found.append(Minibatch(normal(B, 2), action, 2 * normal(B), discount, normal(B, 2), weight))
    return found


class Learnt(NamedTuple):
    params: Any
    target_params: Any
    priority: Any  # (UPDATES, B)


def reset(key: Any) -> Any:
    return jnp.zeros(2), ()


def step(key: Any, state: Any, action: Any) -> Any:
    return jnp.zeros(2), (), jnp.float32(0), jnp.bool_(False), jnp.bool_(False)


KEYS = jax.random.split(jax.random.key(7), UPDATES)


def learnt(module: Any, config: Any, network: Any, params: Any, target: Any, continuous: bool) -> Learnt:
    """After three updates of the program."""

    def cycle(
        env: Any, replay: Any, act: Any, learn: Any, key: Any, worlds: Any, ring: Any, *rest: Any
    ) -> Any:
        learner, noise, *_ = rest

        def update(learner: Any, inputs: Any) -> Any:
            key, batch, count = inputs
            learner, priority, measures = learn(key, learner, batch, count)
            return learner, (priority, measures)

        columns = [np.stack(each) for each in zip(*minibatches(continuous), strict=True)]
        columns = [jnp.asarray(x, jnp.float32 if x.dtype == np.float64 else jnp.int32) for x in columns]
        batches = Batch(*columns, index=jnp.zeros((UPDATES, B), jnp.int32))
        counts = FIRST + jnp.arange(UPDATES, dtype=jnp.int32)
        learner, (priority, measures) = jax.lax.scan(update, learner, (KEYS, batches, counts))
        episodes = env_rollouts.no_episodes()
        return off_policy.Cycle(worlds, priority, learner, noise, worlds.obs[None], episodes, measures)

    action_space = Box(-1.0, 1.0, (1,)) if continuous else Discrete(ACTIONS)
    env = Env("nowhere", reset, step, Box(-1.0, 1.0, (2,)), action_space)

    @jax.jit
    def run(params: Any, target: Any) -> Any:
        algorithm = module.make(env, config, network)
        state = algorithm.init(jax.random.key(0)).replace(params=params, target_params=target)
        return algorithm.step(jax.random.key(1), state)[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(off_policy, "warm_up", lambda *given: (given[5], (), given[5].obs[None]))
        patch.setattr(off_policy, "cycle", cycle)
        narrow = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)
        state = run(narrow(params), narrow(target))
    return Learnt(state.params, state.target_params, np.asarray(state.ring))


def table(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def followed(config: Any, params: Params, target: Params, number: int) -> Params:
    """The target network after update `number`, counted from 0."""
    if (number + 1) % config.target_every:
        return target
    rate = config.target_rate
    return {name: (1 - rate) * old + rate * params[name] for name, old in target.items()}


# Action values and their distributions.


class Valued:
    """dqn, c51, qrdqn and iqn by hand: a loss of each transition, clipped gradients, one Adam."""

    def __init__(self, config: Any, params: Any, target: Any) -> None:
        self.config, self.adam = config, Adam(config.adam_epsilon)
        self.params, self.target = numeric.wide(params), numeric.wide(target)
        self.priority: list[np.ndarray] = []

    def q(self, params: Params, obs: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def goal(self, batch: Minibatch, key: Any) -> Any:
        raise NotImplementedError

    def losses(self, params: Params, batch: Minibatch, goal: Any, key: Any) -> tuple[np.ndarray, np.ndarray]:
        """The loss and the priority of each transition, (B,) both."""
        raise NotImplementedError

    def run(self) -> None:
        for number, (batch, key) in enumerate(zip(minibatches(), KEYS, strict=True), FIRST):
            goal = self.goal(batch, key)
            self.priority.append(self.losses(self.params, batch, goal, key)[1] + 1e-6)

            def loss(params: Params, batch: Any = batch, goal: Any = goal, key: Any = key) -> float:
                return (batch.weight * self.losses(params, batch, goal, key)[0]).mean()

            gradients = numeric.gradient(loss, self.params)
            gradients = numeric.clipped(gradients, self.config.max_grad_norm)
            self.params = self.adam.step(self.params, gradients, self.config.learning_rate)
            self.target = followed(self.config, self.params, self.target, number)

    def best(self, batch: Minibatch) -> np.ndarray:
        """The action that follows, (B,): the target network's choice, or the online one's."""
        chooser = self.params if self.config.target == "double" else self.target
        return self.q(chooser, batch.next_obs).argmax(-1)

    def policy(self, obs: np.ndarray) -> np.ndarray:
        """τ log π⁻ (B, A) of the Munchausen target."""
        tau = self.config.entropy_temperature
        return tau * log_softmax(self.q(self.target, obs) / tau)

    def bonus(self, batch: Minibatch) -> np.ndarray:
        own = self.policy(batch.obs)[np.arange(B), batch.action]
        return self.config.munchausen_scale * np.clip(own, self.config.munchausen_low, 0)


def compare(by_hand: Valued, module: Any, network: Network, start: Any, target: Any) -> None:
    by_hand.run()
    found = learnt(module, by_hand.config, network, start, target, False)
    numeric.agree(found.params, by_hand.params, numeric.wide(start))
    numeric.agree(found.target_params, by_hand.target, numeric.wide(target))
    np.testing.assert_allclose(found.priority, by_hand.priority, rtol=1e-3, atol=1e-5)


class DQN(Valued):
    def q(self, params: Params, obs: np.ndarray) -> np.ndarray:
        return obs @ params["q"]

    def goal(self, batch: Minibatch, key: Any) -> np.ndarray:
        following = self.q(self.target, batch.next_obs)
        if self.config.target != "munchausen":
            return batch.reward + batch.discount * following[np.arange(B), self.best(batch)]
        tau = self.config.entropy_temperature
        soft = tau * np.log(np.exp(following / tau).sum(-1))
        return batch.reward + self.bonus(batch) + batch.discount * soft

    def losses(self, params: Params, batch: Minibatch, goal: Any, key: Any) -> tuple[np.ndarray, np.ndarray]:
        error = np.abs(self.q(params, batch.obs)[np.arange(B), batch.action] - goal)
        huber = np.where(error < 1, error**2 / 2, error - 0.5)
        return huber if self.config.loss == "huber" else error**2 / 2, error


Q_NETWORK = Network(
    lambda key, obs: {"q": jnp.zeros((2, ACTIONS))}, lambda p, obs: jnp.tensordot(obs, p["q"], 1)
)
MUNCHAUSEN = {"target": "munchausen", "entropy_temperature": 0.4, "munchausen_low": -0.5}


@pytest.mark.parametrize(
    "fields",
    [
        {"target": "max", "loss": "huber"},
        {"target": "double", "loss": "squared", **UNCLIPPED, "target_every": 1},
        {**MUNCHAUSEN, "munchausen_scale": 0.7},
    ],
    ids=["max", "double", "munchausen"],
)
def test_three_updates_of_dqn(fields: dict[str, Any]) -> None:
    start, target = {"q": table(1, 2, ACTIONS)}, {"q": table(2, 2, ACTIONS)}
    compare(DQN(dqn.Config(**VALUED | fields), start, target), dqn, Q_NETWORK, start, target)


class C51(Valued):
    def logs(self, params: Params, obs: np.ndarray) -> np.ndarray:
        return log_softmax(np.einsum("bi,iam->bam", obs, params["logits"]))

    def q(self, params: Params, obs: np.ndarray) -> np.ndarray:
        return np.exp(self.logs(params, obs)) @ self.support

    @property
    def support(self) -> np.ndarray:
        return np.linspace(self.config.value_low, self.config.value_high, self.config.atoms)

    def goal(self, batch: Minibatch, key: Any) -> np.ndarray:
        """Each atom's mass goes to the two atoms beside r + γ z, the more to the nearer."""
        probability = np.exp(self.logs(self.target, batch.next_obs))[np.arange(B), self.best(batch)]
        low, high, last = self.config.value_low, self.config.value_high, self.config.atoms - 1
        goal = np.zeros((B, last + 1))
        for row in range(B):
            for atom, z in enumerate(self.support):
                moved = np.clip(batch.reward[row] + batch.discount[row] * z, low, high)
                place = (moved - low) / (high - low) * last
                below = min(int(place), last - 1)
                goal[row, below] += probability[row, atom] * (below + 1 - place)
                goal[row, below + 1] += probability[row, atom] * (place - below)
        return goal

    def losses(self, params: Params, batch: Minibatch, goal: Any, key: Any) -> tuple[np.ndarray, np.ndarray]:
        logs = self.logs(params, batch.obs)[np.arange(B), batch.action]
        entropy = -(goal * np.log(np.where(goal > 0, goal, 1))).sum(-1)
        cross = -(goal * logs).sum(-1)
        return cross, cross - entropy


ATOMS = 5
C51_NETWORK = Network(
    lambda key, obs: {"logits": jnp.zeros((2, ACTIONS, ATOMS))},
    lambda p, obs: jnp.tensordot(obs, p["logits"], 1),
)


@pytest.mark.parametrize(("module", "target"), [(c51, "double"), (c51, "max"), (rainbow, "double")])
def test_three_updates_of_c51_and_rainbow(module: Any, target: str) -> None:
    fields = VALUED | (UNCLIPPED if target == "max" else {})
    config = module.Config(**fields, target=target, atoms=ATOMS, value_low=-2.0, value_high=3.0)
    start, other = {"logits": table(1, 2, ACTIONS, ATOMS)}, {"logits": table(2, 2, ACTIONS, ATOMS)}
    compare(C51(config, start, other), module, C51_NETWORK, start, other)


def quantile_losses(z: np.ndarray, goal: np.ndarray, tau: np.ndarray, kappa: float) -> np.ndarray:
    """Σ_i mean_j |τ_i − 1{δ < 0}| huber_κ(δ) / κ, δ = y_j − z_i, of (B, K), (B, J) and (B, K)."""
    delta = goal[:, None, :] - z[:, :, None]
    size = np.abs(delta)
    huber = np.where(size < kappa, delta**2 / 2, kappa * (size - kappa / 2))
    return (np.abs(tau[:, :, None] - (delta < 0)) * huber / kappa).mean(2).sum(1)


class QRDQN(Valued):
    def z(self, params: Params, obs: np.ndarray) -> np.ndarray:
        return np.einsum("bi,iak->bak", obs, params["z"])

    def q(self, params: Params, obs: np.ndarray) -> np.ndarray:
        return self.z(params, obs).mean(-1)

    def following(self, batch: Minibatch, z: np.ndarray) -> np.ndarray:
        """y (B, K) of the target network's quantiles z (B, A, K) at what follows."""
        if self.config.target != "munchausen":
            chosen = z[np.arange(B), self.best(batch)]
            return batch.reward[:, None] + batch.discount[:, None] * chosen
        scaled = self.policy(batch.next_obs)[:, :, None]
        soft = (np.exp(scaled / self.config.entropy_temperature) * (z - scaled)).sum(1)
        return (batch.reward + self.bonus(batch))[:, None] + batch.discount[:, None] * soft

    def goal(self, batch: Minibatch, key: Any) -> np.ndarray:
        return self.following(batch, self.z(self.target, batch.next_obs))

    def losses(self, params: Params, batch: Minibatch, goal: Any, key: Any) -> tuple[np.ndarray, np.ndarray]:
        z = self.z(params, batch.obs)[np.arange(B), batch.action]
        tau = np.broadcast_to((np.arange(4) + 0.5) / 4, z.shape)
        return quantile_losses(z, goal, tau, self.config.kappa), np.abs(goal.mean(1) - z.mean(1))


QR_NETWORK = Network(
    lambda key, obs: {"z": jnp.zeros((2, ACTIONS, 4))}, lambda p, obs: jnp.tensordot(obs, p["z"], 1)
)


@pytest.mark.parametrize("fields", [{"target": "max"}, {"target": "double", **UNCLIPPED}, MUNCHAUSEN])
def test_three_updates_of_qrdqn(fields: dict[str, Any]) -> None:
    config = qrdqn.Config(**VALUED | fields, quantiles=4, kappa=0.5)
    start, target = {"z": table(1, 2, ACTIONS, 4)}, {"z": table(2, 2, ACTIONS, 4)}
    compare(QRDQN(config, start, target), qrdqn, QR_NETWORK, start, target)


class IQN(QRDQN):
    """z(s, a; τ) = s w_a + τ s v_a; the fractions of each update are drawn as the program draws them."""

    def at(self, params: Params, obs: np.ndarray, tau: np.ndarray) -> np.ndarray:
        return (obs @ params["w"])[:, :, None] + (obs @ params["v"])[:, :, None] * tau[:, None, :]

    def q(self, params: Params, obs: np.ndarray) -> np.ndarray:
        middle = np.broadcast_to((np.arange(3) + 0.5) / 3, (len(obs), 3))
        return self.at(params, obs, middle).mean(-1)

    def fractions(self, key: Any) -> tuple[np.ndarray, np.ndarray]:
        one, two = jax.random.split(key)
        drawn = jax.random.uniform(one, (B, 4)), jax.random.uniform(two, (B, 6))
        return np.asarray(drawn[0], np.float64), np.asarray(drawn[1], np.float64)

    def goal(self, batch: Minibatch, key: Any) -> np.ndarray:
        return self.following(batch, self.at(self.target, batch.next_obs, self.fractions(key)[1]))

    def losses(self, params: Params, batch: Minibatch, goal: Any, key: Any) -> tuple[np.ndarray, np.ndarray]:
        tau = self.fractions(key)[0]
        z = self.at(params, batch.obs, tau)[np.arange(B), batch.action]
        return quantile_losses(z, goal, tau, self.config.kappa), np.abs(goal.mean(1) - z.mean(1))


def implicit(params: Any, obs: Any, tau: Any) -> Any:
    base, slope = (jnp.tensordot(obs, params[name], 1)[..., None] for name in ("w", "v"))
    return base + slope * jnp.expand_dims(tau, -2)


@pytest.mark.parametrize("fields", [{"target": "double"}, {**MUNCHAUSEN, **UNCLIPPED}])
def test_three_updates_of_iqn(fields: dict[str, Any]) -> None:
    sizes = {"num_quantiles": 4, "num_target_quantiles": 6, "num_policy_quantiles": 3}
    config = iqn.Config(**VALUED | fields | sizes, kappa=0.5)
    start, target = ({"w": table(s, 2, ACTIONS), "v": table(s + 4, 2, ACTIONS)} for s in (1, 2))
    zeros = {"w": jnp.zeros((2, ACTIONS)), "v": jnp.zeros((2, ACTIONS))}
    compare(IQN(config, start, target), iqn, Network(lambda *_: zeros, implicit), start, target)


# Continuous actions: one number a, features of (s, a) that are not linear in it.


def features(obs: Any, action: Any, xp: Any = np) -> Any:
    """(..., 5)."""
    return xp.concatenate([obs, action, obs[..., :1] * action, -(action**2)], -1)


def value(params: Params, obs: np.ndarray, action: np.ndarray) -> np.ndarray:
    return features(obs, action) @ params["w"]


CRITIC = Network(lambda *_: {"w": jnp.zeros(5)}, lambda p, obs, action: features(obs, action, jnp) @ p["w"])
ACTOR = Network(lambda *_: {"m": jnp.zeros((2, 1))}, lambda p, obs: jnp.tanh(jnp.tensordot(obs, p["m"], 1)))
ACTORS = {"m": table(1, 2, 1)}, {"m": table(2, 2, 1)}  # online and target
ONE_CRITIC = {"w": table(3, 5)}, {"w": table(4, 5)}
TWO_CRITICS = {"w": table(3, 2, 5)}, {"w": table(4, 2, 5)}


def test_three_updates_of_ddpg() -> None:
    config = ddpg.Config(**LEARNT, actor_learning_rate=0.05, target_every=2)
    actor, actor_target = map(numeric.wide, ACTORS)
    critic, critic_target = map(numeric.wide, ONE_CRITIC)
    adams, priority = (Adam(0.1), Adam(0.1)), []
    for number, batch in enumerate(minibatches(continuous=True), FIRST):
        action = np.tanh(batch.next_obs @ actor_target["m"])
        y = batch.reward + batch.discount * value(critic_target, batch.next_obs, action)
        priority.append(np.abs(value(critic, batch.obs, batch.action) - y) + 1e-6)
        error = lambda p, b=batch, y=y: (b.weight * (value(p, b.obs, b.action) - y) ** 2 / 2).mean()
        critic = adams[0].step(critic, numeric.gradient(error, critic), 0.1)
        loss = lambda p, b=batch, q=critic: -value(q, b.obs, np.tanh(b.obs @ p["m"])).mean()
        actor = adams[1].step(actor, numeric.gradient(loss, actor), 0.05)
        actor_target = followed(config, actor, actor_target, number)
        critic_target = followed(config, critic, critic_target, number)
    both = [ddpg.Params(*parts) for parts in zip(ACTORS, ONE_CRITIC, strict=True)]
    found = learnt(ddpg, config, ActorCritic(ACTOR, CRITIC), *both, True)
    numeric.agree(found.params.actor, actor, numeric.wide(ACTORS[0]))
    numeric.agree(found.params.critic, critic, numeric.wide(ONE_CRITIC[0]))
    numeric.agree(found.target_params.actor, actor_target, numeric.wide(ACTORS[1]))
    numeric.agree(found.target_params.critic, critic_target, numeric.wide(ONE_CRITIC[1]))
    np.testing.assert_allclose(found.priority, priority, rtol=1e-3)


def both_values(params: Params, obs: np.ndarray, action: np.ndarray) -> np.ndarray:
    """(2, B) of two critics."""
    return np.stack([value({"w": w}, obs, action) for w in params["w"]])


def critics_step(adam: Adam, critic: Params, batch: Minibatch, y: np.ndarray) -> tuple[Params, np.ndarray]:
    """Both critics moved towards y, and the priorities."""

    def loss(params: Params) -> float:
        errors = both_values(params, batch.obs, batch.action) - y
        return (batch.weight * (errors**2).sum(0) / 2).mean()

    priority = np.abs(both_values(critic, batch.obs, batch.action) - y).mean(0) + 1e-6
    return adam.step(critic, numeric.gradient(loss, critic), 0.1), priority


def test_three_updates_of_td3() -> None:
    """The second of them is due to move the actor and the targets."""
    config = td3.Config(**LEARNT, target_noise=0.6, target_noise_clip=0.4, policy_delay=5)
    actor, actor_target = map(numeric.wide, ACTORS)
    critic, critic_target = map(numeric.wide, TWO_CRITICS)
    adams, priorities = (Adam(0.1), Adam(0.1)), []
    for number, (batch, key) in enumerate(zip(minibatches(continuous=True), KEYS, strict=True), FIRST):
        noise = np.clip(0.6 * np.asarray(jax.random.normal(key, (B, 1)), np.float64), -0.4, 0.4)
        action = np.clip(np.tanh(batch.next_obs @ actor_target["m"]) + noise, -1, 1)
        y = batch.reward + batch.discount * both_values(critic_target, batch.next_obs, action).min(0)
        critic, priority = critics_step(adams[0], critic, batch, y)
        priorities.append(priority)
        if (number + 1) % 5 == 0:
            first = {"w": critic["w"][0]}
            loss = lambda p, b=batch, q=first: -value(q, b.obs, np.tanh(b.obs @ p["m"])).mean()
            actor = adams[1].step(actor, numeric.gradient(loss, actor), 0.1)
            actor_target = {name: 0.7 * old + 0.3 * actor[name] for name, old in actor_target.items()}
            critic_target = {name: 0.7 * old + 0.3 * critic[name] for name, old in critic_target.items()}
    both = [td3.Params(*parts) for parts in zip(ACTORS, TWO_CRITICS, strict=True)]
    found = learnt(td3, config, ActorCritic(ACTOR, CRITIC), *both, True)
    numeric.agree(found.params.actor, actor, numeric.wide(ACTORS[0]))
    numeric.agree(found.params.critic, critic, numeric.wide(TWO_CRITICS[0]))
    numeric.agree(found.target_params.actor, actor_target, numeric.wide(ACTORS[1]))
    numeric.agree(found.target_params.critic, critic_target, numeric.wide(TWO_CRITICS[1]))
    np.testing.assert_allclose(found.priority, priorities, rtol=1e-3)


def drawn(params: Params, obs: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squashed actions (B, 1) and their log-densities (B,), by the change of variables."""
    log_std = obs @ params["s"]
    raw = obs @ params["m"] + np.exp(log_std) * noise
    log_normal = -(noise**2) / 2 - log_std - np.log(2 * np.pi) / 2
    return np.tanh(raw), (log_normal - np.log(1 - np.tanh(raw) ** 2))[:, 0]


@pytest.mark.parametrize("temperature", ["automatic", "fixed"])
def test_three_updates_of_sac(temperature: str) -> None:
    config = sac.Config(**LEARNT, target_entropy_ratio=0.6, temperature=temperature, target_every=2)
    start = {"m": table(1, 2, 1), "s": table(2, 2, 1)}
    actor, log_alpha = numeric.wide(start), numeric.wide({"log": np.float32(-1)})
    critic, critic_target = map(numeric.wide, TWO_CRITICS)
    adams, priorities = [Adam(0.1) for _ in range(3)], []
    for number, (batch, key) in enumerate(zip(minibatches(continuous=True), KEYS, strict=True), FIRST):
        noise = np.asarray(jax.random.normal(key, (2, B, 1)), np.float64)
        alpha = np.exp(log_alpha["log"])
        action, log_prob = drawn(actor, batch.next_obs, noise[0])
        best = both_values(critic_target, batch.next_obs, action).min(0)
        y = batch.reward + batch.discount * (best - alpha * log_prob)
        critic, priority = critics_step(adams[0], critic, batch, y)
        priorities.append(priority)

        def loss(params: Params, b: Any = batch, n: Any = noise[1], q: Any = critic, a: Any = alpha) -> float:
            action, log_prob = drawn(params, b.obs, n)
            return (a * log_prob - both_values(q, b.obs, action).min(0)).mean()

        entropy = -drawn(actor, batch.obs, noise[1])[1].mean()
        actor = adams[1].step(actor, numeric.gradient(loss, actor), 0.1)
        if temperature == "automatic":  # H = −0.6
            log_alpha = adams[2].step(log_alpha, {"log": alpha * (entropy + 0.6)}, 0.1)
        critic_target = followed(config, critic, critic_target, number)

    def gaussian(params: Any, obs: Any) -> Any:
        return jnp.tensordot(obs, params["m"], 1), jnp.tensordot(obs, params["s"], 1)

    network = ActorCritic(
        Network(lambda *_: {"m": jnp.zeros((2, 1)), "s": jnp.zeros((2, 1))}, gaussian), CRITIC
    )
    found = learnt(sac, config, network, sac.Params(start, TWO_CRITICS[0], -1.0), TWO_CRITICS[1], True)
    numeric.agree(found.params.actor, actor, numeric.wide(start))
    numeric.agree(found.params.critic, critic, numeric.wide(TWO_CRITICS[0]))
    numeric.agree(found.target_params, critic_target, numeric.wide(TWO_CRITICS[1]))
    np.testing.assert_allclose(found.params.log_temperature, log_alpha["log"], atol=1e-5)
    assert (log_alpha["log"] != -1) == (temperature == "automatic")
    np.testing.assert_allclose(found.priority, priorities, rtol=1e-3)


def test_three_updates_of_discrete_sac() -> None:
    config = discrete_sac.Config(**LEARNT, target_entropy_ratio=0.4, target_every=2)
    start, critics, targets = {"l": table(1, 2, 3)}, {"q": table(3, 2, 2, 3)}, {"q": table(4, 2, 2, 3)}
    actor, critic, target = map(numeric.wide, (start, critics, targets))
    log_alpha, adams, priorities = numeric.wide({"log": np.float32(-1)}), [Adam(0.1) for _ in range(3)], []
    values = lambda params, obs: np.einsum("bi,cia->cba", obs, params["q"])
    for number, batch in enumerate(minibatches(), FIRST):
        alpha = np.exp(log_alpha["log"])

        def soft(actor: Params, critic: Params, obs: np.ndarray, alpha: Any = alpha) -> np.ndarray:
            logs = log_softmax(obs @ actor["l"])
            return (np.exp(logs) * (values(critic, obs).min(0) - alpha * logs)).sum(-1)

        y = batch.reward + batch.discount * soft(actor, target, batch.next_obs)

        def errors(critic: Params, batch: Any = batch, y: Any = y) -> np.ndarray:
            return values(critic, batch.obs)[:, np.arange(B), batch.action] - y

        priorities.append(np.abs(errors(critic)).mean(0) + 1e-6)
        loss = lambda critic, b=batch, e=errors: (b.weight * (e(critic) ** 2).sum(0) / 2).mean()
        critic = adams[0].step(critic, numeric.gradient(loss, critic), 0.1)
        logs = log_softmax(batch.obs @ actor["l"])
        entropy = -(np.exp(logs) * logs).sum(-1).mean()
        climb = lambda actor, b=batch, s=soft, c=critic: -s(actor, c, b.obs).mean()
        actor = adams[1].step(actor, numeric.gradient(climb, actor), 0.1)
        log_alpha = adams[2].step(log_alpha, {"log": alpha * (entropy - 0.4 * np.log(3))}, 0.1)
        target = followed(config, critic, target, number)
    zeros = {"l": jnp.zeros((2, 3))}, {"q": jnp.zeros((2, 3))}
    network = ActorCritic(
        Network(lambda *_: zeros[0], lambda p, obs: jnp.tensordot(obs, p["l"], 1)),
        Network(lambda *_: zeros[1], lambda p, obs: jnp.tensordot(obs, p["q"], 1)),
    )
    found = learnt(discrete_sac, config, network, discrete_sac.Params(start, critics, -1.0), targets, False)
    numeric.agree(found.params.actor, actor, numeric.wide(start))
    numeric.agree(found.params.critic, critic, numeric.wide(critics))
    numeric.agree(found.target_params, target, numeric.wide(targets))
    np.testing.assert_allclose(found.params.log_temperature, log_alpha["log"], atol=1e-5)
    np.testing.assert_allclose(found.priority, priorities, rtol=1e-3)
