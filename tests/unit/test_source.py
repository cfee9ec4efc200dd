"""Records by one name: files, folders, and the hub where there is no network."""

import socket
import sys
from pathlib import Path

import pytest

from memtoken_cli.data.source import open_dataset
from memtoken_cli.io import network
from memtoken_cli.io.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.jsonl").write_text('{"input": "x"}\n{"input": "y"}\n')
    (tmp_path / "a.csv").write_text('text,label\n"one, ""two""",1\n\n"three\nlines",2\n')
    (tmp_path / "deep" / "c.txt").write_text("first\nparagraph\n\n\nsecond")
    (tmp_path / "skipped.bin").write_bytes(b"\0")
    return tmp_path


def test_a_folder_is_its_files_in_order(folder: Path) -> None:
    records = open_dataset(folder)
    expected = [
        {"text": 'one, "two"', "label": "1"},
        {"text": "three\nlines", "label": "2"},
        {"input": "x"},
        {"input": "y"},
        {"text": "first\nparagraph"},
        {"text": "second"},
    ]
    assert list(records) == expected
    assert list(records) == expected


def test_records_come_as_they_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\nbad\n')
    reader = iter(open_dataset(tmp_path / "a.jsonl"))
    assert next(reader) == {"a": 1}
    with pytest.raises(DataError, match=r"a\.jsonl:2"):
        next(reader)


@pytest.mark.parametrize(
    ("text", "line"), [("a,b\n1,2\n1\n", 3), ("a,a\n", 1), ("", 1), ('a\n"b', 2), ("a\n\0\n", 2)]
)
def test_bad_csv(tmp_path: Path, text: str, line: int) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError) as caught:
        list(open_dataset(tmp_path / "a.csv"))
    assert caught.value.where == f"{tmp_path}/a.csv:{line}"


@pytest.mark.parametrize("name", ["absent.jsonl", "dir/absent/deep", "two words", ""])
def test_what_is_neither_a_file_nor_a_hub_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError):
        open_dataset(name)


def test_an_unknown_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="cannot tell what"):
        open_dataset(tmp_path / "a.parquet")


def test_a_stream_without_a_network_fails_before_datasets_is_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="owner/name") as caught:
        open_dataset("owner/name", stream=True)
    assert caught.value.hint is not None
    assert "local file" in caught.value.hint


def test_reachability_asks_the_endpoint_or_its_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    asked: list[tuple[str, int]] = []

    def refuse(address: tuple[str, int], timeout: float) -> socket.socket:
        asked.append(address)
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example:8443")
    for proxy in ("", "http://proxy.example:3128"):
        network.hub_reachable.cache_clear()
        monkeypatch.setenv("https_proxy", proxy)
        assert not network.hub_reachable()
    assert asked == [("mirror.example", 8443), ("proxy.example", 3128)]
    network.hub_reachable.cache_clear()


def test_offline_by_wish_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    network.hub_reachable.cache_clear()
    monkeypatch.setattr(socket, "create_connection", lambda *a, **k: pytest.fail("a connection"))
    assert network.forced_offline()
    assert not network.hub_reachable()
    network.hub_reachable.cache_clear()
