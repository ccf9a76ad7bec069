"""pretrain and sft: the losses they say they lower, resume, sweeps, adapters on a shared base."""

import json
import signal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rljax
from rljax import pretrain, sft
from rljax.learning import trainable
from rljax.models.language_models import language_model
from rljax.runs.folder import checkpoint
from rljax.text import data
from tests.algorithms.tasks import (
    LENGTH,
    VOCABULARY,
    pairs_task,
    pretraining,
    rows_task,
    text_task,
    tuning,
)


def by_hand(model: Any, params: Any, rows: Any) -> tuple[float, int]:
    """Sum of −log p over the mask, and its size, from whole logits in float64."""
    logits = np.asarray(model.logits(params, model.forward(params, rows.tokens, rows.segments)), np.float64)
    log_prob = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    total, count = 0.0, 0
    for row, column in zip(*np.nonzero(np.asarray(rows.mask)), strict=True):
        total -= log_prob[row, column - 1, int(rows.tokens[row, column])]
        count += 1
    return total, count


def test_the_loss_is_the_mean_over_the_tokens_of_the_mask() -> None:
    task, config = rows_task(), tuning()
    algorithm = sft.make(task, config)
    state = algorithm.init(jax.random.key(0))
    batch = data.batch(state.order, 0, task.learn, config.batch_size)
    _, metrics = jax.jit(algorithm.step)(jax.random.key(1), state)
    total, count = by_hand(language_model(VOCABULARY, config, LENGTH), state.params, batch)
    assert int(metrics.loss.count) == count == int(batch.mask.sum())
    np.testing.assert_allclose(float(metrics.loss.total), total, rtol=1e-5)


