"""The token stream as an Env: its episodes are a task's completions, and control PPO on it is text PPO."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rljax
from rljax import models, ppo, rlhf_ppo, text
from rljax.learning import completions, env_rollouts
from rljax.models import adapters
from rljax.models.language_models import language_model
from rljax.text import rewards, tasks
from rljax.text.problem import task as task_of
from rljax.types import Array, Box, Discrete, Env, LanguageModel, MultiDiscrete, PyTree, Task

SIZES: dict[str, Any] = {"hidden_size": 16, "num_layers": 1, "num_heads": 2}
# what both algorithms call by the same name
SAME: dict[str, Any] = {
    "discount": 0.9,
    "trace_decay": 0.8,
    "clip": 0.1,
    "value_coefficient": 0.3,
    "learning_rate": 0.03,
    "max_grad_norm": 1e6,
    "adam_epsilon": 1e-3,
    "schedule": "constant",
    "value_loss": "clipped",
    "advantage_normalization": "none",
    "num_minibatches": 1,
}


def right(prompt: Array, completion: Array, reference: PyTree) -> Array:
    """How many of the tokens are those of the reference."""
    del prompt
    return jnp.sum((completion >= 0) & (completion == reference["completion"]), dtype=jnp.float32)


@functools.cache
def letters(stops: bool = True) -> Task:
    """Prompts of one to three letters, to be said backwards in at most four tokens."""
    words = ["a", "b", "ab", "ba", "abc", "cab", "bca", "cc"]
    records = [{"prompt": word, "completion": word[::-1]} for word in words]
    both = [rewards.of_tokens(right, weight=0.5), rewards.length(3.0, weight=0.25)]
    problem = text.problem("letters", text.character_tokenizer("abc"), records, both, held_out=2)
    return task_of(problem if stops else problem._replace(stop_ids=()), "prompts")


@functools.cache
def guesses() -> Task:
    """Two digits, an answer of the world's, and so on: up to three times."""
    return task_of(tasks.make("guess_number", numbers=12, guesses=3), "prompts")


def text_config(**fields: Any) -> rlhf_ppo.Config:
    # one iteration is the whole run, so that the warm-up of the learning rate is over in it
    own: dict[str, Any] = {"num_prompts": 5, "group_size": 3, "total_steps": 15, "chunk": 3, "num_epochs": 1}
    return rlhf_ppo.Config(**SAME | SIZES | own | {"value_clip": SAME["clip"]} | fields)


class World(NamedTuple):
    """An Env with its functions compiled."""

    env: Env
    reset: Any
    step: Any
    keys: dict[int, Array]  # of each prompt one with which `reset` draws it


@functools.cache
def world_of(make: Any) -> World:
    """The Env of the task that `make` gives, shared by the tests."""
    env = text.token_env(make())
    reset = jax.jit(env.reset)

    @jax.jit
    def drawn(key: Array) -> tuple[Array, Array]:
        keys = jax.random.split(key, 400)
        return jax.vmap(lambda key: env.reset(key)[1].row)(keys), jax.random.key_data(keys)

    rows, data = map(np.asarray, drawn(jax.random.key(5)))
    first = dict(zip(*np.unique(rows, return_index=True), strict=True))
    keys = {int(row): jax.random.wrap_key_data(data[index]) for row, index in first.items()}
    return World(env, reset, jax.jit(env.step), keys)


class Steps(NamedTuple):
    """The M tokens that the policy wrote of all completions, one episode after the other."""

    obs: PyTree  # (M, ...)
    action: Array  # (M,)
    reward: Array
    terminated: Array
    truncated: Array
    final: list[Any]  # the last state of each episode


def walked(world: World, rollout: completions.Rollout) -> Steps:
    """The Env, stepped through the tokens that the policy wrote of a text algorithm's completions."""
    rows, final, key = [], [], jax.random.key(0)
    for n, drawn in enumerate(rollout.drawn):
        obs, state = world.reset(world.keys[int(rollout.reference["row"][n])])
        for token in rollout.completion[n, np.flatnonzero(drawn)]:
            following, state, reward, terminated, truncated = world.step(key, state, token)
            rows.append((obs, token, reward, terminated, truncated))
            obs = following
        final.append(state)
    rows, final = jax.device_get((rows, final))
    obs, action, reward, terminated, truncated = jax.tree.map(lambda *x: np.stack(x), *rows)
    return Steps(obs, action, reward, terminated, truncated, final)


