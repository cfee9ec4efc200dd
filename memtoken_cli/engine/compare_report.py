"""A comparison's rows as a table, as JSON records and as a picture. Nothing is measured here."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..io import atomic
from ..io.errors import UsageError
from ..io.sink import Sink
from .compare import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADERS = (
    "method",
    "ratio",
    "accuracy",
    "95 %",
    "/ full",
    "agreement",
    "KL first",
    "KL answer",
    "calibrated",
    "slots",
    "MB",
    "compress s",
    "/ prefill",
    "query ms",
)
PANELS = (
    ("accuracy", "accuracy", "linear"),
    ("agreement", "agreement with the full prompt", "linear"),
    ("kl_first", "KL at the first answer token", "log"),
)
FORMATS = (".png", ".svg", ".pdf")


def cells(row: Row) -> list[str]:
    """One line of the table, under HEADERS."""
    calibrated = "-" if row.accuracy_calibrated is None else f"{row.accuracy_calibrated:.3f}"
    return [
        row.method,
        "-" if row.ratio is None else f"{row.ratio:g}",
        f"{row.accuracy:.3f}",
        f"{row.low:.3f}-{row.high:.3f}",
        f"{row.accuracy_over_full:.2f}",
        f"{row.agreement:.3f}",
        f"{row.kl_first:.3f}",
        f"{row.kl_answer:.3f}",
        calibrated,
        f"{row.slots:.1f}",
        f"{row.bytes / 1e6:.2f}",
        f"{row.compress_seconds:.2f}",
        f"{row.compress_over_prefill:.2f}",
        f"{row.query_seconds * 1e3:.1f}",
    ]


def report(sink: Sink, rows: Sequence[Row]) -> None:
    """The table; under --json the rows in full instead."""
    if sink.json:
        for row in rows:
            sink.row(row.record())
    else:
        sink.table([cells(row) for row in rows], HEADERS)


def check_plot(path: str) -> None:
    """Raises UsageError for a kind of picture that is not written."""
    if Path(path).suffix.lower() not in FORMATS:
        raise UsageError(f"cannot draw {path}", hint=f"a name that ends in {', '.join(FORMATS)}")


def plot(path: str, rows: Sequence[Row]) -> None:
    """Quality against ratio, one line a method; contestants without a budget are dashed level lines."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator, ScalarFormatter

    check_plot(path)
    figure = Figure(figsize=(12, 4), layout="constrained")
    names = list(dict.fromkeys(row.method for row in rows))
    ratios = sorted({row.ratio for row in rows if row.ratio is not None})
    for axes, (field, title, scale) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        for number, name in enumerate(names):
            points = [(row.ratio, float(getattr(row, field))) for row in rows if row.method == name]
            level = [y for x, y in points if x is None]
            line = sorted((x, y) for x, y in points if x is not None)
            if level and not (scale == "log" and level[0] <= 0):
                axes.axhline(level[0], color=f"C{number}", linestyle="--", label=name)
            if line:
                axes.plot(*zip(*line, strict=True), color=f"C{number}", marker="o", label=name)
        axes.set(xlabel="ratio", title=title, xscale="log", yscale=scale)
        axes.set_xticks(ratios)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    save_plot(path, figure)


def save_plot(path: str, figure: "Figure") -> None:
    """Write a picture, atomically: the same figure gives the same bytes."""
    from matplotlib import rc_context

    data = io.BytesIO()
    suffix = Path(path).suffix.lower()[1:]
    # no date and fixed ids
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(suffix)
    with rc_context({"svg.hashsalt": "memtok"}):
        figure.savefig(data, format=suffix, dpi=150, metadata=metadata)
    atomic.write_bytes(path, data.getvalue())
