"""`memtok segment --memory`: what a bank keeps, gives to other series, and survives; sessions; locks."""

import json
import threading
from pathlib import Path

import pytest
from cli_fixtures import Memtok, memtok  # noqa: F401
from segment_fixtures import BANK, PROMPTS, folder, table  # noqa: F401
from tiny_segment import NAMES

pytestmark = pytest.mark.usefixtures("folder")


def test_a_bank_labels_another_series_and_is_left_alone(memtok: Memtok) -> None:  # noqa: F811
    assert memtok("segment", "series.csv", "--prompts", "--memory", BANK).code == 0
    data = Path(BANK).read_bytes()
    ran = memtok("segment", "other.csv", "--memory", BANK, "--plot", "other.html")
    assert ran.code == 0 and {row["state"] for row in table(ran.text)} == set(NAMES)
    page = Path("other.html").read_text()
    assert "plot: other.html" in ran.err and "http" not in page and "<script src" not in page
    assert Path(BANK).read_bytes() == data
    assert memtok("segment", "series.csv", "--prompts", "--memory", BANK, "--plot", "s.png").code == 0
    assert Path(BANK).read_bytes() == data and Path("s.png").read_bytes().startswith(b"\x89PNG")
    piped = memtok("segment", "other.csv", "--memory", "-", stdin=data)
    assert piped.out == ran.out and not Path("-").exists()
    through = memtok("segment", "-", "--memory", BANK, "series=other", stdin=Path("other.csv").read_bytes())
    assert through.out == ran.out


def test_suggestions_are_prompts_to_fill_in(memtok: Memtok) -> None:  # noqa: F811
    memtok("segment", "series.csv", "--prompts", "--memory", BANK)
    ran = memtok("segment", "series.csv", "--memory", BANK, "rows=suggest", "suggest=2")
    found = [json.loads(line) for line in ran.text.splitlines()]
    assert 1 <= len(found) <= 2 and all(line["label"] is None and line["guess"] in NAMES for line in found)
    unfilled = memtok("segment", "series.csv", "--prompts", "-", "--memory", BANK, stdin=ran.text)
    assert unfilled.code == 0 and unfilled.err.count("have no label yet") == 1, unfilled.err
    filled = "".join(json.dumps({**line, "label": line["guess"]}) + "\n" for line in found)
    again = memtok("segment", "series.csv", "--prompts", "-", "--memory", BANK, stdin=filled)
    assert again.code == 0, again.err
    assert sum(int(row["prompts"]) for row in table(again.text)) == 3 + len(found)


def test_sync_and_add_and_deletions(memtok: Memtok) -> None:  # noqa: F811
    memtok("segment", "series.csv", "--prompts", "--memory", BANK)
    first = Path(BANK).read_bytes()
    Path("two.jsonl").write_text("".join(PROMPTS.splitlines(keepends=True)[:2]))
    memtok("segment", "series.csv", "--prompts", "two.jsonl", "--memory", BANK, "prompts_mode=add")
    assert Path(BANK).read_bytes() == first
    memtok("segment", "series.csv", "--prompts", "two.jsonl", "--memory", BANK)
    two = Path(BANK).read_bytes()
    memtok("segment", "series.csv", "--prompts", "two.jsonl", "--memory", "fresh")
    assert Path("fresh").read_bytes() == two != first
    memtok("segment", "series.csv", "--prompts", "--memory", BANK)
    gone = '{"label": "rest", "delete": true}\n'
    assert memtok("segment", "series.csv", "--prompts", "-", "--memory", BANK, stdin=gone).code == 0
    assert Path(BANK).read_bytes() == two


def test_inspect_counts_what_the_bank_holds_without_torch(memtok: Memtok) -> None:  # noqa: F811
    memtok("segment", "series.csv", "--prompts", "--memory", BANK)
    ran = memtok("inspect", BANK)
    for told in ("level default", "rest 1, run 1, walk 1", "series series", "3000 rows, 3 prompts"):
        assert told in ran.text
    [run] = [line.split() for line in ran.text.splitlines() if line.split()[1:2] == ["751"]]
    assert {"run", "series", "label", "default"} <= set(run)
    header = json.loads(memtok("inspect", BANK, "--json").text)
    assert [row["labels"] for row in header["about"]["rows"]] == [["walk"], ["run"], ["rest"]]
    assert header["about"]["series"][0]["order"] == {"default": ["walk", "run", "rest"]}


SESSION = """\
{"segments": true, "id": 1}
{"prompt": {"row": 40, "label": "walk", "id": "p7"}}

{"retract": "p7"}
{"undo": true}
{"promt": {}}
{"prompt": {"row": 40000, "label": "walk"}}
not json
{"states": true}
{"suggest": 2}
{"save": true}
{"quit": true}
{"segments": true}
"""


