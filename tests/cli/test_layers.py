"""The commands over the real engine: a tiny model, and a method that keeps every token of the prompt."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from cli_fixtures import Memtok
from tiny import tiny_llama

from memtoken_cli import methods
from memtoken_cli.data.shots import Shots, Template, render
from memtoken_cli.engine import models
from memtoken_cli.engine.answer import answer
from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.engine.method import Made

MEMORY = "prompts.memory.safetensors"


class Keep:
    """compress: the prompt's own keys and values, all of them."""

    def compress(self, backbone: CausalLM, shots: Shots, *_: object) -> Made:
        template = Template()
        memory = backbone.prefill(render(shots, template, backbone.tokenizer).ids)
        return Made(memory, {"template": template.text, "labels": list(shots.labels) or None})

    answer = staticmethod(answer)


@pytest.fixture
def keep(monkeypatch: pytest.MonkeyPatch, toy: None, memtok: Memtok, shots: Path) -> Memtok:
    """memtok, with a memory compressed by `Keep` in MEMORY."""
    import memtok_toy

    spec = replace(memtok_toy.SPEC, needs_model=True, port="layers")
    monkeypatch.setattr(memtok_toy, "SPEC", spec)
    monkeypatch.setattr(memtok_toy, "load", Keep)
    monkeypatch.setattr(models, "load", lambda name, **_: tiny_llama())
    methods.discover.cache_clear()
    ran = memtok("compress", "prompts.jsonl", "--ratio", "1", "--method", "toy", "--seed", "1")
    assert ran.code == 0, ran.err
    return memtok


def test_labels_and_text(keep: Memtok) -> None:
    ran = keep("generate", "my card", "--memory", MEMORY, "labels=memory", "--json")
    row = json.loads(ran.out)
    assert row["output"] == max(row["scores"], key=row["scores"].get) and set(row["scores"]) == {
        "card",
        "rate",
    }
    lines = "my card\nthe rate\nlost\n"
    one_by_one = keep("generate", "-", "--memory", MEMORY, "max_new_tokens=4", "batch=1", stdin=lines)
    together = keep("generate", "-", "--memory", MEMORY, "max_new_tokens=4", stdin=lines)
    assert (together.code, together.out) == (0, one_by_one.out) and together.text.count("\n") == 3


def test_joined_memories_are_read_and_warned_of(keep: Memtok) -> None:
    alone = json.loads(keep("generate", "card", "--memory", MEMORY, "labels=memory", "--json").out)
    ran = keep("generate", "card", "--memory", MEMORY, "--memory", MEMORY, "labels=memory", "--json")
    assert ran.code == 0 and "approximate" in ran.err
    assert json.loads(ran.out)["scores"] != alone["scores"]


def test_evaluate_beside_the_baselines(keep: Memtok, shots: Path) -> None:
    line = ("evaluate", MEMORY, "--data", "prompts.jsonl", "--json")
    assert [row["method"] for row in json.loads(keep(*line).out)["rows"]] == ["toy", "none"]
    rows = {row["method"]: row for row in json.loads(keep(*line, "shots=prompts.jsonl").out)["rows"]}
    assert {"full", "toy", "fewer", "none"} == set(rows)
    assert rows["toy"]["agreement"] == 1.0 and rows["toy"]["accuracy"] == rows["full"]["accuracy"]