class Drawn(NamedTuple):
    state: Any  # no parameter is at zero
    rollout: completions.Rollout
    scores: Any


@functools.cache
def drawn_of(make: Any, fields: tuple = ()) -> Drawn:
    """Completions of text PPO on the task that `make` gives, with these fields in its Config."""
    task, config, model = parts_of(make, dict(fields))
    return sampled(task, config, model)


def parts_of(make: Any, fields: dict[str, Any]) -> tuple[Task, rlhf_ppo.Config, LanguageModel]:
    """The task, with parameters to adapt where a Config adapts them, that Config, and the model."""
    task, config = make(), text_config(**fields)
    model = model_of(make, config.architecture)
    if config.train == "lora":
        task = task._replace(params=jax.jit(model.init)(jax.random.key(9)))
    return task, config, model


class Case(NamedTuple):
    task: Any
    fields: dict[str, Any]
    epochs: int = 1


# each of what may differ is in one of them: every case is three programs of a whole model
CASES = {
    "three epochs": Case(letters, {}, 3),
    "conversation, gru, critic, temperature, two epochs": Case(
        guesses, {"architecture": "gru", "critic": "separate", "temperature": 0.7}, 2
    ),
    "t5, lora": Case(letters, {"architecture": "t5", "train": "lora", "rank": 2}),
}


@functools.cache
def model_of(make: Any, architecture: str) -> LanguageModel:
    task = make()
    length = task.learn.tokens.shape[1] + task.max_new_tokens
    return language_model(task.vocab_size, text_config(architecture=architecture), length)


def sampled(task: Task, config: rlhf_ppo.Config, network: LanguageModel) -> Drawn:
    algorithm = rlhf_ppo.make(task, config, network)
    split = algorithm.split
    assert split is not None

    @jax.jit
    def drawn(key: Array, sample_key: Array) -> tuple:
        state = algorithm.init(key)
        noise = lambda path, x: x + 0.3 * jax.random.normal(jax.random.key(len(str(path))), x.shape)
        state = state.replace(params=jax.tree_util.tree_map_with_path(noise, state.params))
        rollout = split.sample(sample_key, state)
        return state, rollout, split.reward(rollout)

    state, rollout, scores = drawn(jax.random.key(0), jax.random.key(1))
    return Drawn(state, jax.device_get(rollout), scores)


# (a) the contract


@pytest.mark.parametrize("make", [letters, guesses])
def test_an_observation_fits_its_space(make: Any) -> None:
    task, (env, reset, step, _) = make(), world_of(make)
    width, length = task.learn.tokens.shape[1], task.max_new_tokens
    obs, state = jax.device_get(reset(jax.random.key(0)))
    assert isinstance(env.observation_space, dict)
    assert set(obs) == set(env.observation_space)
    for name, space in env.observation_space.items():
        assert isinstance(space, MultiDiscrete | Discrete | Box)
        assert (obs[name].shape, obs[name].dtype) == (space.shape, space.dtype)
    learn = jax.device_get(task.learn)
    np.testing.assert_array_equal(obs["valid"], learn.valid[state.row])
    np.testing.assert_array_equal(obs["prompt"][obs["valid"]], learn.tokens[state.row][obs["valid"]])
    assert (obs["completion"].shape, int(obs["step"])) == ((length,), 0)
    assert state.context.shape == (width + length,)
    assert (env.action_space, env.max_steps) == (Discrete(task.vocab_size), length)
    again = step(jax.random.key(0), state, np.int32(3))
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert shapes((obs, state)) == shapes(again[:2])
    assert shapes(again[2:]) == (((), np.float32), ((), np.bool_), ((), np.bool_))


def test_every_prompt_of_the_part_is_drawn() -> None:
    parts: Any = {"learn": 6, "held_out": 2}
    for part, number in parts.items():
        env = text.token_env(letters(), part=part)
        states = jax.jit(lambda key, env=env: jax.vmap(env.reset)(jax.random.split(key, 100))[1])(
            jax.random.key(0)
        )
        states, prompts = jax.device_get((states, getattr(letters(), part)))
        np.testing.assert_array_equal(np.unique(states.row), np.arange(number))
        tokens = np.where(prompts.valid, prompts.tokens, -1)[states.row]
        np.testing.assert_array_equal(states.context[:, : tokens.shape[1]], tokens)


