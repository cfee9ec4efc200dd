"""`memtok segment` from the outside: the lines of the contract, formats, levels, and how errors are told."""

import itertools
import json
from pathlib import Path

import pytest
from cli_fixtures import Memtok, memtok  # noqa: F401
from segment_fixtures import BANK, PROMPTS, folder, table  # noqa: F401
from tiny_segment import NAMES

pytestmark = pytest.mark.usefixtures("folder")


def test_a_bare_prompts_is_the_file_beside(memtok: Memtok) -> None:  # noqa: F811
    ran = memtok("segment", "series.csv", "--prompts")
    assert ran.code == 0, ran.err
    rows = table(ran.text)
    assert [row["state"] for row in rows] == ["walk", "run", "rest", "walk", "rest", "run"]
    assert ran.text.splitlines()[0] == (
        "series,level,start,end,start_row,end_row,state,confidence,prompts,evidence"
    )
    assert [(row["start_row"], row["end_row"]) for row in rows][-1] == (rows[-1]["start_row"], "3000")
    assert rows[0]["start"] == "0" and rows[-1]["end"] == "30" and rows[0]["prompts"] == "1"
    assert all(a["end_row"] == b["start_row"] for a, b in itertools.pairwise(rows))
    assert len(rows[0]["evidence"].split()) == 3
    assert memtok("segment", "--prompts", "series.prompts.jsonl", "series.csv").out == ran.out
    assert memtok("segment", "smooth=1", "series.csv", "--prompts", "order=off").out == ran.out
    assert memtok("segment", "--prompts=series.prompts.jsonl", "--", "series.csv").out == ran.out


def test_without_prompts_it_is_unsupervised_and_says_so(memtok: Memtok) -> None:  # noqa: F811
    ran = memtok("segment", "series.csv")
    assert ran.code == 0 and "no prompts: states of series found without them" in ran.err
    assert {row["state"] for row in table(ran.text)} <= {"s1", "s2", "s3", "s4", "s5"}
    Path("series.prompts.jsonl").write_text("\n")
    again = memtok("segment", "series.csv", "--prompts")
    assert again.out == ran.out and "holds no prompts" in again.err
    assert memtok("segment", "series.csv", "-q").err == ""


def test_states_has_one_row_an_input_row_with_its_time(memtok: Memtok) -> None:  # noqa: F811
    line = '{"t": 15.01, "label": "run"}\n'
    ran = memtok(
        "segment", "series.csv", "--prompts", "-", "--memory", BANK, "rows=states", "--out", "states.csv",
        stdin=PROMPTS + line,
    )  # fmt: skip
    assert (ran.code, ran.text) == (0, "states.csv\n"), ran.err
    rows = table(Path("states.csv").read_text())
    given = [row.split(",")[0] for row in Path("series.csv").read_text().splitlines()[1:]]
    assert [row["t"] for row in rows] == given
    assert [i for i, row in enumerate(rows) if row["prompted"] == "1"] == [250, 750, 1250, 1501]
    assert (rows[1501]["state"], rows[250]["state"]) == ("run", "walk")
    assert set(rows[0]) == {"t", "state", "confidence", "prompted"}
    jsonl = memtok("segment", "series.csv", "--memory", BANK, "rows=states", "format=jsonl")
    lines = [json.loads(text) for text in jsonl.text.splitlines()]
    assert [(r["t"], r["state"]) for r in lines] == [(float(row["t"]), row["state"]) for row in rows]


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("cuda:99", "there is no cuda:99 on this machine"),
        ("mps", "segment does not encode on mps"),
        ("tpu7", "'tpu7' is not a device"),
    ],
)
def test_a_device_that_is_not_there(memtok: Memtok, device: str, said: str) -> None:  # noqa: F811
    ran = memtok("segment", "no such series.csv", "--device", device)
    assert ran.code == 3  # files first
    ran = memtok("segment", "series.csv", "--device", device)
    assert (ran.code, ran.out) == (2, b"") and ran.err.startswith(f"error: {said}\nhint: --device cpu")
    assert memtok("segment", "series.csv", "--device", "cpu").code == 0


