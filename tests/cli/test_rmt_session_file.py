"""Session files that are damaged, or stand beside another model, policy or parent: exit 3, both named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_rmt
from cli_fixtures import Memtok
from safetensors.torch import load

from memtoken_cli.io import artifact
from memtoken_cli.methods.rmt import model_file, parent, session_file
from memtoken_cli.methods.rmt.session import Session

READ = ("max_new_tokens=0", "--out")
S = "s.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_rmt.artifact(tmp_path_factory.mktemp("model")))


@pytest.fixture
def asked(memtok: Memtok, model: str) -> Callable[..., Any]:
    """A session S of some text, and a call that asks it."""
    assert memtok("generate", "-", "--memory", model, *READ, S, stdin="some text " * 75).code == 0
    return lambda *argv: memtok("generate", "q", "--memory", S, "max_new_tokens=1", *argv)


def refused(ran: Any, *said: str) -> None:
    assert (ran.code, ran.out) == (3, b""), ran.err
    assert "error: " in ran.err and "Traceback" not in ran.err
    assert all(word in ran.err for word in said), ran.err


def test_every_altered_byte_is_noticed(asked: Callable[..., Any]) -> None:
    whole = Path(S).read_bytes()
    for at in [*range(80), *range(80, len(whole), 397), len(whole) - 1]:
        Path(S).write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        refused(asked())
    for size in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        Path(S).write_bytes(whole[:size])
        refused(asked())
    Path(S).write_bytes(whole + b"\0")
    refused(asked())
    Path(S).write_bytes(whole)
    assert asked().code == 0


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of what a header holds; the tokenizer's table counts as one."""
    if isinstance(value, dict) and value and path[-1:] != ("tokenizer",):
        return [found for key, inner in value.items() for found in leaves(inner, (*path, key))]
    return [path]


def changed(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return value + "x" if isinstance(value, str) else [value]


def test_every_altered_field_of_the_header_is_noticed(asked: Callable[..., Any]) -> None:
    tensors = load(Path(S).read_bytes())
    header = artifact.read_header(S)
    said = header.model_dump(mode="json")
    paths = leaves(said)
    assert {("about", "counts", "bytes"), ("about", "config", "slots"), ("about", "chain")} < set(paths)
    from safetensors.torch import save

    for path in paths:
        table = json.loads(json.dumps(said))
        inner = table
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = changed(inner[path[-1]])
        Path(S).write_bytes(save(tensors, metadata={artifact.KEY: json.dumps(table)}))
        refused(asked())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"policy": "xl"}, "expected policy and segment xl"),
        ({"segment": 8}, "found rmt, 16"),
        ({"width": 32}, "width 32"),
        ({"config": {"policy": "armt"}}, "armt"),
        ({"counts": {"tokens": 1, "segments": 0, "pending": 1, "bytes": 0}}, "not as many"),
        ({"counts": {"tokens": 9, "segments": 0, "pending": 1, "bytes": 0}}, "9 tokens are not"),
        ({"counts": {"tokens": [9], "segments": 0, "pending": 1, "bytes": 0}}, "9 tokens are not"),
        ({"counts": {"tokens": [1, 2], "segments": 0, "pending": 1, "bytes": 0}}, "counts"),
        ({"counts": None}, "counts"),
        ({"chain": []}, "chain"),
        ({"chain": ["0" * 64] * 2}, "rows"),
        ({"chain": ["no"]}, "chain"),
        ({"more": 1}, "more"),
    ],
)
def test_a_header_that_is_whole_but_wrong(
    asked: Callable[..., Any], change: dict[str, Any], said: str
) -> None:
    """Written anew with a digest that fits, as a program with a bug would."""
    header, tensors = artifact.read(S)
    about = {**header.about, **change}
    if isinstance(change.get("config"), dict):
        about["config"] = {**header.about["config"], **change["config"]}
    artifact.write(S, tensors, header.model_copy(update={"about": about}))
    refused(asked(), said)


@pytest.mark.parametrize("name", ["state.tokens_LBMD", "last_BD", "tail_text", "generator", "history_ids_BT"])
def test_a_tensor_that_is_missing_or_of_another_shape(asked: Callable[..., Any], name: str) -> None:
    header, tensors = artifact.read(S)
    artifact.write(S, {key: x for key, x in tensors.items() if key != name}, header)
    refused(asked(), "expected tensors", name)
    artifact.write(S, tensors | {name: tensors[name][None].expand(2, *tensors[name].shape)}, header)
    refused(asked(), name)


def test_ids_that_the_model_does_not_have(asked: Callable[..., Any]) -> None:
    header, tensors = artifact.read(S)
    artifact.write(S, tensors | {"pending_ids_BT": tensors["pending_ids_BT"] + 10**6}, header)
    refused(asked(), "ids")


