"""What a user brings, an environment and networks, against every algorithm: taken where it fits, refused in
one line where it does not, before anything is compiled.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import algorithms, envs
from rljax.models import ActorCritic, contract, from_linen, from_nnx
from rljax.types import Box, Discrete, Env, Network

KEY = jax.eval_shape(lambda: jax.random.key(0))
REPLAY = {"num_envs": 2, "num_steps": 4, "learning_starts": 8, "batch_size": 4, "buffer_size": 16}
ROLLOUT = {"num_envs": 2, "num_steps": 4}


class Net(nn.Module):
    """Dense layers to arrays of these shapes, for an observation and what is given beside it."""

    shapes: tuple[tuple[int, ...], ...]
    squash: bool = False

    @nn.compact
    def __call__(self, *inputs: Any) -> Any:
        x = nn.relu(nn.Dense(8)(jnp.concatenate(inputs, axis=-1)))
        outputs = [nn.Dense(int(np.prod(shape)))(x).reshape(*x.shape[:-1], *shape) for shape in self.shapes]
        outputs = [jnp.tanh(each) for each in outputs] if self.squash else outputs
        return outputs[0] if len(outputs) == 1 else tuple(outputs)


class Quantiles(nn.Module):
    """IQN's: (..., 4) and τ (..., K) -> (..., 2, K)."""

    @nn.compact
    def __call__(self, obs: Any, tau: Any) -> Any:
        x = nn.Dense(8)(obs)[..., None, :] * nn.Dense(8)(tau[..., None])
        return jnp.swapaxes(nn.Dense(2)(x), -1, -2)


class Gaussian(nn.Module):
    """(mean, log_std), value."""

    @nn.compact
    def __call__(self, obs: Any) -> Any:
        mean, log_std, value = Net(((1,), (1,), ()))(obs)
        return (mean, log_std), value


def net(*shapes: tuple[int, ...], squash: bool = False) -> Network:
    return from_linen(Net(shapes, squash))


def pair(*actor: tuple[int, ...], squash: bool = False, critic: tuple[int, ...] = ()) -> ActorCritic:
    return ActorCritic(net(*actor, squash=squash), net(critic))


# algorithm: environment, Config, network that fits, networks that do not and what is said of them
TABLE: dict[str, tuple[str, dict[str, Any], Any, list[tuple[Any, str]]]] = {
    "reinforce": ("CartPole-v1", {"num_envs": 2, "num_steps": 4}, net((2,), ()), [(net((2,)), "logits")]),
    "a2c": (
        "CartPole-v1",
        ROLLOUT,
        net((2,), ()),
        [(net((2,), (1,)), r"\(\.\.\., 1\)\) .* value \(\.\.\.\)")],
    ),
    "ppo": (
        "CartPole-v1",
        ROLLOUT,
        net((2,), ()),
        [
            (net((3,), ()), r"gives \(\(\.\.\., 3\), \(\.\.\.\)\) .* must be \(logits \(\.\.\., 2\), value"),
            (net((2,), (1,)), r"must be \(logits \(\.\.\., 2\), value \(\.\.\.\)\)"),
            (net((2,)), r"gives \(\.\.\., 2\) for an observation of CartPole-v1"),
            (pair((2,)), "is an ActorCritic of two: must be one Network"),
            (Net(((2,), ())), "is a Net: must be one Network, as rljax.models.from_linen makes it"),
            (
                Network(lambda key, obs: (), lambda params, obs: obs.nothing),
                "the network fails on observations",
            ),
        ],
    ),
    "ppo-continuous": (
        "Pendulum-v1",
        ROLLOUT,
        from_linen(Gaussian()),
        [(net((1,), ()), r"must be \(\(mean \(\.\.\., 1\), log_std \(\.\.\., 1\)\), value \(\.\.\.\)\)")],
    ),
    "trpo": ("CartPole-v1", ROLLOUT, net((2,), ()), [(net((2, 1), ()), "logits")]),
    "pqn": ("CartPole-v1", ROLLOUT | {"num_minibatches": 2}, net((2,)), [(net((2,), ()), "action values")]),
    "dqn": ("CartPole-v1", REPLAY, net((2,)), [(net((3,)), r"\(\.\.\., 3\) .* action values \(\.\.\., 2\)")]),
    "c51": ("CartPole-v1", REPLAY | {"atoms": 5}, net((2, 5)), [(net((2,)), r"logits \(\.\.\., 2, 5\)")]),
    "rainbow": (
        "CartPole-v1",
        REPLAY | {"atoms": 5},
        net((2, 5)),
        [(net((5, 2)), r"rainbow: .*\.\.\., 2, 5")],
    ),
    "qrdqn": (
        "CartPole-v1",
        REPLAY | {"quantiles": 5},
        net((2, 5)),
        [(net((2,)), r"quantiles \(\.\.\., 2, 5")],
    ),
    "iqn": (
        "CartPole-v1",
        REPLAY,
        from_linen(Quantiles()),
        [(net((2,)), r"quantiles \(\.\.\., 2, 16\)")],
    ),
    "ddpg": ("Pendulum-v1", REPLAY, pair((1,), squash=True), [(pair((2,)), "the actor gives")]),
    "td3": (
        "Pendulum-v1",
        REPLAY,
        pair((1,), squash=True),
        [
            (pair((1,), critic=(1,)), r"the critic gives \(\.\.\., 1\) .* must be value \(\.\.\.\)"),
            (net((1,)), "is a Network: must be a rljax.models.ActorCritic of two Networks, an actor and a"),
        ],
    ),
    "sac": (
        "Pendulum-v1",
        REPLAY,
        pair((1,), (1,)),
        [
            (pair((1,)), r"the actor gives .* must be \(mean \(\.\.\., 1\), log_std \(\.\.\., 1\)\)"),
            (
                ActorCritic(net((1,), (1,)), Network(lambda key, obs: (), lambda p, obs: obs)),
                "the critic fails",
            ),
        ],
    ),
    "discrete_sac": (
        "CartPole-v1",
        REPLAY,
        pair((2,), critic=(2,)),
        [(pair((2,)), r"critic .* action values")],
    ),
}


