"""Malformed shots, queries and artifacts: each is named by file:line, as DataError and as nothing else."""

import pickle
from pathlib import Path

import pytest
import torch

from memtoken_cli.data.shots import read_queries, read_shots
from memtoken_cli.io import artifact
from memtoken_cli.io.artifact import Header
from memtoken_cli.io.errors import DataError
from memtoken_cli.io.records import read_jsonl

GOOD = b'{"input": "a", "output": "x"}\n'

JSONL = {
    "not json": b"nonsense\n",
    "cut off": b'{"input": "a", "outp',
    "trailing comma": b'{"input": "a", "output": "x",}\n',
    "single quotes": b"{'input': 'a', 'output': 'x'}\n",
    "two objects": b'{"input": "a"} {"input": "b"}\n',
    "a list": b'["a", "x"]\n',
    "a string": b'"input"\n',
    "a number": b"17\n",
    "null": b"null\n",
    "NaN": b'{"input": "a", "output": "x", "p": NaN}\n',
    "Infinity": b'{"input": "a", "output": "x", "p": -Infinity}\n',
    "out of range": b'{"input": "a", "output": "x", "p": 1e999}\n',
    "endless integer": b'{"input": "a", "output": "x", "p": ' + b"9" * 5000 + b"}\n",
    "key twice": b'{"input": "a", "output": "x", "output": "y"}\n',
    "key twice within": b'{"input": "a", "output": "x", "m": {"k": 1, "k": 2}}\n',
    "latin-1": b'{"input": "caf\xe9", "output": "x"}\n',
    "utf-16": '{"input": "a", "output": "x"}\n'.encode("utf-16"),
    "cut utf-8": b'{"input": "\xe2\x82", "output": "x"}\n',
    "encoded surrogate": b'{"input": "\xed\xa0\x80", "output": "x"}\n',
    "lone surrogate": b'{"input": "\\ud800", "output": "x"}\n',
    "surrogate in a key": b'{"\\udc00": 1, "input": "a", "output": "x"}\n',
    "NUL": b'{"input": "a\x00", "output": "x"}\n',
    "control character": b'{"input": "a\x01b", "output": "x"}\n',
    "bare newline in a string": b'{"input": "a\nb", "output": "x"}\n',
    "nested too deeply": b'{"input": ' + b"[" * 100_000 + b"\n",
    "byte order mark inside": b'\xef\xbb\xbf{"input": "a", "output": "x"}\n',
    "binary": bytes(range(256)),
}

SHOTS = {
    "no output": b'{"input": "a"}\n',
    "no input": b'{"output": "x"}\n',
    "no known key": b'{"question": "a", "answer": "x"}\n',
    "empty object": b"{}\n",
    "empty label": b'{"input": "a", "output": ""}\n',
    "blank label": b'{"input": "a", "output": " \\n"}\n',
    "empty input": b'{"input": "", "output": "x"}\n',
    "label is a number": b'{"input": "a", "output": 3}\n',
    "label is null": b'{"input": "a", "output": null}\n',
    "label is a list": b'{"input": "a", "output": ["x"]}\n',
    "mixed kinds": b'{"text": "a"}\n',
    "two kinds at once": b'{"input": "a", "output": "x", "text": "t"}\n',
}

QUERIES = {
    "no input": b'{"output": "x"}\n',
    "empty input": b'{"input": ""}\n',
    "input is a number": b'{"input": 3}\n',
    "empty output": b'{"input": "a", "output": ""}\n',
    "a list for a query": b"[]\n",
}

ANSWER = b'{"role": "assistant", "content": "x"}'


def turns(first: bytes, second: bytes = ANSWER) -> bytes:
    return b'{"messages": [' + first + b", " + second + b"]}\n"


MESSAGES = {
    "no list": b'{"messages": "hello"}\n',
    "too few": b'{"messages": [{"role": "user", "content": "a"}]}\n',
    "no role": turns(b'{"content": "a"}'),
    "unknown role": turns(b'{"role": "king", "content": "a"}'),
    "role is a list": turns(b'{"role": [], "content": "a"}'),
    "no content": turns(b'{"role": "user"}'),
    "content is a list": turns(b'{"role": "user", "content": []}'),
    "no object": turns(b'"a"'),
    "the user last": turns(ANSWER, b'{"role": "user", "content": "x"}'),
}
GOOD_MESSAGES = turns(b'{"role": "user", "content": "a"}')

WHOLE = {
    "empty": b"",
    "blank": b"\n \n\t\n",
    "one shot": GOOD,
    "only a byte order mark": b"\xef\xbb\xbf",
}


def cases(table: dict[str, bytes]) -> list[object]:
    return [pytest.param(data, id=name) for name, data in table.items()]


