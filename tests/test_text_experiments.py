"""Every script of experiments/ about language models is short, says what it gave, asks for runs that would
start, and makes of their numbers what it prints. The slow tests, and one that is not, run them on tiny data.
"""

import ast
import gzip
import importlib.util
import inspect
import json
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

import rljax
from rljax import algorithms, text
from rljax.runs import load as runs
from rljax.runs import presets, starting_model
from rljax.types import Task

FOLDER = Path(__file__).parent.parent / "experiments"
FIXTURE = Path(__file__).parent / "models" / "fixtures" / "llama"
NAMES = (*(f"{name}_*" for name in algorithms.NAMES if algorithms.find(name).text), "verifiable_rewards")
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
    for name in filter(lambda name: algorithms.find(name).text, algorithms.NAMES):
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


class Call(NamedTuple):
    """What a script asks for."""

    function: str
    arguments: dict[str, Any]


def config_that_starts(arguments: dict[str, Any]) -> Any:
    """The Config of a run that a script asks for, after the checks that come before anything is compiled."""
    algorithm = algorithms.find(arguments["algorithm"])
    given = [algorithm, *(arguments.get(name) for name in ("env", "config", "steps"))]
    setup = runs.setup(*given, arguments.get("env_arguments", {}))
    assert isinstance(setup.env, Task)
    task, config = setup.env, setup.config
    if task.problem is not None and starting_model.wants_warm_up(setup.algorithm, task.problem):
        blank = starting_model.blank(task.problem, config)
        task, config = starting_model.world(blank, setup.algorithm, config)
    setup.algorithm.module.make(task, config)
    return setup.config


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """What trains and judges keeps what it is asked, and answers at once: the n-th call with n tenths."""
    calls: list[Call] = []

    def told(arguments: dict[str, Any]) -> dict[str, Any]:
        value = len(calls) / 10
        seeds = [value] * arguments.get("seeds", 1)
        return {"mean": value, "per_seed": seeds, "episodes": arguments.get("evaluation_episodes", 8)}

    def train(arguments: dict[str, Any]) -> Any:
        config_that_starts(arguments)
        return SimpleNamespace(summary=dict.fromkeys(("loss", "return", "accuracy"), told(arguments)))

    def sweep(arguments: dict[str, Any]) -> Any:
        config_that_starts(arguments)
        ((field, values),) = arguments["grid"].items()
        members = [
            {field: value, "loss": value + seed} for value in values for seed in range(arguments["seeds"])
        ]
        return SimpleNamespace(compilations=1, members=members)

    def judge(arguments: dict[str, Any]) -> Any:
        return {"return": told(arguments)}

    for answer in (train, sweep, judge):
        name = answer.__name__
        signature = inspect.signature(getattr(rljax, name))

        def called(*given: Any, answer: Any = answer, signature: Any = signature, **more: Any) -> Any:
            bound = signature.bind(*given, **more).arguments
            bound |= bound.pop("options", {})
            calls.append(Call(answer.__name__, bound))
            return answer(bound)

        monkeypatch.setattr(rljax, name, called)
    return calls


def calls_of(asked: list[Call], *names: str) -> list[tuple[Any, ...]]:
    """Each call, and its arguments of these names."""
    return [(call.function, *(call.arguments.get(name) for name in names)) for call in asked]