def test_a_session_answers_line_by_line(memtok: Memtok) -> None:  # noqa: F811
    ran = memtok("segment", "series.csv", "--prompts", "--memory", BANK, "session=true", stdin=SESSION)
    answers = [json.loads(line) for line in ran.text.splitlines()]
    assert ran.code == 0 and all(a["latency_ms"] >= 0 for a in answers)
    assert [a["ok"] for a in answers] == [True] * 4 + [False] * 3 + [True] * 4
    assert answers[0]["id"] == 1 and len(answers[0]["segments"]) == 6
    assert [a["prompts"] for a in answers[1:4]] == [4, 3, 4]
    assert answers[4]["hint"] == "did you mean prompt?" and "40000" in answers[5]["error"]
    assert answers[-1]["request"] == "quit"
    rows = json.loads(memtok("inspect", BANK, "--json").text)["about"]["rows"]
    assert "p7" in [row["name"] for row in rows]


def test_a_session_is_told_what_a_request_looks_like(memtok: Memtok) -> None:  # noqa: F811
    ran = memtok("segment", "series.csv", "session=true", stdin="what now\n[1]\n")
    answers = [json.loads(line) for line in ran.text.splitlines()]
    assert [(a["ok"], a["hint"]) for a in answers] == [(False, 'such as {"segments": true}')] * 2


def test_a_bank_of_another_model_is_refused_or_rebuilt(
    memtok: Memtok,  # noqa: F811
) -> None:
    memtok("segment", "series.csv", "--prompts", "--memory", BANK)
    ran = memtok("segment", "series.csv", "--memory", BANK, "model=new")
    assert ran.code == 3 and "tss-base" in ran.err and "new" in ran.err and "rebuild=true" in ran.err
    ran = memtok("segment", "series.csv", "--memory", BANK, "model=new", "rebuild=true")
    assert ran.code == 0, ran.err
    memtok("segment", "series.csv", "--prompts", "--memory", "fresh", "model=new")
    assert Path(BANK).read_bytes() == Path("fresh").read_bytes()
    Path("series.csv").rename("moved.csv")
    ran = memtok("segment", "other.csv", "--memory", BANK, "rebuild=true")
    assert ran.code == 3 and "series is not at hand" in ran.err


def test_a_series_that_grew_is_encoded_again_and_one_that_shrank_is_told(memtok: Memtok) -> None:  # noqa: F811
    memtok("segment", "series.csv", "--prompts", "--memory", BANK)
    lines = Path("series.csv").read_text().splitlines(keepends=True)
    more = [f"{30 + i / 100:.2f},0,0,0\n" for i in range(100)]
    Path("series.csv").write_text("".join([*lines, *more]))
    ran = memtok("segment", "series.csv", "--memory", BANK)
    assert ran.code == 0 and "3 prompts encoded again" in ran.err
    memtok("segment", "series.csv", "--prompts", "--memory", "fresh")
    assert Path(BANK).read_bytes() == Path("fresh").read_bytes()
    Path("series.csv").write_text("".join(lines[:1000]))
    ran = memtok("segment", "series.csv", "--memory", BANK)
    assert ran.code == 3 and "lies beyond" in ran.err
    Path("two.jsonl").write_text("".join(PROMPTS.splitlines(keepends=True)[:2]))
    assert memtok("segment", "series.csv", "--prompts", "two.jsonl", "--memory", BANK).code == 0


def test_a_locked_bank_is_75(memtok: Memtok, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    from memtoken_cli.io.lock import file_lock
    from memtoken_cli.methods.memprompttss import product

    monkeypatch.setattr(product, "WAIT", 0.1)
    with file_lock(BANK):
        ran = memtok("segment", "series.csv", "--prompts", "--memory", BANK)
    assert ran.code == 75 and "in use by process" in ran.err


def test_a_bank_that_another_process_holds_is_waited_for(memtok: Memtok) -> None:  # noqa: F811
    """Two that add at once both find their prompts in it."""
    from memtoken_cli.io.lock import file_lock
    from memtoken_cli.methods.memprompttss import bank_file

    memtok("segment", "series.csv", "--prompts", "--memory", "later")
    memtok("segment", "other.csv", "--prompts", "-", "--memory", BANK, stdin=PROMPTS)
    held, ended = threading.Event(), threading.Event()

    def put() -> None:
        with file_lock(BANK):
            held.set()
            ended.wait(1.0)
            bank_file.save(bank_file.load("later"), BANK)

    other = threading.Thread(target=put)
    other.start()
    assert held.wait(30)
    ran = memtok(
        "segment", "other.csv", "--prompts", "-", "--memory", BANK, stdin='{"row": 5, "label": "walk"}'
    )
    other.join()
    assert ran.code == 0 and set(bank_file.load(BANK).series) == {"series", "other"}, ran.err
