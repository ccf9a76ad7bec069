"""Data that is read while it is learnt: which batch an iteration gets, resume, sweeps, and how it fails."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import rljax
from rljax import pretrain, sft, text
from rljax.runs.program.prefetch import Feeder
from rljax.text import data
from rljax.types import Feed, Task
from tests.algorithms.test_text_algorithms import stop_after

CONFIG = {
    "hidden_size": 16,
    "num_layers": 1,
    "num_heads": 2,
    "length": 8,
    "batch_size": 2,
    "chunk": 4,
    "learning_rate": 1e-2,
    "total_steps": 14 * 16,
}
pytestmark = pytest.mark.filterwarnings("ignore:.*entries left out:UserWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of ten pairs and a bad line each, which make about six batches, and one that is held out."""
    where = tmp_path_factory.mktemp("data")
    for name, start in (("a", 10), ("b", 20), ("held", 90)):
        pairs = [{"prompt": f"{n}", "completion": f"{n}"[::-1]} for n in range(start, start + 10)]
        lines = [json.dumps(pair) for pair in pairs]
        (where / f"{name}.jsonl").write_text("\n".join([*lines[:4], "{not json", *lines[4:]]) + "\n")
    return where


def corpus(folder: Path, **fields: Any) -> text.Corpus:
    files = [folder / "a.jsonl", folder / "b.jsonl"]
    return text.Corpus(files, folder / "held.jsonl", stream=True, **{"window": 6, "block": 3} | fields)


def train(name: str, folder: Path, **options: Any) -> Any:
    fields = {key: options.pop(key) for key in ("block",) if key in options}
    return rljax.train(name, corpus(folder, **fields), CONFIG, progress=False, **options)


