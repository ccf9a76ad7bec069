"""Finite MDPs as environments: what they sample is what their arrays say, and Gymnasium's tables agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import envs
from rljax.envs import tabular
from rljax.math import tabular as exact

KEY = jax.random.key(0)


def draws(env, state, action, number=20_000):
    """What `number` steps from one state give: next observation, reward, terminated, truncated."""
    start = env.reset(KEY)[1]._replace(state=jnp.int32(state))
    step = jax.jit(jax.vmap(env.step, (0, None, None)))
    observation, after, *rest = step(jax.random.split(KEY, number), start, jnp.int32(action))
    np.testing.assert_array_equal(observation, after.state)
    return tuple(np.asarray(each) for each in (observation, *rest))


@pytest.mark.parametrize("name", tabular.PROBLEMS)
def test_an_mdp_is_an_environment_of_its_name(name):
    env = envs.make(name)
    assert env.name == name
    assert name in envs.names()
    start = jax.eval_shape(env.reset, KEY)
    following = jax.eval_shape(env.step, KEY, start[1], jnp.int32(0))
    assert jax.tree.leaves(following[:2]) == jax.tree.leaves(start)
    assert (start[0].shape, start[0].dtype) == (env.observation_space.shape, env.observation_space.dtype)
    reward, terminated, truncated = following[2:]
    assert reward.shape == terminated.shape == truncated.shape == ()
    assert (reward.dtype, terminated.dtype, truncated.dtype) == (jnp.float32, jnp.bool_, jnp.bool_)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves((start, following)))
    assert tabular.check(env.source) == (env.observation_space.n, env.action_space.n)


def test_steps_have_the_frequencies_of_the_arrays():
    """Every state and action of a small MDP with ends, within five deviations of a binomial."""
    mdp = tabular.random_mdp(seed=1, num_states=5, num_actions=2, termination=0.2)
    env, number = tabular.from_mdp(mdp), 20_000
    for state, action in np.ndindex(5, 2):
        observation, reward, terminated, truncated = draws(env, state, action, number)
        np.testing.assert_allclose(reward, mdp.reward[state, action], rtol=1e-6)
        assert not truncated.any()
        for following in range(5):
            p = mdp.transition[state, action, following]
            seen = (~terminated & (observation == following)).mean()
            assert abs(seen - p) <= 5 * np.sqrt(p * (1 - p) / number)
        assert abs(terminated.mean() - 0.2) < 5 * np.sqrt(0.16 / number)
        assert (observation[terminated] == state).all()


def test_starts_have_the_frequencies_of_the_distribution():
    mdp = tabular.random_mdp()._replace(start=np.eye(16)[3] * 0.25 + np.eye(16)[9] * 0.75)
    first = np.asarray(jax.vmap(tabular.from_mdp(mdp).reset)(jax.random.split(KEY, 10_000))[0])
    assert set(first) == {3, 9}
    assert abs((first == 3).mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 10_000)


@pytest.mark.parametrize("weights", [[1 / 3, 1 / 3, 1 / 3, 0], [0.1] * 10 + [0, 0], [0, 0.7, 0.3], [0, 0, 1]])
def test_rounding_never_draws_what_has_no_probability(weights):
    """The smallest u and the largest below 1: sums in float32 that stop short of 1 do not end an episode."""
    row = np.asarray(weights)
    for scale, dtype in ((1.0, np.float64), (1.0, np.float32), (1 - 1e-7, np.float64), (0.5, np.float64)):
        sums = np.asarray(tabular._cumulative(np, (scale * row).astype(dtype)), np.float32)
        top = int((np.nextafter(np.float32(1), np.float32(0)) >= sums).sum())
        bottom = int((np.float32(0) >= sums).sum())
        assert row[bottom] > 0
        assert top == len(row) if scale == 0.5 else row[top] > 0


def test_a_reward_of_the_next_state_is_paid_there_and_not_for_the_rest():
    transition, reward = np.zeros((3, 1, 3)), np.zeros((3, 1, 3))
    transition[:, 0] = [0.5, 0.0, 0.25]
    reward[:, 0] = [1.0, 100.0, 2.0]
    mdp = tabular.MDP(transition, reward, 0.9, np.eye(3)[0])
    np.testing.assert_allclose(tabular.arrays(mdp)[1], np.full((3, 1), 1.0))
    observation, reward, terminated, _ = draws(tabular.from_mdp(mdp), 1, 0)
    np.testing.assert_array_equal(reward, np.select([terminated, observation == 0], [0.0, 1.0], 2.0))
    assert abs(terminated.mean() - 0.25) < 0.02


def test_a_state_after_which_nothing_follows_is_the_end_on_arrival():
    transition, reward = np.zeros((3, 1, 3)), np.array([[0.0], [0.0], [5.0]])
    transition[0, 0] = [0, 0.5, 0.5]
    env = tabular.from_mdp(tabular.MDP(transition, reward, 0.9, np.eye(3)[0]))
    observation, _, terminated, _ = draws(env, 0, 0)
    np.testing.assert_array_equal(terminated, observation == 1)  # from 2 there is still a reward to come
    assert set(observation) == {1, 2}


def test_truncation_is_after_max_steps():
    env = envs.make("RandomMDP-tabular", termination=0.0, max_steps=3)
    _, state = env.reset(KEY)
    flags = []
    for _ in range(3):
        _, state, _, terminated, truncated = env.step(KEY, state, jnp.int32(0))
        flags.append((bool(terminated), bool(truncated)))
    assert flags == [(False, False), (False, False), (False, True)]


def test_three_states_are_the_article_s():
    env = envs.make("ThreeState-tabular", discount=0.8)
    transition, reward, discount = tabular.arrays(env.source)
    always = jnp.array([[0.0, 1.0]] * 3)
    np.testing.assert_array_equal(exact.policy_value(transition, reward, discount, always), [0, 1, 0])
    np.testing.assert_allclose(exact.value_iteration(transition, reward, discount).value, [0.4, 1, 0])
    observation, reward, terminated, _ = draws(env, 0, 0)
    assert (reward == 0).all()
    assert set(observation[~terminated]) == {1}
    assert abs(terminated.mean() - 0.5) < 0.02
    observation, reward, terminated, _ = draws(env, 0, 1)
    assert terminated.all()  # half of them in state 2, after which nothing follows
    assert abs((observation == 2).mean() - 0.5) < 0.02
    _, reward, terminated, _ = draws(env, 1, 1)
    assert (reward == 1).all()
    assert terminated.all()


def table_of_gymnasium(name, **arguments):
    """P, expected reward and start of a toy_text environment, its last states made ones without a future."""
    gymnasium = pytest.importorskip("gymnasium", reason="Gymnasium is not installed")
    env = gymnasium.make(name, **arguments).unwrapped
    states, actions = env.observation_space.n, env.action_space.n
    transition, reward, over = np.zeros((states, actions, states)), np.zeros((states, actions)), set()
    for state, action in np.ndindex(states, actions):
        for probability, following, gained, done in env.P[state][action]:
            transition[state, action, following] += probability
            reward[state, action] += probability * gained
            over |= {int(following)} if done else set()
    transition[list(over)] = reward[list(over)] = 0
    return transition, reward, np.asarray(env.initial_state_distrib)


@pytest.mark.parametrize(
    ("ours", "name", "arguments"),
    [
        (tabular.frozen_lake(4), "FrozenLake-v1", {"is_slippery": True}),
        (tabular.frozen_lake(4, is_slippery=False), "FrozenLake-v1", {"is_slippery": False}),
        (tabular.frozen_lake(8), "FrozenLake8x8-v1", {"is_slippery": True}),
        (tabular.frozen_lake(8, is_slippery=False), "FrozenLake8x8-v1", {"is_slippery": False}),
        (tabular.cliff_walking(), "CliffWalking-v1", {}),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of Gymnasium's own
def test_tables_are_gymnasium_s(ours, name, arguments):
    transition, reward, start = table_of_gymnasium(name, **arguments)
    expected = ours.reward if ours.reward.ndim == 2 else (ours.transition * ours.reward).sum(-1)
    np.testing.assert_allclose(ours.transition, transition, rtol=0, atol=1e-15)
    np.testing.assert_allclose(expected, reward, rtol=0, atol=1e-15)
    np.testing.assert_array_equal(ours.start, start)


@pytest.mark.parametrize(
    ("ours", "name", "arguments"),
    [
        ("FrozenLake-tabular", "FrozenLake-v1", {"is_slippery": False}),
        ("FrozenLake8x8-tabular", "FrozenLake8x8-v1", {"is_slippery": False}),
        ("CliffWalking-tabular", "CliffWalking-v1", {}),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_episodes_are_gymnasium_s(ours, name, arguments):
    """The same actions where nothing is random: observations, rewards and both flags, step for step."""
    gymnasium = pytest.importorskip("gymnasium", reason="Gymnasium is not installed")
    theirs, env = gymnasium.make(name, **arguments), envs.make(ours, **arguments)
    rng, ends = np.random.default_rng(0), []
    step = jax.jit(env.step)
    for weights in [[0.25] * 4] * 8 + [[0.0, 0.5, 0.5, 0.0]] * 4 + [[1.0, 0.0, 0.0, 0.0]]:
        observation, state = env.reset(KEY)
        assert theirs.reset(seed=0)[0] == int(observation)
        for _ in range(env.max_steps):
            action = int(rng.choice(4, p=weights))
            observation, state, reward, terminated, truncated = step(KEY, state, jnp.int32(action))
            expected = theirs.step(action)[:4]
            if theirs.spec.max_episode_steps is None:
                expected = (*expected[:3], bool(truncated))
            assert (int(observation), float(reward), bool(terminated), bool(truncated)) == expected
            if terminated or truncated:
                ends.append("terminated" if terminated else "truncated")
                break
    assert "truncated" in ends
    assert "terminated" in ends or ours == "CliffWalking-tabular"


def test_values_that_are_known():
    """CliffWalking's way along the cliff takes 13 steps; FrozenLake's from Gymnasium's table by NumPy."""
    cliff = exact.value_iteration(*tabular.arrays(tabular.cliff_walking()))
    assert float(cliff.value[36]) == -13
    straight = exact.value_iteration(*tabular.arrays(tabular.frozen_lake(4, is_slippery=False)))
    np.testing.assert_allclose(straight.value[0], 0.99**5, rtol=1e-5)
    transition, reward, discount = tabular.arrays(tabular.frozen_lake(4))
    value = np.zeros(16)
    for _ in range(3000):
        q = np.asarray(reward, float) + 0.99 * np.asarray(transition, float) @ value
        value = q.max(1)
    np.testing.assert_allclose(exact.policy_iteration(transition, reward, discount).value, value, atol=1e-5)