def test_another_language_model(memtok: Memtok, tmp_path: Path) -> None:
    one, two = (tiny.save(tiny.tiny_llama(seed), tmp_path / f"llama{seed}") for seed in (0, 1))
    path = str(tiny_rmt.of_folder(tmp_path / "m", one))
    assert memtok("generate", "-", "--memory", path, *READ, S, stdin="some text").code == 0
    found = [tiny.tiny_llama(seed).fingerprint[:12] for seed in (0, 1)]
    ran = memtok("generate", "q", "--memory", S, "--model", str(two))
    refused(ran, f"expected {found[0]}", f"found {found[1]}")
    shutil.rmtree(one)
    shutil.copytree(two, one)
    refused(memtok("generate", "q", "--memory", S), f"expected {found[0]}", f"found {found[1]}")
    small = tiny.save(tiny.tiny_gpt2(), tmp_path / "gpt2")
    refused(memtok("generate", "q", "--memory", S, "--model", str(small)), f"expected {found[0]}", "found")


def test_large_weights_stay_in_the_parent(
    memtok: Memtok, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_rmt.artifact(tmp_path / "run")
    memtok("generate", "-", "--memory", str(model), *READ, "inline.safetensors", stdin="some text " * 20)
    monkeypatch.setattr(parent, "INLINE", 0)
    Path("days").mkdir()
    memtok("generate", "-", "--memory", str(model), *READ, "days/1.safetensors", stdin="some text " * 10)
    memtok("generate", "-", "--memory", "days/1.safetensors", *READ, S, stdin="some text " * 10)
    headers = [artifact.read_header(name) for name in ("days/1.safetensors", S)]
    assert [h.parent.path for h in headers] == ["../run/memory.safetensors", "run/memory.safetensors"]
    assert {h.parent.sha256 for h in headers} == {artifact.sha256_of(model)}
    assert not any(name.startswith(("weights.", "memory.")) for name in headers[1].shapes)
    assert Path(S).stat().st_size < Path("inline.safetensors").stat().st_size / 2
    inline, apart = (
        memtok("generate", "q", "--memory", m, "max_new_tokens=9") for m in ("inline.safetensors", S)
    )
    assert inline.out == apart.out and apart.code == 0
    ran = memtok("generate", "-", "--memory", S, "--out", str(model), "max_new_tokens=0", stdin="a")
    assert ran.code == 2 and "not a session" in ran.err

    whole, expected = model.read_bytes(), headers[0].parent.sha256[:12]
    other = tiny_rmt.artifact(tmp_path / "other", "rmt.policy=prmt")
    shutil.copy(other, model)
    found = artifact.sha256_of(other)[:12]
    refused(memtok("generate", "q", "--memory", S), f"expected sha256 {expected}", f"found {found}")
    model.unlink()
    refused(memtok("generate", "q", "--memory", S), f"expected sha256 {expected}", "found no such file")
    model.write_bytes(whole)
    shutil.move("run", "days/run")
    refused(memtok("generate", "q", "--memory", S), "found no such file")
    shutil.move(S, f"days/{S}")
    assert memtok("generate", "q", "--memory", f"days/{S}", "max_new_tokens=9").out == apart.out


def test_a_memory_of_a_large_language_model(
    memtok: Memtok, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays in its file too, however small, unless it came without one."""
    folder = tiny.save(tiny.tiny_llama(), tmp_path / "llama")
    model = tiny_rmt.of_folder(tmp_path / "run", folder)
    monkeypatch.setattr(parent, "INLINE", 10_000)
    assert memtok("generate", "q", "--memory", str(model), *READ, S).code == 0
    piped = memtok("generate", "q", "--memory", "-", *READ, "piped", stdin=model.read_bytes())
    assert piped.code == 0, piped.err
    headers = [artifact.read_header(name) for name in (S, "piped")]
    assert headers[0].parent is not None and "memory.init_MD" not in headers[0].shapes
    assert headers[1].parent is None and "memory.init_MD" in headers[1].shapes
    answers = [memtok("generate", "q", "--memory", m, "max_new_tokens=9").out for m in (S, "piped")]
    assert answers[0] == answers[1]


def test_a_parent_that_changed_under_a_live_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parent, "INLINE", 0)
    model = tiny_rmt.artifact(tmp_path / "run")
    session = Session.new(model_file.open_model(model, "cpu"))
    shutil.copy(tiny_rmt.artifact(tmp_path / "other", "rmt.policy=prmt"), model)
    with pytest.raises(session_file.DataError, match="not there with the weights"):
        session_file.save(session, tmp_path / S)
    assert not (tmp_path / S).exists()


def test_what_is_no_recurrent_memory(memtok: Memtok, model: str) -> None:
    refused(memtok("generate", "q", "--memory", "missing.safetensors"), "missing.safetensors")
    Path("notes.txt").write_text("some notes")
    refused(memtok("generate", "q", "--memory", "notes.txt"), "notes.txt")
