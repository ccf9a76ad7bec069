"""Make tests/models/fixtures anew: tiny random checkpoints and what torch transformers makes of them.

python -m tests.models.make_fixtures [NAME ...]    # all, or these; needs torch and transformers
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.models.checkpoints import build, expected, save

FIXTURES = Path(__file__).parent / "fixtures"
# One of each architecture; the other cases run where torch is installed.
NAMES = (
    "llama",
    "llama3",
    "smollm3",
    "qwen2",
    "qwen3",
    "mistral",
    "gemma",
    "gemma2",
    "gemma3",
    "gpt2",
    "gpt_neox",
    "t5",
    "t5_gated",
)


def main(names: Sequence[str]) -> None:
    for name in names or NAMES:
        folder = FIXTURES / name
        shutil.rmtree(folder, ignore_errors=True)
        model = build(name)
        save(model, folder, expected(model))
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{folder.name}: {size / 1024:.0f} KB")


if __name__ == "__main__":
    main(sys.argv[1:])
