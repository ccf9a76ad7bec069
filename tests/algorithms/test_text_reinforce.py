"""REINFORCE on text: each baseline by hand; adapters, whose base is the policy at the start; bad input."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import text
from rljax.algorithms import grpo, rlhf_ppo, rloo, text_reinforce
from rljax.models.language_models import language_model
from rljax.runs.folder import checkpoint
from rljax.text import rewards
from rljax.text.problem import task as task_of
from rljax.types import Scores, Task
from tests.algorithms import tasks, text_reference
from tests.algorithms.tasks import configured
from tests.algorithms.text_reference import programs

KEY = jax.random.key(3)
FIELDS: dict[str, Any] = {**tasks.RL, "group_size": 3, "num_prompts": 4, "temperature": 0.7}
REWARDS = np.array([1, 0, 0.5, 0.25, np.nan, -1, 2, 2, 2, np.nan, np.nan, 0.75])
GREEDY = np.array([0.5, 1.0, np.nan, -0.5])


def of(values: np.ndarray) -> Scores:
    return Scores(jnp.asarray(values[:, None], jnp.float32), jnp.zeros((values.size, 1), bool))


@functools.cache
def greedy_cycle() -> tuple[Any, Any, Any, Any]:
    """Programs, Config, State and a rollout with the greedy completions at its end."""
    config = configured(text_reinforce, FIELDS | {"num_micro": 4}, baseline="greedy", kl=0.1)
    made = programs(text_reinforce, tasks.rewarded_task_with_a_model())
    state = made.init(config, jax.random.key(0))
    leaves, structure = jax.tree.flatten(state.params)
    noise = [jax.random.normal(jax.random.key(i), x.shape) for i, x in enumerate(leaves)]
    moved = structure.unflatten([x + 0.1 * more for x, more in zip(leaves, noise, strict=True)])
    state = state.replace(params=moved)
    return made, config, state, made.sample(config, KEY, state)


def left_out(group: np.ndarray, member: int) -> float:
    others = np.delete(group, member)
    return others[np.isfinite(others)].mean() if np.isfinite(others).any() else group[member]


BASELINES = {
    "none": np.zeros(12),
    "moving": np.full(12, 0.3),
    "batch": np.full(12, np.nanmean(REWARDS)),
    "leave_one_out": np.array([left_out(group, i) for group in REWARDS.reshape(4, 3) for i in range(3)]),
    "greedy": np.repeat(GREEDY, 3),
}


@pytest.mark.parametrize("name", text_reinforce.BASELINES)
def test_each_baseline_by_hand(name: Any) -> None:
    made, _, state, rollout = greedy_cycle()
    config = configured(text_reinforce, FIELDS, baseline=name)
    values = np.concatenate([REWARDS, GREEDY]) if name == "greedy" else REWARDS
    if name != "greedy":
        rollout = jax.tree.map(lambda x: x[:12], rollout)
    state = state.replace(baseline=jnp.float32(0.06), weight=jnp.float32(0.2))
    credit = np.asarray(made.advantage(config, state, rollout, of(values)))
    right = REWARDS - BASELINES[name]
    right = np.where(np.isfinite(right), right, 0)[:, None]
    drawn = np.asarray(rollout.drawn)[:12]
    np.testing.assert_allclose(credit[:12], np.where(drawn, right, 0), atol=1e-6)
    assert (credit[12:] == 0).all()


def test_the_moving_baseline_is_the_decayed_mean_of_the_rewards_so_far() -> None:
    made, _, state, rollout = greedy_cycle()
    rollout = jax.tree.map(lambda x: x[:12], rollout)
    config = configured(text_reinforce, FIELDS, baseline="moving", baseline_decay=0.8)
    learn = lambda state, values: made.learn(config, KEY, state, rollout, of(values))
    state, metrics = learn(state, REWARDS)
    assert float(metrics.baseline.value) == 0  # of no rewards
    means = [np.nanmean(REWARDS)]
    state, metrics = learn(state, np.full(12, np.nan))
    np.testing.assert_allclose(metrics.baseline.value, means[0], rtol=1e-6)
    for values in (REWARDS + 1, REWARDS * 3):
        state, metrics = learn(state, values)
        weights = 0.8 ** np.arange(len(means))[::-1]
        np.testing.assert_allclose(metrics.baseline.value, weights @ means / weights.sum(), rtol=1e-6)
        means.append(np.nanmean(values))


def test_greedy_completions_are_the_most_probable_and_only_a_baseline() -> None:
    made, config, state, rollout = greedy_cycle()
    task = tasks.rewarded_task_with_a_model()
    assert rollout.completion.shape[0] == 16
    np.testing.assert_array_equal(
        rollout.prompt[12:], np.asarray(rollout.prompt[:12]).reshape(4, 3, -1)[:, 0]
    )
    model = language_model(task.vocab_size, config, tasks.reverse().length)
    inputs = state.params, rollout.prompt, rollout.valid, rollout.completion
    logits = np.asarray(model.logits(state.params, jax.jit(model.completion)(*inputs)))
    mask = np.asarray(rollout.mask)
    best = logits.argmax(-1) == np.asarray(rollout.completion)
    assert best[12:][mask[12:]].all()
    assert not best[:12][mask[:12]].all()

    scores = of(np.concatenate([REWARDS, GREEDY]))
    start = text_reference.looked_at(model, task.params, rollout, config.temperature).log_prob
    far = np.where(mask, np.asarray(rollout.log_prob) - start, 0).sum(axis=1)[:12]
    credit = np.asarray(made.advantage(config, state, rollout, scores))[:12, 0]
    right = REWARDS - 0.1 * far - np.repeat(GREEDY, 3)  # the baseline has no penalty
    np.testing.assert_allclose(credit, np.where(np.isfinite(right), right, 0), rtol=1e-4, atol=1e-5)
    _, metrics = made.learn(config, KEY, state, rollout, scores)
    np.testing.assert_allclose(metrics.reward.value, np.nanmean(REWARDS), rtol=1e-6)
    assert int(metrics.unscored.count) == 12
    assert int(metrics.entropy.count) == mask[:12][np.isfinite(right)].sum()


def test_completions_may_be_shorter_than_demonstrations() -> None:
    config = configured(text_reinforce, FIELDS, mixing=0.5, max_new_tokens=3)
    algorithm = text_reinforce.make(tasks.rewarded_task(), config)
    state = algorithm.init(jax.random.key(0))
    after, metrics = jax.jit(algorithm.step)(KEY, state)
    assert np.isfinite(metrics.policy_loss.value)
    assert np.isfinite(metrics.cross_entropy.value)
    assert int(after.iteration) == 1


@pytest.mark.parametrize(
    ("train", "names"), [("lora", {"a", "b"}), ("prefix", {"prefix_key", "prefix_value"})]
)
def test_adapters_leave_the_base_which_is_the_policy_at_the_start(train: Any, names: set[str]) -> None:
    task = tasks.rewarded_task_with_a_model()
    before = checkpoint.sha256_of(task.params)
    size = {"lora": {"rank": 2}, "prefix": {"prefix_length": 2}}[train]
    fields = FIELDS | size | {"learning_rate": 0.1}
    config = configured(grpo, fields, train=train, kl=0.1)
    made = programs(grpo, task)
    state = made.init(config, jax.random.key(0))
    assert {path.split(".")[-1] for path in checkpoint.leaves(state.params)} == names
    _, metrics = made.step(config.replace(learning_rate=1e-30), KEY, state)
    rollout = made.sample(config, jax.random.split(KEY)[0], state)
    model = language_model(task.vocab_size, config, tasks.reverse().length)
    base = text_reference.looked_at(model, task.params, rollout, config.temperature).log_prob
    mask = np.asarray(rollout.drawn)
    difference = (base - np.asarray(rollout.log_prob, np.float64))[mask]
    np.testing.assert_allclose(
        metrics.kl.value, (np.exp(difference) - 1 - difference).mean(), rtol=1e-3, atol=1e-7
    )
    assert (float(metrics.kl.value) < 1e-9) == (train == "lora")  # which begins as its base
    after = metrics
    for iteration in range(3):
        state, after = made.step(config, jax.random.key(iteration), state)
    assert float(after.kl.value) > float(metrics.kl.value) + 1e-5
    assert checkpoint.sha256_of(task.params) == before


def broken(**fields: Any) -> Task:
    return tasks.rewarded_task()._replace(**fields)


def rewarding(function: Any) -> Task:
    return broken(rewards=(rewards.of_tokens(function, "own"),))


def empty() -> Task:
    learn = tasks.rewarded_task().learn
    return broken(learn=learn._replace(valid=learn.valid.at[3].set(False)))


def short() -> Task:
    """With a model of seven positions, for prompts of four tokens."""
    config = configured(grpo, FIELDS)
    model = language_model(tasks.rewarded_task().vocab_size, config, 7)
    return broken(model=model, params=model.init(jax.random.key(0)))


@pytest.mark.parametrize(
    ("module", "task", "fields", "says"),
    [
        (grpo, lambda: rewarding(lambda p, c, r: c * 1.0), {}, "reward own gives float32[5, 4] for 5"),
        (grpo, lambda: rewarding(lambda p, c, r: "good"), {}, "reward own "),
        (grpo, lambda: rewarding(lambda p, c, r: 1j * c[0]), {}, "reward own gives complex64[5]"),
        (grpo, lambda: rewarding(lambda p, c, r: r["none"]), {}, "reward own fails: KeyError"),
        (grpo, lambda: broken(rewards=()), {}, "the task reverse has no reward"),
        (grpo, empty, {}, "prompt 3 of learn is empty"),
        (grpo, short, {}, "max_new_tokens = None: prompts of 4 tokens and 4 new ones, for a model of 7"),
        (grpo, short, {"max_new_tokens": 9}, "max_new_tokens = 9: prompts of 4 tokens and 9 new ones"),
        (rloo, tasks.rewarded_task, {"max_new_tokens": 2.5}, "max_new_tokens = 2.5: must be an integer"),
        (grpo, tasks.rewarded_task, {"group_size": 1}, "group_size = 1: must be an integer of at least 2"),
        (rloo, tasks.rewarded_task, {"group_size": 1}, "group_size = 1: must be an integer of at least 2"),
        (
            text_reinforce,
            tasks.rewarded_task,
            {"group_size": 1, "baseline": "leave_one_out"},
            "group_size = 1: must be an integer of at least 2",
        ),
        (
            rlhf_ppo,
            tasks.rewarded_task,
            {"group_size": 1, "reward_normalization": "group"},
            "group_size = 1: must be an integer of at least 2",
        ),
        (grpo, tasks.rewarded_task, {"kl": 0.1}, "kl = 0.1: needs the parameters of a policy"),
        (rlhf_ppo, tasks.rewarded_task, {"kl": 0.1}, "kl = 0.1: needs the parameters of a policy"),
        (rlhf_ppo, tasks.rewarded_task, {"kl_controller": "adaptive"}, "kl = None: must be a number"),
        (
            rlhf_ppo,
            tasks.rewarded_task_with_a_model,
            {"kl_controller": "adaptive", "kl": 0.1, "kl_horizon": 2.0},
            "kl_horizon = 2: must be above 2.4",
        ),
        (grpo, tasks.rewarded_task, {"loss": "cispo", "dual_clip": 3.0}, 'is read with loss "token" or'),
        (
            grpo,
            tasks.rewarded_task,
            {"overlong": "penalty"},
            "overlong_buffer = 16: must be at most",
        ),
        (grpo, tasks.rewarded_task, {"train": "lora"}, "needs parameters to adapt"),
        (grpo, tasks.rewarded_task, {"num_prompts": 25}, "num_prompts = 25: must be at most the 24 prompts"),
        (grpo, tasks.rewarded_task, {"num_prompts": "8"}, "num_prompts = '8': must be an integer"),
        (
            grpo,
            tasks.rewarded_task,
            {"num_prompts": 13, "groups": "resampled", "oversampling": 2},
            "num_prompts = 13: 2 times (oversampling) that must be at most the 24 prompts",
        ),
        (grpo, tasks.rewarded_task, {"oversampling": 2}, 'more than 1 needs groups = "resampled"'),
        (grpo, tasks.rewarded_task, {"dual_clip": 0.5}, "dual_clip = 0.5: must be above 1.2"),
        (grpo, tasks.rewarded_task, {"num_minibatches": 5}, "must divide the 12 completions of an update"),
        (text_reinforce, tasks.rewarded_task, {"mixing": 1.5}, "mixing = 1.5"),
        (grpo, tasks.text_task, {}, "the task count has no prompts"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_compiled(
    module: Any, task: Any, fields: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        module.make(task(), configured(module, FIELDS | fields))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_demonstrations_there_is_nothing_to_mix_in() -> None:
    records = [{"prompt": prompt} for prompt in ("ab", "ba", "cc", "ca", "ac", "bc")]
    letters = text.character_tokenizer("abc")
    problem = text.problem("free", letters, records, rewards.length(), max_new_tokens=4)
    config = configured(text_reinforce, FIELDS | {"num_prompts": 2}, mixing=0.5)
    with pytest.raises(ValueError, match=r"mixing = 0\.5: the task free has no demonstrations"):
        text_reinforce.make(task_of(problem, "prompts"), config)


def test_parameters_of_another_vocabulary_are_named() -> None:
    task, size = tasks.rewarded_task(), {name: tasks.RL[name] for name in ("hidden_size", "num_layers")}
    other = language_model(task.vocab_size + 3, configured(grpo, FIELDS | size), tasks.reverse().length)
    begun = task._replace(params=other.init(jax.random.key(0)))
    says = rf"task reverse begins with parameters of another model: .* is \({task.vocab_size + 3}, 16\)"
    with pytest.raises(ValueError, match=says) as caught:
        grpo.make(begun, configured(grpo, FIELDS))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("loss", ["token", "sequence"])
def test_improbable_padding_leaves_the_loss_finite(loss: Any) -> None:
    """Ratios of places without a token, of log-probabilities below −88, would be infinite."""
    task, config = tasks.rewarded_task(), configured(grpo, FIELDS, num_minibatches=2, loss=loss)
    made = programs(grpo, task)
    state = made.init(config, jax.random.key(0))
    rollout = made.sample(config, KEY, state)
    end = jnp.broadcast_to(jnp.arange(rollout.mask.shape[1]) < 2, rollout.mask.shape)
    rollout = rollout._replace(mask=rollout.mask & end, drawn=rollout.drawn & end)
    improbable = jnp.where(end, rollout.log_prob, -200.0)
    sampled = config.replace(old_log_prob="sampled")
    told = [
        made.learn(sampled, KEY, state, rollout._replace(log_prob=old), of(np.arange(12.0)))[1]
        for old in (rollout.log_prob, improbable)
    ]
    assert np.isfinite(told[0].policy_loss.value)
    np.testing.assert_array_equal(told[0].policy_loss.value, told[1].policy_loss.value)


def test_a_reward_of_the_host_does_not_enter_a_program() -> None:
    task = broken(rewards=(rewards.of_text(lambda prompt, text, record: 1.0, "own", processes=0),))
    algorithm = grpo.make(task, configured(grpo, FIELDS))
    state = algorithm.init(jax.random.key(0))
    with pytest.raises(ValueError, match="reward own is computed on the host") as caught:
        jax.eval_shape(algorithm.step, KEY, state)
    assert "\n" not in str(caught.value)
