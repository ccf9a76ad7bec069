"""Every script of experiments/ about language models is short, says what it gave, and works on tiny data."""

import ast
import gzip
import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import rljax
from rljax import algorithms, text
from rljax.runs import presets

FOLDER = Path(__file__).parent.parent / "experiments"
FIXTURE = Path(__file__).parent / "models" / "fixtures" / "llama"
NAMES = (*(f"{name}_*" for name in algorithms.TEXT), "verifiable_rewards")
SCRIPTS = sorted(path for name in NAMES for path in FOLDER.glob(f"{name}.py"))
SIZES = {"length": 16, "batch_size": 4, "hidden_size": 16, "num_layers": 1, "num_heads": 2}
WORDS = "the cat sat on the mat and the dog ran to the man with a hat. "


@pytest.fixture(params=SCRIPTS, ids=lambda path: path.stem)
def script(request: pytest.FixtureRequest) -> Path:
    return request.param


def load(script: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"experiments_{script.stem}", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_algorithm_is_in_one() -> None:
    sources = "\n".join(path.read_text() for path in SCRIPTS)
    for name in algorithms.TEXT:
        assert re.search(rf'rljax\.(train|sweep)\(\s*"{name}"|ALGORITHMS = .*"{name}"', sources), name


def test_it_is_short_and_uses_what_a_user_can_import(script: Path) -> None:
    source = script.read_text()
    assert len(source.splitlines()) <= 80
    allowed = {"rljax", "jax", "sacrebleu", *sys.stdlib_module_names}
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert {name.partition(".")[0] for name in names} <= allowed


def test_its_docstring_names_command_hardware_time_and_result(script: Path) -> None:
    told = ast.get_docstring(ast.parse(script.read_text())) or ""
    data = "DATA" if "data: str" in script.read_text() else "[folder]"
    assert f"python experiments/{script.name} {data}" in told
    assert re.search(r"(2 cores|one core) of an? |one NVIDIA ", told)
    assert re.search(r"\d (minutes?|s)\b", told)
    assert re.search(r"\d\.\d+ nats|chrF \d|\b[01]\.\d\d", told)
    assert "TODO" not in told


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small checkpoint with a tokenizer of characters."""
    found = tmp_path / "model"
    shutil.copytree(FIXTURE, found)
    text.character_tokenizer("abcdefghijklmnopqrstuvwxyz .\n").save(found)
    return found


def run(script: Path, monkeypatch: pytest.MonkeyPatch, *arguments: Any, **fields: Any) -> Any:
    """What `main` prints with a small Config."""
    module = load(script)
    steps = 6 * SIZES["batch_size"] * SIZES["length"]
    small = module.CONFIG.replace(**{**SIZES, "total_steps": steps, "learning_rate": 1e-2} | fields)
    monkeypatch.setattr(module, "CONFIG", small)
    module.main(*map(str, arguments))


def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


@pytest.mark.parametrize("name", ["pretrain_shakespeare", "pretrain_shakespeare_gpu"])
def test_from_a_text(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "input.txt"
    data.write_text(WORDS * 20)
    run(FOLDER / f"{name}.py", monkeypatch, data, tmp_path / "run", dtype="float32")
    found = printed(capsys)
    assert 0 < found["mean"] < 4
    assert found["episodes"] == len(WORDS * 20) // 10 // SIZES["length"]


def test_from_a_model(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "input.txt"
    data.write_text(WORDS * 20)
    run(FOLDER / "pretrain_stories.py", monkeypatch, data, model, tmp_path / "run")
    found = printed(capsys)
    assert found["after"]["mean"] < found["before"]


def test_dialogues(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "valid.json.gz"
    turns = [{"message": message} for message in ("hi there.", "hello cat.", "a dog ran.", "ah.")]
    with gzip.open(data, "wt") as file:
        json.dump({f"t{number}": {"content": turns} for number in range(12)}, file)
    run(FOLDER / "sft_dialogues.py", monkeypatch, data, model, tmp_path / "run", rank=2)
    found = printed(capsys)
    assert found["compilations"] == 1
    assert found["loss"]["0.01"] < found["loss"]["1e-09"]


def test_translation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = load(FOLDER / "sft_translation.py")
    monkeypatch.setattr(module, "LENGTHS", (8, 8))
    monkeypatch.setattr(module, "VOCABULARY", 270)
    monkeypatch.setattr(module, "HELD_OUT", 5)
    monkeypatch.setattr(module, "SEEDS", 2)
    small = {**SIZES, "total_steps": 10 * 64, "learning_rate": 1e-2}
    monkeypatch.setattr(module, "CONFIG", module.CONFIG.replace(**small))
    data = tmp_path / "deu.txt.gz"
    pairs = [f"{a} {b}.\t{b} {a}." for a in ("I", "we", "Tom", "he") for b in ("go", "ran", "sat", "ate")]
    with gzip.open(data, "wt") as file:
        file.write("1\t2\n" + "\n".join(pairs) + "\n")
    task, english, german = module.read(str(data))
    assert len(english) == len(german) == 5
    learnt = [task.tokenizer.decode(row[valid].tolist()) for row, valid in zip(*task.learn[:2], strict=True)]
    assert not set(english) & set(learnt)
    module.main(str(data), str(tmp_path / "run"))
    assert [set(each) for each in printed(capsys)] == [{"chrf", "bleu"}] * 2


RL: dict[str, Any] = {"hidden_size": 16, "num_layers": 1, "num_prompts": 4}


def test_there_is_one_for_every_preset() -> None:
    module = load(FOLDER / "verifiable_rewards.py")
    found = {(name, task) for name in ("sft", *module.ALGORITHMS) for task in module.TASKS}
    assert found == {pair for pair in presets.PRESETS if pair[0] in algorithms.TEXT}


def test_verifiable_rewards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = load(FOLDER / "verifiable_rewards.py")
    monkeypatch.setattr(module, "CONFIG", RL | {"total_steps": 4 * 4 * 2.0})
    monkeypatch.setattr(module, "SEEDS", 2)
    monkeypatch.setattr(module, "ALGORITHMS", ("grpo", "text_reinforce"))
    small = {"total_steps": 1000.0, "batch_size": 8, "hidden_size": 16, "num_layers": 1}
    monkeypatch.setitem(presets.PRESETS, ("sft", "addition"), small)
    module.main(str(tmp_path), "addition")
    module.main(str(tmp_path), "addition", "rloo")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [row["algorithm"] for row in rows] == ["sft", "grpo", "text_reinforce", "sft", "rloo"]
    for row in rows:
        assert 0 <= row["mean"] <= 1
        assert row["algorithm"] == "sft" or (len(row["per_seed"]), row["episodes"]) == (2, 256)


def test_all_of_rlhf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = load(FOLDER / "rlhf_ppo_randomwalks.py")
    small = {"hidden_size": 16, "num_layers": 1, "batch_size": 4, "num_prompts": 8}
    for name in ("PRETRAIN", "SFT", "REWARD_MODEL", "PPO", "DPO", "KTO"):
        config = getattr(module, name)
        fields = {field: value for field, value in small.items() if hasattr(config, field)}
        steps = 2 * config.replace(**fields).steps_per_iteration
        monkeypatch.setattr(module, name, config.replace(**fields, total_steps=float(steps)))
    for name in ("SEEDS", "JUDGES"):
        monkeypatch.setattr(module, name, 2)
    module.main(str(tmp_path / "runs"))
    found = printed(capsys)
    assert set(found) == {"sft", "ppo", "ppo-true", "dpo", "kto"}
    for each in found.values():
        assert all(0 <= value <= 1 for kind in ("greedy", "sampled") for value in each[kind]["per_seed"])


def few(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """The Configs `names` of a script learn little, with small models."""
    small = {"hidden_size": 16, "num_layers": 1, "batch_size": 4, "num_prompts": 4, "group_size": 2}
    for name in names:
        config = getattr(module, name)
        fields = {field: value for field, value in small.items() if hasattr(config, field)}
        config = config.replace(**fields)
        monkeypatch.setattr(module, name, config.replace(total_steps=2.0 * config.steps_per_iteration))
    for name, value in {"SEEDS": 2, "WARM_UP": 500.0, "VOCABULARY": 265}.items():
        if hasattr(module, name):
            monkeypatch.setattr(module, name, value)


def test_countdown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = load(FOLDER / "grpo_countdown.py")
    few(module, monkeypatch, "CONFIG")
    module.main(str(tmp_path / "run"))
    found = printed(capsys)
    assert 0 <= found["before"] <= 1
    assert (len(found["after"]["per_seed"]), found["after"]["episodes"]) == (2, 256)


def test_gsm8k(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = load(FOLDER / "grpo_gsm8k.py")
    few(module, monkeypatch, "CONFIG")
    monkeypatch.setattr(module, "CONFIG", module.CONFIG.replace(max_new_tokens=16))
    for name, shift in (("train", 0), ("test", 7)):
        numbers = range(shift, shift + 6)
        records = [{"question": f"a man has {i} hats.", "answer": f"so #### {i}"} for i in numbers]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    module.main(str(tmp_path), str(tmp_path / "run"))
    found = printed(capsys)
    assert set(found) == {"before", "after"}
    assert all(0 <= value <= 1 for value in found.values())


def test_gsm8k_of_a_model_is_low_rank(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module, asked = load(FOLDER / "grpo_gsm8k.py"), []

    def train(*given: Any, **more: Any) -> Any:
        asked.append((given[2].train, more["model"], more["warm_up"]))
        raise KeyboardInterrupt

    monkeypatch.setattr(rljax, "train", train)
    for model in ("", "gpt2"):
        with pytest.raises(KeyboardInterrupt):
            module.main(str(tmp_path), str(tmp_path / "run"), model)
    assert asked == [("all", "", module.WARM_UP), ("lora", "gpt2", None)]


@pytest.fixture
def dialogues(tmp_path: Path) -> Path:
    """Judgements of ten prompts in HH-RLHF's format, two of each."""
    data = tmp_path / "hh.jsonl.gz"
    said = lambda number, answer: f"\n\nHuman: is {number} good?\n\nAssistant: {answer}"
    with gzip.open(data, "wt") as file:
        for number in range(20):
            pair = {
                "chosen": said(number // 2, f"yes {number}"),
                "rejected": said(number // 2, f"no {number}"),
            }
            file.write(json.dumps(pair) + "\n")
    return data


def test_reward_model_in_folds(
    dialogues: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = load(FOLDER / "reward_model_hh.py")
    few(module, monkeypatch, "CONFIG")
    module.main(str(dialogues), str(tmp_path / "run"))
    found = printed(capsys)
    assert found["pairs"] == 20
    assert found["ci95"][0] <= found["accuracy"] <= found["ci95"][1]
    assert len(list((tmp_path / "run").iterdir())) == module.FOLDS


def test_dpo(
    dialogues: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = load(FOLDER / "dpo_hh.py")
    few(module, monkeypatch, "CONFIG")
    module.main(str(dialogues), str(tmp_path / "run"))
    found = printed(capsys)
    assert len(found["per_seed"]) == 2
    assert found["episodes"] == 2


def test_translation_for_chrf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = load(FOLDER / "rlhf_ppo_translation.py")
    few(module, monkeypatch, "SFT", "PPO")
    data = tmp_path / "deu.txt"
    pairs = [f"{a} {b}.\t{b} {a}." for a in ("I", "we", "Tom", "he") for b in "abcdefghijklmnopqrstuvwxyz"]
    data.write_text("\n".join(pairs) + "\n")
    module.main(str(data), str(tmp_path / "run"))
    found = printed(capsys)
    assert found["sentences"] == 2
    assert len(found["ppo"]) == 2
    assert found["ci95"][0] <= found["gain"] <= found["ci95"][1]
    assert found["gain"] == pytest.approx(sum(found["ppo"]) / 2 - found["sft"])