@pytest.mark.parametrize("data", cases(JSONL))
def test_jsonl_names_the_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(GOOD + b"\n" + data)
    for read in (read_jsonl, read_shots, read_queries):
        with pytest.raises(DataError) as caught:
            read(path)
        assert caught.value.where == f"{path}:3"
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("data", cases(SHOTS))
def test_shots_name_the_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(GOOD + data)
    with pytest.raises(DataError) as caught:
        read_shots(path)
    assert caught.value.where == f"{path}:2"


@pytest.mark.parametrize("data", cases(MESSAGES))
def test_conversations_name_the_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(GOOD_MESSAGES + data)
    with pytest.raises(DataError) as caught:
        read_shots(path)
    assert caught.value.where == f"{path}:2"


@pytest.mark.parametrize("data", cases(QUERIES))
def test_queries_name_the_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"input": "a"}\n' + data)
    with pytest.raises(DataError) as caught:
        read_queries(path)
    assert caught.value.where == f"{path}:2"


@pytest.mark.parametrize("name", ["in.jsonl", "in.txt", "in"])
@pytest.mark.parametrize("data", cases(WHOLE))
def test_files_without_two_shots(tmp_path: Path, data: bytes, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_shots(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "data", [b"one\n\ntwo \x00\n", b"one\n\n\xff\xfe\n", bytes(range(128, 256)) + b"\n\nb\n"]
)
def test_plain_text_that_is_not_text(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "in.txt"
    path.write_bytes(data)
    for read in (read_shots, read_queries):
        with pytest.raises(DataError, match=r"in\.txt:\d"):
            read(path)


@pytest.mark.parametrize("name", ["absent.jsonl", ".", "a" * 5000, "nul\0byte", "file/inside"])
def test_paths_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(GOOD)
    for read in (read_jsonl, read_shots, read_queries, artifact.read, artifact.read_header):
        with pytest.raises(DataError):
            read(f"{tmp_path}/{name}")


def memory(tmp_path: Path) -> bytes:
    path = tmp_path / "good.safetensors"
    artifact.write(
        path, {"k": torch.arange(64.0).view(8, 8)}, Header(method="m", kind="memory", port="layers")
    )
    return path.read_bytes()


def lengthened(data: bytes) -> bytes:
    return (len(data) * 10).to_bytes(8, "little") + data[8:]


ARTIFACTS = {
    "zero bytes": lambda data: b"",
    "three bytes": lambda data: data[:3],
    "the length alone": lambda data: data[:8],
    "half the header": lambda data: data[:60],
    "half the tensors": lambda data: data[:-128],
    "a byte short": lambda data: data[:-1],
    "a byte more": lambda data: data + b"\0",
    "twice": lambda data: data + data,
    "a bit of the last tensor": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "a bit of the header": lambda data: data.replace(b"layers", b"layerz"),
    "the digest": lambda data: data.replace(b'digest\\":\\"', b'digest\\":\\"0', 1).replace(b'"} ', b'"}', 1),
    "a longer header": lengthened,
    "a header of 2^63 bytes": lambda data: (2**63).to_bytes(8, "little") + data[8:],
    "zeros": lambda data: bytes(len(data)),
    "no JSON": lambda data: data[:9] + b"x" * 40 + data[49:],
    "a list for a header": lambda data: (2).to_bytes(8, "little") + b"[]",
    "an empty table": lambda data: (2).to_bytes(8, "little") + b"{}",
    "metadata that are a list": lambda data: (20).to_bytes(8, "little") + b'{"__metadata__": [] }'[:20],
    "a tensor that is a number": lambda data: (7).to_bytes(8, "little") + b'{"k":1}',
    "text": lambda data: GOOD * 20,
    "a pickle": lambda data: pickle.dumps({"k": [1.0] * 100}),
    "a zip": lambda data: b"PK\x03\x04" + bytes(200),
}


@pytest.mark.parametrize("spoil", [pytest.param(f, id=name) for name, f in ARTIFACTS.items()])
def test_artifacts_are_refused(tmp_path: Path, spoil: object) -> None:
    path = tmp_path / "bad.safetensors"
    good = memory(tmp_path)
    assert callable(spoil)
    bad = spoil(good)
    assert bad != good
    path.write_bytes(bad)
    with pytest.raises(DataError) as caught:
        artifact.read(path)
    assert caught.value.where == str(path)


class Bomb:
    """Unpickling it would raise, which no DataError could hide."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('unpickled')",))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "bomb.safetensors"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError):
        artifact.read(path)
    torch.save({"k": torch.ones(2)}, path)
    with pytest.raises(DataError):
        artifact.read(path)
