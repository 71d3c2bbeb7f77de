"""Files that are whole or not there, and folders that one process works in: every writer of the package comes here.

What is killed, or finds the disk full, leaves nothing half-written under a result's name; at most a hidden `.cam_utils-…`
beside it, which the next run deletes.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

_PREFIX = ".cam_utils-"
_WAY_OUT = "What was there before is unchanged: put that right or choose another place, and start again"


class WriteError(OSError):
    """A file or a folder cannot be written: which, and why."""


def write_file(target: Path, content: bytes | str) -> None:
    """Write a file at once, see `replacing_all`. What formats it in memory cannot hide a full disk behind another error."""
    with replacing(target) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """`replacing_all` for one file; through a link, as open() writes."""
    with replacing_all([Path(os.path.realpath(target))]) as (temporary,):
        yield temporary


@contextmanager
def replacing_all(targets: Sequence[Path]) -> Iterator[list[Path]]:
    """Paths to write to, one for each of `targets`, files of one folder, whose places they take at the end, in this order.

    After an error they do not. The folder is made. The bytes are on the disk before the names are (fsync): not even a
    power cut leaves an empty file. Raises WriteError for any OSError.
    """
    folder = targets[0].parent
    with _telling(folder if len(targets) > 1 else targets[0]), ExitStack() as stack:
        folder.mkdir(parents=True, exist_ok=True)
        incoming = folder / f"{_PREFIX}{uuid4().hex}"  # inside of it, so that every file arrives by a rename
        incoming.mkdir()
        stack.callback(shutil.rmtree, incoming, ignore_errors=True)
        stack.enter_context(_locking(incoming))  # for `make_ready`
        yield [incoming / target.name for target in targets]
        for target in targets:
            with (incoming / target.name).open("rb") as file:
                os.fsync(file.fileno())
        for target in targets:
            with _telling(target):
                os.replace(incoming / target.name, target)


def make_ready(*folders: Path) -> None:
    """Delete what killed processes have left half-written in the folders; WriteError, before any work, for a read-only one."""
    for folder in folders:
        nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        with _telling(folder):
            probe = nearest / f"{_PREFIX}{uuid4().hex}"
            probe.mkdir()
            probe.rmdir()
        for leftover in folder.glob(f"{_PREFIX}*"):
            with suppress(OSError), _locking(leftover) as free:
                if free:
                    shutil.rmtree(leftover)


@contextmanager
def alone(folder: Path, refusal: type[Exception]) -> Iterator[None]:
    """Hold FOLDER/lock. Raises `refusal` where another process holds it; the system frees it when a process dies."""
    with _telling(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "a+b", buffering=0)
    with lock:
        with _telling(folder / "lock"):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                who = lock.read().decode(errors="replace").strip() or "unknown"
                raise refusal(f"another run (process {who}) is at work in {folder}: wait for its end") from None
            lock.truncate(0)
            lock.write(b"%d\n" % os.getpid())
        yield


@contextmanager
def _locking(folder: Path) -> Iterator[bool]:
    """Tell other processes that this one, as long as it lives, works in a folder; whether no other says so."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = True
    except OSError:  # another does, or a network file system has no locks for folders
        free = False
    try:
        yield free
    finally:
        os.close(descriptor)


@contextmanager
def _telling(target: Path) -> Iterator[None]:
    """Around whatever writes `target`: the system's word does not always name it."""
    try:
        yield
    except WriteError:  # of a file inside
        raise
    except OSError as error:
        raise WriteError(f"cannot write {str(target)!r}: {error.strerror or error}. {_WAY_OUT}") from error
