"""`python -m rljax` is the `rljax` command."""

import sys

from rljax.cli import main

if __name__ == "__main__":
    sys.exit(main())
