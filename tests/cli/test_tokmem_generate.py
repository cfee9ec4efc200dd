"""`memtok generate` on a bank: keys checked from the header, traces, records of one's own, what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli_fixtures import Memtok
from tiny import save, tiny_llama
from tiny_bank import tiny_bank

import memtoken_cli
from memtoken_cli.commands import artifacts
from memtoken_cli.engine import models
from memtoken_cli.io import sink

BANK = "bank.safetensors"


@pytest.fixture
def bank(memtok: Memtok, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bank in the working directory, whose backbone is a tiny one in memory."""
    backbone = tiny_llama()
    monkeypatch.setattr(models, "load", lambda name, device=None, trust_remote_code=False: backbone)
    tiny_bank(backbone, "lda", segment_end="eoc", max_procedures=3).save(BANK, backbone)
    return BANK


def rows(out: bytes) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.splitlines()]


def test_one_query_with_its_trace(memtok: Memtok, bank: str) -> None:
    line = ("generate", "aaa al3", "--memory", bank, "max_new_tokens=6")
    ran = memtok(*line)
    assert ran.code == 0 and ran.err == "", ran.err
    traced = memtok(*line, "trace=true", "-q")
    assert traced.out == ran.out and traced.err.startswith("route 1  alpha  p=")
    assert "   next: " in traced.err
    document = json.loads(memtok(*line, "--json").out)
    assert document["output"] + "\n" == ran.text and document["seconds"] > 0
    assert document["routes"][0]["procedure"] == "alpha" and len(document["routes"][0]["alternatives"]) == 2
    assert document["segments"][0].keys() == {"text", "tokens", "ended_by"}
    assert document["memory_tokens"] >= 1 and document["prompt_tokens"] > 7


