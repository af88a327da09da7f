"""`python -m clearn`."""

from __future__ import annotations

import sys

from clearn.cli import main

if __name__ == "__main__":
    sys.exit(main())