@pytest.mark.parametrize(
    "name", ["pretrain_shakespeare", pytest.param("pretrain_shakespeare_gpu", marks=pytest.mark.slow)]
)
def test_from_a_text(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "input.txt"
    data.write_text(WORDS * 20)
    run(FOLDER / f"{name}.py", monkeypatch, data, tmp_path / "run", dtype="float32")
    found = printed(capsys)
    assert 0 < found["mean"] < 4
    assert found["episodes"] == len(WORDS * 20) // 10 // SIZES["length"]


def test_from_a_text_on_a_gpu(tmp_path: Path, asked: list[Call], capsys: pytest.CaptureFixture[str]) -> None:
    module, data = load(FOLDER / "pretrain_shakespeare_gpu.py"), tmp_path / "input.txt"
    data.write_text(WORDS * 200)
    module.main(str(data), str(tmp_path / "run"))
    assert calls_of(asked, "algorithm", "out") == [("train", "pretrain", str(tmp_path / "run"))]
    assert printed(capsys)["mean"] == 0.1


def test_what_is_asked_of_a_model(
    tmp_path: Path, model: Path, asked: list[Call], capsys: pytest.CaptureFixture[str]
) -> None:
    module, data = load(FOLDER / "pretrain_stories.py"), tmp_path / "input.txt"
    data.write_text(WORDS * 20)
    module.CONFIG = module.CONFIG.replace(length=24, batch_size=4)
    module.main(str(data), str(model), str(tmp_path / "run"))
    rates = [call.arguments["config"].learning_rate for call in asked]
    assert rates == [1e-12, module.CONFIG.learning_rate]
    assert calls_of(asked, "seeds", "out") == [("train", None, None), ("train", 2, str(tmp_path / "run"))]
    found = printed(capsys)
    assert (found["before"], found["after"]["mean"]) == (0.1, 0.2)


@pytest.mark.slow
def test_from_a_model(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "input.txt"
    data.write_text(WORDS * 20)
    run(FOLDER / "pretrain_stories.py", monkeypatch, data, model, tmp_path / "run")
    found = printed(capsys)
    assert found["after"]["mean"] < found["before"]


@pytest.fixture
def turns(tmp_path: Path) -> Path:
    """Twelve dialogues of four turns in Topical-Chat's format."""
    data = tmp_path / "valid.json.gz"
    messages = [{"message": message} for message in ("hi there.", "hello cat.", "a dog ran.", "ah.")]
    with gzip.open(data, "wt") as file:
        json.dump({f"t{number}": {"content": messages} for number in range(12)}, file)
    return data


def test_what_is_asked_of_dialogues(
    tmp_path: Path, turns: Path, model: Path, asked: list[Call], capsys: pytest.CaptureFixture[str]
) -> None:
    module = load(FOLDER / "sft_dialogues.py")
    module.CONFIG = module.CONFIG.replace(length=24, batch_size=4)
    module.write(str(turns), tmp_path / "pairs.jsonl")
    lines = (tmp_path / "pairs.jsonl").read_text().splitlines()
    assert len(lines) == 12 * 3
    assert json.loads(lines[1]) == {"prompt": "hello cat.\n", "completion": "a dog ran."}
    module.main(str(turns), str(model), str(tmp_path / "run"))
    assert calls_of(asked, "algorithm", "seeds") == [("sweep", "sft", module.SEEDS)]
    assert asked[0].arguments["grid"] == {"learning_rate": module.RATES}
    found = printed(capsys)
    assert found["compilations"] == 1  # losses are rate + seed here
    assert found["loss"] == {f"{rate:g}": pytest.approx(rate + 0.5, abs=1e-4) for rate in module.RATES}


@pytest.mark.slow
def test_dialogues(
    tmp_path: Path,
    turns: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(FOLDER / "sft_dialogues.py", monkeypatch, turns, model, tmp_path / "run", rank=2)
    found = printed(capsys)
    assert found["compilations"] == 1
    assert found["loss"]["0.01"] < found["loss"]["1e-09"]


@pytest.fixture
def tatoeba(tmp_path: Path) -> Path:
    """Sixteen sentences and their translations."""
    data = tmp_path / "deu.txt.gz"
    pairs = [f"{a} {b}.\t{b} {a}." for a in ("I", "we", "Tom", "he") for b in ("go", "ran", "sat", "ate")]
    with gzip.open(data, "wt") as file:
        file.write("1\t2\n" + "\n".join(pairs) + "\n")
    return data


@pytest.fixture
def translating(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, of small numbers."""
    module = load(FOLDER / "sft_translation.py")
    monkeypatch.setattr(module, "LENGTHS", (8, 8))
    monkeypatch.setattr(module, "VOCABULARY", 270)
    monkeypatch.setattr(module, "HELD_OUT", 5)
    monkeypatch.setattr(module, "SEEDS", 2)
    small = {**SIZES, "total_steps": 10 * 64, "learning_rate": 1e-2}
    monkeypatch.setattr(module, "CONFIG", module.CONFIG.replace(**small))
    return module


def test_what_is_asked_of_translation(
    tatoeba: Path,
    translating: ModuleType,
    asked: list[Call],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    task, english, german = translating.read(str(tatoeba))
    assert len(english) == len(german) == 5
    assert all(
        len(one.split()) == len(other.split()) == 2 for one, other in zip(english, german, strict=True)
    )
    learnt = [task.tokenizer.decode(row[valid].tolist()) for row, valid in zip(*task.learn[:2], strict=True)]
    assert not set(english) & set(learnt)

    def translated(model: Any, params: Any, key: Any, prompts: Any, settings: Any, *_: Any, **__: Any) -> Any:
        """The first member gives the references, the second what it was asked to translate."""
        assert settings.temperature == 0
        encode = lambda sentence: task.tokenizer.encode(sentence, add_special_tokens=True)
        assert prompts == [encode(sentence) for sentence in english]
        return [SimpleNamespace(tokens=np.array(encode(each))) for each in (german, english)[params]]

    generation = SimpleNamespace(stop_ids=())
    monkeypatch.setattr(rljax, "language_model", lambda out, n: (None, n, task.tokenizer, generation))
    monkeypatch.setattr(text, "decode_many", translated)
    translating.main(str(tatoeba), "run")
    assert calls_of(asked, "algorithm", "seeds", "out") == [("train", "sft", 2, "run")]
    right, wrong = printed(capsys)
    assert right == {"chrf": 100.0, "bleu": 0.0}  # which counts four words in a row, and none has as many
    assert wrong["chrf"] < 90


@pytest.mark.slow
def test_translation(
    tatoeba: Path, translating: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    translating.main(str(tatoeba), str(tmp_path / "run"))
    assert [set(each) for each in printed(capsys)] == [{"chrf", "bleu"}] * 2


RL: dict[str, Any] = {"hidden_size": 16, "num_layers": 1, "num_prompts": 4}


def test_there_is_one_for_every_preset() -> None:
    module = load(FOLDER / "verifiable_rewards.py")
    found = {(name, task) for name in ("sft", *module.ALGORITHMS) for task in module.TASKS}
    assert found == {pair for pair in presets.PRESETS if algorithms.find(pair[0]).text}


def test_what_is_asked_of_verifiable_rewards(
    tmp_path: Path, asked: list[Call], capsys: pytest.CaptureFixture[str]
) -> None:
    module, start = load(FOLDER / "verifiable_rewards.py"), tmp_path / "sft-addition"
    module.main(str(tmp_path), "addition")
    start.mkdir()
    module.main(str(tmp_path), "addition", "rloo")
    names = ("algorithm", "init", "seeds")
    expected = [("train", "sft", None, None), ("judge", None, None, None)]
    expected += [("train", name, start, module.SEEDS) for name in module.ALGORITHMS]
    expected += [("judge", None, None, None), ("train", "rloo", start, module.SEEDS)]
    assert calls_of(asked, *names) == expected
    assert all(call.arguments["model"] == start for call in asked if call.function == "judge")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["algorithm"] for row in rows] == ["sft", *module.ALGORITHMS, "sft", "rloo"]
    assert [row["mean"] for row in rows] == [n / 10 for n in range(2, 9)]


@pytest.mark.slow
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


def test_what_is_asked_of_all_of_rlhf(
    tmp_path: Path,
    asked: list[Call],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module, out = load(FOLDER / "rlhf_ppo_randomwalks.py"), tmp_path / "runs"
    monkeypatch.setattr(module, "PAIRS", 70)
    module.main(str(out))
    sft = out / "sft"
    assert calls_of(asked[:7], "algorithm", "seeds", "init", "reward", "out") == [
        ("train", "pretrain", None, None, None, out / "pretrain"),
        ("train", "sft", None, out / "pretrain", None, sft),
        ("train", "reward_model", module.JUDGES, sft, None, out / "reward"),
        ("train", "rlhf_ppo", module.SEEDS, sft, out / "reward", out / "ppo"),
        ("train", "rlhf_ppo", module.SEEDS, sft, None, out / "ppo-true"),
        ("train", "dpo", module.SEEDS, sft, None, out / "dpo"),
        ("train", "kto", module.SEEDS, sft, None, out / "kto"),
    ]
    assert all(call.function == "judge" for call in asked[7:])
    found = printed(capsys)
    assert set(found) == {"sft", "ppo", "ppo-true", "dpo", "kto"}
    assert found["sft"]["sampled"]["mean"] == 0.8
    assert asked[7].arguments["temperature"] == 1.0


@pytest.mark.slow
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


def test_what_is_asked_of_countdown(asked: list[Call], capsys: pytest.CaptureFixture[str]) -> None:
    module = load(FOLDER / "grpo_countdown.py")
    module.main("run")
    assert calls_of(asked, "algorithm", "env", "warm_up", "seeds", "evaluation_episodes") == [
        ("train", "grpo", "countdown", module.WARM_UP, module.SEEDS, 256),
        ("judge", None, None, None, None, None),
    ]
    assert calls_of(asked, "env_arguments", "arguments", "model") == [
        ("train", module.ARGUMENTS, None, None),
        ("judge", None, module.ARGUMENTS, "run/sft"),
    ]
    found = printed(capsys)
    assert (found["before"], found["after"]["mean"]) == (0.2, 0.1)


@pytest.mark.slow
def test_countdown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = load(FOLDER / "grpo_countdown.py")
    few(module, monkeypatch, "CONFIG")
    module.main(str(tmp_path / "run"))
    found = printed(capsys)
    assert 0 <= found["before"] <= 1
    assert (len(found["after"]["per_seed"]), found["after"]["episodes"]) == (2, 256)


@pytest.fixture
def hats(tmp_path: Path) -> Path:
    """Six problems to learn and six others, in GSM8K's format."""
    for name, shift in (("train", 0), ("test", 7)):
        numbers = range(shift, shift + 6)
        records = [{"question": f"a man has {i} hats.", "answer": f"so #### {i}"} for i in numbers]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    return tmp_path


def test_what_is_asked_of_gsm8k(
    hats: Path, asked: list[Call], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = load(FOLDER / "grpo_gsm8k.py")
    few(module, monkeypatch, "CONFIG")
    module.main(str(hats), "run")
    assert calls_of(asked, "algorithm", "env", "warm_up", "model") == [
        ("train", "grpo", "gsm8k", module.WARM_UP, ""),
        ("judge", None, None, None, "run/sft"),
    ]
    assert asked[1].arguments["arguments"] == asked[0].arguments["env_arguments"]
    assert printed(capsys) == {"before": 0.2, "after": 0.1}


@pytest.mark.slow
def test_gsm8k(hats: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = load(FOLDER / "grpo_gsm8k.py")
    few(module, monkeypatch, "CONFIG")
    monkeypatch.setattr(module, "CONFIG", module.CONFIG.replace(max_new_tokens=16))
    module.main(str(hats), str(hats / "run"))
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


def test_what_is_asked_of_a_reward_model_in_folds(
    dialogues: Path,
    asked: list[Call],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = load(FOLDER / "reward_model_hh.py")
    few(module, monkeypatch, "CONFIG")
    module.main(str(dialogues), "run")
    assert calls_of(asked, "algorithm", "out") == [
        ("train", "reward_model", f"run/fold-{fold}") for fold in range(module.FOLDS)
    ]
    held_out = [text.tasks.make("preferences", **call.arguments["env_arguments"]) for call in asked]
    assert sum(len(problem.preferences[1].weight) for problem in held_out) == 20  # each judged once
    found = printed(capsys)  # of 10,000 in each fold, a tenth, two tenths, ... to the half are right
    assert found["pairs"] == 50_000
    assert found["accuracy"] == pytest.approx(0.3)
    half = 1.96 * (0.3 * 0.7 / 50_000) ** 0.5
    assert found["ci95"] == pytest.approx([0.3 - half, 0.3 + half])


@pytest.mark.slow
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


def test_what_is_asked_of_dpo(
    dialogues: Path,
    asked: list[Call],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = load(FOLDER / "dpo_hh.py")
    few(module, monkeypatch, "CONFIG")
    module.main(str(dialogues), "run")
    assert calls_of(asked, "algorithm", "env", "warm_up") == [("train", "dpo", "preferences", module.WARM_UP)]
    assert printed(capsys)["per_seed"] == [0.1, 0.1]


@pytest.mark.slow
def test_dpo(
    dialogues: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = load(FOLDER / "dpo_hh.py")
    few(module, monkeypatch, "CONFIG")
    module.main(str(dialogues), str(tmp_path / "run"))
    found = printed(capsys)
    assert len(found["per_seed"]) == 2
    assert found["episodes"] == 2


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    """Sentences to translate, two of which are held out."""
    data = tmp_path / "deu.txt"
    pairs = [f"{a} {b}.\t{b} {a}." for a in ("I", "we", "Tom", "he") for b in "abcdefghijklmnopqrstuvwxyz"]
    data.write_text("\n".join(pairs) + "\n")
    return data


def test_what_is_asked_of_translation_for_chrf(
    letters: Path, asked: list[Call], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = load(FOLDER / "rlhf_ppo_translation.py")
    few(module, monkeypatch, "SFT", "PPO")
    task = text.tasks.make("translation", data=str(letters), vocab_size=module.VOCABULARY)
    records = task.records[-len(task.held_out.tokens) :]
    prompts = [task.tokenizer.encode(record["prompt"]) for record in records]
    answers = [task.tokenizer.encode(record["references"][0]) for record in records]
    generation = SimpleNamespace(stop_ids=task.stop_ids)

    def translated(model: Any, params: Any, key: Any, given: Any, settings: Any, *_: Any) -> Any:
        """After PPO the first member has one sentence right, the second both, and before it none."""
        assert given == prompts
        assert (settings.temperature, settings.max_new_tokens) == (0, task.max_new_tokens)
        right = {"sft": 0, "ppo": params[1] + 1}[params[0]]
        return [SimpleNamespace(tokens=np.array(each)) for each in answers[:right] + prompts[right:]]

    reached = lambda run, member: (None, (run.name, member), task.tokenizer, generation)
    monkeypatch.setattr(rljax, "language_model", reached)
    monkeypatch.setattr(text, "decode_many", translated)
    module.main(str(letters), "run")
    assert calls_of(asked, "algorithm", "init", "out") == [
        ("train", "sft", None, Path("run/sft")),
        ("train", "rlhf_ppo", Path("run/sft"), Path("run/ppo")),
    ]
    found = printed(capsys)
    assert found["sentences"] == 2
    assert found["ppo"][1] == pytest.approx(100)
    assert found["sft"] < found["ppo"][0] < found["ppo"][1]
    assert found["ci95"][0] <= found["gain"] <= found["ci95"][1]
    assert found["gain"] == pytest.approx(sum(found["ppo"]) / 2 - found["sft"])


@pytest.mark.slow
def test_translation_for_chrf(
    letters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = load(FOLDER / "rlhf_ppo_translation.py")
    few(module, monkeypatch, "SFT", "PPO")
    module.main(str(letters), str(tmp_path / "run"))
    found = printed(capsys)
    assert found["sentences"] == 2
    assert len(found["ppo"]) == 2
    assert found["ci95"][0] <= found["gain"] <= found["ci95"][1]
    assert found["gain"] == pytest.approx(sum(found["ppo"]) / 2 - found["sft"])
