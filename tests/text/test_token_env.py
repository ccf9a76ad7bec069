"""The token stream as an Env: its episodes are a task's completions, and control PPO on it is text PPO."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import rljax
from rljax import models, ppo, rlhf_ppo, text
from rljax.algorithms import completions
from rljax.envs import vector
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


def letters(stops: bool = True) -> Task:
    """Prompts of one to three letters, to be said backwards in at most four tokens."""
    words = ["a", "b", "ab", "ba", "abc", "cab", "bca", "cc"]
    records = [{"prompt": word, "completion": word[::-1]} for word in words]
    both = [rewards.of_tokens(right, weight=0.5), rewards.length(3.0, weight=0.25)]
    problem = text.problem("letters", text.character_tokenizer("abc"), records, both, held_out=2)
    return task_of(problem if stops else problem._replace(stop_ids=()), "prompts")


def guesses() -> Task:
    """Two digits, an answer of the world's, and so on: up to three times."""
    return task_of(tasks.make("guess_number", numbers=12, guesses=3), "prompts")


def text_config(**fields: Any) -> rlhf_ppo.Config:
    # one iteration is the whole run, so that the warm-up of the learning rate is over in it
    own: dict[str, Any] = {"num_prompts": 5, "group_size": 3, "total_steps": 15, "chunk": 3, "num_epochs": 1}
    return rlhf_ppo.Config(**SAME | SIZES | own | {"value_clip": SAME["clip"]} | fields)


class Steps(NamedTuple):
    """The M tokens that the policy wrote of all completions, one episode after the other."""

    obs: PyTree  # (M, ...)
    action: Array  # (M,)
    reward: Array
    terminated: Array
    truncated: Array
    final: list[Any]  # the last state of each episode


def keys_of(env: Env) -> dict[int, Array]:
    """Of each prompt a key with which `reset` draws it."""
    keys = jax.random.split(jax.random.key(5), 400)
    rows = jax.jit(jax.vmap(lambda key: env.reset(key)[1].row))(keys)
    return {int(row): key for row, key in zip(rows, keys, strict=True)}


def walked(env: Env, rollout: completions.Rollout) -> Steps:
    """The Env, stepped through the tokens that the policy wrote of a text algorithm's completions."""
    step, reset = jax.jit(env.step), jax.jit(env.reset)
    keys, rows, final = keys_of(env), [], []
    for n, drawn in enumerate(np.asarray(rollout.drawn)):
        obs, state = reset(keys[int(rollout.reference["row"][n])])
        for token in rollout.completion[n, np.flatnonzero(drawn)]:
            following, state, reward, terminated, truncated = step(jax.random.key(0), state, token)
            rows.append((obs, token, reward, terminated, truncated))
            obs = following
        final.append(state)
    obs, action, reward, terminated, truncated = jax.tree.map(lambda *x: jnp.stack(x), *rows)
    return Steps(obs, action, reward, terminated, truncated, final)


def sampled(task: Task, config: rlhf_ppo.Config, network: LanguageModel | None = None) -> tuple:
    """(text PPO, a state of it with no parameter at zero, completions of that, their scores)."""
    algorithm = rlhf_ppo.make(task, config, network)
    assert algorithm.split is not None
    state = jax.jit(algorithm.init)(jax.random.key(0))
    noise = lambda path, x: x + 0.3 * jax.random.normal(jax.random.key(len(str(path))), x.shape)
    state = state.replace(params=jax.tree_util.tree_map_with_path(noise, state.params))
    rollout = jax.jit(algorithm.split.sample)(jax.random.key(1), state)
    return algorithm, state, rollout, jax.jit(algorithm.split.reward)(rollout)


# (a) the contract


@pytest.mark.parametrize("make", [letters, guesses])
def test_an_observation_fits_its_space(make: Any) -> None:
    task = make()
    env = text.token_env(task)
    width, length = task.learn.tokens.shape[1], task.max_new_tokens
    obs, state = env.reset(jax.random.key(0))
    assert isinstance(env.observation_space, dict)
    assert set(obs) == set(env.observation_space)
    for name, space in env.observation_space.items():
        assert isinstance(space, MultiDiscrete | Discrete | Box)
        assert (obs[name].shape, obs[name].dtype) == (space.shape, space.dtype)
    np.testing.assert_array_equal(obs["valid"], task.learn.valid[state.row])
    np.testing.assert_array_equal(obs["prompt"][obs["valid"]], task.learn.tokens[state.row][obs["valid"]])
    assert (obs["completion"].shape, int(obs["step"])) == ((length,), 0)
    assert state.context.shape == (width + length,)
    assert (env.action_space, env.max_steps) == (Discrete(task.vocab_size), length)
    again = env.step(jax.random.key(0), state, jnp.int32(3))
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert shapes((obs, state)) == shapes(again[:2])
    assert shapes(again[2:]) == (((), np.float32), ((), np.bool_), ((), np.bool_))


