"""Whole files or none, folders too, and no leftovers."""

import errno
import os
import stat
from pathlib import Path

import pytest

from memtoken_cli.io import atomic, fault

DEAD = 2**22 + 1  # above the largest process id that Linux gives


def leftover(path: Path, *, host: str | None = None, pid: int = DEAD) -> Path:
    return path.parent / f".{path.name}.{host or atomic._host()}.{pid}.0.tmp"


def test_text_and_bytes(tmp_path: Path) -> None:
    atomic.write_text(tmp_path / "a", "é\n")
    assert (tmp_path / "a").read_bytes() == b"\xc3\xa9\n"
    atomic.write_bytes(tmp_path / "a", b"")
    assert (tmp_path / "a").read_bytes() == b""


def test_an_exception_in_the_block_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic.writer(path) as pending:
        pending.write(b"new")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_under_the_name_before_the_end(tmp_path: Path) -> None:
    with atomic.writer(tmp_path / "a") as pending:
        assert pending.write(b"ab") == 2
        pending.write(b"c")
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a").read_bytes() == b"abc"


def test_leftovers_of_dead_processes_go_and_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "a"
    dead, running = leftover(path), leftover(path, pid=os.getppid())
    elsewhere, old = leftover(path, host="other"), leftover(path, host="older")
    foreign = tmp_path / ".b.host.1.0.tmp"
    for file in (dead, running, elsewhere, old, foreign):
        file.write_bytes(b"x")
    os.utime(old, (0, 0))
    atomic.write_bytes(path, b"new")
    assert {p.name for p in tmp_path.iterdir()} == {"a", running.name, elsewhere.name, foreign.name}


def test_a_leftover_folder_goes_too(tmp_path: Path) -> None:
    path = tmp_path / "step"
    leftover(path).mkdir()
    (leftover(path) / "part").write_bytes(b"x")
    with atomic.directory(path) as folder:
        (folder / "state").write_bytes(b"s")
    assert [p.name for p in tmp_path.iterdir()] == ["step"]
    assert (path / "state").read_bytes() == b"s"


def test_two_writers_of_one_name_do_not_remove_each_other(tmp_path: Path) -> None:
    with atomic.writer(tmp_path / "a") as first:
        atomic.write_bytes(tmp_path / "a", b"second")
        first.write(b"first")
    assert (tmp_path / "a").read_bytes() == b"first"


def test_a_folder_replaces_another(tmp_path: Path) -> None:
    path = tmp_path / "step"
    for name in ("one", "two"):
        with atomic.directory(path) as folder:
            assert not (folder / name).exists()
            (folder / name).write_bytes(b"x")
    assert [p.name for p in path.iterdir()] == ["two"]
    assert [p.name for p in tmp_path.iterdir()] == ["step"]


def test_a_failed_folder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"), atomic.directory(tmp_path / "step") as folder:
        (folder / "a").write_bytes(b"x")
        raise ValueError("stop")
    assert list(tmp_path.iterdir()) == []


def test_appending(tmp_path: Path) -> None:
    atomic.append_bytes(tmp_path / "log", b"a\n")
    atomic.append_bytes(tmp_path / "log", b"b\n")
    assert (tmp_path / "log").read_bytes() == b"a\nb\n"


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    atomic.write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_a_device_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    atomic.write_bytes("/dev/null", b"gone")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_folder_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(IsADirectoryError):
        atomic.write_bytes(tmp_path / "a", b"x")


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        atomic.write_bytes(tmp_path / "no" / "a", b"x")
    assert caught.value.filename == str(tmp_path / "no" / "a")
    with pytest.raises(FileNotFoundError) as caught, atomic.directory(tmp_path / "no" / "step"):
        raise AssertionError("there is nothing to fill")
    assert caught.value.filename == str(tmp_path / "no" / "step")


@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_failure_names_the_file_as_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, k: int
) -> None:
    (tmp_path / "link").symlink_to("real")
    monkeypatch.setattr(fault, "_done", 0)
    monkeypatch.setenv(fault.VARIABLE, f"enospc:{k}")
    with pytest.raises(OSError, match="No space") as caught:
        atomic.write_bytes(tmp_path / "link", b"new")
    assert caught.value.filename == str(tmp_path / "link")


def test_a_full_device_is_named() -> None:
    with pytest.raises(OSError, match="No space") as caught:
        atomic.write_bytes("/dev/full", b"x")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "/dev/full")


def test_what_the_block_raises_itself_keeps_its_own_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, atomic.writer(tmp_path / "a"):
        (tmp_path / "other").read_bytes()
    assert caught.value.filename == str(tmp_path / "other")
