"""Runs on problems of text: where parameters begin, what is recorded, and what is refused."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

import rljax
from rljax import algorithms, text
from rljax.cli import main
from rljax.models.huggingface import Generation
from rljax.models.language_models import language_model
from rljax.runs import load, starting_model
from rljax.runs.recorder import Result
from rljax.text.problem import changes, read_back
from rljax.text.problem import task as task_of
from rljax.types import Task

SIZES: dict[str, Any] = {"hidden_size": 16, "num_layers": 1, "num_heads": 2}
TASK: dict[str, Any] = {"symbols": "abc", "max_length": 3, "train": 24, "held_out": 6}
GRPO = {**SIZES, "num_prompts": 4, "group_size": 4, "learning_rate": 1e-3}
GRPO |= {
    "groups": "all",
    "oversampling": 1,
    "num_minibatches": 1,
    "old_log_prob": "recomputed",
}  # no preset's
STEPS = 4 * 4 * 3


def train(out: Path | None, **more: Any) -> Result:
    given: dict[str, Any] = {"steps": STEPS, "seeds": 2, "warm_up": 64 * 8, "progress": False}
    return rljax.train("grpo", "reverse", GRPO, env_arguments=TASK, out=out, **given | more)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "grpo"
    train(out, samples_every=2, samples=3, checkpoint_every=2)
    return out


def test_sft_trains_the_model_first_in_the_same_folder(run: Path) -> None:
    told, first = (json.loads((where / "config.json").read_text()) for where in (run, run / "sft"))
    assert (first["algorithm"], first["seeds"]) == ("sft", [0])
    assert {name: first["config"][name] for name in SIZES} == SIZES
    assert told["start"] == {"kind": "run", "source": "sft", "member": 0, "reward": ""}
    assert told["task_arguments"] == {"name": "reverse", **TASK}
    assert told["vocab_size"] == text.tasks.make("reverse", **TASK).tokenizer.vocab_size
    base = rljax.language_model(run / "sft").params
    from rljax.runs.folder import checkpoint

    assert checkpoint.sha256_of(base) == told["frozen"]["params"]


def test_what_a_run_says(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["algorithm"], summary["task"], summary["headline"]) == ("grpo", "reverse", "return")
    assert summary["steps"] == STEPS
    assert len(summary["return"]["per_seed"]) == 2
    assert summary["return"]["episodes"] == TASK["held_out"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(len(row["rewards/exact_match"]) == 2 for row in rows)
    assert all(0 <= value <= 1 for row in rows for value in row["reward"])
    assert max(max(row["drift"]) for row in rows) < 1e-4
    assert (run / "curve.png").stat().st_size > 1000
    loaded = rljax.language_model(run, member=1)
    assert loaded.generation.stop_ids == (loaded.tokenizer.eos_id,)


def test_generate_answers_a_prompt_of_the_task_where_none_is_given(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(run), "--temperature", "0", "--max-new-tokens", "3", "--member", "1"]) == 0
    told = capsys.readouterr().out.removesuffix("\n")
    problem = text.tasks.make("reverse", **TASK)
    first = np.asarray(problem.held_out.tokens[0])[np.asarray(problem.held_out.valid[0])]
    prompt = problem.tokenizer.decode(first.tolist())
    assert prompt.endswith(">")
    loaded = rljax.language_model(run, member=1)
    rows, valid = text.data.pad_prompts([first.tolist()])
    settings, stops = text.Sampling(temperature=0.0, max_new_tokens=3), loaded.generation.stop_ids
    written = text.generate(loaded.model, loaded.params, jax.random.key(0), rows, valid, settings, stops)
    tokens = [int(token) for token in written.tokens[0][written.mask[0]] if int(token) not in stops]
    assert told == prompt + problem.tokenizer.decode(tokens)


def test_sampled_completions_are_kept_with_rewards_and_credit(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [2] * 6  # three of each seed, once
    assert [row["seed"] for row in rows] == [0] * 3 + [1] * 3
    for row in rows:
        assert row["prompt"].endswith(">")
        assert "".join(piece for piece, _, _ in row["tokens"]) == row["completion"]
        assert all(drawn for _, _, drawn in row["tokens"])
        assert row["reward"] == row["rewards"]["exact_match"]
        assert len({advantage for _, advantage, _ in row["tokens"]}) == 1  # GRPO credits a completion


def test_a_run_is_taken_up_again_bit_for_bit_and_evaluated(run: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(run, half)
    (half / "summary.json").unlink()
    shutil.rmtree(half / "checkpoints" / "000000003")
    train(half, resume=True, checkpoint_every=2)
    one, other = (json.loads((where / "summary.json").read_text()) for where in (run, half))
    assert one["state_sha256"] == other["state_sha256"]
    found = rljax.evaluate(run)
    np.testing.assert_allclose(found["return"]["per_seed"], one["return"]["per_seed"])
    judged = rljax.judge(run, "reverse", TASK)
    np.testing.assert_allclose(judged["return"]["per_seed"], one["return"]["per_seed"])
    assert judged["rewards/exact_match"] == judged["return"]
    assert judged["length"]["mean"] == found["episode_length"]["mean"]


def test_another_start_is_no_resume(run: Path) -> None:
    with pytest.raises(ValueError, match=r"start is .* there and .* here"):
        train(run, resume=True, init=run / "sft")
    with pytest.raises(ValueError, match="already holds a run"):
        train(run)
    with pytest.raises(ValueError, match="task_arguments is"):
        rljax.train(
            "grpo", "reverse", GRPO, env_arguments={**TASK, "seed": 1}, steps=STEPS, seeds=2, out=run,
            resume=True, progress=False,
        )  # fmt: skip


def test_init_takes_the_sizes_of_the_run_that_it_begins_with(run: Path, tmp_path: Path) -> None:
    config = {"num_prompts": 4, "learning_rate": 1e-3, "kl": 0.1}  # whose defaults are larger
    result = rljax.train(
        "rlhf_ppo", "reverse", config, env_arguments=TASK, init=run, init_member=1, steps=8,
        out=tmp_path / "ppo", progress=False,
    )  # fmt: skip
    assert result.config.hidden_size == SIZES["hidden_size"]
    told = json.loads((tmp_path / "ppo" / "config.json").read_text())
    assert told["start"]["source"] == str(run.absolute())
    assert told["start"]["member"] == 1
    assert rljax.evaluate(tmp_path / "ppo")["iteration"] == 2
    with pytest.raises(ValueError, match="has 2 members: pick one with --init-member"):
        rljax.train("rlhf_ppo", "reverse", config, env_arguments=TASK, init=run)
    with pytest.raises(ValueError, match="members 0 to 1"):
        rljax.train("rlhf_ppo", "reverse", config, env_arguments=TASK, init=run, init_member=2)
    with pytest.raises(ValueError, match="vocabulary of"):
        rljax.train("rlhf_ppo", "sentiment_words", config, init=run, init_member=0)


def test_a_sweep_over_numbers_is_one_compilation_from_one_model(tmp_path: Path) -> None:
    grid = {"learning_rate": [1e-4, 1e-3], "kl": [0.0, 0.1]}
    found = rljax.sweep(
        "grpo", "reverse", grid, GRPO, env_arguments=TASK, seeds=2, steps=STEPS, warm_up=512,
        out=tmp_path / "sweep", progress=False,
    )  # fmt: skip
    assert found.compilations == 1
    assert len(found.members) == 8
    part = json.loads((tmp_path / "sweep" / "part-000" / "config.json").read_text())
    assert part["start"]["source"] == "../sft"
    assert rljax.evaluate(tmp_path / "sweep" / "part-000", member=3)["iteration"] == 3


def test_what_is_wrong_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    out = tmp_path / "never"
    wrong = [
        ({"group_size": 1}, "grpo.Config.group_size = 1: must be an integer of at least 2"),
        ({"num_prompts": 25}, "num_prompts = 25: must be at most the 24 prompts"),
        ({"hidden_size": 15}, "num_heads"),
        ({"kl": -1.0}, "kl = -1: must be at least 0"),
        ({"max_new_tokens": 0}, "max_new_tokens = 0"),
        ({"loss": "tokens"}, "did you mean token"),
    ]
    for fields, says in wrong:
        with pytest.raises(ValueError, match=says):
            rljax.train("grpo", "reverse", {**GRPO, **fields}, env_arguments=TASK, out=out, progress=False)
    with pytest.raises(ValueError, match="are of tasks of text"):
        rljax.train("ppo", "CartPole-v1", model="gpt2")
    with pytest.raises(ValueError, match="ppo needs an environment"):
        rljax.train("ppo", text.tasks.make("reverse", **TASK))
    with pytest.raises(ValueError, match="has no preferences"):
        rljax.train("dpo", "reverse", SIZES, env_arguments=TASK)
    with pytest.raises(ValueError, match="needs a task"):
        rljax.train("grpo", text.Corpus("x.txt"))
    assert not out.exists()


def test_a_reward_model_takes_the_place_of_the_task_s_rewards_after_a_warm_up(tmp_path: Path) -> None:
    arguments = {"pairs": 16}
    small = {**SIZES, "batch_size": 8}
    given: dict[str, Any] = {"env_arguments": arguments, "warm_up": 512, "progress": False}
    rljax.train("reward_model", "randomwalks", small, steps=16, out=tmp_path / "judge", **given)
    config = {**SIZES, "num_prompts": 4, "num_epochs": 1}
    shutil.copytree(tmp_path / "judge" / "sft", tmp_path / "ppo" / "sft")  # the same warm-up, done already
    out, given = tmp_path / "ppo", given | {"reward": tmp_path / "judge", "steps": 8}
    rljax.train("rlhf_ppo", "randomwalks", config, out=out, **given)
    told = json.loads((out / "config.json").read_text())["start"]
    assert (told["kind"], told["reward"]) == ("run", str(tmp_path / "judge"))
    row = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    assert row["reward"] == row["rewards/reward_model"] != row["rewards/optimality"]


def test_a_reward_model_stays_when_the_task_is_spelt_by_another_tokenizer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from rljax.runs import pretrained

    problem = text.tasks.make("countdown", train=8, held_out=2)
    scored = text.rewards.of_tokens(lambda prompt, completion, reference: 0.5, "judge")
    other = text.character_tokenizer("0123456789+-*/(),=> abc")
    loaded = text.Pretrained(None, {}, other, Generation())  # pyright: ignore
    monkeypatch.setattr(pretrained, "load_reward", lambda path: scored)
    monkeypatch.setattr(pretrained, "language_model", lambda *_, **__: loaded)
    monkeypatch.setattr(pretrained, "whole", lambda run: None)
    start = starting_model.Start("run", "somewhere", 0, "judge")
    found = starting_model.started(problem, start, rljax.grpo.Config(), None)
    assert found.tokenizer is other
    assert [(reward.name, reward.weight) for reward in found.rewards] == [("judge", 1.0), ("solved", 0.0)]


def count(prompt: str, completion: str, record: Any) -> float:
    assert record["prompt"] == prompt
    return float(len(completion))


def test_what_was_changed_in_a_problem_is_said_in_the_tokens_of_a_model_or_refused() -> None:
    made = text.tasks.make("addition", digits=1, train=8, held_out=2)
    other = text.character_tokenizer("0123456789+= abc")
    spelt = lambda problem: starting_model.spelt(problem, other, "somewhere")
    host = text.rewards.of_text(count, processes=0)
    found = spelt(made._replace(rewards=(host, made.rewards[0]._replace(weight=0.5)), max_new_tokens=9))
    assert found.tokenizer is other
    assert found.max_new_tokens == 9
    assert found.rewards[0] is host
    assert (found.rewards[1].name, found.rewards[1].weight) == ("exact_match", 0.5)
    assert found.rewards[1].host  # as text, which other tokens may write in several ways
    assert found.learn.tokens.max() < other.vocab_size
    assert changes(found) == ("rewards", "max_new_tokens")
    assert spelt(found) is found
    records = [{**record, "more": 1} for record in made.records]
    assert spelt(made._replace(records=records)).records is records  # as many, of the same prompts
    for name, value in {"learn": made.held_out, "stop_ids": (1, 2)}.items():
        with pytest.raises(
            ValueError, match=f"{name} of the task addition was changed in tokens of .*tokenizer="
        ) as error:
            spelt(made._replace(**{name: value}))
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="reward length of the task addition is of tokens of the character"):
        spelt(made._replace(rewards=(text.rewards.length(),)))


def test_what_was_changed_in_a_task_is_what_is_learnt() -> None:
    made = text.tasks.make("reverse", **TASK)
    half = lambda rows: jax.tree.map(lambda x: x[:9], rows)
    task = task_of(made, "prompts")
    assert read_back(task) == made  # the very same objects
    host = text.rewards.of_text(count, processes=0)
    changed = {"learn": half(task.learn), "rewards": (host,), "stop_ids": (1, 2), "max_new_tokens": 3}
    again = task_of(read_back(task._replace(**changed)), "prompts")
    for name, value in changed.items():
        assert getattr(again, name) is value, name
    assert again.held_out is task.held_out
    shown = task_of(made, "demonstrations")
    assert read_back(shown) == made
    again = task_of(read_back(shown._replace(learn=half(shown.learn))), "demonstrations")
    for one, other in zip(again.learn, half(shown.learn), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="vocab_size = 3: must be the 6 of its tokenizer or model"):
        read_back(task._replace(vocab_size=3))
    assert load.setup(algorithms.find("sft"), made, None, None, {}).own_env is False
    assert load.setup(algorithms.find("sft"), made._replace(max_new_tokens=3), None, None, {}).own_env is True


def test_a_task_is_written_with_the_tokenizer_of_its_model_at_once(tmp_path: Path) -> None:
    """Byte pairs of its own, which so few pairs do not have and nothing would use, are not looked for."""
    tokenizer = text.character_tokenizer("abcdefghij>")
    tokenizer.save(tmp_path / "model")
    pairs = [{"prompt": f"{a}>", "chosen": a, "rejected": a * 3} for a in "abcdefghij"]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    written = starting_model.written(
        algorithms.find("dpo"), "preferences", str(tmp_path / "model"), None, None
    )
    given = {"data": str(tmp_path / "pairs.jsonl")}
    task = load.setup(algorithms.find("dpo"), "preferences", None, None, given, written).env
    assert isinstance(task, Task)
    assert task.vocab_size == tokenizer.vocab_size
    assert task.learn.completion.shape == (9, 2, 4)  # the data's own lengths, of at most 256
    assert task.problem.arguments == {"name": "preferences", **given}
    assert starting_model.spelt(task.problem, tokenizer, "model") is task.problem
    assert starting_model.written(algorithms.find("dpo"), "preferences", "", None, None) is None
    assert starting_model.written(algorithms.find("ppo"), "CartPole-v1", "", None, None) is None
    again = starting_model.named("randomwalks", {"pairs": 16}, tokenizer)  # which has a vocabulary of its own
    assert again.tokenizer.vocab_size == 23


def test_a_changed_task_is_trained_as_it_is(run: Path) -> None:
    host = text.rewards.of_text(count, processes=0)
    task = task_of(text.tasks.make("reverse", **TASK), "prompts")._replace(rewards=(host,), max_new_tokens=3)
    done = rljax.train("grpo", task, GRPO, init=run / "sft", steps=16, progress=False)
    assert "rewards/count" in done.rows[0]
    assert "rewards/exact_match" not in done.rows[0]
    assert 0 < done.rows[0]["length"][0] <= 3


def test_a_network_of_ones_own_is_what_the_warm_up_trains(tmp_path: Path) -> None:
    made = text.tasks.make("reverse", **TASK)
    config = rljax.grpo.Config(hidden_size=24, num_layers=1, num_heads=2)
    own = language_model(made.tokenizer.vocab_size, config, made.length)
    out = tmp_path / "run"
    given: dict[str, Any] = {"network": own, "warm_up": 512, "steps": 16, "out": out, "progress": False}
    done = rljax.train("grpo", "reverse", GRPO, env_arguments=TASK, **given)
    assert done.states.params["embedding"].shape == (1, made.tokenizer.vocab_size, 24)
    assert json.loads((out / "sft" / "config.json").read_text())["own"] == ["network"]
    found = rljax.evaluate(out, network=own)
    np.testing.assert_allclose(found["return"]["per_seed"], done.summary["return"]["per_seed"])


def test_a_task_with_other_rewards_is_no_resume(run: Path, tmp_path: Path) -> None:
    made = text.tasks.make("reverse", **TASK)
    given: dict[str, Any] = {"steps": 16, "init": run / "sft", "progress": False, "out": tmp_path / "run"}
    rljax.train("grpo", made._replace(rewards=(text.rewards.length(),)), GRPO, **given)
    told = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (told["own"], told["task_arguments"]) == (["env"], None)  # which would not make it again
    with pytest.raises(ValueError, match="was trained with env= of your own"):
        rljax.evaluate(tmp_path / "run")
    with pytest.raises(ValueError, match="names and weights of its rewards are not the same"):
        rljax.train(
            "grpo",
            made._replace(rewards=(text.rewards.length()._replace(name="other"),)),
            GRPO,
            resume=True,
            **given,
        )


def test_too_little_memory_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rljax.checks import RunError
    from rljax.runs.program import layout

    monkeypatch.setattr(layout, "free_bytes", lambda: 1000.0)
    with pytest.raises(
        RunError, match=r"grpo on .* needs .* GiB on each device, of which 0\.0 are free: raise num_micro"
    ):
        train(tmp_path / "run")
    assert not (tmp_path / "run" / "sft").exists()


def test_a_model_that_was_trained_otherwise_is_not_taken(run: Path, tmp_path: Path) -> None:
    """Such as by a run whose own program did not fit then."""
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "config.json").unlink()
    says = "sft is another model than this run would begin with: total_steps is 512 there and 1024 here"
    with pytest.raises(ValueError, match=says):
        train(tmp_path / "run", warm_up=1024)


def test_an_encoder_reads_prompts_with_their_end_mark() -> None:
    problem = text.tasks.make("reverse", **TASK)
    sizes = language_model(problem.tokenizer.vocab_size, rljax.sft.Config(**SIZES, architecture="t5"), 16)

    def read(marks: list[int]) -> Any:
        tokenizer = SimpleNamespace(encode=lambda text, add_special_tokens: marks, eos_id=1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(starting_model, "spelt", lambda problem, *_: problem)
            loaded = SimpleNamespace(model=sizes, tokenizer=tokenizer, generation=Generation())
            return starting_model.read_by(problem, loaded, "somewhere")

    same, ended = read([]), read([1])
    np.testing.assert_array_equal(same.learn.tokens, problem.learn.tokens)
    np.testing.assert_array_equal(ended.learn.tokens[:, :-1], problem.learn.tokens)
    assert (ended.learn.tokens[:, -1] == 1).all()
    assert ended.held_out.valid[:, -1].all()


def test_a_chat_models_own_stop_tokens_end_a_completion() -> None:
    problem = text.tasks.make("reverse", **TASK)
    loaded = text.Pretrained(None, {}, problem.tokenizer, Generation(stop_ids=(1, 3)))  # pyright: ignore
    assert problem.stop_ids == (1,)
    assert starting_model.read_by(problem, loaded, "somewhere").stop_ids == (1, 3)


def test_a_problem_of_ones_own_is_passed_again(tmp_path: Path) -> None:
    tokenizer = text.character_tokenizer("ab>")
    records = [{"prompt": f"{a}{b}>", "completion": f"{b}{a}"} for a in "ab" for b in "ab"]
    mine = text.problem("mine", tokenizer, records, text.rewards.exact_match(), held_out=1)
    out = tmp_path / "mine"
    config = {**GRPO, "num_prompts": 2}
    rljax.train("grpo", mine, config, steps=8, warm_up=128, out=out, progress=False)
    told = json.loads((out / "config.json").read_text())
    assert told["own"] == ["env"]
    assert told["task_arguments"] is None
    with pytest.raises(ValueError, match="env= of your own"):
        rljax.evaluate(out)
    assert rljax.evaluate(out, env=mine)["iteration"] == 1
    assert starting_model.Start(**told["start"]).source == "sft"
