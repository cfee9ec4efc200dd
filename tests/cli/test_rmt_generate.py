"""`memtok generate` with a recurrent memory: endless text in, a session file out, and what is refused."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import tiny_rmt
from cli_fixtures import Memtok

import memtoken_cli
from memtoken_cli.cli import run
from memtoken_cli.io import artifact
from memtoken_cli.methods.rmt import parent, session_file

# two-, three- and four-byte characters, control characters, a stretch without spaces
TEXT = "héllo wörld, 日本語のテキスト\0\x07 😀 and so on;\r\n" * 4 + "é" * 700 + " the  end of\tit"
READ = ("max_new_tokens=0", "--out")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_rmt.artifact(tmp_path_factory.mktemp("model")))


class Trickle(io.BytesIO):
    """Standard input of which only a few bytes are there at a time."""

    step = 1

    def read1(self, size: int | None = -1) -> bytes:
        return super().read1(self.step)


def trickled(monkeypatch: pytest.MonkeyPatch, text: bytes, step: int, *argv: str) -> int:
    source = Trickle(text)
    source.step = step
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(source, encoding="utf-8"))
        return run(argv)


def header(path: str) -> artifact.Header:
    return artifact.read_header(path, verify=True)


def test_the_three_lines_of_the_contract(memtok: Memtok, model: str) -> None:
    ran = memtok(
        "generate", "-", "--memory", model, "--out", "day1.safetensors", "max_new_tokens=0", stdin=TEXT
    )
    assert (ran.code, ran.text, ran.err) == (0, "day1.safetensors\n", "")
    before = Path("day1.safetensors").read_bytes()
    argv = ("Where is Mary now?", "--memory", "day1.safetensors", "temperature=0.7", "top_p=0.9")
    ran = memtok("generate", *argv, "max_new_tokens=20")
    assert ran.code == 0 and ran.text.endswith("\n") and ran.err == ""
    assert Path("day1.safetensors").read_bytes() == before
    assert memtok("generate", *argv, "max_new_tokens=20").out == ran.out
    assert memtok("generate", *argv, "max_new_tokens=20", "--seed", "5").out != ran.out
    argv = ("-", "--memory", "day1.safetensors", "--out", "day2.safetensors", "save_every=64")
    ran = memtok("generate", *argv, "max_new_tokens=0", stdin=TEXT)
    assert (ran.code, ran.text) == (0, "day2.safetensors\n")
    counts = header("day2.safetensors").about["counts"]
    assert counts["bytes"] == 2 * len(TEXT.encode())
    assert counts["tokens"] == counts["segments"] * 16 + counts["pending"]
    assert sorted(p.name for p in Path().iterdir()) == ["day1.safetensors", "day2.safetensors"]


@pytest.mark.parametrize("policy", ["rmt", "prmt", "armt", "xl", "none", "static", "window", "sink", "full"])
def test_arrival_changes_no_byte(
    memtok: Memtok, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    path = str(tiny_rmt.artifact(tmp_path / "m", f"rmt.policy={policy}", "rmt.d_mem=4", "model.context=4096"))
    text = (TEXT if policy == "rmt" else TEXT[:620]).encode()
    ran = memtok("generate", "-", "--memory", path, *READ, "whole.safetensors", stdin=text)
    assert ran.code == 0, ran.err
    whole = Path("whole.safetensors").read_bytes()
    for step in (1, 7, 100):
        assert (
            trickled(monkeypatch, text, step, "generate", "-", "--memory", path, *READ, "s.safetensors") == 0
        )
        assert Path("s.safetensors").read_bytes() == whole, step
    # and what stands in the file goes on as the whole does
    answers = [
        memtok("generate", "?", "--memory", m, "max_new_tokens=12").out
        for m in ("whole.safetensors", "s.safetensors")
    ]
    assert answers[0] == answers[1] and answers[0]


@pytest.mark.parametrize("cut", [1, 40, 150, 760])
def test_reading_a_then_b_through_a_file_is_reading_ab(memtok: Memtok, model: str, cut: int) -> None:
    memtok("generate", "-", "--memory", model, *READ, "ab.safetensors", stdin=TEXT)
    memtok("generate", "-", "--memory", model, *READ, "a.safetensors", stdin=TEXT[:cut])
    ran = memtok("generate", "-", "--memory", "a.safetensors", *READ, "a.safetensors", stdin=TEXT[cut:])
    assert ran.code == 0
    assert Path("a.safetensors").read_bytes() == Path("ab.safetensors").read_bytes()
    assert len(session_file.opened("a.safetensors").tail) < 16_384


def test_copying_forks_and_reset_starts_anew(memtok: Memtok, model: str) -> None:
    memtok("generate", "-", "--memory", model, *READ, "a.safetensors", stdin=TEXT)
    first = memtok("generate", "q", "--memory", "a.safetensors", "max_new_tokens=9", "--json")
    anew = memtok("generate", "q", "--memory", "a.safetensors", "max_new_tokens=9", "--json", "reset=true")
    fresh = memtok("generate", "q", "--memory", model, "max_new_tokens=9", "--json")
    state = [json.loads(ran.out)["state"] for ran in (first, anew, fresh)]
    assert state[1] == state[2] != state[0] and state[1]["bytes"] == 0
    assert json.loads(anew.out)["text"] == json.loads(fresh.out)["text"]


@pytest.mark.parametrize("how", [("temperature=1.5",), ("repetition_penalty=1.5", "history=20")])
def test_a_saved_continuation_goes_on_as_the_live_one(
    memtok: Memtok, model: str, how: tuple[str, ...]
) -> None:
    """Two commands through a file write what a session of Python does that is saved between."""
    memtok("generate", "go", "--memory", model, "--out", "a.safetensors", "max_new_tokens=11", *how)
    memtok("generate", "on", "--memory", "a.safetensors", "--out", "b.safetensors", "max_new_tokens=13", *how)
    live = session_file.opened(model, history=20 if "history=20" in how else 2048).session
    said = {"temperature": 1.5} if len(how) == 1 else {"repetition_penalty": 1.5, "history": 20}
    for text, count, name in (("go", 11, "a.safetensors"), ("on", 13, "b.safetensors")):
        live.absorb(live_ids(live, text))
        list(live.generate(max_new_tokens=count, **said))
        session_file.save(live, "live.safetensors")
        assert Path("live.safetensors").read_bytes() == Path(name).read_bytes()


def live_ids(session: object, text: str) -> object:
    import torch

    return torch.tensor([[2 + byte for byte in text.encode()]])


def test_json_is_one_document(memtok: Memtok, model: str) -> None:
    ran = memtok("generate", "-", "--memory", model, "--json", "max_new_tokens=10", stdin="what é is\n")
    document = json.loads(ran.out)
    assert list(document) == [
        "text", "tokens_in", "tokens_out", "segments", "bytes_in", "state", "tokens_per_second", "peak_mib",
    ]  # fmt: skip
    assert (document["tokens_in"], document["tokens_out"], document["bytes_in"]) == (11, 10, 11)
    assert document["segments"] == 1 and document["state"]["tokens"] == 21
    plain = memtok("generate", "-", "--memory", model, "max_new_tokens=10", stdin="what é is\n")
    assert plain.text == document["text"] + "\n"
    ran = memtok("generate", "-", "--memory", model, "--json", *READ, "s.safetensors", stdin="abc")
    assert json.loads(ran.out)["state"]["path"] == "s.safetensors" and json.loads(ran.out)["text"] == ""


def test_a_session_goes_through_a_pipe(memtok: Memtok, model: str) -> None:
    memtok("generate", "-", "--memory", model, *READ, "s.safetensors", stdin=TEXT)
    piped = memtok("generate", "-", "--memory", model, *READ, "-", stdin=TEXT)
    assert piped.out == Path("s.safetensors").read_bytes() and piped.code == 0
    ran = memtok("generate", "q", "--memory", "-", "max_new_tokens=9", stdin=piped.out)
    assert ran.code == 0
    assert ran.out == memtok("generate", "q", "--memory", "s.safetensors", "max_new_tokens=9").out


def test_suffix_stands_behind_the_input(memtok: Memtok, model: str) -> None:
    memtok(
        "generate", "-", "--memory", model, *READ, "a.safetensors", "suffix=\\nQ: where?", stdin="some text"
    )
    memtok("generate", "-", "--memory", model, *READ, "b.safetensors", stdin="some text\nQ: where?")
    a, b = (session_file.opened(name) for name in ("a.safetensors", "b.safetensors"))
    assert a.tail == b.tail == "some text\nQ: where?" and (a.read, b.read) == (9, 19)


def test_template_puts_the_input_into_a_turn(memtok: Memtok, tmp_path: Path) -> None:
    folder = tiny.save(tiny.tiny_llama(), tmp_path / "llama")
    path = str(tiny_rmt.of_folder(tmp_path / "m", folder))
    memtok("generate", "hi there", "--memory", path, *READ, "a.safetensors", "template=chat")
    session = session_file.opened("a.safetensors").session
    tokenizer = session.backbone.tokenizer
    assert tokenizer.decode(session.read[0].newest_T.tolist()) == "<s>u: hi there\n"
    ran = memtok(
        "generate", "-", "--memory", "a.safetensors", "template=chat", "--json", "max_new_tokens=1", stdin="x"
    )
    assert json.loads(ran.out)["tokens_in"] == len("u: x\na: ")


def test_errors_replace_counts(memtok: Memtok, model: str) -> None:
    bad = b"ab\xffcd \xe2\x82 e"
    ran = memtok(
        "generate", "-", "--memory", model, "--json", *READ, "a.safetensors", "errors=replace", stdin=bad
    )
    document = json.loads(ran.out)
    assert (document["replaced"], document["bytes_in"]) == (2, len(bad))
    assert session_file.opened("a.safetensors").tail == "ab\ufffdcd \ufffd e"


@pytest.mark.parametrize("bad", [b"\xff", b"\xe2\x82 "])
def test_a_bad_byte_on_a_block_edge_is_named(memtok: Memtok, tmp_path: Path, bad: bytes) -> None:
    path = str(tiny_rmt.artifact(tmp_path / "m", "rmt.segment=512", "model.context=1024"))
    edge = 2**16 - 1
    ran = memtok(
        "generate", "-", "--memory", path, *READ, "s.safetensors", stdin=b"a" * edge + bad + b"b" * 99
    )
    assert (ran.code, ran.out) == (3, b"")
    said = ran.err.splitlines()
    assert said[0] == f"error: not UTF-8 at byte {edge} of standard input"
    assert "iconv" in said[1] and not Path("s.safetensors").exists()


def test_a_line_of_ten_megabytes_without_spaces(memtok: Memtok, tmp_path: Path) -> None:
    """Words of a vocabulary: what no space ends is cut into pieces of 16,384 characters, each unknown."""
    path = str(tiny_rmt.artifact(tmp_path / "m", "task.name=copy", "task.length=8"))
    ran = memtok("generate", "-", "--memory", path, "--json", *READ, "s.safetensors", stdin="x" * 10_000_000)
    document = json.loads(ran.out)
    assert document["tokens_in"] == 1 + 10_000_000 // 16_384
    assert len(session_file.opened("s.safetensors").tail) == 10_000_000 % 16_384


@pytest.mark.parametrize(
    ("argv", "stdin", "code", "said"),
    [
        (["-"], "", 2, "nothing to read"),
        (["-", "max_new_tokens=0"], "a", 2, "--out FILE"),
        (["-", "--out", "-"], "a", 2, "max_new_tokens=0"),
        (["-", "max_new_tokens=0", "--out", "-", "--json"], "a", 2, "--json and --out -"),
        (["q", "max_new_token=3"], "", 2, "max_new_tokens"),
        (["q", "temprature=3"], "", 2, "temperature"),
        (["q", "prompt_lookup_num_tokens=3"], "", 2, "take tokens back"),
        (["q", "assistant_model=x"], "", 2, "take tokens back"),
        (["q", "temperature=-1"], "", 2, "temperature"),
        (["q", "stop=a", "stop_strings=b"], "", 2, "one key"),
        (["q", "save_every=3"], "", 2, "save_every"),
        (["q", "template=chat"], "", 2, "no chat template"),
        (["q", "--out", "no/such/folder"], "", 2, "no folder"),
        (["q", "--out", "notes.txt"], "", 2, "left alone"),
        (["q", "--out", "MODEL"], "", 2, "not a session"),
        (["q", "r"], "", 2, "quote the prompt"),
        (["q", "--memory", "MODEL"], "", 2, "read alone"),
        (["q", "--model", "tiny"], "", 2, "own language model"),
        (["-", "errors=ignore"], "a", 2, "errors"),
    ],
)
def test_what_is_wrong_is_said(
    memtok: Memtok, model: str, argv: list[str], stdin: str, code: int, said: str
) -> None:
    Path("notes.txt").write_text("mine")
    argv = [model if word == "MODEL" else word for word in argv]
    ran = memtok("generate", "--memory", model, *argv, stdin=stdin)
    assert (ran.code, ran.out) == (code, b""), ran.err
    assert said in ran.err and ran.err.startswith("error: ") and "Traceback" not in ran.err
    assert Path("notes.txt").read_text() == "mine"


def test_standard_input_is_one_thing(memtok: Memtok, model: str) -> None:
    data = Path(model).read_bytes()
    assert "both" in memtok("generate", "-", "--memory", "-", stdin=data).err
    assert memtok("generate", "q", "--memory", "-", "max_new_tokens=2", stdin=data).code == 0


def test_the_trained_model_is_not_written_over(
    memtok: Memtok, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Path(model).read_bytes()
    ran = memtok("generate", "q", "--memory", model, "--out", model)
    assert ran.code == 2 and Path(model).read_bytes() == before


def test_inspect_tells_how_far_it_is_without_torch(
    memtok: Memtok, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parent, "INLINE", 0)
    memtok("generate", "-", "--memory", model, *READ, "s.safetensors", stdin=TEXT)
    rows = dict(line.split(None, 1) for line in memtok("inspect", "s.safetensors").text.splitlines()[2:])
    assert rows["kind"] == "memory of rmt"
    assert [rows[key] for key in ("policy", "slots", "width", "segment")] == ["rmt", "2", "16", "16"]
    counts = header("s.safetensors").about["counts"]
    assert all(f"{counts[key]} {key}" in rows["read"] for key in ("tokens", "segments", "pending", "bytes"))
    assert Path(rows["parent"]).name == "memory.safetensors"
    rows = dict(line.split(None, 1) for line in memtok("inspect", model).text.splitlines()[2:])
    assert [rows[key] for key in ("kind", "policy", "slots", "width")] == ["model of rmt", "rmt", "2", "16"]
    probe = (
        "import sys; from memtoken_cli.cli import run; sys.exit(run(sys.argv[1:]) or 'torch' in sys.modules)"
    )
    root = str(Path(memtoken_cli.__file__).parents[1])
    argv = [sys.executable, "-c", probe, "inspect", "s.safetensors"]
    assert (
        subprocess.run(argv, env={**os.environ, "PYTHONPATH": root}, stdout=subprocess.DEVNULL).returncode
        == 0
    )
