"""What the tests of `memtok segment` share: a folder of series, prompts and a model that needs no weights."""

import csv
import io
from pathlib import Path

import pytest
from tiny_segment import Stub, write_walk

from memtoken_cli.methods.memprompttss import model

BANK = "walk.memory.safetensors"
PROMPTS = """\
{"t": 2.5, "label": "walk"}
{"t": 7.5, "label": "run"}
{"row": 1250, "label": "rest"}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """series.csv with its prompts, other.csv of the same states."""
    monkeypatch.setattr(model, "load_model", lambda name: Stub(name))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_walk(tmp_path / "series.csv", 3000)
    write_walk(tmp_path / "other.csv", 3000, seed=1)
    (tmp_path / "series.prompts.jsonl").write_text(PROMPTS)
    return tmp_path


def table(text: str) -> list[dict[str, str]]:
    """Rows of CSV."""
    return list(csv.DictReader(io.StringIO(text)))
