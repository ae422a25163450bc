"""The lock of a baseline: who gets it, what is refused in its place, and what is left of it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_trainability.checks import locks
from pytest_trainability.checks.locks import lock_path, locked
from pytest_trainability.errors import BaselineError

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX: links, pipes, locks of open files")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Path of a baseline in an empty project."""
    return tmp_path / "__trainability__" / "test_model.json"


def waits_in_vain(path: Path) -> str:
    """Return the message for a session that does not get the lock."""
    with pytest.raises(BaselineError) as caught, locked(path, patience=0.1):
        pytest.fail("the lock was given twice")
    return str(caught.value)


def test_a_lock_exists_while_it_is_held_and_leaves_nothing(path: Path) -> None:
    with locked(path, patience=0):
        assert lock_path(path).is_file()
        assert lock_path(path).parent == path.parent, "only users who can write the baseline can make its lock"
    assert list(path.parents[1].iterdir()) == []


def test_a_lock_keeps_a_folder_that_is_not_empty(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("{}")
    with locked(path, patience=0):
        pass
    assert list(path.parent.iterdir()) == [path]


def test_a_lock_is_held_once_and_can_be_had_again(path: Path) -> None:
    with locked(path, patience=0):
        said = waits_in_vain(path)
        assert lock_path(path).exists()
    assert said.startswith(
        f"{path}: the baseline could not be written. Another session has held the lock {lock_path(path)}"
    )
    with locked(path, patience=0):
        pass


def test_locks_of_two_baselines_are_separate(path: Path) -> None:
    with locked(path, patience=0), locked(path.with_name("test_other.json"), patience=0):
        pass
    assert list(path.parents[1].iterdir()) == []


def test_a_lock_is_released_after_an_error(path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), locked(path, patience=0):
        raise KeyboardInterrupt
    assert list(path.parents[1].iterdir()) == []


@posix
def test_only_its_user_can_open_a_lock(path: Path) -> None:
    before = os.umask(0)
    try:
        with locked(path, patience=0):
            assert stat.S_IMODE(lock_path(path).stat().st_mode) == 0o600
    finally:
        os.umask(before)


@posix
def test_the_file_of_a_killed_session_is_taken_over_and_removed(path: Path) -> None:
    path.parent.mkdir()
    lock_path(path).write_text("")
    with locked(path, patience=0):
        waits_in_vain(path)
    assert not path.parent.exists()


def as_link(at: Path) -> None:
    at.symlink_to(at.parents[1] / "precious.txt")


OBSTACLES: dict[str, Callable[[Path], None]] = {
    "a link": as_link,
    "a link to nothing": lambda at: at.symlink_to(at.parents[1] / "nothing"),
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
}


@posix
@pytest.mark.parametrize("put", OBSTACLES.values(), ids=OBSTACLES.keys())
def test_something_else_at_the_path_of_a_lock_is_named_and_left_alone(path: Path, put: Callable[[Path], None]) -> None:
    precious = path.parents[1] / "precious.txt"
    precious.write_text("notes")
    path.parent.mkdir()
    put(lock_path(path))
    with pytest.raises(BaselineError, match="must be a regular file") as caught, locked(path, patience=0):
        pytest.fail("the lock was given")
    assert str(caught.value).startswith(f"{lock_path(path)}: ")
    assert precious.read_text() == "notes"
    assert os.path.lexists(lock_path(path))
    assert not (path.parents[1] / "nothing").exists()


def refusing(number: int) -> Callable[..., Any]:
    def refuse(*_: object) -> Any:
        raise OSError(number, os.strerror(number))

    return refuse


@posix
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF], ids=errno.errorcode.get)
def test_without_locks_of_the_file_system_the_file_is_the_lock(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(locks.fcntl, "flock", refusing(number))
    with locked(path, patience=0):
        waits_in_vain(path)
    assert not path.parent.exists()
    path.parent.mkdir()
    lock_path(path).write_text("")
    assert waits_in_vain(path).endswith(
        f"{lock_path(path)} for 0 seconds. Run again when that session has ended. If there is none, remove the lock."
    )


@posix
def test_the_lock_of_another_user_is_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system refuses to open it. That is simulated, because root may open every file."""
    path.parent.mkdir()
    lock_path(path).write_text("")
    opened = os.open

    def refuse(file: Any, flags: int, *mode: int) -> int:
        if file == lock_path(path) and not flags & os.O_CREAT:
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(file, flags, *mode)

    monkeypatch.setattr(os, "open", refuse)
    assert str(lock_path(path)) in waits_in_vain(path)
    assert lock_path(path).exists()


@posix
def test_a_lock_that_is_removed_by_hand_is_not_the_lock_of_the_next_session(path: Path) -> None:
    """Its holder must not remove the file of that session."""
    with locked(path, patience=0):
        lock_path(path).unlink()
        handle, _ = locks._open(lock_path(path))
        assert handle is not None
    assert lock_path(path).exists()
    os.close(handle)


def test_a_folder_that_cannot_be_made_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "__trainability__").write_text("notes")
    with pytest.raises(FileExistsError), locked(tmp_path / "__trainability__" / "test_model.json", patience=0):
        pytest.fail("the lock was given")


def test_a_folder_that_another_session_removes_meanwhile_is_made_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other session releases its lock, and removes the empty folder, just before this one makes its file."""
    opened, removed = os.open, []

    def late(file: Any, flags: int, *mode: int) -> int:
        if file == lock_path(path) and not removed:
            removed.append(file)
            path.parent.rmdir()
        return opened(file, flags, *mode)

    monkeypatch.setattr(os, "open", late)
    with locked(path, patience=10):
        assert removed and lock_path(path).is_file()
    assert not path.parent.exists()


@pytest.mark.parametrize("error", [FileExistsError, PermissionError])
def test_without_locks_of_open_files_the_file_is_the_lock(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: type[OSError]
) -> None:
    """As on Windows, which refuses to make a file that is about to be removed."""
    monkeypatch.setattr(locks, "fcntl", None)
    opened = os.open

    def refuse(file: Any, flags: int, *mode: int) -> int:
        if file == lock_path(path) and lock_path(path).exists():
            raise error
        return opened(file, flags, *mode)

    with locked(path, patience=0):
        monkeypatch.setattr(os, "open", refuse)
        waits_in_vain(path)
    with locked(path, patience=0):
        pass
    assert not path.parent.exists()
