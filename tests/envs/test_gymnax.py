"""Every Gymnax environment through our adapter: types, boundaries, arguments, sweeps, and a user's own."""

import subprocess
import sys

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from gymnax.environments import environment, spaces
from gymnax.wrappers import purerl

from rljax import envs
from rljax.checks import RunError
from rljax.types import Box, Discrete

QUICK = {"xla_backend_optimization_level": 0}  # to compile, not to run
IDS = [name for name in gymnax.registered_envs if name != "MNISTBandit-bsuite"]
CLASSIC = ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0"]
BSUITE = ["Catch-bsuite", "DeepSea-bsuite", "MemoryChain-bsuite", "DiscountingChain-bsuite"]
COMPARED = [*CLASSIC, *BSUITE, "BernoulliBandit-misc", "FourRooms-misc", "FrozenLake-misc"]
# Gymnax declares bounds that these observations leave: MemoryChain's context is ±1, the reward in MetaMaze's
# observation is 10, and GaussianBandit observes a Gaussian reward.
OUT_OF_BOUNDS = {"MemoryChain-bsuite", "MetaMaze-misc", "GaussianBandit-misc"}


def sample(space, key):
    if isinstance(space, Discrete):
        return jax.random.randint(key, (), 0, space.n, space.dtype)
    return jax.random.uniform(key, space.shape, space.dtype, space.low, space.high)


def episode(env, key, num_steps):
    """Observations (T + 1, ...), rewards, terminated and truncated (T,) of random actions, never reset."""
    reset_key, run_key = jax.random.split(key)
    first, state = env.reset(reset_key)

    def step(state, key):
        action_key, step_key = jax.random.split(key)
        observation, state, *rest = env.step(step_key, state, sample(env.action_space, action_key))
        return state, (observation, *rest)

    _, (observations, *rest) = jax.lax.scan(step, state, jax.random.split(run_key, num_steps))
    join = lambda first, others: jnp.concatenate([first[None], others])
    return jax.tree.map(join, first, observations), *rest


@pytest.mark.parametrize("name", IDS)
def test_every_environment_keeps_its_types(name):
    env = envs.make(name)
    key = jax.random.key(0)
    action = jax.eval_shape(lambda: sample(env.action_space, key))
    start = jax.eval_shape(env.reset, key)
    following = jax.eval_shape(env.step, key, start[1], action)
    assert jax.tree.leaves(following[:2]) == jax.tree.leaves(start)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves((start, following)))

    keys = jax.random.split(key, 3)
    play = jax.jit(jax.vmap(lambda key: episode(env, key, 20)), compiler_options=QUICK)
    observation, reward, terminated, truncated = play(keys)
    space = env.observation_space
    assert observation.shape == (3, 21, *space.shape)
    assert observation.dtype == space.dtype
    assert reward.shape == terminated.shape == truncated.shape == (3, 20)
    assert (reward.dtype, terminated.dtype, truncated.dtype) == (jnp.float32, jnp.bool_, jnp.bool_)
    assert np.isfinite(observation).all()
    assert np.isfinite(reward).all()
    if name not in OUT_OF_BOUNDS:
        low, high = (0, space.n - 1) if isinstance(space, Discrete) else (space.low, space.high)
        ended = np.cumsum(terminated | truncated, axis=1)[:, :-1] > 0  # what follows an end is undefined
        seen = np.asarray(observation)[np.pad(~ended, ((0, 0), (2, 0)), constant_values=True)]
        assert (seen >= low - 1e-6).all()
        assert (seen <= high + 1e-6).all()


@pytest.mark.parametrize("name", COMPARED)
def test_a_step_is_gymnax_s_own_without_the_reset(name):
    """From the same state, with the key that Gymnax hands to `step_env`, over several ends of episodes."""
    env = envs.make(name, max_steps_in_episode=8)
    theirs, params = env.source

    def step(state, key):
        action_key, step_key, reset_key = jax.random.split(key, 3)
        action = sample(env.action_space, action_key)
        _, _, *expected, info = theirs.step(step_key, state, action, params)
        observation, state, *flags = env.step(jax.random.split(step_key)[0], state, action)
        fresh = env.reset(reset_key)[1]
        state = jax.tree.map(lambda new, old: jnp.where(flags[1] | flags[2], new, old), fresh, state)
        return state, ((info["final_observation"], *expected), (observation, *flags))

    play = lambda key: jax.lax.scan(step, env.reset(key)[1], jax.random.split(key, 30))[1]
    run = jax.jit(play, compiler_options=QUICK)
    expected, result = run(jax.random.key(3))
    for ours, gymnaxs in zip(result, expected, strict=True):  # bits may differ where XLA fuses differently
        np.testing.assert_allclose(ours, gymnaxs, rtol=1e-5, atol=1e-6)
    assert (result[2] | result[3]).sum() >= 3


