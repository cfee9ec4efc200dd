"""A picture of a series and its states: `.png`, or one `.html` file that loads nothing from elsewhere.

What is drawn is gathered once (`Scene`): the least and greatest value of every pixel column, bands, marks.
The page is `page.py`'s.

Shape suffixes: X pixel columns, C channels, T rows in hand.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from memtoken_cli.data.series import Series
from memtoken_cli.io import atomic
from memtoken_cli.io.errors import UsageError
from memtoken_cli.methods.memprompttss.levels import Level, runs
from memtoken_cli.methods.memprompttss.segmenter import Prediction

SUFFIXES = (".png", ".html")
COLUMNS = 1200
MOST = 24  # channels drawn
LIGHTNESS = (0.38, 0.52, 0.66, 0.80)


@dataclass(frozen=True)
class Band:
    """A run of one state on rows in hand [start, end)."""

    start: int
    end: int
    label: str
    confidence: float | None


@dataclass(frozen=True, eq=False)
class Scene:
    """low_CX, high_CX: least and greatest value a pixel column, NaN in a gap. bands: a level's. marks: (row,
    text) of the prompts. left_out: channels that are not drawn."""

    series: Series
    channels: tuple[str, ...]
    low_CX: np.ndarray
    high_CX: np.ndarray
    bands: tuple[tuple[str, tuple[Band, ...]], ...]
    marks: tuple[tuple[int, str], ...]
    left_out: int

    @property
    def rows(self) -> int:
        return len(self.series)


def check_plot(path: str) -> None:
    """Raises UsageError for a kind of picture that is not written."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise UsageError(f"--plot {path}: unknown kind of picture", hint=f"end it in {' or '.join(SUFFIXES)}")


def draw(path: Path, found: Prediction) -> None:
    """Write the picture, atomically. Raises OSError."""
    scene = gathered(found)
    if path.suffix.lower() == ".html":
        from memtoken_cli.methods.memprompttss.page import page

        atomic.write_text(path, page(scene))
    else:
        atomic.write_bytes(path, _png(scene))


def gathered(found: Prediction) -> Scene:
    """What there is to draw."""
    series = found.series
    low_CX, high_CX = extremes(series.values_TC[:, :MOST], min(COLUMNS, len(series)))
    bands = tuple((level.name, _bands(level, found.stride)) for level in found.levels)
    marks = {
        (prompt.start, f"{prompt.type} {'/'.join(prompt.labels)}".strip())
        for level in found.levels
        for prompt in level.own
    }
    kept = series.channels[:MOST]
    left_out = len(series.channels) - len(kept)
    return Scene(series, kept, low_CX, high_CX, bands, tuple(sorted(marks)), left_out)


def extremes(values_TC: np.ndarray, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """[C,X] twice: the least and the greatest value of every pixel column; NaN where it holds none."""
    starts = np.linspace(0, len(values_TC), columns, endpoint=False).astype(np.int64)
    low_XC = np.fmin.reduceat(values_TC, starts, axis=0)
    high_XC = np.fmax.reduceat(values_TC, starts, axis=0)
    return low_XC.T, high_XC.T


def colour(label: str) -> tuple[float, float]:
    """(hue in 0..1, lightness) of a label, the same in every picture; lightness differs, for prints in
    grey."""
    digest = hashlib.sha256(label.encode()).digest()
    return int.from_bytes(digest[:2], "big") / 65536, LIGHTNESS[digest[2] % len(LIGHTNESS)]


def _bands(level: Level, stride: int) -> tuple[Band, ...]:
    out = []
    for a, b in runs(level.states_T).tolist():
        k = int(level.states_T[a])
        if k < 0:
            continue
        sure = None
        if level.p_NK is not None:
            sure = float(level.p_NK[a // stride : (b - 1) // stride + 1, k].mean())
        out.append(Band(a, b, level.labels[k], sure))
    return tuple(out)


def legend(scene: Scene) -> list[str]:
    """Every label that is drawn, in order of appearance."""
    return list(dict.fromkeys(band.label for _, bands in scene.bands for band in bands))


def ticks(series: Series, count: int = 6) -> list[tuple[float, str]]:
    """(row, text) of the time axis."""
    from memtoken_cli.methods.memprompttss.segments import number

    places = np.linspace(0, len(series), count)
    out = []
    for place in places.tolist():
        time = series.time_of(int(place))
        text = number(float(f"{time:.6g}")) if abs(time) < 1e9 else number(round(time, 3))
        if series.iso:
            from datetime import UTC, datetime

            text = datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M:%S")
        out.append((place, text))
    return out


def _png(scene: Scene) -> bytes:
    from colorsys import hls_to_rgb

    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    count, levels = len(scene.channels), len(scene.bands)
    figure = Figure(figsize=(12, 1.0 + 0.8 * count + 0.45 * levels), layout="constrained")
    axes = figure.subplots(
        count + levels, 1, sharex=True, squeeze=False, height_ratios=[1.0] * count + [0.4] * levels
    )[:, 0]
    place_X = np.linspace(0, scene.rows, scene.low_CX.shape[1], endpoint=False)
    for ax, name, low_X, high_X in zip(axes, scene.channels, scene.low_CX, scene.high_CX, strict=False):
        ax.fill_between(place_X, low_X, high_X, color="0.25", linewidth=0.6)
        ax.set_ylabel(_short(name), rotation=0, ha="right", va="center")
        ax.set_yticks([])
        for row, _ in scene.marks:
            ax.axvline(row, color="0.6", linewidth=0.6, linestyle=":")
    for ax, (level, bands) in zip(axes[count:], scene.bands, strict=True):
        for band in bands:
            hue, light = colour(band.label)
            face = hls_to_rgb(hue, light, 0.6)
            ax.axvspan(band.start, band.end, facecolor=face, edgecolor="white", linewidth=0.4)
        for row, _ in scene.marks:
            ax.plot([row], [0.9], marker="v", color="black", markersize=4, clip_on=False)
        ax.set_yticks([])
        ax.set_ylim(0, 1)
        ax.set_ylabel(_short(level), rotation=0, ha="right", va="center")
    axes[-1].set_xlim(0, scene.rows)
    at = ticks(scene.series)
    axes[-1].set_xticks([row for row, _ in at], [text for _, text in at])
    axes[-1].set_xlabel(_plain(scene.series.time_name or "row"))
    shown: Sequence[str] = legend(scene)[:24]
    handles = [Patch(facecolor=hls_to_rgb(*colour(label), 0.6), label=_plain(label)) for label in shown]
    if handles:
        figure.legend(handles=handles, loc="outside upper center", ncols=min(8, len(handles)))
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110, metadata={"Software": None})
    return data.getvalue()


def _plain(text: str) -> str:
    """Text that matplotlib does not read as mathematics."""
    return text.replace("\\", "\\\\").replace("$", r"\$")


def _short(text: str) -> str:
    return _plain(text if len(text) <= 16 else text[:15] + "…")