def endless() -> Task:
    """Letters whose completions only their length ends."""
    return letters(stops=False)


@pytest.mark.parametrize("make", [letters, guesses, endless])
def test_an_episode_is_a_completion_of_the_task(make: Any) -> None:
    task = make()
    conversation = CASES["conversation, gru, critic, temperature, two epochs"]
    _, rollout, scores = drawn_of(make, tuple(conversation.fields.items()) if make is guesses else ())
    steps = walked(world_of(make), rollout)
    ends = np.flatnonzero(steps.terminated)
    # each ends where its completion does, and nowhere before
    np.testing.assert_array_equal(ends, np.cumsum(rollout.drawn.sum(1)) - 1)
    assert not steps.truncated.any()
    wrote = np.where(rollout.mask, rollout.completion, -1)
    contexts = np.stack([state.context for state in steps.final])
    np.testing.assert_array_equal(contexts[:, rollout.prompt.shape[1] :], wrote)
    np.testing.assert_array_equal([state.step for state in steps.final], rollout.mask.sum(1))
    worth = jax.jit(lambda scores: completions.combined(task, scores))(scores)
    np.testing.assert_allclose(steps.reward[ends], worth, rtol=1e-6)
    assert np.unique(steps.reward[ends]).size > 2
    np.testing.assert_array_equal(np.delete(steps.reward, ends), 0)
    stopped = bool(task.stop_ids)
    assert rollout.stopped.any() == stopped
    if task.observe is not None:
        assert (rollout.mask & ~rollout.drawn).any()


def test_what_the_world_writes_is_no_step() -> None:
    task = guesses()
    assert task.tokenizer is not None
    _, reset, step, keys = world_of(guesses)
    obs, state = reset(keys[7])
    seen, rewarded = [], []
    for token in task.tokenizer.encode("050907"):
        obs, state, reward, terminated, _ = step(jax.random.key(0), state, np.int32(token))
        obs = jax.device_get(obs)
        seen.append(task.tokenizer.decode(obs["completion"][: int(obs["step"])].tolist()))
        rewarded.append((float(reward), bool(terminated)))
    assert seen[:-1] == ["0", "05>", "05>0", "05>09<", "05>09<0"]
    assert seen[-1].startswith("05>09<07")
    assert int(obs["completion"][8]) == task.tokenizer.eos_id
    assert rewarded[:-1] == [(0.0, False)] * 5
    assert rewarded[-1] == (pytest.approx(1 - 3 * 0.02), True)


def test_prompts_can_be_an_argument_of_a_program() -> None:
    task = letters()
    learn = jax.device_get(task.learn)
    turned = jax.tree.map(lambda x: x[::-1], learn)
    tokens = np.where(learn.valid, learn.tokens, -1)
    reset = jax.jit(lambda key, prompts: text.token_env(task._replace(learn=prompts)).reset(key))
    for number in range(4):
        key = jax.random.key(number)
        (_, one), (_, other) = jax.device_get((reset(key, learn), reset(key, turned)))
        np.testing.assert_array_equal(one.context[: tokens.shape[1]], tokens[one.row])
        np.testing.assert_array_equal(other.context[: tokens.shape[1]], tokens[5 - one.row])


def test_a_shorter_episode_and_a_reward_that_is_not_a_number() -> None:
    nothing = rewards.of_tokens(lambda prompt, completion, reference: jnp.float32(jnp.nan), "nothing")
    env = text.token_env(letters()._replace(rewards=(nothing,)), max_new_tokens=2)
    _, state = jax.jit(env.reset)(jax.random.key(0))
    assert env.max_steps == 2
    letter = np.asarray(letters().learn.demonstration)[0, 0]
    walk = jax.jit(env.step)
    for step in (1, 2):
        _, state, reward, terminated, truncated = walk(jax.random.key(0), state, letter)
        assert (bool(terminated), bool(truncated), float(reward)) == (step == 2, False, 0.0)


