"""``python -m pytest_trainability``: see :mod:`pytest_trainability.commands`."""

import sys

from .commands import main

if __name__ == "__main__":
    sys.exit(main())
