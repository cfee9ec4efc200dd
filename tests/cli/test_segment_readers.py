"""The reader matrix of `memtok segment`: every layout of a series gives a row for each of its rows, with the
time as written; what cannot be read says where, and leaves with 3."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli_fixtures import Memtok, memtok  # noqa: F401
from tiny_segment import Stub

from memtoken_cli.methods.memprompttss import model

ROWS = 240
X_TC = np.round(np.random.default_rng(0).normal(size=(ROWS, 2)) + (np.arange(ROWS)[:, None] // 80 % 2) * 4, 4)
PROMPTS = '{"row": 40, "label": "walk"}\n{"row": 120, "label": "走る, \\"fast\\"\\nnow"}\n'


@pytest.fixture(autouse=True)
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that needs no weights."""
    monkeypatch.setattr(model, "load_model", lambda name: Stub(name))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def table(
    times: list[str] | None, sep: str = ",", decimal: str = ".", header: bool = True, end: str = "\n"
) -> str:
    names = [*(["time"] if times else []), "acc x", "acc y"]
    lines = [sep.join(names)] if header else []
    for i, row in enumerate(X_TC):
        cells = [*([times[i]] if times else []), *(f"{v}".replace(".", decimal) for v in row)]
        lines.append(sep.join(cells))
    return end.join(lines) + end


SECONDS = [f"{i / 50:.2f}" for i in range(ROWS)]
UTC = [f"2024-05-01T12:00:{i / 50:06.3f}Z" for i in range(ROWS)]
ZONED = [f"2024-05-01 14:00:{i / 50:06.3f}+02:00" for i in range(ROWS)]
EPOCH = [f"{1_700_000_000 + i / 50:.2f}" for i in range(ROWS)]
AUTUMN = [
    f"2024-10-27T02:{59 if i < 120 else 0:02d}:{i % 120 // 2:02d}{'+02:00' if i < 120 else '+01:00'}"
    for i in range(ROWS)
]
SPRING = [
    f"2024-03-31T{1 if i < 60 else 3:02d}:{59 if i < 60 else i // 60 - 1:02d}:{i % 60:02d}"
    for i in range(ROWS)
]

READABLE: dict[str, tuple[Callable[[], str], list[str] | None]] = {
    "comma": (lambda: table(SECONDS), SECONDS),
    "semicolon": (lambda: table(SECONDS, ";"), SECONDS),
    "tab": (lambda: table(SECONDS, "\t"), SECONDS),
    "decimal comma": (
        lambda: table([t.replace(".", ",") for t in SECONDS], ";", ","),
        [t.replace(".", ",") for t in SECONDS],
    ),
    "no header": (lambda: table(None, header=False), None),
    "no time": (lambda: table(None), None),
    "byte order mark": (lambda: "\ufeff" + table(SECONDS), SECONDS),
    "CRLF": (lambda: table(SECONDS, end="\r\n"), SECONDS),
    "UTC": (lambda: table(UTC), UTC),
    "zone": (lambda: table(ZONED), ZONED),
    "epoch": (lambda: table(EPOCH), EPOCH),
    "clocks back, with zones": (lambda: table(AUTUMN), AUTUMN),
    "clocks forward": (lambda: table(SPRING), SPRING),
}


@pytest.mark.parametrize("layout", READABLE)
@pytest.mark.parametrize("piped", [False, True])
def test_a_row_for_every_row(memtok: Memtok, tmp_path: Path, layout: str, piped: bool) -> None:  # noqa: F811
    make, times = READABLE[layout]
    (tmp_path / "series.csv").write_text(make(), encoding="utf-8", newline="")
    (tmp_path / "p.jsonl").write_text(PROMPTS)
    source = ("-", make()) if piped else ("series.csv", "")
    ran = memtok("segment", source[0], "--prompts", "p.jsonl", "rows=states", stdin=source[1])
    assert ran.code == 0, ran.err
    rows = list(csv.DictReader(io.StringIO(ran.text, newline="")))
    assert len(rows) == ROWS
    first = next(iter(rows[0]))
    assert first == ("time" if times else "row")
    assert [row[first] for row in rows] == (times or [str(i) for i in range(ROWS)])
    assert rows[40]["state"] == "walk" and rows[40]["prompted"] == "1"
    assert rows[120]["state"] == '走る, "fast"\nnow' and rows[0]["prompted"] == "0"