def test_what_is_wrong_is_one_line() -> None:
    task = letters()
    host = rewards.of_text(lambda prompt, completion, record: 1.0, "host", processes=0)
    ended = lambda context, step, reference: jnp.int32(task.stop_ids[0])
    cases = [
        ({"task": task._replace(rewards=(*task.rewards, host))}, "reward host of the task letters is"),
        ({"task": task._replace(rewards=())}, "the task letters has no reward"),
        ({"task": task, "max_new_tokens": 0}, "max_new_tokens = 0: must be an integer of at least 1"),
        ({"task": task, "part": "test"}, "part = 'test': must be 'learn' or 'held_out'"),
        ({"task": task._replace(observe=ended)}, "ends the conversation of prompt 0 of learn"),
        ({"task": task, "max_new_tokens": 3}, "reward right fails"),  # its reference is of 4 tokens
    ]
    for arguments, says in cases:
        with pytest.raises(ValueError, match=r".") as caught:
            text.token_env(**arguments)
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)
    model = language_model(task.vocab_size, text_config(), 8)
    with pytest.raises(ValueError, match="critic = 'two'"):
        models.token_actor_critic(model, critic="two")  # pyright: ignore
    with pytest.raises(ValueError, match="temperature = 0"):
        models.token_actor_critic(model, temperature=0)