def test_iterations_get_the_batches_of_the_stream_one_after_the_other(folder: Path) -> None:
    task = sft.read(corpus(folder), sft.Config(**CONFIG))
    assert isinstance(task.learn, Feed)
    tokenizer = task.tokenizer
    source = data.stream([folder / "a.jsonl", folder / "b.jsonl"], tokenizer, 8, 2, block=6)
    position, feeder = source.init(), Feeder(task.learn, jax.device_put, total=20)
    begins = {}
    for iteration in range(20):
        begins[iteration] = json.loads(json.dumps(feeder.begins(iteration)))
        position, expected = source.next(position)
        found = data.block_batch(feeder.at(iteration), iteration)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)
        assert feeder.end(iteration) == 3 * (iteration // 3 + 1)
    assert position.epoch > 1
    assert feeder.pending is None  # nothing is read that is not learnt
    feeder.close()
    again = Feeder(task.learn, jax.device_put, 14, 7, begins[7])
    assert again.position["block"] > 0  # not at the start of the files
    np.testing.assert_array_equal(again.at(7).rows.tokens[1], data.block_batch(again.at(7), 7).tokens)
    again.close()
    whole = Feeder(task.learn, jax.device_put, 14, 6, begins[6])
    np.testing.assert_array_equal(whole.at(7).rows.tokens, again.at(7).rows.tokens)
    whole.close()


@pytest.mark.parametrize("name", ["sft", "pretrain"])
def test_a_run_stopped_within_a_block_goes_on_bit_for_bit(name: str, folder: Path, tmp_path: Path) -> None:
    whole = train(name, folder, seeds=2)
    part = tmp_path / "part"
    for iterations in (4, 9):  # within the second block, then at the end of the third
        with pytest.raises(KeyboardInterrupt):
            stop_after(iterations, lambda: train(name, folder, seeds=2, out=part, resume=part.exists()))
    manifest = json.loads((part / "checkpoints" / "000000004" / "manifest.json").read_text())
    assert set(manifest["metadata"]["feed"]) == set(data.Position._fields)
    again = train(name, folder, seeds=2, out=part, resume=True)
    assert again.summary["state_sha256"] == whole.summary["state_sha256"]
    assert again.summary["loss"] == whole.summary["loss"]
    assert rljax.evaluate(part)["loss"] == whole.summary["loss"]
    assert rljax.language_model(part, 1).params["embedding"].shape[1] == 16


def test_blocks_of_any_length_learn_the_same(folder: Path) -> None:
    found = [train("sft", folder, block=block).states.params for block in (1, 5)]
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_a_sweep_reads_the_stream_for_each_program(folder: Path, tmp_path: Path) -> None:
    grid = {"learning_rate": [1e-3, 1e-2], "batch_size": [2, 4]}
    config = CONFIG | {"total_steps": 4 * 32}
    found = rljax.sweep("sft", corpus(folder), grid, config, out=tmp_path / "sweep", progress=False)
    assert found.compilations == 2
    losses = {(row["batch_size"], row["learning_rate"]): row["loss"] for row in found.members}
    alone = rljax.train("sft", corpus(folder), config | {"batch_size": 4}, progress=False)
    np.testing.assert_allclose(losses[4, 1e-2], alone.summary["loss"]["mean"], rtol=1e-4)
    assert len(set(losses.values())) == 4


def test_a_task_of_ones_own_holds_a_stream(folder: Path) -> None:
    read = sft.read(corpus(folder), sft.Config(**CONFIG))
    source = data.stream([folder / "a.jsonl", folder / "b.jsonl"], read.tokenizer, 8, 2, block=6)
    task = Task("own", read.vocab_size, data.blocks(source, 3), read.held_out)
    result = rljax.train("sft", task, CONFIG, progress=False)
    np.testing.assert_allclose(
        result.summary["loss"]["mean"], train("sft", folder).summary["loss"]["mean"], rtol=1e-6
    )


def test_other_files_or_another_order_are_refused(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = CONFIG | {"total_steps": 16}
    run = lambda **fields: rljax.train(
        "sft", corpus(tmp_path, **fields), config, out=tmp_path / "run", resume=bool(fields), progress=False
    )
    run()
    with pytest.raises(ValueError, match="the text to learn is not the same"):
        run(order=1)
    with pytest.raises(ValueError, match="the text to learn is not the same"):
        run(block=4)
    (tmp_path / "b.jsonl").write_bytes((tmp_path / "b.jsonl").read_bytes().replace(b"27", b"28"))
    with pytest.raises(ValueError, match="the text to learn is not the same"):
        rljax.evaluate(tmp_path / "run")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"held_out": ()}, "needs files to measure the loss on"),
        ({"data": "a.txt"}, "needs documents = 'line' or 'paragraph'"),
        ({"block": 0}, "block = 0"),
        ({"window": 0}, "window = 0"),
        ({"order": -1}, "order = -1"),
        ({"data": "nowhere.jsonl"}, "nowhere.jsonl: no such file"),
        ({"data": "bad.jsonl"}, "no usable text in"),
    ],
)
def test_what_is_wrong_is_one_line(fields: dict[str, Any], says: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("{}\n" * 9)
    files = {"data": folder / "a.jsonl", "held_out": folder / "held.jsonl"}
    fields = {k: tmp_path / v if isinstance(v, str) else v for k, v in fields.items()}
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        sft.read(text.Corpus(**{"stream": True} | files | fields), sft.Config(**CONFIG))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_batches_of_a_stream_are_of_the_configs_sizes(folder: Path) -> None:
    task = sft.read(corpus(folder), sft.Config(**CONFIG))
    with pytest.raises(ValueError, match="batch_size = 4: must be 2, as the batches of the stream"):
        sft.make(task, sft.Config(**CONFIG).replace(batch_size=4))
    task = pretrain.read(corpus(folder), pretrain.Config(**CONFIG))
    with pytest.raises(ValueError, match="length = 9: must be 8, as the batches of the stream"):
        pretrain.make(task, pretrain.Config(**CONFIG).replace(length=9))
    assert task.held_out.ndim == 1


def test_plain_text_is_streamed_by_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one two\n\nthree\n" * 20)
    (tmp_path / "b.txt").write_text("two three\n")
    files = {"data": tmp_path / "a.txt", "held_out": tmp_path / "b.txt"}
    task = pretrain.read(
        text.Corpus(**files, documents="line", stream=True), pretrain.Config(**CONFIG | {"length": 4})
    )
    assert isinstance(task.learn, Feed)
    _, block = task.learn.next(task.learn.init())
    said = task.tokenizer.decode(block.rows.tokens[block.rows.segments > 0].tolist())
    assert set(said.split("<eos>")[1:-1]) == {"one two", "three"}  # sequential: rows go on where others end
