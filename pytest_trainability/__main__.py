"""``python -m pytest_trainability``: compare and accept numbers that another machine has measured."""

import sys

from .plugin.command import main

if __name__ == "__main__":
    sys.exit(main())