def made(row: str, network: Any) -> Any:
    env, fields, *_ = TABLE[row]
    module = algorithms.find(row.partition("-")[0]).module
    return module.make(envs.make(env), module.Config(**fields), network)


def test_every_algorithm_with_a_network_has_a_row() -> None:
    tables = {"q_learning", "sarsa", "expected_sarsa", "monte_carlo", "td_lambda"}
    assert {name.partition("-")[0] for name in TABLE} == {
        name for name in algorithms.NAMES if not algorithms.find(name).text
    } - tables


@pytest.mark.parametrize("row", TABLE)
def test_an_own_network_is_taken(row: str) -> None:
    """Traced whole, not compiled: `step` gives a State like that of `init`, with the network's parameters."""
    network = TABLE[row][2]
    algorithm = made(row, network)
    state = jax.eval_shape(algorithm.init, KEY)
    after, _ = jax.eval_shape(algorithm.step, KEY, state)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    names = {jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(state.params)}
    assert any("Dense_0" in name for name in names)


WRONG = [(row, network, message) for row, (*_, wrong) in TABLE.items() for network, message in wrong]


@pytest.mark.parametrize(
    ("row", "network", "message"), WRONG, ids=[f"{i}-{w[0]}" for i, w in enumerate(WRONG)]
)
def test_a_network_that_does_not_fit_is_refused_in_one_line(row: str, network: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        made(row, network)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(row.partition("-")[0])


@pytest.mark.parametrize("inputs", [{}, {"action": (1,)}], ids=["one input", "two inputs"])
def test_nnx_modules_take_the_same_inputs(inputs: dict[str, tuple[int, ...]]) -> None:
    from flax import nnx

    class Module(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.layer = nnx.Linear(3 + len(inputs), 1, rngs=rngs)

        def __call__(self, *given: Any) -> Any:
            return self.layer(jnp.concatenate(given, axis=-1))[..., 0]

    env = envs.make("Pendulum-v1")
    config = algorithms.find("ppo").module.Config()
    contract.check(env, config, from_nnx(Module), contract.Output("value", ()), inputs)


# Environments


def walk(reset: Callable | None = None, step: Callable | None = None, observation_space: Any = None) -> Env:
    first = lambda key: (jnp.zeros(2), {"at": jnp.zeros(2), "time": jnp.int32(0)})

    def go(key: Any, state: Any, action: Any) -> tuple:
        state = {"at": state["at"] + action, "time": state["time"] + 1}
        return state["at"], state, state["at"].sum(), state["at"][0] > 1, state["time"] > 9

    space = Box(-1.0, 1.0, (2,)) if observation_space is None else observation_space
    return Env("Walk", reset or first, step or go, space, Discrete(2), max_steps=10)


def changed(**parts: Any) -> Callable:
    """The step of `walk` with some of what it returns replaced, by functions of it."""
    names = ("observation", "state", "reward", "terminated", "truncated")

    def step(key: Any, state: Any, action: Any) -> tuple:
        found = dict(zip(names, walk().step(key, state, action), strict=True))
        return tuple(parts[name](each) if name in parts else each for name, each in found.items())

    return step


BOTH = {"a": Box(0, 1, (2,)), "b": Box(0, 1, ())}
ENVS = {
    "fits": (walk(), None),
    "four values": (
        walk(step=lambda *given: walk().step(*given)[:4]),
        r"step must return \(obs.*, not 4 values",
    ),
    "reset": (walk(reset=lambda key: jnp.zeros(2)), "reset must return .*, not one array"),
    "raises": (walk(step=lambda key, state, action: state["x"]), "step fails: KeyError: 'x'"),
    "shape": (
        walk(observation_space=Box(-1.0, 1.0, (3,))),
        r"the observation has shape \(2,\), its space says \(3,\)",
    ),
    "one array": (walk(observation_space=BOTH), "do not have the same keys: 'a', 'b' is in one"),
    "key": (
        walk(lambda key: ({"a": jnp.zeros(2)}, ()), lambda *_: 1 / 0, BOTH),
        "the observation and its space do not have the same keys: 'b' is in one of them alone",
    ),
    "state drifts": (
        walk(step=changed(state=lambda state: {**state, "time": state["time"] * 1.0})),
        r"the state\['time'\] is int32 \(\) after reset and float32 \(\) after step",
    ),
    "observation drifts": (
        walk(step=changed(observation=lambda x: x.astype(jnp.int32))),
        r"the observation is float32 \(2,\) after reset and int32 \(2,\) after step",
    ),
    "structure": (walk(step=changed(state=lambda state: ())), "the state has another structure"),
    "reward": (
        walk(step=changed(reward=lambda x: x[None])),
        r"float32 \(1,\) as reward: must be a number of shape",
    ),
    "flag": (walk(step=changed(terminated=jnp.float32)), r"float32 \(\) as terminated: must be a bool"),
}


@pytest.mark.parametrize("case", ENVS)
def test_an_own_environment_is_taken_or_refused_in_one_line(case: str) -> None:
    env, message = ENVS[case]
    config = algorithms.find("a2c").module.Config(num_envs=2, num_steps=4)
    if message is None:
        algorithms.find("a2c").module.make(env, config)
        return
    with pytest.raises(ValueError, match=message) as caught:
        algorithms.find("a2c").module.make(env, config)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("Walk: ")


@pytest.mark.parametrize("name", [name for name in envs.names() if name != "MNISTBandit-bsuite"])
def test_every_environment_keeps_the_contract_and_reinforce_takes_it_as_it_is(name: str) -> None:
    module = algorithms.find("reinforce").module
    assert contract.check_env(envs.make(name)) is not None
    module.make(envs.make(name), module.Config())


# Networks that forbid actions: logits or values of −∞


def fork() -> Env:
    """Three actions, one of them forbidden: it pays NaN. The observation marks it; at the end all are."""
    draw = lambda key: jax.nn.one_hot(jax.random.randint(key, (), 0, 3), 3)

    def reset(key: Any) -> tuple:
        marks = draw(key)
        return marks, marks

    def step(key: Any, state: Any, action: Any) -> tuple:
        end_key, next_key = jax.random.split(key)
        over = jax.random.bernoulli(end_key, 0.3)
        following = jnp.where(over, jnp.ones(3), draw(next_key))
        return following, following, jnp.where(state[action] > 0, jnp.nan, 1.0), over, jnp.bool_(False)

    return Env("Fork", reset, step, Box(0.0, 1.0, (3,)), Discrete(3), truncates_early=False)


def masked(shape: tuple[int, ...] = (3,)) -> Network:
    rows = lambda obs: obs.reshape(*obs.shape, *(1,) * (len(shape) - 1))
    apply = lambda w, obs: jnp.where(rows(obs) > 0, -jnp.inf, jnp.broadcast_to(w, (*obs.shape[:-1], *shape)))
    return Network(lambda key, obs: jnp.zeros(shape), apply)


def masked_quantiles() -> Network:
    def apply(w: Any, obs: Any, tau: Any) -> Any:
        values = jnp.broadcast_to(w, obs.shape)[..., None] * tau[..., None, :]
        return jnp.where(obs[..., None] > 0, -jnp.inf, values)

    return Network(lambda key, obs, tau: jnp.ones(3), apply)


free = Network(lambda key, obs: jnp.zeros(3), lambda w, obs: jnp.broadcast_to(w, obs.shape))
FORBIDDING = {
    "dqn-double": (REPLAY | {"target": "double"}, masked()),
    "dqn-munchausen": (REPLAY | {"target": "munchausen", "epsilon_end": 1.0}, masked()),
    "c51": (REPLAY | {"atoms": 5}, masked((3, 5))),
    "qrdqn": (REPLAY | {"target": "munchausen", "quantiles": 5}, masked((3, 5))),
    "iqn": (REPLAY | {"target": "munchausen"}, masked_quantiles()),
    "pqn": (ROLLOUT | {"num_steps": 16, "num_minibatches": 2}, masked()),
    "discrete_sac": (REPLAY, ActorCritic(masked(), free)),
}


@pytest.mark.parametrize("case", FORBIDDING)
def test_a_forbidden_action_is_never_taken_and_makes_no_nan(case: str) -> None:
    """Neither in the warm-up nor where ε-greedy explores: its reward, NaN, would be in every metric."""
    fields, network = FORBIDDING[case]
    module = algorithms.find(case.partition("-")[0]).module
    algorithm = module.make(fork(), module.Config(**fields), network)
    quick = {"xla_backend_optimization_level": 0}  # to compile
    state = jax.jit(algorithm.init, compiler_options=quick)(jax.random.key(0))
    step = jax.jit(algorithm.step, compiler_options=quick)
    ended = 0
    for i in range(3):
        state, metrics = step(jax.random.key(i), state)
        assert np.isfinite(np.stack([mean.total for mean in metrics])).all()
        ended += int(metrics.episode_return.count)
    assert ended > 0
    if hasattr(state, "ring"):
        assert np.isfinite(state.ring.reward).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


# The bonus for entropy of a squashed policy


@pytest.mark.parametrize("name", ["reinforce", "a2c", "ppo", "trpo"])
def test_the_entropy_of_a_tanh_policy_is_that_of_its_actions(name: str) -> None:
    """With log_std 2 it is −7.06, not the 3.42 before squashing; the bonus alone makes the policy narrower,
    towards uniform actions, where it made it wider.
    """

    def apply(params: Any, obs: Any) -> Any:
        mean = jnp.broadcast_to(params["mean"], (*obs.shape[:-1], 1))
        log_std = jnp.broadcast_to(params["log_std"], mean.shape)
        return (mean, log_std), jnp.broadcast_to(params["value"], obs.shape[:-1])

    start = {"mean": jnp.zeros(1), "log_std": jnp.full(1, 2.0), "value": jnp.zeros(())}
    first = lambda key: (jnp.zeros(1), jnp.zeros(1))
    end = lambda key, state, action: (state, state, jnp.float32(0), jnp.bool_(True), jnp.bool_(False))
    env = Env("Nothing", first, end, Box(-1.0, 1.0, (1,)), Box(-1.0, 1.0, (1,)), max_steps=1)
    module = algorithms.find(name).module
    config = module.Config(num_envs=128, num_steps=16, action_distribution="tanh", entropy_coefficient=0.1)
    algorithm = module.make(env, config, Network(lambda key, obs: start, apply))
    state = algorithm.init(jax.random.key(0))
    step = jax.jit(algorithm.step, compiler_options={"xla_backend_optimization_level": 0})
    after, metrics = step(jax.random.key(1), state)
    # 9 is the deviation of one sample's estimate; TRPO tells the entropy of the narrower policy
    draws = 128 if name == "reinforce" else 2_048
    assert float(metrics.entropy.value) == pytest.approx(
        -7.06, abs=4 * 9 / draws**0.5 + (0.6 if name == "trpo" else 0.2)
    )
    assert float(after.params["log_std"][0]) < 2
