"""The few figures of `memtok evaluate ARTIFACT --json` that the quickstart shows, as a small table.

Its one argument is the file with that document.
"""

import json
import sys
from pathlib import Path
from typing import Any

from tabulate import tabulate

NAMES = {"full": "the whole prompt", "fewer": "fewer shots", "none": "no shots"}
HEADERS = ["", "tokens", "memory", "per query", "accuracy", "calibrated", "agrees with the whole"]


def cells(row: dict[str, Any], ratio: float) -> list[str]:
    """One line: megabytes of 10^6, milliseconds, and shares in percent."""
    return [
        NAMES.get(row["method"], f"the memory, ratio {ratio:.2g}"),
        f"{row['slots']:.0f}",
        f"{row['bytes'] / 1e6:.1f} MB",
        f"{1e3 * row['query_seconds']:.0f} ms",
        *(percent(row.get(key)) for key in ("accuracy", "accuracy_calibrated", "agreement")),
    ]


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def main() -> None:
    found = json.loads(Path(sys.argv[1]).read_text())
    lines = [cells(row, found["ratio"]) for row in found["rows"]]
    print(tabulate(lines, HEADERS, colalign=("left", *["right"] * (len(HEADERS) - 1)), disable_numparse=True))


if __name__ == "__main__":
    main()
