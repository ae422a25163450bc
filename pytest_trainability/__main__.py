"""``python -m pytest_trainability``: compare and accept what a session elsewhere has measured."""

import sys

from .plugin.command import main

if __name__ == "__main__":
    sys.exit(main())
