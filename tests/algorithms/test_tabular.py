"""Tabular methods: the textbook's programs, step for step, and exact values in the limit."""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rljax
from rljax import algorithms, envs
from rljax.envs import tabular
from rljax.learning import env_rollouts, tables
from rljax.math.tabular import epsilon_greedy_policy
from rljax.runs.program import engine
from rljax.types import Env

CONTROL = ("q_learning", "sarsa", "expected_sarsa", "monte_carlo")
GAMMA = 0.9


class Step(NamedTuple):
    """One step of N environments as it happened, every field (N,)."""

    obs: Any
    action: Any
    reward: Any
    terminated: Any
    truncated: Any
    next_obs: Any


class Record(NamedTuple):
    """Iterations that were run, and every step in them."""

    states: list[Any]  # before the first iteration, and after each
    metrics: list[Any]
    steps: list[list[Step]]  # of each iteration


def record(
    monkeypatch: pytest.MonkeyPatch, name: str, env: Env, iterations: int = 3, **fields: Any
) -> Record:
    """Run an algorithm and listen to its environments: what it learned from is not told by itself."""
    heard: list[Step] = []
    original = env_rollouts.step

    def listened(env: Env, key: Any, worlds: Any, pool: Any, action: Any) -> Any:
        following, pool, outcome = original(env, key, worlds, pool, action)
        tell = lambda *step: heard.append(Step(*map(np.asarray, step)))
        told = (worlds.obs, action, outcome.reward, outcome.terminated, outcome.truncated, outcome.obs)
        jax.debug.callback(tell, *told, ordered=True)
        return following, pool, outcome

    monkeypatch.setattr(env_rollouts, "step", listened)
    module = algorithms.find(name).module
    config = module.Config(**{"discount": GAMMA, "num_envs": 3, "num_steps": 40} | fields)
    algorithm = module.make(env, config)
    found = Record([jax.jit(algorithm.init)(jax.random.key(0))], [], [])
    step = jax.jit(algorithm.step)
    for iteration in range(iterations):
        state, metrics = step(jax.random.key(iteration + 1), found.states[-1])
        jax.effects_barrier()
        found.states.append(state)
        found.metrics.append(metrics)
        found.steps.append(heard.copy())
        heard.clear()
    assert [len(each) for each in found.steps] == [config.num_steps] * iterations
    return found


def problem(**arguments: Any) -> Env:
    return envs.make("RandomMDP-tabular", **{"num_states": 5, "num_actions": 3, "seed": 7} | arguments)


def soft(q: Any, epsilon: float) -> Any:
    """Probabilities (A,) of the ε-greedy policy, written out again."""
    best = (q == q.max()) / (q == q.max()).sum()
    return (1 - epsilon) * best + epsilon / len(q)


class Learner:
    """A table (S, A) in float64 with step sizes α / nᵚ."""

    def __init__(self, shape: tuple[int, ...], alpha: float, omega: float, initial: float = 0.0) -> None:
        self.q, self.n = np.full(shape, initial, np.float64), np.zeros(shape, int)
        self.alpha, self.omega = alpha, omega

    def move(self, index: tuple, target: float) -> None:
        self.n[index] += 1
        self.q[index] += self.alpha / self.n[index] ** self.omega * (target - self.q[index])


SIZES = {"step_size": 0.7, "step_size_decay": 0.4, "initial_value": 0.5}
ENDS = {"termination": 0.15, "max_steps": 6}


def compare(learner: Learner, state: Any) -> None:
    np.testing.assert_array_equal(state.visits.reshape(learner.n.shape), learner.n)
    np.testing.assert_allclose(state.params.reshape(learner.q.shape), learner.q, rtol=1e-4, atol=1e-4)


def test_q_learning_is_the_textbook_s(monkeypatch: pytest.MonkeyPatch) -> None:
    found = record(monkeypatch, "q_learning", problem(**ENDS), **SIZES)
    learner = Learner((5, 3), 0.7, 0.4, 0.5)
    for steps, state in zip(found.steps, found.states[1:], strict=True):
        for step in steps:
            for s, a, r, terminated, _, following in zip(*step, strict=True):  # environment by environment
                learner.move((s, a), r + GAMMA * (not terminated) * learner.q[following].max())
        compare(learner, state)
    assert any(step.truncated.any() for steps in found.steps for step in steps)
    assert any(step.terminated.any() for steps in found.steps for step in steps)


