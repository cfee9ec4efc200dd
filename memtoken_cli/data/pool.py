"""Pools of labelled records, and seeded draws of a many-shot task from them: classes, shots, queries. No
torch here."""

from __future__ import annotations

import csv
import hashlib
import io
import random
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

from memtoken_cli.data.shots import Query, Shot, Shots, read_queries
from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.io.records import decode, iter_lines, source_name


@dataclass(frozen=True)
class Draw:
    """One task: the shots in their shuffled order, and queries with their right labels, none of them a
    shot."""

    shots: Shots
    queries: tuple[Query, ...]
    seed: int


def read_pool(path: str | Path) -> list[Query]:
    """Labelled records of a JSONL file {"input", "output"} or a CSV file with a header (columns `input` and
    `output`, otherwise the first two). Raises DataError at file:line where a record has no label."""
    records = _read_csv(path) if str(path).endswith(".csv") else read_queries(path)
    for record in records:
        if record.output is None:
            where = f"{source_name(path)}:{record.line}"
            raise DataError(
                'a record without "output"', hint="every record of a pool needs its label", where=where
            )
    return records


def _read_csv(path: str | Path) -> list[Query]:
    name = source_name(path)
    text = "".join(decode(line, f"{name}:{number}") + "\n" for number, line in iter_lines(path))
    reader = csv.reader(io.StringIO(text), strict=True)
    try:
        header = next(reader, [])
        columns = [header.index(c) if c in header else i for i, c in enumerate(("input", "output"))]
        out = []
        for row in reader:
            if len(row) <= max(columns) or not all(row[c].strip() for c in columns):
                raise DataError("a row without its text or label", where=f"{name}:{reader.line_num}")
            out.append(Query(row[columns[0]].strip(), row[columns[1]].strip(), reader.line_num))
    except csv.Error as error:
        raise DataError(f"not CSV: {error}", where=f"{name}:{reader.line_num}") from None
    if not out:
        raise DataError(
            "no records: the file is empty", hint="a header line and one record a line", where=name
        )
    return out


def draw(
    pool: Sequence[Query],
    *,
    classes: int,
    per_class: int,
    queries: int,
    seed: int,
    test: Sequence[Query] | None = None,
    distinct: Callable[[str], Hashable] | None = None,
) -> Draw:
    """`per_class` shots of each of `classes` labels, shuffled, and up to `queries` others of the same labels.

    Queries come from `test` where it is given, otherwise from what is left of the pool; never a text that is
    a shot. distinct: labels are drawn so that this key (their first token, say) is theirs alone. The same
    seed draws the same. Raises UsageError where the pool has too few classes, DataError where no query is
    left.
    """
    rng = random.Random(seed)
    by_label: dict[str, dict[str, Query]] = {}
    for record in pool:
        by_label.setdefault(record.output or "", {}).setdefault(record.input, record)
    spare = per_class + (test is None)
    able = sorted(label for label, records in by_label.items() if len(records) >= spare)
    rng.shuffle(able)
    chosen: dict[Hashable, str] = {}
    for label in able:
        if len(chosen) < classes:
            chosen.setdefault(label if distinct is None else distinct(label), label)
    if len(chosen) < classes:
        raise UsageError(
            f"the pool has {len(chosen)} usable labels of {spare} records or more, not {classes}",
            hint=f"classes={len(chosen)} or a smaller per_class",
        )
    labels = sorted(chosen.values())
    shots = [record for label in labels for record in rng.sample(list(by_label[label].values()), per_class)]
    rng.shuffle(shots)
    taken = {record.input for record in shots}
    source = pool if test is None else test
    rest = {q.input: q for q in source if q.output in labels and q.input not in taken}
    picked = rng.sample(list(rest.values()), min(queries, len(rest)))
    if not picked:
        raise DataError("no queries are left beside the shots", hint="a smaller per_class, or a test file")
    return Draw(_as_shots(shots), tuple(picked), seed)


def _as_shots(records: Sequence[Query]) -> Shots:
    items = [Shot(record.input, record.output, number) for number, record in enumerate(records, 1)]
    digest = hashlib.sha256(repr([(s.input, s.output) for s in items]).encode()).hexdigest()
    return Shots(items, "pairs", "<draw>", digest)