def test_an_answer_is_printed_as_it_comes(memtok: Memtok, bank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pipe as on a terminal, and the same bytes as when it waits to be whole."""
    written: list[bytes] = []
    real = sink._stdout
    monkeypatch.setattr(sink, "_stdout", lambda data: (written.append(data), real(data))[1])
    line = ("generate", "q", "--memory", bank, "procedures=alpha,beta", "max_new_tokens=6")
    ran = memtok(*line)
    pieces, waited = len(written), memtok(*line, "trace=true")
    assert ran.code == 0 and pieces > 4 and ran.out == waited.out == memtok(*line, tty=("stdout",)).out
    assert json.loads(memtok(*line, "--json").out)["output"] + "\n" == ran.text
    memtok(*line, "--out", "answer.txt")
    assert Path("answer.txt").read_bytes() == ran.out


def test_a_chain_is_a_line_a_segment(memtok: Memtok, bank: str) -> None:
    ran = memtok("generate", "q", "--memory", bank, "procedures=alpha,beta", "max_new_tokens=4", "--json")
    document = json.loads(ran.out)
    assert document["output"] == "\n".join(s["text"] for s in document["segments"])
    assert [route["forced"] for route in document["routes"]] == [True, True]
    piped = memtok("generate", "q", "--memory", bank, "pipe=alpha,beta", "max_new_tokens=4", "trace=true")
    assert piped.err == "route 1  alpha  forced\nroute 2  beta  forced\n"


RECORDS = """\
{"prompt": "first one", "procedures": "alpha"}
{"prompt": "second", "procedures": ["beta", "gamma"]}
{"prompt": "third", "procedures": "none"}
{"prompt": "fourth", "allow": ["delta"], "id": 7}
{"prompt": "fifth"}
"""


def test_records_with_procedures_of_their_own(memtok: Memtok, bank: str) -> None:
    Path("in.jsonl").write_text(RECORDS)
    line = ("generate", "--memory", bank, "input=in.jsonl", "max_new_tokens=5")
    mixed = memtok(*line)
    assert mixed.code == 0, mixed.err
    found = rows(mixed.out)
    assert [row["input"] for row in found] == ["first one", "second", "third", "fourth", "fifth"]
    routed = [[route["procedure"] for route in row["routes"]] for row in found]
    assert routed[:3] == [["alpha"], ["beta", "gamma"], []] and routed[3][0] == "delta"
    assert all("seconds" not in row for row in found)
    single = rows(memtok(*line, "batch=1").out)
    assert [row["output"] for row in single] == [row["output"] for row in found]
    piped = memtok("generate", "-", "--memory", bank, "max_new_tokens=5", stdin=RECORDS)
    assert piped.out == mixed.out
    assert memtok(*line).out == mixed.out, "the same queries give the same bytes"


def test_bad_records_are_named_before_a_model_is_loaded(
    memtok: Memtok, bank: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = '{"prompt": "a", "procedures": "alhpa"}\n{"prompt": "b", "allow": 3}\n{"input": "c"}\n'
    Path("in.jsonl").write_text(bad)
    ran = memtok("generate", "--memory", bank, "input=in.jsonl", "errors=skip", "max_new_tokens=2")
    assert ran.code == 4 and "in in.jsonl:1" in ran.err and "in in.jsonl:2" in ran.err
    assert [row["input"] for row in rows(ran.out)] == ["c"]
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("loaded"))
    ran = memtok("generate", "--memory", bank, "input=in.jsonl")
    assert (ran.code, ran.out) == (3, b"") and "did you mean alpha" in ran.err and "in.jsonl:1" in ran.err


def test_nothing_is_the_backbone(memtok: Memtok, bank: str) -> None:
    said = [
        memtok("generate", "aaa", "--memory", bank, "max_new_tokens=6", key).out
        for key in ("procedures=none", "deny=all", "deny=alpha,beta,gamma,delta,epsilon")
    ]
    assert len(set(said)) == 1 and said[0] != b"\n"


@pytest.mark.parametrize(
    ("keys", "code", "said"),
    [
        (["procedures=alhpa"], 2, "did you mean alpha"),
        (["pipe=alpha,zeta"], 2, "did you mean"),
        (["deny=nobody"], 2, "procedures: alpha"),
        (["procedures=alpha", "pipe=beta"], 2, "exclude each other"),
        (["procedures=auto!", "deny=all"], 2, "no procedure allowed"),
        (["procedure=alpha"], 2, "unknown key procedure"),
        (["labels=memory"], 2, "unknown key labels"),
        (["min_prob=2"], 2, "min_prob"),
        (["constrain=none"], 2, "closed-form"),
        (["input=in.jsonl"], 2, "leave one of them out"),
        (["max_new_tokens=4096"], 3, "do not fit"),
    ],
)
def test_what_is_wrong_is_said(memtok: Memtok, bank: str, keys: list[str], code: int, said: str) -> None:
    ran = memtok("generate", "q", "--memory", bank, *keys)
    assert (ran.code, ran.out) == (code, b"")
    assert said in ran.err and ran.err.startswith("error: ") and "Traceback" not in ran.err


def test_an_unknown_procedure_costs_no_torch(bank: str) -> None:
    program = (
        "import sys; from memtoken_cli.cli import run; "
        f"code = run(['generate', 'q', '--memory', '{bank}', 'procedures=alhpa']); "
        "print(code, 'torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(memtoken_cli.__file__).parents[1])}
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout == "2 False\n" and "did you mean alpha" in ran.stderr


def test_another_backbone_names_both_fingerprints(
    memtok: Memtok, bank: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tiny_llama(seed=5)
    monkeypatch.setattr(models, "load", lambda *_, **__: other)
    ran = memtok("generate", "q", "--memory", bank)
    ours = tiny_llama().fingerprint
    assert ran.code == 3 and ours[:12] in ran.err and other.fingerprint[:12] in ran.err


def test_another_dtype_warns(memtok: Memtok, bank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tiny_llama()
    other.model.to(torch.bfloat16)
    monkeypatch.setattr(models, "load", lambda *_, **__: other)
    ran = memtok("generate", "q", "--memory", bank, "max_new_tokens=2")
    assert ran.code == 0 and "made in float32, the model is in bfloat16" in ran.err


def test_two_banks_are_not_joined(memtok: Memtok, bank: str) -> None:
    ran = memtok("generate", "q", "--memory", bank, "--memory", bank)
    assert ran.code == 2 and "memtok bank merge" in ran.err


def test_a_bank_from_standard_input(memtok: Memtok, bank: str) -> None:
    wanted = memtok("generate", "aaa", "--memory", bank, "max_new_tokens=3").out
    ran = memtok("generate", "aaa", "--memory", "-", "max_new_tokens=3", stdin=Path(bank).read_bytes())
    assert (ran.code, ran.out) == (0, wanted)
    ran = memtok("generate", "--memory", "-", "procedures=nobody", "input=x", stdin=Path(bank).read_bytes())
    assert ran.code == 2 and "nobody" in ran.err


def test_the_earlier_rows_of_a_batch_are_answered(memtok: Memtok, bank: str) -> None:
    lines = '{"prompt": "one"}\n{"prompt": "two"}\nnot json\n{"prompt": "three"}\n'
    ran = memtok("generate", "-", "--memory", bank, "batch=8", "max_new_tokens=2", stdin=lines)
    assert ran.code == 3 and "in <stdin>:3" in ran.err
    assert [row["input"] for row in rows(ran.out)] == ["one", "two"]


def test_a_saved_model_is_found_by_its_folder(memtok: Memtok, tmp_path: Path) -> None:
    folder = save(tiny_llama(), tmp_path / "model")
    backbone = models.load(str(folder), "cpu", "float32")
    tiny_bank(backbone).save(BANK, backbone)
    ran = memtok("generate", "q", "--memory", BANK, "procedures=beta", "max_new_tokens=3", "--device", "cpu")
    assert ran.code == 0, ran.err
    assert artifacts.peek(BANK).header.model is not None
