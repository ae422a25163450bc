"""Objects that are named by their place: ``package.module:name``."""

from __future__ import annotations

import difflib
import importlib
import importlib.machinery
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import UsageError

__all__ = ["imported", "search_first"]


def search_first(folder: Path, places: Iterable[str]) -> None:
    """Let modules of a folder come first, before those of the current folder.

    Args:
        folder: The folder.
        places: Places that are imported next. Texts that name no place are passed over.

    Raises:
        UsageError: A module of the same name, but of another file, has been imported before: Python would take that one.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    if sys.path[0] != str(folder):
        sys.path[:] = [str(folder), *(entry for entry in sys.path if entry != str(folder))]
    for place in places:
        package = place.partition(":")[0].partition(".")[0]
        found = importlib.machinery.PathFinder.find_spec(package, [str(folder)]) if package in sys.modules else None
        taken = getattr(sys.modules.get(package), "__file__", None)
        if found is not None and found.origin and taken and Path(found.origin).resolve() != Path(taken).resolve():
            msg = (
                f"there must be one module {package!r}. {place!r} is in {found.origin}, and {taken} has been imported before. "
                "Rename one of them, or put them into packages."
            )
            raise UsageError(msg)


def imported(place: str, *, what: str, form: str = "MODULE:NAME") -> Any:
    """Return the object at ``package.module:name``. Modules of the current folder come first.

    Args:
        place: Name of a module, a colon, and the name of an object in it, which may have dots.
        what: What is named, for the messages, such as ``"the model"``.
        form: The form of a place, for the messages.

    Raises:
        UsageError: The text has another form, the module cannot be imported, or has no such name. The message gives the nearest.
    """
    module, colon, name = place.partition(":")
    if not (module and colon and name):
        is_dotted = not colon and "." in place.strip(".") and not place.endswith(".py")
        hint = f" Did you mean {':'.join(place.rsplit('.', 1))!r}?" if is_dotted else ""
        msg = f"{what} must be given as {form}, such as package.module:build. Got {place!r}.{hint}"
        raise UsageError(msg)
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        msg = f"{what} must be importable: {place!r}. Importing it raised {type(error).__name__}: {error}"
        if module.endswith(".py"):
            msg += f". Write the name of the module, without .py: {module[:-3].replace('/', '.')}:{name}"
        is_misspelt = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
        raise UsageError(msg) from (None if is_misspelt else error)
    for part in name.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), n=3)
            hint = f" Nearest: {', '.join(near)}." if near else ""
            msg = f"{what} must exist: {place!r}. Importing it raised AttributeError: there is no {part!r}.{hint}"
            raise UsageError(msg)
        found = getattr(found, part)
    return found