def test_the_same_seed_gives_the_same_random_problem_and_another_another():
    one, same, other = (tabular.random_mdp(seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.transition, same.transition)
    np.testing.assert_array_equal(one.reward, same.reward)
    assert (one.transition != other.transition).any()
    assert (one.reward != other.reward).all()
    np.testing.assert_allclose(one.transition.sum(-1), 0.95)
    assert ((one.transition > 0).sum(-1) == 3).all()
    big = tabular.random_mdp(0, 30, 2, branching=30, termination=0.0)
    assert big.transition.shape == (30, 2, 30)
    assert (big.transition > 0).all()


def test_an_environment_of_traced_arrays_can_be_swept():
    """One compiled program over ten problems: every member's steps are those of its own arrays."""
    problems = [tabular.random_mdp(seed, num_states=6) for seed in range(10)]
    stacked = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves), jnp.float32), *problems)
    keys = jax.random.split(KEY, 64)

    def play(mdp):
        env = tabular.from_mdp(mdp)
        states = jax.vmap(env.reset)(keys)[1]
        return jax.vmap(env.step, (0, 0, None))(keys, states, jnp.int32(1))

    with jax.numpy_rank_promotion("raise"):
        together = jax.jit(jax.vmap(play))(stacked)
    for member, mdp in enumerate(problems):
        for one, two in zip(jax.tree.leaves(play(mdp)), jax.tree.leaves(together), strict=True):
            np.testing.assert_allclose(one, two[member], rtol=1e-6)