def test_time_limit_truncates_once_and_exactly():
    _, _, terminated, truncated = episode(
        envs.make("Pendulum-v1", max_steps_in_episode=7), jax.random.key(0), 7
    )
    assert truncated.tolist() == [False] * 6 + [True]
    assert not terminated.any()
    assert envs.make("Pendulum-v1", max_steps_in_episode=7).max_steps == 7


def test_an_integer_serves_for_a_float_parameter():
    env = envs.make("BernoulliBandit-misc", max_steps_in_episode=8)  # its spaces would refuse an integer
    assert env.max_steps == 8
    assert isinstance(env.source[1].max_steps_in_episode, float)


def test_both_flags_may_be_true():
    _, _, terminated, truncated = episode(envs.make("DeepSea-bsuite", size=4), jax.random.key(0), 4)
    assert terminated.tolist() == truncated.tolist() == [False] * 3 + [True]


@pytest.mark.parametrize(
    ("limit", "expected"), [(100.0, 100), (99.5, 100), (np.inf, None), (2**31 - 1, None)]
)
def test_max_steps(limit, expected):
    assert envs.make("CartPole-v1", max_steps_in_episode=limit).max_steps == expected


def test_spaces():
    cartpole, lake, catch = (envs.make(name) for name in ("CartPole-v1", "FrozenLake-misc", "Catch-bsuite"))
    assert isinstance(cartpole.observation_space, Box)
    np.testing.assert_allclose(cartpole.observation_space.high, [4.8, np.inf, 0.41887903, np.inf], rtol=1e-6)
    assert cartpole.action_space == Discrete(2)
    assert lake.observation_space == Discrete(16)
    assert catch.observation_space.dtype == jnp.float32  # Gymnax says int32
    assert envs.make("FourRooms-misc").observation_space.dtype == jnp.int32  # Gymnax says float32
    assert envs.make("Pendulum-v1").action_space.shape == (1,)


def test_constructor_arguments_and_parameters():
    env = envs.make("FrozenLake-misc", map_name="8x8", is_slippery=False, max_steps_in_episode=50)
    assert env.observation_space == Discrete(64)
    assert env.max_steps == 50
    _, state = env.reset(jax.random.key(0))
    for action, position in [(2, 1), (1, 9), (3, 1), (0, 0), (0, 0)]:
        observation, state, *_ = env.step(jax.random.key(0), state, action)
        assert observation == position
    assert envs.make("Catch-bsuite", rows=6, columns=4).observation_space.shape == (6, 4)
    assert envs.make("DeepSea-bsuite", size=5).max_steps == 5
    assert envs.make("Asterix-MinAtar", use_minimal_action_set=False).action_space == Discrete(6)


def test_a_swept_parameter_is_one_trace():
    traces = []

    def run(length):
        traces.append(length)
        env = envs.make("CartPole-v1", length=length)
        return episode(env, jax.random.key(1), 15)[0]

    lengths = jnp.array([0.25, 0.5, 1.0])
    swept = jax.jit(jax.vmap(run))(lengths)
    assert len(traces) == 1
    assert abs(swept[0] - swept[2]).max() > 1e-3
    for i, length in enumerate([0.25, 0.5, 1.0]):
        np.testing.assert_allclose(run(length), swept[i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["CartPole-v1", "PointRobot-misc", "BernoulliBandit-misc", "DiscountingChain-bsuite"]
)
def test_all_parameters_may_be_traced(name):
    theirs, params = gymnax.make(name)

    def run(params):
        env = envs.from_gymnax(theirs, params)
        assert env.max_steps is None
        assert np.ndim(env.observation_space.low) in (0, 1)  # concrete: converting a tracer would raise
        return episode(env, jax.random.key(0), 3)[:2]

    expected = episode(envs.make(name), jax.random.key(0), 3)[:2]
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), jax.jit(run)(params), expected
    )


