"""RL on text: one compiled cycle is the cycle computed step by step, whatever the rewards, and both sides of
a ratio are of the same distribution.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import text
from rljax.algorithms import grpo, rlhf_ppo, rloo, text_reinforce
from rljax.learning import completions, policy_gradient, trainable
from rljax.models.language_models import language_model
from rljax.text.problem import task as task_of
from rljax.types import LanguageModel, Scores, Task
from tests.algorithms import tasks, text_reference
from tests.algorithms.tasks import configured
from tests.algorithms.text_reference import Programs, programs

# ε of Adam is large, so that parameters with almost no gradient do not move by the sign of its rounding
SURE = {**tasks.RL, "kl": 0.1, "temperature": 0.7, "adam_epsilon": 1e-3, "max_grad_norm": 0.3}
PASSES = {"num_epochs": 2, "num_minibatches": 2}
CONFIGS: dict[str, Any] = {
    "grpo": configured(grpo, SURE | PASSES | {"group_size": 3, "num_micro": 2, "clip": 0.01}),
    "rloo": configured(rloo, SURE | PASSES | {"group_size": 3, "num_micro": 3, "clip": 0.01}),
    "rlhf_ppo": configured(
        rlhf_ppo,
        SURE | PASSES | {"missing_end": 0.5, "clip": 0.01, "value_clip": 0.05, "discount": 0.97},
        num_micro=2,
        schedule="constant",
        kl_controller="adaptive",
        kl_target=0.5,
        kl_horizon=20.0,
    ),
    "text_reinforce": configured(text_reinforce, SURE | {"mixing": 0.3, "num_micro": 4}),
}
MODULES: dict[str, Any] = {
    "grpo": grpo,
    "rloo": rloo,
    "rlhf_ppo": rlhf_ppo,
    "text_reinforce": text_reinforce,
}
KEY = jax.random.key(3)


class Cycle(NamedTuple):
    """A cycle from parameters that have left those of the start."""

    name: str
    config: Any
    programs: Programs
    state: Any
    rollout: Any
    scores: Any

    @property
    def keys(self) -> Any:
        return jax.random.split(KEY)

    def learn(self, scores: Any = None, rollout: Any = None, state: Any = None) -> tuple[Any, Any]:
        state = self.state if state is None else state
        rollout = self.rollout if rollout is None else rollout
        scores = self.scores if scores is None else scores
        return self.programs.learn(self.config, self.keys[1], state, rollout, scores)

    def reference(self, scores: Any = None) -> Any:
        return reference(self.name, tasks.rewarded_task_with_a_model(), self, scores)


@functools.cache
def model_of(vocab_size: int, length: int) -> LanguageModel:
    return language_model(vocab_size, CONFIGS["grpo"], length)


def reference(name: str, task: Task, cycle: Cycle, scores: Any = None) -> Any:
    model = model_of(task.vocab_size, task.learn.tokens.shape[1] + task.max_new_tokens)
    update = getattr(text_reference, name)
    scores = cycle.scores if scores is None else scores
    inputs = cycle.state.params, cycle.keys[1], cycle.rollout, scores
    return update(task, cycle.config, model, *inputs)


def moved(params: Any, seed: int = 8) -> Any:
    """Near `params`, heads of zeros included."""
    keys = jax.random.split(jax.random.key(seed), len(jax.tree.leaves(params)))
    leaves, structure = jax.tree.flatten(params)
    noise = [x + 0.1 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
    return structure.unflatten(noise)


@functools.cache
def cycle_of(name: str) -> Cycle:
    config, made = CONFIGS[name], programs(MODULES[name], tasks.rewarded_task_with_a_model())
    state = made.init(config, jax.random.key(0))
    state = state.replace(params=moved(state.params), iteration=jnp.int32(2))
    rollout = made.sample(config, jax.random.split(KEY)[0], state)
    return Cycle(name, config, made, state, rollout, made.reward(config, rollout))


@pytest.fixture(params=CONFIGS)
def cycle(request: pytest.FixtureRequest) -> Cycle:
    return cycle_of(request.param)


def assert_near(found: Any, right: Any, start: Any, tolerance: float = 1e-5) -> None:
    """The same parameters to the tolerance of the whole step."""
    for one, other, first in zip(*map(jax.tree.leaves, (found, right, start)), strict=True):
        scale = float(np.abs(np.asarray(other) - np.asarray(first)).max())
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * scale + 1e-7)


def same(one: Any, other: Any) -> bool:
    leaves = zip(*map(jax.tree.leaves, (one, other)), strict=True)
    return all(bool((np.asarray(x) == np.asarray(y)).all()) for x, y in leaves)


def test_the_compiled_cycle_is_the_one_step_by_step(cycle: Cycle) -> None:
    """In microbatches and minibatches; the reference has the gradient of a whole minibatch."""
    state, metrics = cycle.programs.step(cycle.config, KEY, cycle.state)
    assert_near(state.params, cycle.reference(), cycle.state.params)
    assert not same(state.params, cycle.state.params)
    reward = np.asarray(cycle.scores.values)[:, 0]
    np.testing.assert_allclose(metrics.reward.value, reward.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics.truncated.value, 1 - np.asarray(cycle.rollout.stopped).mean())


def test_the_two_halves_of_a_cycle_are_the_cycle(cycle: Cycle) -> None:
    state, metrics = cycle.programs.step(cycle.config, KEY, cycle.state)
    parted, counted = cycle.learn()
    assert_near(parted.params, state.params, cycle.state.params)
    for one, other in zip(jax.tree.leaves(counted), jax.tree.leaves(metrics), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def with_rewards(cycle: Cycle, values: list[float]) -> Scores:
    number = cycle.scores.values.shape[0]
    column = np.resize(np.array(values, np.float32), number)[:, None]
    return Scores(jnp.asarray(column), jnp.zeros((number, 1), bool))


@pytest.mark.parametrize(
    "values",
    [
        [0.5, -0.25, 0.125, 0.75, -1.5],  # a library casts them to integers
        [0.5, np.nan, -0.25, 1.0, 0.3],
        [np.nan] * 3 + [np.nan, 0.5, -0.25, 1.0, 0.25, 0.75],  # a group of which nobody is scored
    ],
)
def test_rewards_that_are_fractions_negative_or_missing(cycle: Cycle, values: list[float]) -> None:
    scores = with_rewards(cycle, values)
    state, metrics = cycle.learn(scores)
    assert_near(state.params, cycle.reference(scores), cycle.state.params)
    column = np.asarray(scores.values)[:, 0]
    assert int(metrics.unscored.total) == np.isnan(column).sum()
    assert int(metrics.reward.count) == np.isfinite(column).sum()
    np.testing.assert_allclose(metrics.reward.value, np.nanmean(column), rtol=1e-5)


def test_a_batch_that_nobody_could_score_teaches_nothing(cycle: Cycle) -> None:
    state, metrics = cycle.learn(with_rewards(cycle, [np.nan]))
    assert int(metrics.unscored.total) == metrics.unscored.count
    assert int(metrics.reward.count) == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    if cycle.name == "text_reinforce":  # which has demonstrations to imitate
        assert_near(state.params, cycle.reference(with_rewards(cycle, [np.nan])), cycle.state.params)
    else:
        assert same(state.params, cycle.state.params)


def test_masks_are_of_lengths_and_not_of_ids(cycle: Cycle) -> None:
    """With a tokenizer that pads with its end of text, rows look like this."""
    rollout = cycle.rollout
    padded = rollout._replace(completion=jnp.where(rollout.mask, rollout.completion, tasks.EOS))
    assert (np.asarray(padded.completion) != np.asarray(rollout.completion)).any()
    assert same(cycle.learn(rollout=padded)[0].params, cycle.learn()[0].params)
    again = cycle.programs.reward(cycle.config, padded)
    assert same(again, cycle.scores)


def test_the_end_is_learnt(cycle: Cycle) -> None:
    """A reward for completions that end makes ends likelier."""
    ended = np.asarray(cycle.rollout.stopped)
    assert 0 < ended.sum() < ended.size
    scores = Scores(jnp.asarray(ended[:, None], jnp.float32), cycle.scores.failed)
    state, _ = cycle.learn(scores)
    model = model_of(tasks.rewarded_task().vocab_size, tasks.reverse().length)
    policy = lambda state: state.params["policy"] if cycle.name == "rlhf_ppo" else state.params
    inputs = cycle.rollout, cycle.config.temperature
    chance = lambda state: text_reference.looked_at(model, policy(state), *inputs).log_prob
    ends = np.asarray(cycle.rollout.mask & (cycle.rollout.completion == tasks.EOS))
    assert (chance(state) - chance(cycle.state))[ends].mean() > 1e-4


def test_seeds_iterations_and_samples_of_a_prompt_differ(cycle: Cycle) -> None:
    sample = lambda key, state: np.asarray(cycle.programs.sample(cycle.config, key, state).completion)
    first = sample(KEY, cycle.state)
    assert (first == sample(KEY, cycle.state)).all()
    assert (first != sample(jax.random.key(4), cycle.state)).any()
    later = cycle.state.replace(iteration=cycle.state.iteration + 1)
    rollout = cycle.programs.sample(cycle.config, KEY, later)
    assert (np.asarray(rollout.prompt) != np.asarray(cycle.rollout.prompt)).any()
    group = cycle.config.group_size
    groups = first[: 4 * group].reshape(4, group, -1)
    assert (groups[:, 0] != groups[:, 1]).any()


@pytest.mark.parametrize("name", ["grpo", "rloo", "rlhf_ppo"])
def test_ratios_are_one_in_the_first_minibatch(name: str) -> None:
    cycle = cycle_of(name)
    # with a rate of almost 0 every minibatch is like the first; clip counts what is further from 1
    config = cycle.config.replace(learning_rate=1e-30, clip=1e-5)
    _, metrics = cycle.programs.step(config, KEY, cycle.state)
    assert float(metrics.clip_fraction.total) == 0
    np.testing.assert_allclose(metrics.ratio.value, 1, atol=1e-5)
    assert float(metrics.drift.value) < 1e-5
    assert float(metrics.step_kl.value) < 1e-9
    _, metrics = cycle.programs.step(config.replace(learning_rate=1e-2), KEY, cycle.state)
    assert float(metrics.clip_fraction.total) > 0
    assert float(metrics.step_kl.value) > 1e-9


def test_a_mixing_of_one_is_imitation_alone() -> None:
    cycle = cycle_of("text_reinforce")
    config = cycle.config.replace(mixing=1.0)
    learn = lambda scores: cycle.programs.learn(config, KEY, cycle.state, cycle.rollout, scores)
    state, metrics = learn(cycle.scores)
    right = reference("text_reinforce", tasks.rewarded_task_with_a_model(), cycle._replace(config=config))
    assert_near(state.params, right, cycle.state.params)
    assert same(state.params, learn(with_rewards(cycle, [5.0, -5.0]))[0].params)
    wanted = np.asarray(cycle.rollout.reference["completion"])
    assert int(metrics.cross_entropy.count) == (wanted >= 0).sum()


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_with_one_step_per_sample_ratios_are_exactly_one(name: str) -> None:
    task = tasks.rewarded_task_with_a_model()
    config = CONFIGS[name].replace(num_epochs=1, num_minibatches=1, clip=1e-30, kl=None)
    made = programs(MODULES[name], task)
    state = cycle_of(name).state
    _, metrics = made.step(config, KEY, state)
    assert float(metrics.clip_fraction.total) == 0
    assert float(metrics.ratio.total) == int(metrics.ratio.count) > 0
    assert float(metrics.step_kl.total) == 0
    assert float(metrics.drift.value) < 1e-5
    assert int(metrics.kl.count) == 0  # null in a row, not 0


@pytest.mark.parametrize("name", ["rloo", "text_reinforce"])
def test_a_penalty_in_the_reward_is_of_one_kind_of_forward_pass(name: str) -> None:
    """The sampler's log-probabilities are of another kind (in bfloat16, say): a policy that is still that of
    the start is at no distance from it.
    """
    cycle = cycle_of(name)
    config = (
        cycle.config if name == "text_reinforce" else cycle.config.replace(num_epochs=1, num_minibatches=1)
    )
    state = cycle.programs.init(config, jax.random.key(0))
    rollout = cycle.rollout._replace(log_prob=cycle.rollout.log_prob + 0.5)

    def credit(**fields: Any) -> np.ndarray:
        given = config.replace(**fields), state, rollout, cycle.scores
        return np.asarray(cycle.programs.advantage(*given))

    np.testing.assert_allclose(credit(kl=100.0), credit(kl=0.0), atol=1e-3)
    if name == "rloo":
        assert np.abs(credit(kl=100.0, old_log_prob="sampled") - credit(kl=0.0)).max() > 1


def test_what_is_only_told_ends_no_run() -> None:
    """Log-ratios beyond 88 nats, which are infinite ratios in float32, in metrics that no loss contains."""
    of = lambda value: jnp.full((2, 3), value)
    mask = jnp.ones((2, 3), bool)
    batch = policy_gradient.Batch(mask, mask, mask, mask, None, None)
    shown = lambda log_prob, old, start: policy_gradient.shown(
        policy_gradient.Told(of(log_prob), of(old), of(1.0)), batch, of(0.0).sum(), jnp.isnan, of(start)
    )
    far = shown(-200.0, -1.0, -0.5)
    np.testing.assert_allclose(far["kl"].value, np.expm1(40) - 40, rtol=1e-5)
    np.testing.assert_allclose(far["step_kl"].value, 199 - 1, rtol=1e-5)
    back = shown(-1.0, -200.0, -1.0)
    np.testing.assert_allclose(back["ratio"].value, np.exp(40), rtol=1e-5)
    assert all(np.isfinite(mean.total) for found in (far, back) for mean in found.values())
    near = shown(-1.0, -1.2, -0.7)
    np.testing.assert_allclose(near["kl"].value, np.exp(0.3) - 1 - 0.3, rtol=1e-4)
    np.testing.assert_allclose(near["ratio"].value, np.exp(0.2), rtol=1e-5)


def truncated(logits: np.ndarray, fields: dict[str, float]) -> np.ndarray:
    """log-probabilities (V,) of the distribution that is left, by sorting."""
    weight = np.exp(logits - logits.max())
    order = np.argsort(-weight)
    weight = weight[order] / weight.sum()
    kept = np.ones(weight.size, bool)
    if "top_k" in fields:
        kept &= np.arange(weight.size) < fields["top_k"]
    if "top_p" in fields:
        share = weight / weight[kept].sum()
        kept &= np.cumsum(share) - share < fields["top_p"]
    if "min_p" in fields:
        kept &= weight >= fields["min_p"] * weight[0]
    found = np.full(weight.size, -np.inf)
    found[order[kept]] = np.log(weight[kept] / weight[kept].sum())
    return found


@pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        ("llama", {"temperature": 0.7, "top_p": 0.8}),
        ("llama", {"temperature": 1.3, "top_k": 3.0}),
        ("llama", {"temperature": 0.7, "min_p": 0.3}),
        ("t5", {"temperature": 0.7, "top_k": 5.0, "top_p": 0.8, "min_p": 0.05}),
        ("gru", {"temperature": 0.7, "top_p": 0.8}),
        ("lstm", {"temperature": 1.3}),
        ("t5", {"temperature": 0.7}),
    ],
)
def test_sampler_and_trainer_agree_on_log_probabilities(architecture: Any, fields: dict[str, Any]) -> None:
    task = tasks.rewarded_task()
    config = configured(grpo, tasks.RL | fields | {"group_size": 4}, architecture=architecture)
    model = language_model(task.vocab_size, config, tasks.reverse().length)
    params = moved(model.init(jax.random.key(1)))

    @jax.jit
    def both(config: Any, params: Any, key: Any) -> Any:
        settings = completions.sampling_settings(config, task, config.temperature)
        prompts = jax.tree.map(lambda x: x[:6], task.learn)
        rollout = completions.write(model, params, key, prompts, task, settings, 4)
        hidden = model.completion(params, rollout.prompt, rollout.valid, rollout.completion)
        logits = model.logits(params, hidden) / config.temperature
        return rollout, policy_gradient.log_probs(model, params, rollout, config), logits

    found = both(config, params, jax.random.key(2))
    rollout, trained, logits = jax.tree.map(np.asarray, found)
    drawn = rollout.drawn
    np.testing.assert_allclose(trained[drawn], rollout.log_prob[drawn], rtol=1e-5, atol=1e-5)
    for row, place in zip(*np.nonzero(drawn), strict=True):
        left = truncated(logits[row, place].astype(np.float64), fields)
        np.testing.assert_allclose(
            left[rollout.completion[row, place]], trained[row, place], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"group_size": 4}, (1, 4)),
        ({"group_size": 4, "num_minibatches": 2}, (1, 4)),
        ({"group_size": 4, "num_micro": 8}, (8, 2)),  # of 2 rows each
        ({"group_size": 6, "num_prompts": 2, "num_minibatches": 3}, (1, 2)),
        ({"group_size": 4, "num_micro": 16}, (16, 1)),
        ({"group_size": 1, "num_prompts": 16}, (1, 1)),
    ],
)
def test_completions_of_a_prompt_are_together_where_they_fit(fields: Any, expected: Any) -> None:
    config = grpo.Config(num_prompts=4).replace(**fields)
    rows = config.num_prompts * config.group_size
    assert trainable.layout(config, rows, 5, 5) == expected


def test_with_truncation_ratios_stay_one() -> None:
    task = tasks.rewarded_task_with_a_model()
    fields = {**SURE, "top_p": 0.8, "old_log_prob": "sampled", "clip": 1e-5}
    config = configured(grpo, fields)
    made = programs(grpo, task)
    _, metrics = made.step(config, KEY, cycle_of("grpo").state)
    assert float(metrics.clip_fraction.total) == 0
    np.testing.assert_allclose(metrics.ratio.value, 1, atol=1e-5)


def test_the_policy_at_the_start_is_at_no_distance() -> None:
    cycle = cycle_of("grpo")
    state = cycle.programs.init(cycle.config, jax.random.key(0))
    _, metrics = cycle.programs.step(cycle.config.replace(learning_rate=1e-30), KEY, state)
    assert abs(float(metrics.kl.value)) < 1e-9
    for iteration in range(3):
        state, metrics = cycle.programs.step(cycle.config, jax.random.key(iteration), state)
    assert float(metrics.kl.value) > 1e-5


def test_the_controller_moves_the_penalty_as_published() -> None:
    cycle = cycle_of("rlhf_ppo")
    state, config = cycle.state, cycle.config
    assert float(state.kl_coefficient) == np.float32(0.1)
    for target in (1e-3, 1e3, float(cycle.learn()[1].completion_kl.value) * 1.1):
        own = config.replace(kl_target=target)
        after, metrics = cycle.programs.learn(own, KEY, state, cycle.rollout, cycle.scores)
        kl = float(metrics.completion_kl.value)
        error = np.clip(kl / target - 1, -0.2, 0.2)
        right = 0.1 * (1 + error * config.steps_per_iteration / config.kl_horizon)
        np.testing.assert_allclose(after.kl_coefficient, right, rtol=1e-5)
    task = tasks.rewarded_task_with_a_model()
    model = model_of(task.vocab_size, tasks.reverse().length)
    start = text_reference.looked_at(model, task.params, cycle.rollout, config.temperature).log_prob
    drawn = np.asarray(cycle.rollout.drawn)
    far = np.where(drawn, np.asarray(cycle.rollout.log_prob) - start, 0).sum(axis=1)
    np.testing.assert_allclose(kl, far.mean(), rtol=1e-4)


def test_what_the_world_writes_is_not_learnt_and_skipped_by_advantages() -> None:
    """A conversation: guesses of one digit, and hints."""
    problem = text.tasks.make("guess_number", numbers=8, guesses=3)
    task = task_of(problem, "prompts")
    model = language_model(task.vocab_size, CONFIGS["rlhf_ppo"], problem.length)
    task = task._replace(params=model.init(jax.random.key(9)))
    config = CONFIGS["rlhf_ppo"].replace(num_prompts=8)
    made = programs(rlhf_ppo, task)
    state = made.init(config, jax.random.key(0))
    state = state.replace(params=moved(state.params))
    # the digits likelier, so that there are guesses to answer
    digits = jnp.asarray(task.tokenizer.encode("01234567"))
    embedding = state.params["policy"]["embedding"]
    state.params["policy"]["embedding"] = embedding.at[digits].mul(3.0)
    keys = jax.random.split(KEY)
    rollout = made.sample(config, keys[0], state)
    scores = made.reward(config, rollout)
    theirs = np.asarray(rollout.mask & ~rollout.drawn)
    assert theirs.any(axis=1).sum() > 2
    assert (np.asarray(rollout.log_prob)[theirs] == 0).all()
    credit = np.asarray(made.advantage(config, state, rollout, scores))
    assert (credit[theirs] == 0).all()
    assert (credit[np.asarray(rollout.drawn)] != 0).all()
    after, metrics = made.learn(config, keys[1], state, rollout, scores)
    passes = config.num_epochs
    assert int(metrics.entropy.count) == passes * int(rollout.drawn.sum())
    cycle = Cycle("rlhf_ppo", config, made, state, rollout, scores)
    assert_near(after.params, reference("rlhf_ppo", task, cycle), state.params)