def test_every_prompt_of_the_part_is_drawn() -> None:
    parts: Any = {"learn": 6, "held_out": 2}
    for part, number in parts.items():
        env = text.token_env(letters(), part=part)
        _, states = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 100))
        np.testing.assert_array_equal(np.unique(states.row), np.arange(number))
        prompts = getattr(letters(), part)
        tokens = np.where(prompts.valid, prompts.tokens, -1)[states.row]
        np.testing.assert_array_equal(states.context[:, : tokens.shape[1]], tokens)


@pytest.mark.parametrize("make", [letters, guesses, lambda: letters(stops=False)])
def test_an_episode_is_a_completion_of_the_task(make: Any) -> None:
    task = make()
    _, _, rollout, scores = sampled(task, text_config())
    steps = walked(text.token_env(task), rollout)
    ends = np.flatnonzero(steps.terminated)
    # each ends where its completion does, and nowhere before
    np.testing.assert_array_equal(ends, np.cumsum(rollout.drawn.sum(1)) - 1)
    assert not steps.truncated.any()
    wrote = jnp.where(rollout.mask, rollout.completion, -1)
    contexts = jnp.stack([state.context for state in steps.final])
    np.testing.assert_array_equal(contexts[:, rollout.prompt.shape[1] :], wrote)
    np.testing.assert_array_equal([state.step for state in steps.final], rollout.mask.sum(1))
    np.testing.assert_allclose(steps.reward[ends], completions.combined(task, scores), rtol=1e-6)
    assert np.unique(steps.reward[ends]).size > 2
    np.testing.assert_array_equal(np.delete(steps.reward, ends), 0)
    stopped = bool(task.stop_ids)
    assert rollout.stopped.any() == stopped
    if task.observe is not None:
        assert (rollout.mask & ~rollout.drawn).any()


def test_what_the_world_writes_is_no_step() -> None:
    task = guesses()
    assert task.tokenizer is not None
    env = text.token_env(task)
    obs, state = env.reset(keys_of(env)[7])
    seen, rewarded = [], []
    for token in task.tokenizer.encode("050907"):
        obs, state, reward, terminated, _ = env.step(jax.random.key(0), state, jnp.int32(token))
        seen.append(task.tokenizer.decode(np.asarray(obs["completion"])[: int(obs["step"])].tolist()))
        rewarded.append((float(reward), bool(terminated)))
    assert seen[:-1] == ["0", "05>", "05>0", "05>09<", "05>09<0"]
    assert seen[-1].startswith("05>09<07")
    assert int(obs["completion"][8]) == task.tokenizer.eos_id
    assert rewarded[:-1] == [(0.0, False)] * 5
    assert rewarded[-1] == (pytest.approx(1 - 3 * 0.02), True)


def test_prompts_can_be_an_argument_of_a_program() -> None:
    task = letters()
    turned = jax.tree.map(lambda x: x[::-1], task.learn)
    reset = jax.jit(lambda key, prompts: text.token_env(task._replace(learn=prompts)).reset(key))
    for number in range(4):
        key = jax.random.key(number)
        (_, one), (_, other) = reset(key, task.learn), reset(key, turned)
        tokens = jnp.where(task.learn.valid, task.learn.tokens, -1)
        np.testing.assert_array_equal(one.context[: tokens.shape[1]], tokens[one.row])
        np.testing.assert_array_equal(other.context[: tokens.shape[1]], tokens[5 - one.row])


def test_a_shorter_episode_and_a_reward_that_is_not_a_number() -> None:
    nothing = rewards.of_tokens(lambda prompt, completion, reference: jnp.float32(jnp.nan), "nothing")
    env = text.token_env(letters()._replace(rewards=(nothing,)), max_new_tokens=2)
    _, state = env.reset(jax.random.key(0))
    assert env.max_steps == 2
    letter = jnp.int32(letters().learn.demonstration[0, 0])
    for step in (1, 2):
        _, state, reward, terminated, truncated = env.step(jax.random.key(0), state, letter)
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
    env = text.token_env(letters())
    network = models.token_actor_critic(language_model(env.action_space.n, text_config(), 8))  # pyright: ignore
    obs, _ = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 6))
    apply, params = (
        jax.jit(network.apply),
        jax.jit(network.init)(jax.random.key(1), jax.tree.map(lambda x: x[0], obs)),
    )
    params["head"] = jax.tree.map(lambda x: x + 0.5, params["head"])
    logits, value = apply(params, obs)
    assert (logits.shape, value.shape) == ((6, letters().vocab_size), (6,))
    folded = apply(params, jax.tree.map(lambda x: x.reshape(2, 3, *x.shape[1:]), obs))
    one = apply(params, jax.tree.map(lambda x: x[4], obs))
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


class Case(NamedTuple):
    task: Any
    fields: dict[str, Any]
    epochs: int = 1


CASES = {
    "three epochs": Case(letters, {}, 3),
    "critic, temperature": Case(letters, {"critic": "separate", "temperature": 0.7}),
    "conversation, gru, two epochs": Case(guesses, {"architecture": "gru"}, 2),
    "t5": Case(letters, {"architecture": "t5"}),
    "lora": Case(letters, {"train": "lora", "rank": 2}),
}