def test_held_out_text_is_measured_row_by_row() -> None:
    task, config = text_task(), pretraining()
    algorithm = pretrain.make(task, config)
    state = algorithm.init(jax.random.key(0))
    assert algorithm.measure is not None
    totals, counts = algorithm.measure(state, 1_000)
    assert totals.shape == (50 // LENGTH,)  # only whole rows
    np.testing.assert_array_equal(counts, LENGTH - 1)
    rows = pretrain.cut(task.held_out, jnp.arange(50 // LENGTH) * LENGTH, LENGTH)
    expected = by_hand(language_model(VOCABULARY, config, LENGTH), state.params, rows)
    np.testing.assert_allclose(totals.sum(), expected[0], rtol=1e-5)
    assert algorithm.measure(state, 2)[0].shape == (2,)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pretraining_learns_what_can_be_known(dtype: str) -> None:
    config = pretraining(total_steps=300 * 4 * LENGTH, dtype=dtype)
    result = rljax.train("pretrain", text_task(), config, progress=False)
    loss = result.summary["loss"]["mean"]
    # the first token of a row is given, and every other follows from the one before it
    assert loss < 0.05
    assert result.summary["headline"] == "loss"
    assert result.rows[0]["loss"][0] > 1.5


def test_fine_tuning_learns_completions_only() -> None:
    config = tuning(total_steps=400 * 16 * LENGTH, batch_size=16, num_layers=2, hidden_size=32)
    result = rljax.train("sft", rows_task(number=2_000), config, progress=False)
    # prompts it never saw; a model that learnt the prompts instead would be at log 10 = 2.3
    assert result.summary["loss"]["mean"] < 0.6


def test_half_precision_parameters_move_as_their_float32_copies() -> None:
    """A step of 1e-3 from 1 is lost in bfloat16, whose next number below is 1 − 2⁻⁸."""
    config = tuning(learning_rate=1e-3, warmup_fraction=1e-6, weight_decay=0.0, schedule="constant")
    params = {"half": jnp.ones(3, jnp.bfloat16), "whole": jnp.ones(3)}
    opt_state = trainable.optimizer(config).init(params)
    for iteration in range(10):
        gradients = jax.tree.map(jnp.ones_like, params)
        params, opt_state, _ = trainable.move(config, params, opt_state, gradients, jnp.int32(iteration))
    np.testing.assert_allclose(params["whole"], 0.99, rtol=1e-4)
    np.testing.assert_allclose(opt_state.master["half"], params["whole"], rtol=1e-6)
    assert params["half"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(params["half"], params["whole"].astype(jnp.bfloat16))
    kinds = {leaf.dtype for leaf in jax.tree.leaves(opt_state) if jnp.issubdtype(leaf.dtype, jnp.floating)}
    assert kinds == {jnp.dtype(jnp.float32)}
    plain = trainable.optimizer(config).init({"whole": jnp.ones(3)})
    assert not hasattr(plain, "master")  # nothing more is kept where all is float32


def test_microbatches_change_nothing() -> None:
    task = rows_task()
    states = []
    for parts in (1, 2, 4):
        algorithm = sft.make(task, tuning(num_micro=parts, schedule="constant"))
        state = algorithm.init(jax.random.key(0))
        states.append(jax.jit(algorithm.step)(jax.random.key(1), state))
    for state, metrics in states[1:]:
        np.testing.assert_allclose(metrics.loss.total, states[0][1].loss.total, rtol=1e-5)
        for one, other in zip(
            jax.tree.leaves(state.opt_state), jax.tree.leaves(states[0][0].opt_state), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "task", "config"),
    [("pretrain", text_task, pretraining()), ("sft", rows_task, tuning(total_steps=12 * 4 * LENGTH))],
)
def test_a_stopped_run_goes_on_bit_for_bit(name: str, task: Any, config: Any, tmp_path: Any) -> None:
    whole = rljax.train(name, task(), config, seeds=2, progress=False)
    part = tmp_path / "part"
    with pytest.raises(KeyboardInterrupt):
        stop_after(5, lambda: rljax.train(name, task(), config, seeds=2, out=part, progress=False))
    again = rljax.train(name, task(), config, seeds=2, out=part, resume=True, progress=False)
    assert again.summary["state_sha256"] == whole.summary["state_sha256"]
    assert json.loads((part / "summary.json").read_text())["loss"] == whole.summary["loss"]
    evaluated = rljax.evaluate(part, env=task(), episodes=128)
    np.testing.assert_allclose(evaluated["loss"]["mean"], whole.summary["loss"]["mean"], rtol=1e-6)


def stop_after(iterations: int, train: Any) -> None:
    from rljax.runs.program import loop

    inner = loop.advance

    def advance(program: Any, states: Any, start: int, total: int, every: list[int], **rest: Any) -> Any:
        for chunk in inner(program, states, start, total, [*every, iterations], **rest):
            yield chunk
            if chunk[1].iteration == iterations:
                signal.raise_signal(signal.SIGINT)
                return

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "advance", advance)
        train()


def test_every_epoch_sees_every_row_once() -> None:
    task = rows_task()
    size = task.learn.tokens.shape[0]
    chosen = [np.asarray(data.batch_indices(jax.random.key(3), i, size, 4)) for i in range(size)]
    first = np.sort(np.concatenate(chosen)[: 4 * size].reshape(4, size), axis=1)
    np.testing.assert_array_equal(first, np.broadcast_to(np.arange(size), first.shape))


def test_adapters_leave_the_base_as_it_is() -> None:
    model = language_model(VOCABULARY, tuning(), LENGTH)
    base = model.init(jax.random.key(9))
    config = tuning(train="lora", rank=2, patterns=("attention/query", "attention/value"))
    algorithm = sft.make(rows_task(base), config, model)
    state = algorithm.init(jax.random.key(0))
    assert algorithm.measure is not None
    untouched = sft.make(rows_task(base), tuning(), model)
    assert untouched.measure is not None
    before = algorithm.measure(state, 4)[0]  # B is zero at the start: the base's own losses
    np.testing.assert_allclose(before, untouched.measure(untouched.init(jax.random.key(0)), 4)[0], rtol=1e-5)
    assert {path.split(".")[-1] for path in checkpoint.leaves(state.params)} == {"a", "b"}
    step = jax.jit(algorithm.step)
    for iteration in range(20):
        state, metrics = step(jax.random.key(iteration), state)
    assert algorithm.measure(state, 4)[0].sum() < before.sum()
    assert float(metrics.gradient_norm.value) > 0


def test_head_alone_is_trained() -> None:
    model = language_model(VOCABULARY, tuning(), LENGTH)
    base = model.init(jax.random.key(9))
    algorithm = sft.make(rows_task(base), tuning(train="subset", patterns=("embedding",)), model)
    assert list(checkpoint.leaves(algorithm.init(jax.random.key(0)).params)) == ["embedding"]


@pytest.mark.parametrize(
    ("make", "fields", "says"),
    [
        (pretrain.make, {"length": 60}, "length = 60: must be at most the 50 tokens of held_out"),
        (pretrain.make, {"num_micro": 3}, "num_micro = 3: must divide batch_size = 4"),
        (pretrain.make, {"dropout": 1.0}, "dropout = 1"),
        (sft.make, {"dropout": -0.1}, "dropout = -0.1"),
        (sft.make, {"length": 13}, f"length = 13: must be {LENGTH}, as the rows of learn"),
        (sft.make, {"batch_size": 1_000, "num_micro": 1}, "batch_size = 1000: must be at most the"),
        (sft.make, {"train": "lora"}, "needs parameters to adapt"),
        (sft.make, {"train": "lroa"}, "did you mean lora"),
    ],
)
def test_wrong_fields_are_one_line(make: Any, fields: dict[str, Any], says: str) -> None:
    task, config = (text_task(), pretraining()) if make is pretrain.make else (rows_task(), tuning())
    with pytest.raises(ValueError, match=r".") as caught:
        make(task, config.replace(**fields))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_task_and_an_environment_are_not_taken_for_each_other() -> None:
    with pytest.raises(ValueError, match="no task is named"):
        rljax.train("pretrain", "CartPole-v1")
    with pytest.raises(ValueError, match="ppo needs an environment"):
        rljax.train("ppo", text_task())


def test_a_step_that_is_left_out_is_a_program_of_its_own_in_a_sweep() -> None:
    grid = {"dropout": [None, 0.0, 0.5]}
    found = rljax.sweep("sft", rows_task(), grid, tuning(), progress=False)
    losses = [member["loss"] for member in found.members]
    assert found.compilations == 3
    assert [member["dropout"] for member in found.members] == [None, 0.0, 0.5]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
    assert abs(losses[2] - losses[0]) > 1e-3


def test_a_sweep_tells_the_loss_of_each_member(tmp_path: Any) -> None:
    found = rljax.sweep(
        "pretrain",
        text_task(),
        {"learning_rate": [1e-3, 1e-2]},
        pretraining(),
        out=tmp_path / "sweep",
        progress=False,
    )
    losses = [member["loss"] for member in found.members]
    assert found.compilations == 1
    assert losses[1] < losses[0] < np.log(VOCABULARY) + 1
    assert len(rljax.report([tmp_path / "sweep"])) >= 1


def test_pairs_are_learnt_as_completions_of_their_prompts() -> None:
    task, config = pairs_task(), tuning(architecture="t5")
    model = language_model(VOCABULARY, config, LENGTH)
    algorithm = sft.make(task, config)
    state = algorithm.init(jax.random.key(0))
    rows = data.batch(state.order, 0, task.learn, config.batch_size)
    _, metrics = jax.jit(algorithm.step)(jax.random.key(1), state)
    hidden = model.completion(state.params, rows.prompt, rows.valid, rows.completion)
    logits = np.asarray(model.logits(state.params, hidden), np.float64)
    log_prob = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    chosen = np.take_along_axis(log_prob, np.asarray(rows.completion)[..., None], -1)[..., 0]
    np.testing.assert_allclose(float(metrics.loss.total), -chosen[np.asarray(rows.mask)].sum(), rtol=1e-5)
    assert int(metrics.loss.count) == rows.mask.sum()
    assert algorithm.measure is not None
    losses, counts = algorithm.measure(state, 7)
    assert losses.shape == counts.shape == (7,)
    np.testing.assert_array_equal(counts, task.held_out.mask[:7].sum(1))


def test_an_encoder_decoder_learns_to_say_backwards() -> None:
    fields = {"batch_size": 16, "num_layers": 2, "hidden_size": 32, "total_steps": 400 * 16 * LENGTH}
    task = pairs_task()
    task = task._replace(held_out=task.learn)  # 40 pairs, by heart
    result = rljax.train("sft", task, tuning(architecture="t5", **fields), progress=False)
    assert result.summary["loss"]["mean"] < 0.3


@pytest.mark.parametrize("architecture", ["gru", "lstm"])
@pytest.mark.parametrize("name", ["pretrain", "sft"])
def test_recurrent_models_of_the_configs_sizes(name: str, architecture: str) -> None:
    config = (pretraining if name == "pretrain" else tuning)(architecture=architecture)
    task = text_task() if name == "pretrain" else rows_task()
    result = rljax.train(name, task, config, progress=False)
    losses = [row["loss"][0] for row in result.rows]
    assert losses[-1] < losses[0]


def test_a_prefix_is_all_that_is_trained() -> None:
    model = language_model(VOCABULARY, tuning(), LENGTH)
    base = model.init(jax.random.key(9))
    task = rows_task(base)
    task = task._replace(held_out=task.learn)
    config = tuning(train="prefix", prefix_length=3, learning_rate=0.1, batch_size=12)
    algorithm = sft.make(task, config, model)
    state = algorithm.init(jax.random.key(0))
    leaves = checkpoint.leaves(state.params)
    assert {path.split(".")[-1] for path in leaves} == {"prefix_key", "prefix_value"}
    assert {leaf.shape[1] for leaf in leaves.values()} == {3}
    assert algorithm.measure is not None
    step, before = jax.jit(algorithm.step), algorithm.measure(state, 100)[0].sum()
    for iteration in range(30):
        state, _ = step(jax.random.key(iteration), state)
    assert algorithm.measure(state, 100)[0].sum() < before - 1


def test_dropout_changes_training_and_not_the_measure() -> None:
    task = rows_task()
    kept, noisy = sft.make(task, tuning()), sft.make(task, tuning(dropout=0.5))
    state = kept.init(jax.random.key(0))
    key = jax.random.key(1)
    np.testing.assert_array_equal(kept.measure(state, 4)[0], noisy.measure(state, 4)[0])  # pyright: ignore
    one, other = (jax.jit(algorithm.step)(key, state)[1].loss.total for algorithm in (kept, noisy))
    assert abs(one - other) > 1e-2
    again = jax.jit(noisy.step)(jax.random.key(2), state)[1].loss.total
    assert abs(again - other) > 1e-4
    micro = sft.make(task, tuning(dropout=0.5, num_micro=2))
    np.testing.assert_allclose(jax.jit(micro.step)(key, state)[1].loss.total, other, rtol=1e-5)


def test_microbatches_of_a_cpu_fit_its_caches() -> None:
    def sizes(**fields: int) -> int:
        config = pretrain.Config(**fields)
        return trainable.parts(config, config.batch_size, config.length)

    assert sizes(batch_size=32, length=256) == 8
    assert sizes(batch_size=6, length=1024) == 6
    assert sizes(batch_size=7, length=256) == 7  # which has no other divisor
    assert sizes(batch_size=4, length=64) == 1
    assert sizes(batch_size=32, length=256, num_micro=4) == 4