def test_double_q_learning_moves_one_table_towards_the_other_s_value(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"num_envs": 1, "num_steps": 1, "target": "double", **SIZES}
    found = record(monkeypatch, "q_learning", problem(**ENDS), iterations=150, **fields)
    chosen = []
    for steps, before, after in zip(found.steps, found.states[:-1], found.states[1:], strict=True):
        s, a, r, terminated, _, following = (each[0] for each in steps[0])
        ((i, *where),) = np.argwhere(np.asarray(after.visits - before.visits))
        assert where == [s, a]
        value = before.params[1 - i, following, np.asarray(before.params)[i, following].argmax()]
        target = r + GAMMA * (not terminated) * value
        rate = 0.7 / float(after.visits[i, s, a]) ** 0.4
        expected = np.array(before.params)
        expected[i, s, a] += rate * (target - expected[i, s, a])
        np.testing.assert_allclose(after.params, expected, rtol=1e-5, atol=1e-5)
        chosen.append(i)
    assert 50 < sum(chosen) < 100  # a fair coin


def test_sarsa_is_the_textbook_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its a' is the action that the record shows next; no truncation, whose a' is never taken."""
    found = record(monkeypatch, "sarsa", problem(termination=0.15, max_steps=None), **SIZES)
    learner = Learner((5, 3), 0.7, 0.4, 0.5)
    flat = [step for steps in found.steps for step in steps]
    for t, (step, nxt) in enumerate(itertools.pairwise(flat)):
        for i, (s, a, r, terminated, _, following) in enumerate(zip(*step, strict=True)):
            learner.move((s, a), r + GAMMA * (not terminated) * learner.q[following, nxt.action[i]])
        if t + 1 in (40, 80):
            compare(learner, found.states[(t + 1) // 40])
    np.testing.assert_array_equal(found.states[1].action, found.steps[1][0].action)


def test_sarsa_chooses_before_it_learns() -> None:
    """Two actions in one state, ε = 0: learning from the step would make the other action the better one."""
    mdp = tabular.MDP(np.ones((1, 2, 1)), np.array([[-10.0, 0.0]]), GAMMA, np.ones(1))
    module = algorithms.find("sarsa").module
    config = module.Config(num_envs=1, num_steps=1, epsilon_start=0.0, epsilon_end=0.0, step_size=0.5)
    algorithm = module.make(tabular.from_mdp(mdp, max_steps=50), config)
    state = algorithm.init(jax.random.key(0))
    state = state.replace(params=jnp.array([[1.0, 0.9]]), action=jnp.array([0]))
    seen, step = [], jax.jit(algorithm.step)
    for i in range(3):
        state, _ = step(jax.random.key(i), state)
        seen.append(int(state.action[0]))
    assert seen == [0, 1, 1]


@pytest.mark.parametrize("epsilon", [0.0, 0.3])
def test_expected_sarsa_is_the_textbook_s(monkeypatch: pytest.MonkeyPatch, epsilon: float) -> None:
    fields = {"epsilon_start": epsilon, "epsilon_end": epsilon, **SIZES}
    found = record(monkeypatch, "expected_sarsa", problem(**ENDS), **fields)
    learner = Learner((5, 3), 0.7, 0.4, 0.5)
    for steps, state in zip(found.steps, found.states[1:], strict=True):
        for step in steps:
            for s, a, r, terminated, _, following in zip(*step, strict=True):
                value = (soft(learner.q[following], epsilon) * learner.q[following]).sum()
                learner.move((s, a), r + GAMMA * (not terminated) * value)
        compare(learner, state)
    if epsilon == 0:  # an ε of 0 takes the best action, or one of several
        for step in found.steps[2][:1]:
            best = np.asarray(found.states[2].params).argmax(-1)
            np.testing.assert_array_equal(step.action, best[step.obs])


@pytest.mark.parametrize("num_steps", [3, 40])  # shorter than an episode, and longer than several
def test_monte_carlo_averages_the_returns_of_whole_episodes(
    monkeypatch: pytest.MonkeyPatch, num_steps: int
) -> None:
    """Every episode is found in the record by itself, and its returns are added up from their definition."""
    fields = {"num_steps": num_steps, "step_size": 1.0, "step_size_decay": 1.0, "epsilon_start": 0.4}
    found = record(
        monkeypatch,
        "monte_carlo",
        problem(**ENDS),
        iterations=12,
        epsilon_end=0.4,
        initial_value=0.5,
        **fields,
    )
    returns: dict[tuple, list[float]] = {(s, a): [] for s in range(5) for a in range(3)}
    running: list[list[tuple]] = [[], [], []]
    truncations = 0
    for steps, before, after, metrics in zip(
        found.steps, found.states[:-1], found.states[1:], found.metrics, strict=True
    ):
        q = np.asarray(before.params, np.float64)
        counted = 0
        for step in steps:
            for episode, (s, a, r, terminated, truncated, following) in zip(
                running, zip(*step, strict=True), strict=True
            ):
                episode.append((s, a, r))
                if not (terminated or truncated):
                    continue
                truncations += not terminated
                rest = 0.0 if terminated else (soft(q[following], 0.4) * q[following]).sum()
                for t, (s_t, a_t, _) in enumerate(episode):
                    rewards = [reward for _, _, reward in episode[t:]]
                    discounted = sum(GAMMA**k * reward for k, reward in enumerate(rewards))
                    returns[s_t, a_t].append(discounted + GAMMA ** len(rewards) * rest)
                counted += len(episode)
                episode.clear()
        for (s, a), values in returns.items():
            assert int(after.visits[s, a]) == len(values)
            expected = np.mean(values) if values else 0.5
            np.testing.assert_allclose(after.params[s, a], expected, rtol=1e-4, atol=1e-4)
        assert int(metrics.error.count) == counted
    assert truncations > 0
    assert sum(map(len, returns.values())) + sum(map(len, running)) == 12 * num_steps * 3


@pytest.mark.parametrize("traces", ["accumulating", "replacing"])
def test_td_lambda_is_the_textbook_s(monkeypatch: pytest.MonkeyPatch, traces: str) -> None:
    decay = 0.8
    found = record(monkeypatch, "td_lambda", problem(**ENDS), traces=traces, trace_decay=decay, **SIZES)
    value, visits = np.full(5, 0.5), np.zeros(5, int)
    trace = np.zeros((3, 5))
    for steps, state in zip(found.steps, found.states[1:], strict=True):
        for step in steps:
            for i, (s, _, r, terminated, truncated, following) in enumerate(zip(*step, strict=True)):
                visits[s] += 1
                trace[i] *= GAMMA * decay
                trace[i, s] = trace[i, s] + 1 if traces == "accumulating" else 1
                error = r + GAMMA * (not terminated) * value[following] - value[s]
                value = value + 0.7 / np.maximum(visits, 1) ** 0.4 * error * trace[i]
                if terminated or truncated:
                    trace[i] = 0
        np.testing.assert_array_equal(state.visits, visits)
        np.testing.assert_allclose(state.params, value, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(state.trace, trace, rtol=1e-5, atol=1e-6)


# In the limit.

EPSILON = 0.3
STEPS = 1_000_000
# Two problems, one with ends, and one with none but a time limit, at which values go on.
LIMITS = {"terminating": (0.2, 100), "truncated": (0.0, 4)}


@functools.cache
def endless(kind: str) -> Env:
    """Episodes begin in the state that is worth least, so that it matters to whom a step is said to lead."""
    termination, limit = LIMITS[kind]
    mdp = tabular.random_mdp(43, num_states=5, num_actions=3, termination=termination)
    worst = optimal(mdp.transition, mdp.reward, 0.0).max(1).argmin()
    return tabular.from_mdp(mdp._replace(start=np.eye(5)[worst]), "Garnet", limit)


def optimal(transition: Any, reward: Any, epsilon: float) -> Any:
    """q = r + γ P [(1 − ε) max q + ε mean q] in float64: q of the best ε-greedy policy, q* for ε = 0."""
    q = np.zeros_like(reward)
    for _ in range(1000):
        q = reward + GAMMA * transition @ ((1 - epsilon) * q.max(1) + epsilon * q.mean(1))
    return q


def leaks(mdp: tabular.MDP) -> tuple[Any, Any]:
    """What P becomes to a method that takes one step of four, the time limit, for an end, or for a step to
    the first state of the next episode.
    """
    return 0.75 * mdp.transition, 0.75 * mdp.transition + 0.25 * mdp.start


@functools.cache
def trained(name: str, kind: str, given: bool = False, **fields: Any) -> Any:
    module, env = algorithms.find(name).module, endless(kind)
    config = module.Config(
        **{"discount": GAMMA, "num_envs": 32, "num_steps": 125, "total_steps": STEPS} | fields
    )
    frozen = given_policy() if given else None

    @jax.jit
    def train(key: Any, config: Any) -> Any:
        algorithm = module.make(env, config, None, frozen)
        init_key, run_key = jax.random.split(key)
        return rljax.run(algorithm, run_key, algorithm.init(init_key), STEPS // 4000)[0]

    return train(jax.random.key(0), engine.strong(config))


def given_policy() -> Any:
    return np.random.default_rng(2).dirichlet(np.ones(3) / 2, 5)


@pytest.mark.parametrize("kind", LIMITS)
@pytest.mark.parametrize("target", ["max", "double"])
def test_q_learning_converges_to_the_optimal_values(kind: str, target: str) -> None:
    """Acting at random, so that only the target can make it optimal."""
    fields = {"step_size": 1.0, "step_size_decay": 0.75, "epsilon_end": 1.0}
    q = trained("q_learning", kind, target=target, **fields).params
    mdp = endless(kind).source
    exact = optimal(mdp.transition, mdp.reward, 0.0)
    np.testing.assert_allclose(q, np.broadcast_to(exact, q.shape), atol=0.25)
    np.testing.assert_array_equal(np.asarray(q).mean(0).argmax(-1), exact.argmax(-1))
    if kind == "truncated":
        for wrong in leaks(mdp):
            assert np.abs(optimal(wrong, mdp.reward, 0.0) - exact).max() > 2.5  # ten times the tolerance


@pytest.mark.parametrize("kind", LIMITS)
@pytest.mark.parametrize("name", ["sarsa", "expected_sarsa", "monte_carlo"])
def test_control_on_policy_converges_to_the_best_policy_that_explores(name: str, kind: str) -> None:
    fields = {"step_size": 1.0, "step_size_decay": 0.75, "epsilon_start": EPSILON, "epsilon_end": EPSILON}
    q = trained(name, kind, **fields).params
    mdp = endless(kind).source
    exact = optimal(mdp.transition, mdp.reward, EPSILON)
    np.testing.assert_allclose(q, exact, atol=0.25)
    assert np.abs(optimal(mdp.transition, mdp.reward, 0.0) - exact).max() > 0.75  # it is not Q-learning's
    if kind == "truncated":
        for wrong in leaks(mdp):
            assert np.abs(optimal(wrong, mdp.reward, EPSILON) - exact).max() > 2.5


@pytest.mark.parametrize("name", CONTROL)
def test_control_becomes_optimal_as_exploration_ends(name: str) -> None:
    """ε from 1 to 0: the values of the states are v*, and the greedy policy is the optimal one."""
    state = trained(name, "terminating", epsilon_end=0.0, exploration_fraction=1.0, step_size=1.0)
    mdp = endless("terminating").source
    exact = optimal(mdp.transition, mdp.reward, 0.0)
    q = np.asarray(state.params).reshape(-1, 5, 3).mean(0)
    np.testing.assert_allclose(q.max(1), exact.max(1), atol=0.25)
    np.testing.assert_array_equal(q.argmax(1), exact.argmax(1))


@pytest.mark.parametrize("kind", LIMITS)
@pytest.mark.parametrize(
    ("decay", "traces", "given"),
    [*itertools.product([0.0, 0.5, 1.0], ["accumulating", "replacing"], [True]), (0.5, "replacing", False)],
)
def test_td_lambda_converges_to_the_policy_s_values(
    kind: str, decay: float, traces: str, given: bool
) -> None:
    fields = {"step_size": 0.5, "step_size_decay": 0.6}
    value = trained("td_lambda", kind, given, traces=traces, trace_decay=decay, **fields).params
    mdp = endless(kind).source
    pi = given_policy() if given else np.full((5, 3), 1 / 3)

    def exact(transition: Any) -> Any:
        moves, reward = np.einsum("sa,sat->st", pi, transition), (pi * mdp.reward).sum(1)
        return np.linalg.solve(np.eye(5) - GAMMA * moves, reward)

    np.testing.assert_allclose(value, exact(mdp.transition), atol=0.15)
    if kind == "truncated" and given:
        for wrong in leaks(mdp):
            assert np.abs(exact(wrong) - exact(mdp.transition)).max() > 1.5


# What they share.


def test_a_drawn_action_has_its_probability_and_never_none() -> None:
    rows = jnp.array([[0.3, 0.7, 0.0], [0.0, 0.0, 1.0], [0.0, 0.25, 0.75], [1 / 3, 1 / 3, 1 / 3]])
    drawn = jax.vmap(tables.draw, (0, None))(jax.random.split(jax.random.key(0), 40_000), rows)
    frequency = np.stack([(np.asarray(drawn) == a).mean(0) for a in range(3)], axis=1)
    np.testing.assert_allclose(frequency, rows, atol=0.012)
    assert (frequency[np.asarray(rows) == 0] == 0).all()


@pytest.mark.parametrize("extreme", [0.0, 1 - 2.0**-23])
def test_no_uniform_number_draws_an_impossible_action(
    monkeypatch: pytest.MonkeyPatch, extreme: float
) -> None:
    """Sums of float32 that end below 1: ten rows of random probabilities with zeros at both ends."""
    rows = np.random.default_rng(0).dirichlet(np.ones(7), 1000).astype(np.float32)
    rows = np.pad(rows, ((0, 0), (2, 3)))
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype: jnp.full(shape, extreme, dtype))
    drawn = np.asarray(tables.draw(jax.random.key(0), jnp.asarray(rows)))
    assert (rows[np.arange(1000), drawn] > 0).all()


@pytest.mark.parametrize("name", CONTROL)
def test_the_policy_is_greedy_or_explores_as_training_does(name: str) -> None:
    module, env = algorithms.find(name).module, problem()
    config = module.Config(epsilon_start=0.8, epsilon_end=0.2, exploration_fraction=0.5, total_steps=102_400)
    algorithm = module.make(env, config)
    state = algorithm.init(jax.random.key(0))
    state = state.replace(
        params=jnp.zeros_like(state.params).at[..., 1].set(1.0).at[..., 2, :].set(0.0),
        iteration=jnp.int32(25),
    )
    policy = algorithm.policy(state)  # a quarter of the run is over, so ε is in the middle
    obs = jnp.repeat(jnp.arange(5), 4000)
    greedy, _ = policy.act(jax.random.key(1), obs, policy.init(), True)
    np.testing.assert_array_equal(greedy.reshape(5, -1)[:, 0], [1, 1, 0, 1, 1])
    drawn, _ = policy.act(jax.random.key(1), obs, policy.init(), False)
    frequency = np.stack([(np.asarray(drawn).reshape(5, -1) == a).mean(1) for a in range(3)], axis=1)
    expected = epsilon_greedy_policy(state.params.reshape(-1, 5, 3)[0], 0.5)
    np.testing.assert_allclose(frequency, expected, atol=0.03)


def test_epsilon_falls_over_a_part_of_the_run() -> None:
    module = algorithms.find("q_learning").module
    config = module.Config(
        num_envs=2, num_steps=5, total_steps=100, epsilon_start=0.9, epsilon_end=0.1, exploration_fraction=0.4
    )
    algorithm = module.make(problem(), config)
    _, metrics = jax.jit(lambda key: rljax.run(algorithm, key, algorithm.init(jax.random.key(0)), 10))(
        jax.random.key(1)
    )
    np.testing.assert_allclose(metrics.epsilon.value, [0.9, 0.7, 0.5, 0.3] + [0.1] * 6, rtol=1e-5)


def test_a_policy_of_the_user_s_goes_through_the_engine() -> None:
    """`frozen` is an argument of the compiled program: another policy, the same one. Reward: the action."""
    mdp = tabular.MDP(np.full((1, 3, 1), 0.9), np.array([[0.0, 1.0, 2.0]]), GAMMA, np.ones(1))
    module, env = algorithms.find("td_lambda").module, tabular.from_mdp(mdp, max_steps=50)
    cache: dict[Any, Any] = {}
    for action in (0, 2):
        frozen = np.eye(3)[action][None]
        config = module.Config(num_envs=2, num_steps=500, step_size_decay=0.7)
        program = engine.build(module.make, env, config, {}, [0, 1], frozen=frozen, cache=cache)
        states, _, _ = program.advance(program.init(), 2)
        values = program.fetch(states).params[:, 0]
        np.testing.assert_allclose(values, action / (1 - 0.99 * 0.9), rtol=0.1)
        for greedy in (True, False):
            returns, lengths, _ = program.fetch(program.evaluate(states, 0, 16, greedy))
            np.testing.assert_array_equal(returns, action * lengths)
    assert len(cache) == 3  # init, advance and evaluate were compiled once


def test_a_policy_of_the_user_s_is_trained_evaluated_and_loaded(tmp_path: Any) -> None:
    """Right and down between the holes of the lake, which is not slippery, to its goal: v by hand."""
    run, right = tmp_path / "run", np.tile(np.eye(4)[2], (16, 1))
    right[[2, 6, 10, 14]] = np.eye(4)[[1, 1, 1, 2]]
    arguments = {"is_slippery": False}
    config = {"num_envs": 2, "num_steps": 8, "discount": 0.9, "step_size_decay": 0.0, "step_size": 1.0}
    given = {"env_arguments": arguments, "steps": 96, "out": run, "progress": False}
    done = rljax.train("td_lambda", "FrozenLake-tabular", config, frozen=right, **given)
    assert done.summary["return"]["mean"] == 1
    np.testing.assert_allclose(done.states.params[0][[14, 10, 6, 2]], 0.9 ** np.arange(4), rtol=1e-3)
    assert rljax.evaluate(run, episodes=4, frozen=right)["return"]["mean"] == 1
    assert (
        rljax.load(run, frozen=right)
        .algorithm.policy(None)
        .act(jax.random.key(0), jnp.array([10]), (), True)[0]
        == 1
    )
    with pytest.raises(ValueError, match="trained with frozen= of your own: pass the same frozen= again"):
        rljax.evaluate(run)
    with pytest.raises(ValueError, match="frozen= is not the same as there"):
        rljax.load(run, frozen=np.full((16, 4), 0.25))
    with pytest.raises(ValueError, match=r"frozen= is for an algorithm .*: sarsa is not"):
        rljax.train("sarsa", "FrozenLake-tabular", frozen=right)


@pytest.mark.parametrize(
    ("frozen", "message"),
    [
        (np.ones((3, 5)) / 5, r"has shape \(3, 5\): must be \(S, A\) = \(5, 3\)"),
        (np.ones((5, 3)), "rows of probabilities that sum to 1"),
        (np.tile([1.5, -0.5, 0.0], (5, 1)), "rows of probabilities"),
        (np.full((5, 3), np.nan), "rows of probabilities"),
    ],
)
def test_what_is_no_policy_is_refused_in_one_line(frozen: Any, message: str) -> None:
    module = algorithms.find("td_lambda").module
    with pytest.raises(ValueError, match=message) as caught:
        module.make(problem(), module.Config(), None, frozen)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [*CONTROL, "td_lambda"])
def test_spaces_that_do_not_fit_are_refused_in_one_line(name: str) -> None:
    module = algorithms.find(name).module
    for env, message in (
        ("CartPole-v1", f"{name} keeps a table and needs a Discrete observation space.*use dqn"),
        ("Pendulum-v1", f"{name} needs a Discrete action space.*use ddpg"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            module.make(envs.make(env), module.Config())
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="keeps a table and takes no network"):
        module.make(problem(), module.Config(), "a network")


def test_monte_carlo_needs_a_time_limit() -> None:
    module = algorithms.find("monte_carlo").module
    with pytest.raises(ValueError, match="monte_carlo needs a time limit"):
        module.make(problem(max_steps=None), module.Config())


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("q_learning", "target", "maxx"),
        ("td_lambda", "traces", "dutch"),
        ("td_lambda", "trace_decay", 1.5),
        ("sarsa", "epsilon_end", 2.0),
        ("expected_sarsa", "step_size", 0.0),
    ],
)
def test_other_wrong_fields_are_named(name: str, field: str, value: Any) -> None:
    module = algorithms.find(name).module
    with pytest.raises(ValueError, match=f"{name}.Config.{field} = ") as caught:
        module.make(problem(), module.Config(**{field: value}))
    assert "\n" not in str(caught.value)
