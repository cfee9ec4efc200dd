"""Reports as tables: what the commands that measure print where --json is not given."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memtoken_cli.io.sink import Sink


def print_report(report: Mapping[str, Any], sink: "Sink") -> None:
    """One [name, value] a line, then its `table`; under --json the document, which also has nested values."""
    sink.document(report)
    if not sink.json:
        plain = [[key, _short(value)] for key, value in report.items() if not isinstance(value, list | dict)]
        sink.table(plain, ["", "value"])
        print_rows(report.get("table", []), sink)


def print_rows(rows: Sequence[Mapping[str, Any]], sink: "Sink") -> None:
    """One table, its columns in the order they first appear, without nested ones; under --json the rows in
    full."""
    if sink.json:
        for row in rows:
            sink.row(row)
    elif rows:
        flat = [{key: v for key, v in row.items() if not isinstance(v, list | dict)} for row in rows]
        columns = list(dict.fromkeys(key for row in flat for key in row))
        sink.table([[_short(row.get(key)) for key in columns] for row in flat], columns)


def _short(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
