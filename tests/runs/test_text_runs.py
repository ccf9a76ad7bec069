"""Run folders of what learns text: what they hold, and that they bring it back without Python objects."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rljax
from rljax import text
from rljax.runs.folder import checkpoint
from rljax.runs.recorder import Result
from rljax.types import Task
from tests.runs.tiny import rows, strict

SMALL = {
    "hidden_size": 16,
    "num_layers": 1,
    "num_heads": 2,
    "length": 8,
    "batch_size": 2,
    "chunk": 4,
    "total_steps": 10 * 16,
}
SONG = "the quick brown fox jumps over the lazy dog. " * 10


@pytest.fixture(scope="module")
def song(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "song.txt"
    path.write_text(SONG)
    return path


@pytest.fixture(scope="module")
def whole(song: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    out = tmp_path_factory.mktemp("runs") / "run"
    return train(song, out, checkpoint_every=4)


def train(song: Path, out: Path, config: dict[str, Any] | None = None, **options: Any) -> Result:
    corpus = text.Corpus(song)
    config = SMALL | (config or {})
    return rljax.train("pretrain", corpus, config, seeds=2, out=out, progress=False, **options)


def test_config_json_says_where_the_text_is_from(whole: Result, song: Path) -> None:
    assert whole.folder is not None
    told = strict((whole.folder / "config.json").read_text())
    assert told["task"] == "song"
    assert "env" not in told
    assert "env_arguments" not in told
    assert told["own"] == []
    assert told["vocab_size"] == len(set(SONG)) + 2
    assert told["corpus"] == text.Corpus(song).recorded()
    ids = text.character_tokenizer(SONG).encode(SONG)
    learn, held_out = np.array(ids[:-45], np.int32), np.array(ids[-45:], np.int32)
    assert told["frozen"] == {
        "learn": checkpoint.sha256_of(learn),
        "held_out": checkpoint.sha256_of(held_out),
    }
    assert text.load_tokenizer(whole.folder / "tokenizer").encode("fox") == text.character_tokenizer(
        SONG
    ).encode("fox")


def test_summary_json_has_the_task_and_counts_rows(whole: Result) -> None:
    assert whole.folder is not None
    told = strict((whole.folder / "summary.json").read_text())
    assert (told["algorithm"], told["task"], told["headline"]) == ("pretrain", "song", "loss")
    assert "env" not in told
    assert told["loss"]["episodes"] == 45 // 8
    assert (whole.folder / "curve.png").is_file()


def test_evaluate_and_resume_need_no_objects(whole: Result, song: Path, tmp_path: Path) -> None:
    assert whole.folder is not None
    found = rljax.evaluate(whole.folder)
    assert found["loss"] == whole.summary["loss"]
    from tests.algorithms.test_text_algorithms import stop_after

    part = tmp_path / "part"
    with pytest.raises(KeyboardInterrupt):
        stop_after(3, lambda: train(song, part))
    again = train(song, part, resume=True)
    assert again.summary["state_sha256"] == whole.summary["state_sha256"]
    assert rows(part)[-1]["loss"] == rows(whole.folder)[-1]["loss"]


def test_report_and_render_know_a_task(whole: Result, capsys: pytest.CaptureFixture[str]) -> None:
    from rljax.runs.report import table

    assert whole.folder is not None
    (row,) = table(whole.folder)
    assert (row["env"], row["headline"]) == ("song", "loss")
    with pytest.raises(ValueError, match="learnt text and has no episode to draw"):
        rljax.render(whole.folder)


def test_other_data_is_refused_in_one_line(song: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "song.txt", tmp_path / "run"
    path.write_text(SONG)
    train(path, out, {"total_steps": 16})
    path.write_text(SONG[:-45] + SONG[:45])
    rljax.evaluate(out)  # the same text
    path.write_text("The" + SONG[3:])
    with pytest.raises(ValueError, match="vocab_size is 30 there and 31 here"):
        train(path, out, {"total_steps": 16}, resume=True)
    path.write_text("eht" + SONG[3:])
    with pytest.raises(ValueError, match=r"--resume cannot .*: the text to learn is not the same as there"):
        train(path, out, {"total_steps": 16}, resume=True)
    with pytest.raises(ValueError, match=r"other data: the text to learn is not the same"):
        rljax.evaluate(out)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"song\.txt: no such file"):
        rljax.evaluate(out)


def test_a_base_that_changed_is_refused(tmp_path: Path) -> None:
    ids = jnp.asarray(text.character_tokenizer("ab").encode("ab" * 50))
    model = rljax.pretrain.language_model(4, rljax.pretrain.Config(**SMALL), 8)
    base = model.init(jax.random.key(0))
    task = Task("own", 4, ids[:80], ids[80:], base)
    rljax.train("pretrain", task, SMALL, out=tmp_path / "run", progress=False)
    other = task._replace(params=model.init(jax.random.key(1)))
    with pytest.raises(ValueError, match="the parameters to start from are not the same"):
        rljax.evaluate(tmp_path / "run", env=other)


def test_a_task_of_ones_own_keeps_its_tokenizer(tmp_path: Path) -> None:
    tokenizer = text.character_tokenizer("ab")
    ids = jnp.asarray(tokenizer.encode("ab" * 50))
    task = Task("own", tokenizer.vocab_size, ids[:80], ids[80:], tokenizer=tokenizer)
    out = tmp_path / "run"
    rljax.train("pretrain", task, SMALL, out=out, progress=False)
    told = json.loads((out / "config.json").read_text())
    assert (told["task"], told["corpus"], told["own"]) == ("own", None, ["env"])
    assert text.load_tokenizer(out / "tokenizer").encode("ba") == [3, 2]
    with pytest.raises(ValueError, match="trained with env= of your own"):
        rljax.evaluate(out)
    assert rljax.evaluate(out, env=task)["loss"]["episodes"] == 20 // 8


def test_a_sweep_says_task(song: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    rljax.sweep(
        "pretrain", text.Corpus(song), {"learning_rate": [1e-3, 1e-2]}, SMALL, out=out, progress=False
    )
    told = strict((out / "sweep.json").read_text())
    assert told["task"] == "song"
    assert "env" not in told
    assert len(rljax.report(out)) == 1
    assert text.load_tokenizer(out / "part-000" / "tokenizer").vocab_size == 30
    assert rljax.evaluate(out / "part-000", member=1)["loss"]["per_seed"] == [told["members"][1]["loss"]]