def test_json_is_one_document(memtok: Memtok) -> None:  # noqa: F811
    memtok("segment", "series.csv")
    ran = memtok("segment", "series.csv", "--prompts", "--json")
    found = json.loads(ran.text)
    assert set(found) == {"series", "memory", "levels", "suggest", "report"}
    assert len(found["levels"]["default"]["segments"]) == 6 and found["report"]["encoded"] == 0
    assert found["levels"]["default"]["segments"][0]["evidence"][0].keys() == {"id", "weight"}


@pytest.mark.parametrize("form", ["labelstudio", "audacity", "changepoints", "jsonl", "csv", "parquet"])
def test_every_format_is_written(memtok: Memtok, form: str) -> None:  # noqa: F811
    ran = memtok("segment", "series.csv", "--prompts", f"format={form}")
    assert ran.code == 0 and len(ran.out) > 20, ran.err
    if form == "parquet":
        import pyarrow.parquet

        memtok("segment", "series.csv", "--prompts", "rows=states", "--out", "s.parquet")
        assert pyarrow.parquet.read_table("s.parquet").num_rows == 3000


def test_the_bytes_depend_neither_on_chunks_nor_on_the_cache(memtok: Memtok) -> None:  # noqa: F811
    lines = [
        memtok("segment", "series.csv", "--prompts", "rows=states", *more).out
        for more in ((), (), ("cache=off",), ("chunk=1000",), ("chunk=4097",), ("cache=here",))
    ]
    assert len(set(lines)) == 1 and Path("here").is_dir()


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("series.csv rows=statse", 2, "did you mean states"),
        ("series.csv sries=a", 2, "did you mean series"),
        ("series.csv --plot a.pdf", 2, "unknown kind of picture"),
        ("series.csv min_len=2m", 2, "2.5s"),
        ("series.csv hierarchy={}x", 2, "hierarchy"),
        ("series.csv capacity=0", 2, "capacity"),
        ("series.csv rows=states format=audacity", 2, "holds segments, not states"),
        ("- --prompts -", 2, "only one of series, prompts and memory"),
        ("- --prompts", 2, "standard input"),
        ("series.csv --memory - --prompts -", 2, "only one of"),
        ("- session=true", 2, "standard input"),
        ("series.csv session=true --json", 2, "line by line"),
        ("series.csv other.csv", 2, "more than one series"),
        ("", 2, "no series"),
        ("nowhere.csv", 3, "no such file: nowhere.csv"),
        ("other.csv --prompts", 3, "other.prompts.jsonl"),
        ("other.csv --prompts none.jsonl", 3, "none.jsonl"),
        ("series.csv --memory series.csv", 3, "series.csv"),
    ],
)
def test_what_is_wrong_is_told(memtok: Memtok, line: str, code: int, said: str) -> None:  # noqa: F811
    ran = memtok("segment", *line.split())
    assert ran.code == code and said in ran.err and ran.out == b"", ran.err
    assert not Path(BANK).exists()


def test_a_missing_sidecar_comes_with_a_line_to_type(memtok: Memtok) -> None:  # noqa: F811
    ran = memtok("segment", "other.csv", "--prompts")
    assert """echo '{"t": 12.4, "label": "walk"}' > other.prompts.jsonl""" in ran.err


def test_bad_prompts_stop_or_are_skipped_and_counted(memtok: Memtok) -> None:  # noqa: F811
    Path("series.prompts.jsonl").write_text(PROMPTS + '{"t": 999, "label": "walk"}\n{"t": 1}\n')
    ran = memtok("segment", "series.csv", "--prompts")
    assert (ran.code == 3 and "series.prompts.jsonl:4" in ran.err) or "series.prompts.jsonl:5" in ran.err
    ran = memtok("segment", "series.csv", "--prompts", "bad_prompts=skip")
    assert ran.code == 4 and len(table(ran.text)) == 6
    assert "series.prompts.jsonl:4" in ran.err and "series.prompts.jsonl:5" in ran.err