def test_an_environment_is_built_inside_a_trace():
    """The constructor of FourRooms branches on array values."""
    build = lambda key: envs.make("FourRooms-misc").reset(key)[0]
    np.testing.assert_array_equal(jax.jit(build)(jax.random.key(0)), build(jax.random.key(0)))
    with pytest.raises(ValueError, match="success_rate is a constructor argument"):
        jax.vmap(lambda rate: envs.make("FrozenLake-misc", success_rate=rate).reset(jax.random.key(0))[0])(
            jnp.ones(2)
        )


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("cartpole-v1", {}, "no environment 'cartpole-v1'; did you mean CartPole-v1"),
        ("Truncation", {}, "did you mean Truncation-probe"),
        ("zzz", {}, r"names\(\) lists them"),
        ("CartPole-v1", {"lenght": 1.0}, "no argument 'lenght'; did you mean length.*gravity"),
        ("FrozenLake-misc", {"map": "8x8"}, "did you mean map_name.*max_steps_in_episode"),
        ("FrozenLake-misc", {"map_name": "9x9"}, "map_name='9x9'.*must be '4x4' or '8x8'"),
        ("MetaMaze-misc", {"maze_size": 8}, "maze_size=8.*AssertionError"),
        ("Truncation-probe", {"max_step": 3}, "did you mean max_steps"),
        ("ValueConstant-probe", {"size": 3}, "takes no arguments"),
    ],
)
def test_a_mistake_is_one_line(name, arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        envs.make(name, **arguments)
    assert "\n" not in str(error.value)


def test_a_batch_without_vmap_is_one_line():
    env = envs.make("Pendulum-v1")
    _, state = env.reset(jax.random.key(0))
    with pytest.raises(ValueError, match=r"has shape \(1,\), not \(8, 1\)"):
        env.step(jax.random.key(0), state, jnp.zeros((8, 1)))


def test_mnist_without_a_network_is_one_line(monkeypatch):
    def offline(directory="/tmp/mnist"):
        raise OSError("no network")

    monkeypatch.setattr("gymnax.utils.load_mnist.load_mnist", offline)
    with pytest.raises(RunError, match=r"downloads MNIST .* \(OSError: no network\)") as error:
        envs.make("MNISTBandit-bsuite")
    assert "\n" not in str(error.value)


def test_mnist_with_its_data(monkeypatch):
    data = (np.ones((4, 28, 28), np.uint8), np.arange(4, dtype=np.uint8))
    monkeypatch.setattr("gymnax.utils.load_mnist.load_mnist", lambda directory="/tmp/mnist": (data, data))
    env = envs.make("MNISTBandit-bsuite")
    observation, _, terminated, _ = episode(env, jax.random.key(0), 1)
    assert observation.shape == (2, 28, 28)
    assert terminated.all()


@struct.dataclass
class _State(environment.EnvState):
    key: jax.Array
    level: float


@struct.dataclass
class _Params(environment.EnvParams):
    gain: float = 1.0
    max_steps_in_episode: int = 3


class Thermostat(environment.Environment):
    """A user's environment: dict observation, a random key in its state, int and weak types everywhere."""

    def __init__(self, zones=2, grow=False):
        self.zones, self.grow = zones, grow

    @property
    def default_params(self):
        return _Params()

    def _observe(self, state):
        return {"zones": jnp.full(self.zones, state.level), "clock": (jnp.int32(state.time), jnp.zeros(()))}

    def reset_env(self, key, params):
        state = _State(time=0, key=key, level=1)
        return self._observe(state), state

    def step_env(self, key, state, action, params):
        next_key, _ = jax.random.split(state.key)
        level = state.level + params.gain * action.sum() + (jnp.zeros(1) if self.grow else 0)
        state = _State(time=state.time + 1, key=next_key, level=level)
        return self._observe(state), state, 1, jnp.zeros((1,), jnp.int32), {}

    def action_space(self, params):
        return spaces.Box(-params.gain, params.gain, (self.zones,))

    def observation_space(self, params):
        clock = spaces.Tuple([spaces.Discrete(9), spaces.Box(0, 1, ())])
        return spaces.Dict({"zones": spaces.Box(-9, 9, (7,)), "clock": clock})


def test_a_user_s_environment_with_a_pytree_observation():
    env = envs.from_gymnax(Thermostat(), _Params(gain=0.5), name="Mine")
    assert env.name == "Mine"
    assert env.max_steps == 3
    zones, clock = env.observation_space["zones"], env.observation_space["clock"]
    assert (zones.shape, zones.low, zones.high) == ((2,), -9, 9)  # the declared shape (7,) is wrong
    assert clock[0] == Discrete(9)
    assert clock[1].shape == ()
    observation, reward, terminated, truncated = jax.jit(lambda key: episode(env, key, 4))(jax.random.key(0))
    assert observation["clock"][0].tolist() == [0, 1, 2, 3, 4]
    assert observation["zones"].dtype == jnp.float32
    assert reward.tolist() == [1] * 4
    assert not terminated.any()
    assert truncated.tolist() == [False, False, True, True]


def test_a_pytree_observation_needs_no_declared_space():
    class Undeclared(Thermostat):
        def observation_space(self, params):
            raise NotImplementedError

    class Misdeclared(Thermostat):
        def observation_space(self, params):
            return spaces.Box(0, 1, (2,))

    for env in (envs.from_gymnax(Undeclared()), envs.from_gymnax(Misdeclared())):
        assert jax.tree.map(lambda box: box.shape, env.observation_space) == {
            "zones": (2,),
            "clock": ((), ()),
        }


def test_traced_bounds_of_actions_stay():
    bounds = jax.vmap(lambda gain: envs.from_gymnax(Thermostat(), _Params(gain=gain)).action_space.high)
    np.testing.assert_array_equal(bounds(jnp.array([0.5, 2.0])), [0.5, 2.0])


def test_a_registered_environment_is_made_by_name(monkeypatch):
    monkeypatch.setattr(gymnax.registration, "_registry", dict(gymnax.registration._registry))
    gymnax.register("Thermostat-test", lambda zones=2, **others: Thermostat(zones, **others))
    try:
        assert "Thermostat-test" in envs.names()
        env = envs.make("Thermostat-test", zones=3, grow=False, gain=0.1)
        assert env.action_space.shape == (3,)
        assert env.source[1].gain == 0.1
        with pytest.raises(ValueError, match="zoness"):
            envs.make("Thermostat-test", zoness=3)
    finally:
        gymnax.registered_envs.remove("Thermostat-test")


def test_shapes_that_change_are_refused():
    with pytest.raises(
        ValueError, match=r"observation\['zones'\]|state.level has shape \(\) after reset and \(1,\)"
    ):
        envs.from_gymnax(Thermostat(grow=True))
    with pytest.raises(ValueError, match="int has no reset_env"):
        envs.from_gymnax(3)


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (purerl.FlattenObservationWrapper, "use rljax.envs.wrappers.flatten_observation"),
        (lambda env: purerl.StickyActionWrapper(env, 1.0), "use rljax.envs.wrappers.sticky_actions"),
        (purerl.LogWrapper, "leave it out"),
        (type("Doubled", (purerl.GymnaxWrapper,), {}), "Doubled is a wrapper.*one of rljax.envs.wr"),
    ],
)
def test_what_would_be_passed_by_is_refused(wrap, message):
    env, params = gymnax.make("CartPole-v1")
    with pytest.raises(ValueError, match=message) as error:
        envs.from_gymnax(wrap(env), params)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", ["step", "reset"])
def test_an_own_step_or_reset_is_refused(method):
    kind = type("Sticky", (Thermostat,), {method: lambda self, *given: None})
    with pytest.raises(ValueError, match=f"Sticky overrides {method}, .*: override {method}_env instead"):
        envs.from_gymnax(kind())


def test_only_gymnax_s_own_rule_truncates_at_the_limit_alone():
    class Fickle(Thermostat):
        def is_truncated(self, state, params):
            return state.time % 2 == 1

    assert not envs.from_gymnax(Thermostat()).truncates_early
    assert envs.from_gymnax(Fickle()).truncates_early
    assert envs.from_gymnax(Fickle()).max_steps == 3
    assert not envs.make("CartPole-v1").truncates_early
    limited = lambda limit: jnp.bool_(envs.make("CartPole-v1", max_steps_in_episode=limit).truncates_early)
    assert jax.jit(limited)(9)


def test_names_lists_every_environment_and_importing_is_cheap():
    assert set(IDS) | {"MNISTBandit-bsuite"} | set(envs.probes.PROBES) | set(envs.tabular.PROBLEMS) == set(
        envs.names()
    )
    code = "import sys, rljax.envs; sys.exit('gymnax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