GOOD = tabular.random_mdp(num_states=3, num_actions=2, branching=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transition": 2 * GOOD.transition}, r"MDP.transition has a row with the sum 1.9 at \[0, 0\]"),
        ({"transition": -GOOD.transition}, "MDP.transition holds -.*: a probability is at least 0"),
        ({"transition": GOOD.transition * np.nan}, "MDP.transition holds nan at .*: must be finite"),
        ({"transition": np.zeros((3, 2))}, r"MDP.transition has shape \(3, 2\): must be \(S, A, S\)"),
        ({"transition": np.zeros((3, 2, 4))}, r"must be \(S, A, S\)"),
        ({"transition": np.zeros((0, 2, 0))}, r"must be \(S, A, S\), with at least 1 of each"),
        ({"reward": np.zeros((2, 3))}, r"MDP.reward has shape \(2, 3\): must be \(3, 2\) or \(3, 2, 3\)"),
        ({"reward": GOOD.reward + np.inf}, r"MDP.reward holds inf at \[0, 0\]: must be finite"),
        ({"discount": 1.5}, "MDP.discount = 1.5: must be at least 0 and at most 1"),
        ({"discount": -0.1}, "MDP.discount = -0.1"),
        ({"discount": np.nan}, "MDP.discount holds nan: must be finite"),
        ({"discount": np.ones(2)}, r"MDP.discount has shape \(2,\): must be \(\)"),
        ({"start": np.ones(3)}, "MDP.start has the sum 3: must be 1"),
        ({"start": np.ones(2) / 2}, r"MDP.start has shape \(2,\): must be \(3,\)"),
        ({"start": np.array([1.5, -0.5, 0.0])}, r"MDP.start holds -0.5 at \[1\]"),
    ],
)
def test_arrays_that_are_no_mdp_are_refused_in_one_line(change, message):
    tabular.from_mdp(GOOD)
    with pytest.raises(ValueError, match=message) as caught:
        tabular.from_mdp(GOOD._replace(**change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("FrozenLake-tabular", {"slippery": True}, "no argument 'slippery'; did you mean is_slippery?"),
        ("FrozenLake-tabular", {"max_steps": 0}, "max_steps = 0: must be None or an integer of at least 1"),
        ("FrozenLake-tabular", {"is_slippery": "no"}, "is_slippery = 'no': must be True or False"),
        ("FrozenLake-tabular", {"discount": 2.0}, "MDP.discount = 2"),
        ("RandomMDP-tabular", {"branching": 17}, "branching = 17: must be at most num_states = 16"),
        ("RandomMDP-tabular", {"num_states": 2.5}, "num_states = 2.5: must be an integer of at least 1"),
        ("RandomMDP-tabular", {"termination": -0.5}, "termination = -0.5: must be at least 0 and at most 1"),
        ("FrozenLake-tabula", {}, "did you mean FrozenLake-tabular"),
    ],
)
def test_arguments_that_are_wrong_are_one_line(name, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        envs.make(name, **arguments)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="size = 5: must be one of 4, 8"):
        tabular.frozen_lake(5)
