"""benchmarks/mutations.py breaks what is there, and names tests that exist."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def load() -> Any:
    spec = importlib.util.spec_from_file_location("mutations", ROOT / "benchmarks" / "mutations.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MUTATIONS = load()


def test_every_break_applies_and_is_told_apart() -> None:
    breaks = MUTATIONS.BREAKS
    assert len(breaks) >= 44
    assert len({each.name for each in breaks}) == len(breaks)
    for each in breaks:
        source = (ROOT / "rljax" / each.file).read_text()
        assert source.count(each.old) == 1, f"{each.name}: not once in rljax/{each.file}"
        compile(source.replace(each.old, each.new), each.file, "exec")
        assert each.new != each.old
        for file, _, name in (test.partition("::") for test in each.tests):
            assert f"def {name}" in (ROOT / file).read_text(), each.name


def test_a_break_is_undone_and_one_that_does_not_apply_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rljax" / "one.py"
    file.parent.mkdir()
    file.write_text("x = 1\n")
    seen: list[str] = []
    monkeypatch.setattr(MUTATIONS, "passes", lambda folder, tests: seen.append(file.read_text()) or True)
    one = MUTATIONS.Break("one", "one.py", "x = 1", "x = 2", (), "for a test")
    assert MUTATIONS.survives(tmp_path, one, ())
    assert seen == ["x = 2\n"]
    assert file.read_text() == "x = 1\n"
    with pytest.raises(ValueError, match="occurs 0 times"):
        MUTATIONS.survives(tmp_path, one._replace(old="y"), ())
