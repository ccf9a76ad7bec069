"""The house rules that a machine can check: floors, module systems, file sizes, late imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rljax
from rljax import algorithms

ROOT = Path(rljax.__file__).parent
# Imports go down: a floor may import what stands after it. Rooms on one line do not import each other.
FLOORS = [
    ["cli", "testing"],
    ["runs"],
    ["algorithms"],
    ["learning"],
    ["envs", "text"],
    ["models"],
    ["math"],
    ["types", "checks", "backend"],
]
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
# `rljax/__init__.py` is the front door, not a floor: it names every function and sets up devices before JAX
# starts.
SOURCES = sorted(
    path for path in ROOT.rglob("*.py") if path not in (ROOT / "__init__.py", ROOT / "__main__.py")
)


def imports(path: Path) -> list[str]:
    """The rljax modules that a file imports, absolute or relative, anywhere in it; as dotted names without
    'rljax.'.
    """
    package = ["rljax", *path.relative_to(ROOT).with_suffix("").parts]
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found += [_module(module, alias.name) for alias in node.names]
    return [name.removeprefix("rljax.") for name in found if name.startswith("rljax.")]


def _module(base: str, name: str) -> str:
    """`from base import name`: the module `base.name` where there is one, else `base`."""
    inner = ROOT.parent.joinpath(*base.split("."), name)
    return f"{base}.{name}" if inner.with_suffix(".py").is_file() or inner.is_dir() else base


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    here = room(path)
    assert here in LEVEL, f"{here} stands on no floor: add it to the house or put it elsewhere"
    for name in imports(path):
        there = name.split(".")[0]
        assert there in LEVEL, f"{path} imports rljax.{name}, which stands on no floor"
        assert there == here or LEVEL[there] > LEVEL[here], f"{path} imports rljax.{name}: up or sideways"


def reachable(graph: dict[str, list[str]], start: str) -> set[str]:
    """The modules that `start` imports, directly or not; `start` is one of them only if imports go round."""
    reached: set[str] = set()
    waiting = list(graph.get(start, []))
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting += graph.get(module, [])
    return reached


def test_reachable_sees_what_goes_round() -> None:
    graph = {"a": ["b", "d"], "b": ["c"], "c": ["b"], "d": []}
    assert reachable(graph, "a") == {"b", "c", "d"}
    assert [name for name in graph if name in reachable(graph, name)] == ["b", "c"]


def test_imports_do_not_go_round_within_a_room() -> None:
    graph = {}
    for path in SOURCES:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        graph[name] = [module for module in imports(path) if module != name]
    graph = {
        name: [module if module in graph else module.rpartition(".")[0] for module in modules]
        for name, modules in graph.items()
    }
    reached = {name: reachable(graph, name) for name in graph}
    leaves = [name for name in graph if "." in name]
    assert [name for name in leaves if name in reached[name]] == []


def test_only_models_imports_a_module_system() -> None:
    for path in SOURCES:
        if room(path) == "models":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            )
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            assert not any(
                part in {"linen", "nnx"} for name in [*names, module] for part in name.split(".")
            ), f"{path} imports a Flax module system"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_small(path: Path) -> None:
    limit = 300 if room(path) == "algorithms" else 400  # a sense of proportion
    assert len(path.read_text().splitlines()) <= limit


def test_algorithms_are_all_that_lives_in_their_room() -> None:
    files = {path.stem for path in (ROOT / "algorithms").glob("*.py")} - {"__init__"}
    assert files == set(algorithms.NAMES)


def test_importing_rljax_is_cheap_and_quiet() -> None:
    code = (
        "import sys, rljax, rljax.cli\n"
        "heavy = {'jax', 'gymnax', 'flax', 'orbax', 'matplotlib', 'optax'} & set(sys.modules)\n"
        "print(sorted(heavy))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""


def test_no_callback_leaves_a_jit_and_no_key_is_global() -> None:
    for path in SOURCES:
        source = path.read_text()
        assert "pure_callback" not in source
        assert "debug.callback" not in source
        assert "random.PRNGKey" not in source
        if room(path) in ("math", "models", "algorithms", "envs"):
            assert "random.key(" not in source or path.name == "gymnax.py", f"{path} makes a key of its own"
