"""reward_model, dpo and kto: their losses by hand, what must not matter, and that they learn."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rljax
from rljax import algorithms, dpo, grpo, reward_model, text
from rljax.learning import preference_batches
from rljax.models.language_models import language_model
from rljax.text import data, rewards
from rljax.types import Preferences, Prompts, Task
from tests.algorithms.tasks import (
    LENGTH,
    PREFERRING,
    SCORING,
    VOCABULARY,
    judged,
    preferences_task,
    started_task,
    tuning,
)


def config_of(name: str, **fields: Any) -> Any:
    small = SCORING if name == "reward_model" else PREFERRING
    if name == "reward_model" and fields.get("normalization") != "none":  # else nothing reads it
        small = small | {"normalization_samples": 8}
    return algorithms.find(name).module.Config(**small | fields)


@functools.cache
def model_of(architecture: str = "llama") -> Any:
    """The model of the algorithms here with its functions compiled, shared by the tests."""
    model = language_model(VOCABULARY, tuning(architecture=architecture), LENGTH)
    return model._replace(forward=jax.jit(model.forward), logits=jax.jit(model.logits))


def stepper(name: str, task: Task, config: Any) -> Any:
    """(frozen, state) -> one step of it, compiled once for any data of these shapes."""
    make = algorithms.find(name).module.make
    return jax.jit(lambda frozen, state: make(task, config, None, frozen).step(jax.random.key(1), state))


@functools.cache
def moved(name: str, completions: int = 2) -> Any:
    """A State whose model is not the one at the start."""
    task = started_task(completions)
    scored = {"normalization": "none", "loss": "choice"} if name == "reward_model" else {}
    make, config = algorithms.find(name).module.make, config_of(name, **scored)

    @jax.jit
    def begun(key: Any, model_key: Any) -> Any:
        return make(task, config).init(key), model_of().init(model_key)

    state, params = begun(jax.random.key(0), jax.random.key(3))
    if name == "reward_model":
        return state.replace(gain=np.float32(1.7), bias=np.float32(-0.3))
    return state.replace(params=params)


def batch_of(task: Task, state: Any, size: int) -> Preferences:
    rows = np.asarray(data.batch_indices(state.order, int(state.iteration), len(task.learn.weight), size))
    return jax.tree.map(lambda leaf: np.asarray(leaf)[rows], task.learn)


def hidden_by_hand(model: Any, params: Any, rows: Preferences) -> tuple[np.ndarray, Any]:
    """Hidden states of prompt and completion side by side, without padding between or before them, and for
    each (b, k) the columns at which its completion begins and ends.
    """
    width = rows.tokens.shape[1] + rows.completion.shape[2]
    tokens, places = [], []
    for prompt, valid, several in zip(rows.tokens, rows.valid, rows.completion, strict=True):
        for completion in several:
            told = [*prompt[valid], *completion[completion >= 0]]
            places.append((int(valid.sum()), len(told)))
            tokens.append(told + [5] * (width - len(told)))
    ends = np.array([end for _, end in places])
    segments = (np.arange(width)[None] < ends[:, None]).astype(np.int32)
    forward = model.forward(params, np.asarray(tokens, np.int32), segments)
    return np.asarray(forward), (np.asarray(tokens), places)


def nats_by_hand(model: Any, params: Any, rows: Preferences) -> tuple[np.ndarray, np.ndarray]:
    """Sums and means of the log-probabilities of completions, (B, K), in float64."""
    hidden, (tokens, places) = hidden_by_hand(model, params, rows)
    logits = np.asarray(model.logits(params, hidden), np.float64)
    log_prob = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    found = [
        [log_prob[row, column - 1, tokens[row, column]] for column in range(*place)]
        for row, place in enumerate(places)
    ]
    shape = rows.completion.shape[:2]
    totals, means = np.array([sum(each) for each in found]), np.array([np.mean(each) for each in found])
    return totals.reshape(shape), means.reshape(shape)


def scores_by_hand(model: Any, params: Any, rows: Preferences) -> np.ndarray:
    hidden, (_, places) = hidden_by_hand(model, params["model"], rows)
    last = np.stack([hidden[row, end - 1] for row, (_, end) in enumerate(places)]).astype(np.float64)
    head = jax.tree.map(np.asarray, params["head"])
    return (last @ head["kernel"] + head["bias"])[:, 0].reshape(rows.completion.shape[:2])


def softplus(x: Any) -> Any:
    return np.log1p(np.exp(x))


def assert_same_step(one: Any, other: Any, rtol: float = 1e-4) -> None:
    np.testing.assert_allclose(one[1].loss.total, other[1].loss.total, rtol=1e-5)
    for first, second in zip(
        jax.tree.leaves(one[0].opt_state), jax.tree.leaves(other[0].opt_state), strict=True
    ):
        np.testing.assert_allclose(first, second, rtol=rtol, atol=1e-6)


DPO_FIELDS: dict[str, dict[str, Any]] = {  # those that each loss reads
    "sigmoid": {"beta": 0.3, "label_smoothing": 0.2},
    "hinge": {"beta": 0.3},
    "ipo": {"beta": 0.3},
    "simpo": {"beta": 0.3, "margin": 0.4},
    "orpo": {"odds_weight": 0.7},
}
DPO_LOSSES = {
    "sigmoid": lambda total, mean, w: 0.8 * softplus(-0.3 * total) + 0.2 * softplus(0.3 * total),
    "hinge": lambda total, mean, w: np.maximum(0, 1 - 0.3 * total),
    "ipo": lambda total, mean, w: (mean - 1 / 0.6) ** 2,
}


@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "ipo", "simpo", "orpo"])
def test_dpo_is_its_formula_of_whole_log_probabilities(loss: str) -> None:
    task = started_task()
    config = config_of("dpo", **DPO_FIELDS[loss], loss=loss)
    state, model = moved("dpo"), model_of()
    rows = batch_of(task, state, config.batch_size)
    total, mean = nats_by_hand(model, state.params, rows)
    start, mean_start = nats_by_hand(model, task.params, rows)
    if loss in DPO_LOSSES:
        s = (total - start, mean - mean_start)
        each = DPO_LOSSES[loss](*(x[:, 0] - x[:, 1] for x in s), rows.weight)
        reward = 0.3 * s[loss == "ipo"]
    elif loss == "simpo":
        each, reward = softplus(0.4 - 0.3 * (mean[:, 0] - mean[:, 1])), 0.3 * mean
    else:
        odds = mean - np.log1p(-np.exp(mean))
        each, reward = -mean[:, 0] + 0.7 * softplus(odds[:, 1] - odds[:, 0]), 0.1 * mean
    _, metrics = stepper("dpo", task, config)(task.frozen, state)
    np.testing.assert_allclose(metrics.loss.value, (rows.weight * each).sum() / rows.weight.sum(), rtol=1e-4)
    np.testing.assert_allclose(metrics.reward_chosen.value, reward[:, 0].mean(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        metrics.margin.value, (reward[:, 0] - reward[:, 1]).mean(), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(metrics.log_prob_rejected.value, total[:, 1].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics.accuracy.value, (reward[:, 0] > reward[:, 1]).mean())
    assert float(metrics.gradient_norm.value) > 0


@pytest.mark.parametrize("completions", [2, 3])
def test_kto_is_its_formula_of_whole_log_probabilities(completions: int) -> None:
    task = started_task(completions)
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.7}
    config = config_of("kto", beta=0.3, **weights)
    state, model = moved("kto", completions), model_of()
    rows = batch_of(task, state, config.batch_size)
    ratio = lambda rows: (
        nats_by_hand(model, state.params, rows)[0] - nats_by_hand(model, task.params, rows)[0]
    )
    r, following = ratio(rows), np.roll(np.arange(config.batch_size), -1)
    mismatched = ratio(rows._replace(completion=rows.completion[following])).mean(1)
    both = rows.weight * rows.weight[following]
    z = max(0.0, (both * mismatched).sum() / both.sum())
    sigma = lambda x: 1 / (1 + np.exp(-x))
    each = 0.7 * (1 - sigma(0.3 * (z - r)))
    each[:, 0] = 1.5 * (1 - sigma(0.3 * (r[:, 0] - z)))
    _, metrics = stepper("kto", task, config)(task.frozen, state)
    np.testing.assert_allclose(metrics.kl.value, z, rtol=1e-4, atol=1e-5)
    expected = (rows.weight[:, None] * each).sum() / rows.weight.sum() / completions
    np.testing.assert_allclose(metrics.loss.value, expected, rtol=1e-4)
    np.testing.assert_allclose(metrics.reward_rejected.value, 0.3 * r[:, 1:].mean(), rtol=1e-4, atol=1e-5)


def labelled(rows: Preferences) -> Preferences:
    """The first completion of one prompt, the second of the next, and so on, each with its label."""
    first = np.arange(len(rows.weight)) % 2 == 0
    single = np.where(first[:, None], rows.completion[:, 0], rows.completion[:, 1])[:, None]
    return rows._replace(completion=jnp.asarray(single), desirable=jnp.asarray(first))


def test_kto_of_labels_is_its_formula() -> None:
    task = started_task()
    task = task._replace(learn=labelled(task.learn), held_out=labelled(task.held_out))
    config = config_of("kto", beta=0.3, desirable_weight=1.5, undesirable_weight=0.7)
    state, model = moved("kto"), model_of()
    rows = batch_of(task, state, config.batch_size)
    ratio = lambda rows: (
        nats_by_hand(model, state.params, rows)[0] - nats_by_hand(model, task.params, rows)[0]
    )[:, 0]
    r, following = ratio(rows), np.roll(np.arange(config.batch_size), -1)
    both = rows.weight * rows.weight[following]
    z = max(0.0, both @ ratio(rows._replace(completion=rows.completion[following])) / both.sum())
    good = rows.desirable
    assert 0 < good.sum() < len(good)
    sigma = lambda x: 1 / (1 + np.exp(-x))
    each = np.where(good, 1.5 * (1 - sigma(0.3 * (r - z))), 0.7 * (1 - sigma(0.3 * (z - r))))

    @jax.jit
    def step(frozen: Any, state: Any) -> Any:
        algorithm = algorithms.find("kto").module.make(task, config, None, frozen)
        return algorithm.step(jax.random.key(1), state)[1], algorithm.measure(state, 20)

    metrics, (right, one) = step(task.frozen, state)
    np.testing.assert_allclose(metrics.kl.value, z, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics.loss.value, rows.weight @ each / rows.weight.sum(), rtol=1e-4)
    np.testing.assert_allclose(metrics.reward_chosen.value, 0.3 * r[good].mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics.reward_rejected.value, 0.3 * r[~good].mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics.accuracy.value, np.mean((r > 0) == good))
    assert int(metrics.margin.count) == 0
    held = jax.tree.map(np.asarray, task.held_out)
    np.testing.assert_array_equal(right, (ratio(held) > 0) == held.desirable)
    assert one.tolist() == [1] * 20
    for name in ("dpo", "reward_model"):
        with pytest.raises(ValueError, match="has labels of single completions: kto learns from those"):
            algorithms.find(name).module.make(task, config_of(name))


def in_parts() -> list[Any]:
    """What is learnt in one part and in two: one Config of each algorithm, and the others as slow tests."""
    quick = [("dpo", 2, {"loss": "sigmoid"}), ("kto", 3, {})]
    quick += [("reward_model", 3, {"loss": "choice", "margin": "data", "centring": 0.5})]
    slow = [("dpo", 2, {"loss": loss}) for loss in ("hinge", "ipo", "simpo", "orpo")] + [("kto", 2, {})]
    slow += [("reward_model", completions, fields) for completions, fields in REWARD_MODELS]
    return [*quick, *(pytest.param(*each, marks=pytest.mark.slow) for each in slow)]


# (completions, fields)
REWARD_MODELS: list[tuple[int, dict[str, Any]]] = [
    (2, {"margin": "data"}),
    (2, {"centring": 0.5}),
    (3, {"loss": "choice", "centring": 0.5}),
    (3, {"loss": "choice", "margin": "data"}),
]


@pytest.mark.parametrize(("name", "completions", "fields"), in_parts())
def test_parts_of_a_batch_make_one_step(name: str, completions: int, fields: dict[str, Any]) -> None:
    more = {
        "dpo": DPO_FIELDS["sigmoid"],
        "kto": {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.7},
    }
    task, state = started_task(completions), moved(name, completions)
    config = config_of(name, **more.get(name, {"normalization": "none"}), **fields)
    assert_same_step(
        *(stepper(name, task, config.replace(num_micro=parts))(task.frozen, state) for parts in (1, 2))
    )


def test_the_reference_point_of_kto_is_never_below_nought_and_not_differentiated() -> None:
    task = started_task()
    config, state = config_of("kto"), moved("kto")
    # started from what the State has, and moved to what the task started from: the sign of every ratio turns
    other = task.frozen | {"params": state.params}
    step = stepper("kto", task, config)
    one, two = step(task.frozen, state)[1], step(other, state.replace(params=task.params))[1]
    assert min(float(one.kl.value), float(two.kl.value)) == 0.0
    assert max(float(one.kl.value), float(two.kl.value)) > 0.0


@pytest.mark.parametrize(("completions", "fields"), REWARD_MODELS)
def test_a_reward_model_is_its_formula_of_the_last_hidden_state(completions: int, fields: Any) -> None:
    task = started_task(completions)
    config = config_of("reward_model", normalization="none", **fields)
    state, model = moved("reward_model", completions), model_of()
    rows = batch_of(task, state, config.batch_size)
    r = 1.7 * scores_by_hand(model, state.params, rows) - 0.3
    if completions == 2:
        each = softplus(r[:, 1] - r[:, 0] + (rows.margin if "margin" in fields else 0))
    else:
        margin = rows.margin if "margin" in fields else np.zeros(len(r))
        each = np.log(np.exp(r[:, 0]) + np.exp(r[:, 1:] + margin[:, None]).sum(1)) - r[:, 0]
    each = each + fields.get("centring", 0) * r.sum(1) ** 2
    _, metrics = stepper("reward_model", task, config)(task.frozen, state)
    np.testing.assert_allclose(metrics.loss.value, (rows.weight * each).sum() / rows.weight.sum(), rtol=1e-4)
    np.testing.assert_allclose(metrics.score.value, r.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics.centre.value, (r.sum(1) ** 2).mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics.margin.value, (r[:, 0] - r[:, 1:].max(1)).mean(), rtol=1e-3)
    np.testing.assert_allclose(metrics.accuracy.value, (r[:, 0] > r[:, 1:].max(1)).mean())


@pytest.mark.parametrize(("name", "fields"), [("reward_model", {"centring": 0.1}), ("dpo", {}), ("kto", {})])
def test_what_must_not_matter_changes_nothing(name: str, fields: Any) -> None:
    """A judgement of weight 0, all weights times a number, what stands where there is no token."""
    task = started_task()
    config, state = config_of(name, batch_size=4, **fields), moved(name)
    step = stepper(name, task, config)
    learn: Preferences = jax.device_get(task.learn)
    number = int(data.batch_indices(state.order, 0, learn.tokens.shape[0], 4)[1])
    weight, other = learn.weight.copy(), learn.completion.copy()
    weight[number], other[number] = 0.0, [[3, 4, 0, -1, -1], [1, 1, 1, 1, 0]]
    some = learn._replace(weight=weight)
    before = step(task.frozen | {"learn": some}, state)
    changed = {
        "another completion": some._replace(completion=other),
        "twice the weights": some._replace(weight=2 * weight),
        "padding of prompts": some._replace(tokens=np.where(some.valid, some.tokens, 7)),
    }
    for what, rows in changed.items():
        after = step(task.frozen | {"learn": rows}, state)
        for first, second in zip(
            jax.tree.leaves(before[0].params), jax.tree.leaves(after[0].params), strict=True
        ):
            np.testing.assert_allclose(first, second, rtol=1e-6, atol=1e-8, err_msg=what)
        np.testing.assert_allclose(before[1].accuracy.total, after[1].accuracy.total, err_msg=what)
        assert int(after[1].accuracy.count) == 3
    # and what does: the same judgement with a weight
    other = step(task.frozen | {"learn": some._replace(weight=learn.weight)}, state)
    assert abs(float(other[1].loss.value) - float(before[1].loss.value)) > 1e-5
    nothing = step(task.frozen | {"learn": some._replace(weight=0 * weight)}, state)
    assert float(nothing[1].loss.total) == 0.0
    assert float(nothing[1].gradient_norm.total) == 0.0
    # wider arrays are another program, for the same numbers; the padding, 0, is the stop token of this task
    wide = some._replace(completion=np.pad(some.completion, [(0, 0), (0, 0), (0, 2)], constant_values=-1))
    if name != "reward_model":  # whose policy would write longer samples
        wider = task._replace(learn=wide)
        assert_same_step(before, stepper(name, wider, config)(task.frozen | {"learn": wide}, state))


def test_a_batch_counts_as_much_as_its_weights_do_among_all() -> None:
    """Not as much as any other: its gradient is that of weights relative to the mean of all judgements."""
    task, state, config = started_task(), moved("dpo"), config_of("dpo")
    step = stepper("dpo", task, config)
    learn: Preferences = jax.device_get(task.learn)
    number = len(learn.weight)
    drawn = np.asarray(data.batch_indices(state.order, int(state.iteration), number, config.batch_size))
    weight = np.full(number, 1.5, np.float32)
    weight[drawn] = 0.5
    norm = lambda weight: float(
        step(task.frozen | {"learn": learn._replace(weight=weight)}, state)[1].gradient_norm.value
    )
    np.testing.assert_allclose(norm(weight) / norm(np.ones_like(weight)), 0.5 / weight.mean(), rtol=1e-4)


@pytest.mark.parametrize("loss", ["simpo", "orpo"])
def test_the_policy_at_the_start_is_no_part_of_simpo_and_orpo(loss: str) -> None:
    task = started_task()
    state = moved("dpo")
    products = {}
    for name in ("sigmoid", loss):
        config = config_of("dpo", loss=name)
        make = lambda frozen, state, config=config: dpo.make(task, config, None, frozen).step(
            jax.random.key(1), state
        )
        products[name] = str(jax.make_jaxpr(make)(task.frozen, state)).count("dot_general")
    assert products[loss] < 0.85 * products["sigmoid"]
    lost = task.frozen | {"params": jax.tree.map(lambda x: np.full(x.shape, np.nan, x.dtype), task.params)}
    _, metrics = stepper("dpo", task, config_of("dpo", loss=loss))(lost, state)
    assert np.isfinite(metrics.loss.value)
    bare = preferences_task()
    begun = jax.eval_shape(dpo.make(bare, config_of("dpo", loss=loss)).init, jax.random.key(0))
    assert begun.iteration.shape == ()


@pytest.mark.parametrize("train", ["all", "lora"])
def test_dpo_and_kto_begin_with_ties(train: str) -> None:
    task = started_task()
    for name, loss in (("dpo", np.log(2)), ("kto", 0.5)):
        make, config = algorithms.find(name).module.make, config_of(name, train=train)

        @jax.jit
        def begun(frozen: Any, make: Any = make, config: Any = config) -> Any:
            """Metrics of the first step, and what is measured before it."""
            algorithm = make(task, config, None, frozen)
            state = algorithm.init(jax.random.key(0))
            return algorithm.step(jax.random.key(1), state)[1], algorithm.measure(state, 100)

        metrics, (correct, ones) = begun(task.frozen)
        np.testing.assert_allclose(metrics.loss.value, loss, rtol=1e-6)
        np.testing.assert_allclose(metrics.margin.value, 0, atol=1e-6)
        assert correct.shape == (20,)
        np.testing.assert_array_equal(ones, 1.0)
        np.testing.assert_array_equal(correct, 0.5)


def test_a_tie_is_shared() -> None:
    right = jax.jit(preference_batches.right)
    scores = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0], [np.nan, 0.0]], np.float32)
    np.testing.assert_array_equal(right(scores), [1.0, 0.0, 0.5, 0.0])
    three = np.array([[1.0, 1.0, 1.0], [1.0, 0.0, 1.0], [0.0, 1.0, 1.0]], np.float32)
    np.testing.assert_allclose(right(three), [1 / 3, 0.5, 0.0])


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("reward_model", {}),
        ("reward_model", {"architecture": "t5", "num_micro": 1}),
        ("dpo", {}),
        ("dpo", {"architecture": "gru", "loss": "ipo", "num_micro": 1}),
        ("reward_model", {"train": "lora", "learning_rate": 3e-2}),
        ("kto", {}),
    ],
)
def test_a_preference_that_can_be_told_is_learnt(name: str, fields: dict[str, Any]) -> None:
    task = started_task(architecture=fields.get("architecture", "llama"))
    task = task._replace(learn=judged(400, seed=1))
    number = 300 if name == "kto" else 100
    config = config_of(name, batch_size=16, total_steps=16 * number, **fields)

    @jax.jit
    def train(frozen: Any, key: Any) -> Any:
        algorithm = algorithms.find(name).module.make(task, config, None, frozen)
        state, metrics = rljax.run(algorithm, key, algorithm.init(key), number)
        assert algorithm.measure is not None
        return algorithm.measure(state, 20), metrics

    (correct, ones), metrics = train(task.frozen, jax.random.key(0))
    assert correct.sum() / ones.sum() >= 0.95
    assert float(metrics.loss.value[-1]) < float(metrics.loss.value[0])


@pytest.mark.parametrize("architecture", ["llama", "t5", "gru"])
def test_a_score_is_of_the_state_after_the_last_token(architecture: str) -> None:
    """With and without padding the same, whatever the architecture."""
    task, model = preferences_task(), model_of(architecture)
    config = config_of("reward_model", architecture=architecture, normalization="none")
    params = jax.jit(reward_model.make(task, config).init)(jax.random.key(0)).params
    pairs = jax.tree.map(np.asarray, jax.jit(preference_batches.flat)(task.learn))
    prompt, completion = np.where(pairs.valid, pairs.prompt, -1), np.where(pairs.mask, pairs.completion, -1)

    @jax.jit
    def padded(params: Any) -> Any:
        found = rewards.of_model("score", model, params | {"gain": 1.0, "bias": 0.0})
        return found.apply(found.params, prompt, completion, None)

    @jax.jit
    def alone(params: Any, prompt: Any, completion: Any) -> Any:
        """Scores of rows without padding, all prompts and all completions of the same length."""
        filled = jnp.pad(completion, [(0, 0), (0, 1)], constant_values=9)
        hidden = model.completion(params["model"], prompt, jnp.ones(prompt.shape, bool), filled)
        return hidden[:, -1] @ params["head"]["kernel"][:, 0] + params["head"]["bias"][0]

    scores = np.asarray(padded(params))
    lengths = np.stack([np.repeat(pairs.valid.sum(1), 2), pairs.mask.sum(1)], axis=1)
    for sizes in ((1, 4), (3, 2)):  # one program each
        (rows,) = np.nonzero((lengths == sizes).all(1))
        assert len(rows) > 1
        mine = prompt[rows // 2, prompt.shape[1] - sizes[0] :]
        expected = alone(params, mine, completion[rows, : sizes[1]])
        np.testing.assert_allclose(scores[rows], expected, rtol=2e-4, atol=2e-5)


def test_scores_are_normalised_on_what_the_policy_at_the_start_writes() -> None:
    task = started_task()
    config = config_of("reward_model", normalization_samples=30, train="lora")
    algorithm = reward_model.make(task, config)
    state = jax.jit(algorithm.init)(jax.random.key(0))
    assert state.samples.completion.shape == (30, 5)
    ended = np.asarray((state.samples.completion == 0) & state.samples.mask).any(1)
    assert (ended | np.asarray(state.samples.mask).all(1)).all()
    model, normalised = model_of(), jax.jit(functools.partial(rewards.normalised, model_of()))
    params = {"model": task.params, "head": state.params["head"], "gain": state.gain, "bias": state.bias}
    scores = np.asarray(scored(model, params, state.samples))
    np.testing.assert_allclose([scores.mean(), scores.std()], [0, 1], atol=1e-5)
    again = normalised(params | {"gain": np.float32(7)}, state.samples)
    np.testing.assert_allclose([again["gain"], again["bias"]], [state.gain, state.bias], rtol=1e-4, atol=1e-5)
    after = jax.jit(algorithm.step)(jax.random.key(1), state)[0]
    for one, other in zip(
        jax.tree.leaves((state.gain, state.bias, state.samples)),
        jax.tree.leaves((after.gain, after.bias, after.samples)),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    flat = params | {"head": jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), params["head"])}
    flat |= {"gain": np.float32(7)}
    assert float(normalised(flat, state.samples)["gain"]) == 1.0


@functools.partial(jax.jit, static_argnums=0, static_argnames=("ensemble", "pessimism"))
def scored(model: Any, params: Any, samples: data.Pairs, **options: Any) -> Any:
    reward = rewards.of_model("score", model, params, **options)
    prompt = jnp.where(samples.valid, samples.prompt, -1)
    completion = jnp.where(samples.mask, samples.completion, -1)
    return reward.apply(reward.params, prompt, completion, None)


def test_an_ensemble_is_the_mean_the_least_or_less_than_the_mean() -> None:
    task = preferences_task()
    algorithm = reward_model.make(task, config_of("reward_model"))
    begun = jax.jit(lambda key: jax.vmap(algorithm.init)(jax.random.split(key, 3)))
    states, model = begun(jax.random.key(0)), model_of()
    states = states.replace(order=None)
    states = jax.device_get(states)
    params = states.params | {"gain": states.gain, "bias": states.bias}
    samples = jax.tree.map(lambda x: x[0], states.samples)
    alone = np.stack([scored(model, jax.tree.map(lambda x, i=i: x[i], params), samples) for i in range(3)])
    assert np.abs(alone[0] - alone[1]).max() > 0.1
    for options, expected in (
        ({}, alone.mean(0)),
        ({"ensemble": "min"}, alone.min(0)),
        ({"pessimism": 0.5}, alone.mean(0) - 0.5 * alone.std(0)),
    ):
        np.testing.assert_allclose(scored(model, params, samples, **options), expected, rtol=1e-4, atol=1e-5)


def test_a_reward_model_scores_inside_the_program_of_grpo() -> None:
    judged = started_task()
    model = model_of()

    @jax.jit
    def fitted(key: Any) -> Any:
        state = reward_model.make(judged, config_of("reward_model")).init(key)
        return rewards.normalised(model, state.params, state.samples)

    reward = rewards.of_model("liked", model, fitted(jax.random.key(0)))
    prompts = Prompts(judged.learn.tokens, judged.learn.valid)
    task = Task(
        *("ones", VOCABULARY, prompts, prompts, judged.params),
        rewards=(reward,), max_new_tokens=5, stop_ids=(0,),
    )  # fmt: skip
    config = grpo.Config(hidden_size=16, num_layers=1, num_heads=2, num_prompts=2, group_size=2)

    def step(frozen: Any, state: Any) -> Any:
        algorithm = grpo.make(task, config, None, frozen)
        assert algorithm.split is not None
        rollout = algorithm.split.sample(jax.random.split(jax.random.key(1))[0], state)
        return rollout, algorithm.step(jax.random.key(1), state)[1]

    begun = jax.jit(grpo.make(task, config).init)(jax.random.key(0))
    rollout, metrics = jax.device_get(jax.jit(step)(task.frozen, begun))
    completion = np.where(rollout.mask, rollout.completion, -1)
    prompt = np.where(rollout.valid, rollout.prompt, -1)

    @jax.jit
    def alone(params: Any) -> Any:
        """Scores, and the gradient of their sum."""
        score = lambda params: reward.apply(params, prompt, completion, None)
        return score(params), jax.grad(lambda params: score(params).sum())(params)

    expected, gradient = alone(reward.params)
    np.testing.assert_allclose(metrics.rewards["liked"].value, expected.mean(), rtol=1e-4, atol=1e-5)
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(gradient))
    closed = jax.make_jaxpr(step)(task.frozen, begun)
    assert sum(np.asarray(constant).nbytes for constant in closed.consts) < 10_000


def tampered(**fields: Any) -> Task:
    task = started_task()
    return task._replace(learn=task.learn._replace(**fields))


ROWS: Preferences = jax.device_get(preferences_task().learn)


def changed(rows: Any, place: Any, value: Any) -> np.ndarray:
    """A copy with another value at a place."""
    rows = np.array(rows)
    rows[place] = value
    return rows


NAN = changed(ROWS.weight, 3, np.nan)
EMPTY = changed(ROWS.completion, (4, 1), -1)
GAP = changed(ROWS.completion, (2, 0), [1, -1, 2, 0, -1])
OUTSIDE = changed(ROWS.completion, (2, 0, 0), VOCABULARY)


@pytest.mark.parametrize(
    ("name", "task", "fields", "says"),
    [
        ("dpo", lambda: started_task(3), {}, "has 3 completions to a judgement, and dpo learns from pairs"),
        ("reward_model", lambda: started_task(3), {}, 'choose loss = "choice"'),
        ("reward_model", started_task, {"centring": -1.0}, "centring = -1"),
        ("reward_model", started_task, {"normalization_samples": 1}, "normalization_samples = 1"),
        ("reward_model", started_task, {"temperature": 0.0}, "temperature = 0"),
        ("dpo", lambda: tampered(weight=NAN), {}, "learn has the weight nan of row 3: must be finite"),
        ("kto", lambda: tampered(weight=-ROWS.weight), {}, "must be finite and at least 0"),
        ("kto", lambda: tampered(weight=0 * ROWS.weight), {}, "no weight above 0"),
        ("reward_model", lambda: tampered(margin=NAN), {}, "learn has the margin nan of row 3"),
        ("dpo", lambda: tampered(completion=EMPTY), {}, "empty completion, row 4"),
        ("dpo", lambda: tampered(completion=GAP), {}, "goes on after −1, row 2"),
        (
            "dpo",
            lambda: tampered(completion=OUTSIDE),
            {},
            "completion with tokens 0 to 11, for a vocabulary of",
        ),
        ("dpo", lambda: tampered(valid=changed(ROWS.valid, 1, False)), {}, "empty prompt, row 1"),
        ("dpo", lambda: tampered(completion=ROWS.completion[:, :1]), {}, "with K of 2 or more"),
        ("dpo", preferences_task, {}, "beta = 0.1: needs the parameters of a policy"),
        ("kto", preferences_task, {}, "beta = 0.1: needs the parameters of a policy"),
        ("dpo", started_task, {"beta": 0.0}, "beta = 0: must be above 0"),
        ("dpo", started_task, {"label_smoothing": 0.7}, "label_smoothing = 0.7"),
        ("dpo", started_task, {"loss": "sigmiod"}, "did you mean sigmoid?"),
        ("kto", started_task, {"batch_size": 1, "num_micro": 0}, "batch_size = 1: must be an integer of at"),
        ("kto", started_task, {"batch_size": 50}, "batch_size = 50: must be at most the 40 judgements"),
        ("dpo", lambda: Task("rows", 11, ROWS.tokens, ROWS.tokens), {}, "rows has no preferences"),
    ],
)
def test_wrong_data_and_fields_are_one_line(name: str, task: Any, fields: Any, says: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        algorithms.find(name).module.make(task(), config_of(name, **fields))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_reward_model_that_cannot_judge_a_task_is_refused() -> None:
    model = model_of()
    params = {"model": started_task().params, "head": {}}
    with pytest.raises(ValueError, match=r"reward x: params have no gain: rewards.normalised\(") as caught:
        rewards.of_model("x", model, params)
    assert "\n" not in str(caught.value)
    fitted = params | {"gain": 1.0, "bias": 0.0}
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"ensemble": "max"}, "ensemble = 'max'"),
        ({"pessimism": -1.0}, "pessimism = -1"),
        ({"pessimism": 1.0, "ensemble": "min"}, "0 where ensemble"),
    ]
    for options, says in wrong:
        with pytest.raises(ValueError, match=says):
            rewards.of_model("x", model, fitted, **options)
    with pytest.raises(ValueError, match="one first axis"):
        rewards.of_model(
            "x", model, params | {"gain": np.ones(2, np.float32), "bias": np.ones(2, np.float32)}
        )
    head = {"kernel": np.zeros((16, 1), np.float32), "bias": np.zeros(1, np.float32)}
    prompts = Prompts(ROWS.tokens, ROWS.valid)

    def task(vocabulary: Any, size: int = VOCABULARY, tokenizer: Any = None) -> Task:
        reward = rewards.of_model("x", model, fitted | {"head": head}, vocabulary=vocabulary)
        return Task("t", size, prompts, prompts, tokenizer=tokenizer, rewards=(reward,), max_new_tokens=5)

    digits, letters = text.character_tokenizer("0123456789"), text.character_tokenizer("abcdefghij")
    rewards.check(task(None))
    rewards.check(task(digits, digits.vocab_size, text.character_tokenizer("0123456789")))
    for other in (task(None, 50), task(digits, digits.vocab_size, letters), task(digits, 50)):
        with pytest.raises(ValueError, match="reward x has another vocabulary") as caught:
            rewards.check(other)
        assert "\n" not in str(caught.value)
