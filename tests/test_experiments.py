"""Every control script of experiments/ is short, says what it gave, and holds a Config that works; those of
language models are in test_text_experiments.py.
"""

import ast
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import jax
import pytest

import rljax
from rljax import algorithms, envs
from rljax.runs import presets

FOLDER = Path(__file__).parent.parent / "experiments"
TEXT = (*(f"{name}_" for name in algorithms.NAMES if algorithms.find(name).text), "verifiable_rewards")
SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if not path.stem.startswith((*TEXT, "own_")))


@pytest.fixture(params=SCRIPTS, ids=lambda path: path.stem)
def script(request: pytest.FixtureRequest) -> Path:
    return request.param


def load(script: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import the script; nothing may train on the way."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError(f"{script.name} runs when it is imported")

    for name in ("run", "train", "sweep", "evaluate", "report", "render"):
        monkeypatch.setattr(rljax, name, refuse, raising=False)
    spec = importlib.util.spec_from_file_location(f"experiments_{script.stem}", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def algorithm_of(script: Path) -> str:
    """The algorithm that a script is named after, "sweep" for one that is named after none."""
    fitting = [name for name in algorithms.NAMES if script.stem.startswith(f"{name}_")]
    return max(fitting, key=len, default="sweep")


def test_there_is_one_for_every_algorithm_and_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {(algorithm_of(script), load(script, monkeypatch).ENV) for script in SCRIPTS}
    wanted = {pair for pair in presets.PRESETS if not algorithms.find(pair[0]).text}
    assert found >= wanted
    assert {name for name, _ in found} >= {
        name for name in algorithms.NAMES if not algorithms.find(name).text
    }


def test_it_fits_on_a_page_and_uses_what_a_user_can_import(script: Path) -> None:
    text = script.read_text()
    assert len(text.splitlines()) <= 40
    for node in ast.walk(ast.parse(text)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.module == "rljax"
            assert {alias.name for alias in node.names} <= set(algorithms.NAMES)
        assert all(name == "rljax" or name in sys.stdlib_module_names for name in names)


def test_its_docstring_names_command_hardware_minutes_and_result(script: Path) -> None:
    told = ast.get_docstring(ast.parse(script.read_text())) or ""
    assert f"python experiments/{script.name}" in told
    assert "2 cores of an Intel Xeon" in told
    assert re.search(r"\d minutes?\b", told)
    assert re.search(r"(IQM|mean|return) −?\d", told)
    assert "TODO" not in told
    if not script.stem.startswith("sweep"):
        assert re.search(r"95 % interval −?\d[\d.,]* to −?\d", told)


def test_its_config_trains(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load(script, monkeypatch)
    (name,) = (each for each in algorithms.NAMES if hasattr(module, each))
    assert isinstance(module.CONFIG, algorithms.find(name).module.Config)
    algorithm = algorithms.find(name).module.make(envs.make(module.ENV), module.CONFIG)
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    jax.eval_shape(algorithm.step, jax.random.key(0), state)
    assert module.SEEDS >= 3


def test_its_config_is_the_preset_where_there_is_one(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if script.stem.startswith("sweep"):
        pytest.skip("varies what the preset fixes")
    module = load(script, monkeypatch)
    name = algorithm_of(script)
    expected, found = presets.config_for(algorithms.find(name), module.ENV, {})
    assert not found or expected == module.CONFIG


def test_main_passes_its_config_on(
    script: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`main` calls train or sweep once, with what stands in the script and the folder it is given."""
    module = load(script, monkeypatch)
    calls = []

    member = {"learning_rate": 1e-3, "clip": 0.1, "return": 2.0}

    def called(*arguments: object, **keywords: object) -> SimpleNamespace:
        calls.append((arguments, keywords))
        return SimpleNamespace(summary={"return": {"iqm": 1.0}}, members=[member], compilations=1)

    monkeypatch.setattr(rljax, "train", called)
    monkeypatch.setattr(rljax, "sweep", called)
    monkeypatch.setattr(rljax, "report", lambda out: [Path(out) / "sweep.png"])
    module.main(str(tmp_path))
    ((arguments, keywords),) = calls
    assert arguments[1] == module.ENV
    assert hasattr(module, str(arguments[0]))
    assert any(each is module.CONFIG for each in arguments)
    assert keywords == {"seeds": module.SEEDS, "out": str(tmp_path)}
    printed = capsys.readouterr().out
    assert printed.startswith("{")
    assert printed.count("\n") == 1