@pytest.mark.parametrize("name", CASES)
def test_control_ppo_on_tokens_is_text_ppo(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same completions: the same log-probabilities, values, advantages and targets, gradient of the whole
    loss, and parameters after it.
    """
    case = CASES[name]
    task, config = case.task(), text_config(num_epochs=case.epochs, **case.fields)
    width = task.learn.tokens.shape[1]
    model = trained = language_model(task.vocab_size, config, width + task.max_new_tokens)
    if config.train == "lora":
        task = task._replace(params=model.init(jax.random.key(9)))
        trained = adapters.attach(
            model, task.params, adapters.lora(config.patterns, config.rank, config.alpha)
        )
    algorithm, state, rollout, scores = sampled(task, config, model)
    env = text.token_env(task)
    steps = walked(env, rollout)
    drawn = np.asarray(rollout.drawn)

    # text PPO, and what it computes on the way
    seen: list[Any] = []
    batch_of = rlhf_ppo.policy_loss.batch_of
    monkeypatch.setattr(
        rlhf_ppo.policy_loss, "batch_of", lambda *given: seen.append(batch_of(*given)) or seen[-1]
    )
    split = algorithm.split
    learnt, told, batch = jax.jit(
        lambda: (*split.learn(jax.random.key(2), state, rollout, scores), seen.pop())
    )()

    # control PPO, whose rollout these tokens are
    network = models.token_actor_critic(trained, critic=config.critic, temperature=config.temperature)
    number = steps.action.size
    control = ppo.make(
        env,
        ppo.Config(
            **SAME,
            num_envs=1,
            num_steps=number,
            num_epochs=case.epochs,
            entropy_coefficient=0.0,
            total_steps=1e6,
        ),
        network,
    )
    begun = control.init(jax.random.key(3))
    assert jax.tree.structure(begun.params) == jax.tree.structure(state.params)
    begun = begun.replace(params=state.params)
    cut = jax.tree.map(lambda x: x[:, None], steps._replace(final=[]))
    forced = vector.Rollout(
        cut.obs, cut.action, cut.reward, cut.terminated, cut.truncated, jnp.zeros((number, 1))
    )
    assert jax.tree.all(jax.tree.map(lambda x, y: x.shape[1:] == y.shape, forced.obs, begun.worlds.obs))
    rollout_of = lambda *given: (begun.worlds, forced, vector.no_episodes())
    monkeypatch.setattr(vector, "rollout", rollout_of)
    batch_type = ppo.Batch
    monkeypatch.setattr(ppo, "Batch", lambda *given: seen.append(batch_type(*given)) or seen[-1])
    stepped, shown, rows = jax.jit(lambda: (*control.step(jax.random.key(4), begun), seen.pop()))()

    near: Any = {"rtol": 1e-4, "atol": 1e-5}
    flat = lambda x: np.asarray(x)[drawn]
    np.testing.assert_array_equal(rows.action[:, 0], flat(rollout.completion))
    np.testing.assert_allclose(rows.log_prob[:, 0], flat(batch.old), **near)
    np.testing.assert_allclose(rows.log_prob[:, 0], flat(rollout.log_prob), **near)
    np.testing.assert_allclose(rows.value[:, 0], flat(batch.extras.value), **near)
    np.testing.assert_allclose(rows.advantage[:, 0], flat(batch.extras.advantage), **near)
    np.testing.assert_allclose(rows.advantage[:, 0], flat(split.advantage(state, rollout, scores)), **near)
    np.testing.assert_allclose(rows.target[:, 0], flat(batch.extras.target), **near)
    assert np.std(rows.value) > 0.05
    assert np.std(rows.advantage) > 0.05

    # Adam's mean of the gradients: after one step 0.1 of the gradient itself
    (mine,), (theirs, _) = jax.tree.leaves(stepped.opt_state[1].mu), ravel_pytree(learnt.opt_state[1].mu)
    scale = float(jnp.abs(theirs).max())
    assert scale > 1e-3
    np.testing.assert_allclose(mine / scale, theirs / scale, rtol=1e-3, atol=1e-5)
    moved = ravel_pytree(jax.tree.map(jnp.subtract, learnt.params, state.params))[0]
    assert float(jnp.abs(moved).max()) > 0.01
    np.testing.assert_allclose(
        ravel_pytree(jax.tree.map(jnp.subtract, stepped.params, state.params))[0], moved, rtol=1e-2, atol=1e-4
    )
    np.testing.assert_allclose(shown.policy_loss.value, told.policy_loss.value, **near)
    np.testing.assert_allclose(shown.value_loss.value, told.value_loss.value, **near)
    np.testing.assert_allclose(shown.gradient_norm.value, told.gradient_norm.value, rtol=1e-3)
    np.testing.assert_allclose(shown.clip_fraction.value, told.clip_fraction.value, atol=1e-6)
    if case.epochs > 1:
        assert shown.clip_fraction.value > 0.1