def test_gaps_dates_and_irregular_steps_come_back_as_the_file_has_them(memtok: Memtok) -> None:  # noqa: F811
    lines = Path("series.csv").read_text().splitlines()[1:]
    cells = [line.split(",")[1:] for line in lines]
    dated = [f"2024-01-01T00:{i // 60:02d}:{i % 60:02d}Z" for i in range(3000)]
    for i in range(1100, 1200):
        cells[i][0] = ""
    Path("iso.csv").write_text(
        "time,x,y,z\n" + "".join(f"{t},{','.join(row)}\n" for t, row in zip(dated, cells, strict=True))
    )
    said = '{"row": 250, "label": "walk"}\n{"t": "2024-01-01T00:12:30Z", "label": "run"}\n'
    ran = memtok("segment", "iso.csv", "--prompts", "-", "rows=states", stdin=said)
    rows = table(ran.text)
    assert [row["time"] for row in rows] == dated
    assert [i for i, row in enumerate(rows) if row["state"] == ""] == list(range(1100, 1200))
    assert rows[750]["prompted"] == "1" and rows[1150]["confidence"] == ""
    found = table(memtok("segment", "iso.csv", "--prompts", "-", stdin=said).text)
    gap = next(row for row in found if row["state"] == "")
    assert (gap["start_row"], gap["end_row"], gap["start"]) == ("1100", "1200", dated[1100])
    assert found[0]["start"] == dated[0] and found[-1]["end"] == "2024-01-01T00:50:00Z"
    jittered = [f"{i + 0.4 * (i % 2) + (i // 7) % 3 / 5:.1f}" for i in range(3000)]
    Path("odd.csv").write_text(
        "t,x,y,z\n" + "".join(f"{t},{','.join(row)}\n" for t, row in zip(jittered, cells, strict=True))
    )
    ran = memtok("segment", "odd.csv", "--prompts", "-", "rows=states", stdin=PROMPTS.splitlines()[2])
    rows = table(ran.text)
    assert "irregular" in ran.err and [row["t"] for row in rows] == jittered
    marked = [i for i, row in enumerate(rows) if row["prompted"] == "1"]
    assert 1250 in marked and len(marked) <= 2  # two rows of the file may lie in one of those in hand


def test_levels_and_hierarchies_are_columns(memtok: Memtok) -> None:  # noqa: F811
    tree = '{"gait": ["walk", "run"]}'
    ran = memtok("segment", "series.csv", "--prompts", f"hierarchy={tree}", "rows=states")
    rows = table(ran.text)
    assert list(rows[0])[-2:] == ["state.coarse", "confidence.coarse"]
    parents = {"walk": "gait", "run": "gait", "rest": "rest"}
    assert all(row["state.coarse"] == parents[row["state"]] for row in rows)
    assert all(float(row["confidence.coarse"]) >= float(row["confidence"]) - 1e-3 for row in rows)


def test_a_label_column_is_a_list_of_prompts(memtok: Memtok) -> None:  # noqa: F811
    lines = Path("series.csv").read_text().splitlines()
    label = {250: "walk", 251: "walk", 750: "run", 1250: "rest"}
    body = [f"{line},{label.get(i, '')}" for i, line in enumerate(lines[1:])]
    Path("series.csv").write_text("\n".join([lines[0] + ",note", *body]) + "\n")
    ran = memtok("segment", "series.csv", "label_col=note", "--memory", BANK)
    assert ran.code == 0 and {row["state"] for row in table(ran.text)} == set(NAMES), ran.err
    assert len(json.loads(memtok("inspect", BANK, "--json").text)["about"]["rows"]) == 3


def test_short_segments_are_merged_but_what_a_prompt_shows_stays(memtok: Memtok) -> None:  # noqa: F811
    free = table(memtok("segment", "series.csv", "--prompts").text)
    rows = table(memtok("segment", "series.csv", "--prompts", "min_len=600").text)
    assert memtok("segment", "series.csv", "--prompts", "min_len=6s").text.count("\n") == len(rows) + 1
    assert len(rows) < len(free) and [row["state"] for row in rows][:2] == ["walk", "run"]
    assert {row["state"] for row in rows} == set(NAMES)