REFUSED = {
    "no rows": ("", "the series has no rows"),
    "header alone": ("t,a\n", "the series has no rows"),
    "constant": ("t,a\n0,5\n1,5\n2,5\n", "no channel left: channel 'a' is constant"),
    "all NaN": ("t,a\n0,nan\n1,\n2,inf\n", "no channel left: channel 'a' is empty"),
    "text": ("t,a\n0,5\n1,x\n2,5\n", "'x' is no number, in column 'a' in series.csv:3"),
    "cut off": ("t,a,b\n0,5,1\n1,5", "2 values instead of 3 in series.csv:3"),
    "backwards": ("t,a\n0,5\n1,6\n0.5,7\n", "time goes backwards in column 't': 0.5 after 1 in series.csv:4"),
    "clocks back": ("time,a\n2024-10-27T02:59:59,1\n2024-10-27T02:00:00,2\n", "time goes backwards"),
    "no date": ("time,a\n1st of May,1\n2nd of May,2\n", "is not a number or an ISO-8601 date"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read(memtok: Memtok, tmp_path: Path, case: str) -> None:  # noqa: F811
    text, what = REFUSED[case]
    (tmp_path / "series.csv").write_text(text)
    (tmp_path / "p.jsonl").write_text('{"row": 0, "label": "x"}\n')
    ran = memtok("segment", "series.csv", "--prompts", "p.jsonl")
    assert ran.code == 3 and ran.out == b""
    assert what in ran.err and "series.csv" in ran.err and "\nhint: " in ran.err


def test_one_row(memtok: Memtok, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "series.csv").write_text("t,a\n7,5\n")
    ran = memtok("segment", "series.csv", "--prompts", "-", stdin='{"t": 7, "label": "x"}')
    assert ran.code == 0, ran.err
    assert ran.text.splitlines()[1].startswith("series,default,7,8,0,1,x,")


def test_long_gaps_carry_no_state(memtok: Memtok, tmp_path: Path) -> None:  # noqa: F811
    lines = table(SECONDS).splitlines()
    lines[101:171] = [f"{SECONDS[i]},," for i in range(100, 170)]
    (tmp_path / "series.csv").write_text("\n".join(lines))
    (tmp_path / "p.jsonl").write_text('{"row": 40, "label": "walk"}\n{"row": 200, "label": "run"}\n')
    ran = memtok("segment", "series.csv", "--prompts", "p.jsonl", "rows=states")
    assert ran.code == 0 and "70 rows lie in longer gaps and carry no state" in ran.err
    states = [row["state"] for row in csv.DictReader(io.StringIO(ran.text))]
    assert states[100:170] == [""] * 70 and "" not in states[:100] + states[170:]


def test_irregular_sampling_comes_back_on_the_rows_of_the_file(memtok: Memtok, tmp_path: Path) -> None:  # noqa: F811
    times = [f"{t:.3f}" for t in np.cumsum(np.where(np.arange(ROWS) % 3 == 0, 2.0, 1.0))]
    (tmp_path / "series.csv").write_text(table(times))
    (tmp_path / "p.jsonl").write_text(PROMPTS)
    ran = memtok("segment", "series.csv", "--prompts", "p.jsonl", "rows=states")
    assert ran.code == 0 and "sampling is irregular" in ran.err
    rows = list(csv.DictReader(io.StringIO(ran.text, newline="")))
    assert [row["time"] for row in rows] == times and rows[40]["state"] == "walk"


def test_other_files(memtok: Memtok, tmp_path: Path) -> None:  # noqa: F811
    np.savez(tmp_path / "x.npz", x=X_TC)
    np.savetxt(tmp_path / "x.txt", X_TC[:, 0])
    (tmp_path / "p.jsonl").write_text(PROMPTS)
    for name in ("x.npz", "x.txt"):
        ran = memtok("segment", name, "--prompts", "p.jsonl")
        assert ran.code == 0, ran.err
        assert json.loads(ran.text.splitlines()[-1])["end_row"] == ROWS


@pytest.mark.parametrize(
    ("record", "what"),
    [
        ('{"t": 99, "label": "x"}', "time 99 is outside the series (column 'time' 0 to 4.78) in p.jsonl:2"),
        ('{"t": 1, "lable": "x"}', "unknown field 'lable' of a prompt in p.jsonl:2"),
        ('{"t": 1', "not JSON"),
    ],
)
def test_faulty_prompts(memtok: Memtok, tmp_path: Path, record: str, what: str) -> None:  # noqa: F811
    (tmp_path / "series.csv").write_text(table(SECONDS))
    (tmp_path / "p.jsonl").write_text('{"t": 1, "label": "walk"}\n' + record + "\n")
    ran = memtok("segment", "series.csv", "--prompts", "p.jsonl")
    assert ran.code == 3 and what in ran.err and "p.jsonl:2" in ran.err and ran.out == b""
    skipped = memtok("segment", "series.csv", "--prompts", "p.jsonl", "bad_prompts=skip")
    assert skipped.code == 4 and what in skipped.err and b",walk," in skipped.out
