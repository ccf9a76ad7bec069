"""What the benchmarks share: results as JSON files, and Markdown tables between markers of README.md."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent / "README.md"


def read(path: Path) -> dict[str, Any]:
    """A results file. Raises: ValueError or FileNotFoundError in one line."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no results file: run the benchmark first, or name another")
    try:
        found = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): delete it and run the benchmark again") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no results: name a file that the benchmark wrote")
    return found


def write(path: Path, content: dict[str, Any]) -> None:
    """Atomically, so that a benchmark that is stopped leaves the rows before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    os.replace(partial, path)


def slug(text: str) -> str:
    """A hardware's name as part of a file name."""
    plain = re.sub(r"\((r|tm)\)", "", text.lower())
    return re.sub(r"[^a-z0-9.]+", "-", plain).strip("-")


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; columns after the first are right-aligned."""
    rule = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [columns, rule, *rows])


def between(text: str, marker: str, content: str) -> str:
    """`text` with `content` between two lines `<!-- marker -->`. Raises: ValueError if they are not two."""
    line = f"<!-- {marker} -->"
    parts = text.split(line)
    if len(parts) != 3:
        raise ValueError(
            f"README has {len(parts) - 1} lines {line}: it needs two, and the table goes between them"
        )
    return f"{parts[0]}{line}\n{content.strip()}\n{line}{parts[2]}"


def write_readme(marker: str, content: str, path: Path = README) -> None:
    path.write_text(between(path.read_text(), marker, content))
