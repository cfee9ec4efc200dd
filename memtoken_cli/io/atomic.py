"""Files that are either whole or absent: a temporary name in the same folder, fsync, one rename, fsync of the
folder.

Every write, fsync and rename goes through `_write`, `_fsync` and `_rename`, which `io/fault.py` can fail.
A failure raises the OSError, which names the file that was asked for; leftovers of dead processes are
removed by the next write to the same name.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from memtoken_cli.io import fault

DAY = 86400.0
_serial = itertools.count()
_active: set[str] = set()


class Pending:
    """A file being written under its temporary name; `write` may be called any number of times."""

    def __init__(self, fd: int, path: Path, asked: str | Path) -> None:
        self._fd = fd
        self.path = path
        self._asked = asked

    def write(self, data: bytes) -> int:
        with _named(self._asked):
            _write(self._fd, data, self.path)
        return len(data)


@contextmanager
def _named(asked: str | Path) -> Iterator[None]:
    """A failure is the file's that was asked for: nobody knows the temporary one."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(asked)) from error


@contextmanager
def writer(path: str | Path) -> Iterator[Pending]:
    """A file that appears under `path`, whole, when the block ends without an exception. Raises OSError.

    A link is followed; a device or a named pipe cannot be replaced and is written to directly.
    """
    final = Path(os.path.realpath(path))
    if final.exists() and not final.is_file():
        with _named(path):
            stream = open(final, "wb", buffering=0)  # noqa: SIM115 (closed below: only opening is told apart)
        with stream:
            yield Pending(stream.fileno(), final, path)
        return
    tmp = _temporary(final)
    try:
        with _named(path):
            fd = os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            yield Pending(fd, final, path)
            with _named(path):
                _fsync(fd, final)
        finally:
            os.close(fd)
        with _named(path):
            _rename(tmp, final)
            _fsync_dir(final.parent)
    except BaseException:
        with suppress(OSError):
            tmp.unlink()
        raise
    finally:
        _active.discard(tmp.name)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a whole file or leave what was there. Raises OSError."""
    with writer(path) as pending:
        pending.write(data)


def write_text(path: str | Path, text: str) -> None:
    """`write_bytes` of UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def append_bytes(path: str | Path, data: bytes) -> None:
    """Append and fsync. Not atomic: a kill may leave a part of `data`, which a reader must allow for."""
    final = Path(path)
    fd = os.open(final, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        _write(fd, data, final)
        _fsync(fd, final)
    finally:
        os.close(fd)


@contextmanager
def directory(final: str | Path) -> Iterator[Path]:
    """A folder to fill, which appears under `final`, whole, when the block ends without an exception."""
    target = Path(final)
    tmp = _temporary(target)
    with _named(final):
        tmp.mkdir()
    try:
        yield tmp
        replace_dir(tmp, target)
    except BaseException:
        shutil.rmtree(tmp, ignore_errors=True)
        raise
    finally:
        _active.discard(tmp.name)


def replace_dir(tmp: str | Path, final: str | Path) -> None:
    """Put the folder `tmp` in the place of `final` (same file system), after fsync of all that is in it.

    A `final` that exists is moved aside first, then removed: killed in between, neither is under its name,
    and the contents lie in hidden folders beside it.
    """
    new, target = Path(tmp), Path(final)
    for folder, _, names in os.walk(new):
        for name in names:
            _fsync_path(Path(folder, name))
        _fsync_dir(Path(folder))
    if target.exists():
        old = _temporary(target)
        _rename(target, old)
        _rename(new, target)
        _fsync_dir(target.parent)
        shutil.rmtree(old, ignore_errors=True)
        _active.discard(old.name)
    else:
        _rename(new, target)
        _fsync_dir(target.parent)


def _temporary(final: Path) -> Path:
    """A name beside `final` that says which process made it; leftovers of dead ones are removed."""
    _sweep(final)
    name = f".{final.name}.{_host()}.{os.getpid()}.{next(_serial)}.tmp"
    _active.add(name)
    return final.parent / name


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname()) or "host"


def _sweep(final: Path) -> None:
    pattern = re.compile(re.escape(f".{final.name}.") + r"([A-Za-z0-9-]+)\.(\d+)\.\d+\.tmp")
    try:
        names = os.listdir(final.parent)
    except OSError:
        return
    for name in names:
        found = pattern.fullmatch(name)
        if found is None or name in _active:
            continue
        stale = final.parent / name
        if _abandoned(stale, found[1], int(found[2])):
            if stale.is_dir():
                shutil.rmtree(stale, ignore_errors=True)
            else:
                with suppress(OSError):
                    stale.unlink()


def _abandoned(path: Path, host: str, pid: int) -> bool:
    """Whether the maker is gone: dead on this host, or a day old on one whose processes cannot be seen."""
    if host == _host():
        return pid == os.getpid() or not alive(pid)
    try:
        return time.time() - path.stat().st_mtime > DAY
    except OSError:
        return False


def alive(pid: int) -> bool:
    """Whether a process of this host runs under `pid`."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _write(fd: int, data: bytes, path: Path) -> None:
    if fault.active():
        # two halves, so that a test can also stop between them: a torn write
        middle = len(data) // 2
        for part in (data[:middle], data[middle:]):
            fault.step(str(path))
            _write_all(fd, part)
        return
    _write_all(fd, data)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while len(view):
        view = view[os.write(fd, view) :]


def _fsync(fd: int, path: Path) -> None:
    if fault.active():
        fault.step(str(path))
    os.fsync(fd)


def _rename(source: Path, target: Path) -> None:
    if fault.active():
        fault.step(str(target))
    os.replace(source, target)


def _fsync_path(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        _fsync(fd, path)
    finally:
        os.close(fd)


def _fsync_dir(folder: Path) -> None:
    try:
        _fsync_path(folder)
    except OSError as error:
        # some file systems cannot sync a folder; the rename itself is still atomic there
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):
            raise