def test_a_network_takes_any_leading_shape() -> None:
    env = world_of(letters).env
    network = models.token_actor_critic(language_model(env.action_space.n, text_config(), 8))  # pyright: ignore

    @jax.jit
    def all_shapes(key: Array) -> tuple:
        """(logits, value) of six observations in a row, as two rows of three, and of the fifth alone."""
        obs, _ = jax.vmap(env.reset)(jax.random.split(key, 6))
        params = network.init(jax.random.key(1), jax.tree.map(lambda x: x[0], obs))
        params["head"] = jax.tree.map(lambda x: x + 0.5, params["head"])
        folded = jax.tree.map(lambda x: x.reshape(2, 3, *x.shape[1:]), obs)
        each = (obs, folded, jax.tree.map(lambda x: x[4], obs))
        return tuple(network.apply(params, given) for given in each)

    (logits, value), folded, one = jax.device_get(all_shapes(jax.random.key(0)))
    assert (logits.shape, value.shape) == ((6, letters().vocab_size), (6,))
    np.testing.assert_allclose(folded[0].reshape(6, -1), logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(folded[1].reshape(6), value, rtol=1e-5)
    np.testing.assert_allclose(one[0], logits[4], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(one[1], value[4], rtol=1e-5)


# (b) control PPO learns


def copying() -> Task:
    """Say the letter that was said."""
    # after ">", since to rotary positions a second a beside the first is nothing new
    records = [{"prompt": letter + ">", "completion": letter} for letter in "abcdef" * 2]
    tokenizer, reward = text.character_tokenizer("abcdef>"), rewards.of_tokens(right, weight=0.5)
    problem = text.problem("copy", tokenizer, records, reward, held_out=6)
    return task_of(problem, "prompts")


LEARNING: dict[str, Any] = {
    "num_envs": 64,
    "num_steps": 8,
    "learning_rate": 1e-2,
    "discount": 1.0,
    "total_steps": 30 * 512,
}


@pytest.mark.parametrize("own", [True, False], ids=["language model", "one-hot tokens"])
def test_control_ppo_learns_a_task_of_text(own: bool, tmp_path: Path) -> None:
    task = copying()
    network = None
    if own:
        network = models.token_actor_critic(language_model(task.vocab_size, text_config(), 8))
    run = tmp_path / "run"
    config = ppo.Config(**LEARNING)
    result = rljax.train("ppo", text.token_env(task), config, network=network, out=run, progress=False)
    assert result.rows[0]["episode_return"][0] < 0.2
    # who does not read the prompt gets a letter in six and the end: 0.58
    assert result.summary["return"]["mean"] > 0.8
    held_out = text.token_env(task, part="held_out")
    assert rljax.evaluate(run, env=held_out, network=network)["return"]["mean"] > 0.8


# (c) it is text PPO


def flattened(tree: PyTree) -> np.ndarray:
    """All leaves in one row, as an optimizer that is flattened holds them."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@pytest.mark.parametrize("name", CASES)
def test_control_ppo_on_tokens_is_text_ppo(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same completions: the same log-probabilities, values, advantages and targets, gradient of the whole
    loss, and parameters after it.
    """
    case = CASES[name]
    task, config, model = parts_of(case.task, case.fields | {"num_epochs": case.epochs})
    trained = model
    if config.train == "lora":
        trained = adapters.attach(
            model, task.params, adapters.lora(config.patterns, config.rank, config.alpha)
        )
    # how often they are learnt from is nothing to what is drawn
    state, rollout, scores = drawn_of(case.task, tuple(case.fields.items()))
    world = world_of(case.task)
    steps = walked(world, rollout)
    drawn = rollout.drawn

    # text PPO, and what it computes on the way
    seen: list[Any] = []
    batch_of = rlhf_ppo.policy_gradient.batch_of
    monkeypatch.setattr(
        rlhf_ppo.policy_gradient, "batch_of", lambda *given: seen.append(batch_of(*given)) or seen[-1]
    )
    split = rlhf_ppo.make(task, config, model).split
    assert split is not None

    @jax.jit
    def text_step(rollout: Any) -> tuple:
        learnt, told = split.learn(jax.random.key(2), state, rollout, scores)
        return learnt, told, seen.pop(), split.advantage(state, rollout, scores)

    # control PPO, whose rollout these tokens are
    network = models.token_actor_critic(trained, critic=config.critic, temperature=config.temperature)
    number = steps.action.size
    control_config = ppo.Config(
        **SAME,
        num_envs=1,
        num_steps=number,
        num_epochs=case.epochs,
        entropy_coefficient=0.0,
        total_steps=1e6,
    )
    control = ppo.make(world.env, control_config, network)
    cut = jax.tree.map(lambda x: x[:, None], steps._replace(final=[]))
    forced = env_rollouts.Rollout(
        cut.obs, cut.action, cut.reward, cut.terminated, cut.truncated, np.zeros((number, 1), np.float32)
    )
    batch_type = ppo.Batch
    monkeypatch.setattr(ppo, "Batch", lambda *given: seen.append(batch_type(*given)) or seen[-1])

    @jax.jit
    def control_step() -> tuple:
        begun = control.init(jax.random.key(3))
        assert jax.tree.structure(begun.params) == jax.tree.structure(state.params)
        assert jax.tree.all(jax.tree.map(lambda x, y: x.shape[1:] == y.shape, forced.obs, begun.worlds.obs))
        rollout_of = lambda *given: (
            begun.worlds,
            jax.tree.map(jnp.asarray, forced),
            env_rollouts.no_episodes(),
        )
        monkeypatch.setattr(env_rollouts, "rollout", rollout_of)
        return *control.step(jax.random.key(4), begun.replace(params=state.params)), seen.pop()

    learnt, told, batch, advantage = jax.device_get(text_step(rollout))
    stepped, shown, rows = jax.device_get(control_step())
    begun = jax.device_get(state.params)

    near: Any = {"rtol": 1e-4, "atol": 1e-5}
    flat = lambda x: np.asarray(x)[drawn]
    np.testing.assert_array_equal(rows.action[:, 0], flat(rollout.completion))
    np.testing.assert_allclose(rows.log_prob[:, 0], flat(batch.old), **near)
    np.testing.assert_allclose(rows.log_prob[:, 0], flat(rollout.log_prob), **near)
    np.testing.assert_allclose(rows.value[:, 0], flat(batch.extras.value), **near)
    np.testing.assert_allclose(rows.advantage[:, 0], flat(batch.extras.advantage), **near)
    np.testing.assert_allclose(rows.advantage[:, 0], flat(advantage), **near)
    np.testing.assert_allclose(rows.target[:, 0], flat(batch.extras.target), **near)
    assert np.std(rows.value) > 0.05
    assert np.std(rows.advantage) > 0.05

    # Adam's mean of the gradients: after one step 0.1 of the gradient itself
    (mine,), theirs = jax.tree.leaves(stepped.opt_state[1].mu), flattened(learnt.opt_state[1].mu)
    scale = float(np.abs(theirs).max())
    assert scale > 1e-3
    np.testing.assert_allclose(mine / scale, theirs / scale, rtol=1e-3, atol=1e-5)
    moved = flattened(learnt.params) - flattened(begun)
    assert float(np.abs(moved).max()) > 0.01
    also_moved = flattened(stepped.params) - flattened(begun)
    np.testing.assert_allclose(also_moved, moved, rtol=1e-2, atol=1e-4)
    np.testing.assert_allclose(shown.policy_loss.value, told.policy_loss.value, **near)
    np.testing.assert_allclose(shown.value_loss.value, told.value_loss.value, **near)
    np.testing.assert_allclose(shown.gradient_norm.value, told.gradient_norm.value, rtol=1e-3)
    np.testing.assert_allclose(shown.clip_fraction.value, told.clip_fraction.value, atol=1e-6)
    if case.epochs > 1:
        assert shown.clip_fraction.value > 0.1
