"""Seconds and memory of segmenting: encoding, one more prompt in a running process, and whole processes.

Series are generated; wall-clock time, on as many threads as torch was given.

Shape suffixes: T rows, C channels.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from memtoken_cli.data.states import Sample, make, write_csv
from memtoken_cli.engine import seeds
from memtoken_cli.io.errors import DataError
from memtoken_cli.methods.memprompttss.exam_config import EvaluateKeys
from memtoken_cli.methods.memprompttss.model import Model
from memtoken_cli.methods.memprompttss.segment_config import SegmentKeys
from memtoken_cli.methods.memprompttss.segmenter import Segmenter

CHANNELS, STATES, PROMPTS = 6, 6, 60
REFINES = 20
SMOKE_ROWS = 5_000


def table(
    model: Model,
    wanted: Sequence[str],
    keys: EvaluateKeys,
    seed: int,
    note: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """A row a size and measure: seconds (of refines the median, and the 95th percentile), MiB."""
    rows: list[dict[str, Any]] = []
    for size in [s for s in keys.sizes if s <= SMOKE_ROWS] if keys.smoke else keys.sizes:
        note(f"speed: {size} rows")
        sample = make(np.random.default_rng(seeds.derive(seed, "speed", size)), size, CHANNELS, STATES)
        prompts = prompted(sample, seed)
        measures: dict[str, Callable[[], dict[str, Any]]] = {
            "encode": partial(encode, model, sample),
            "refine": partial(refine, model, sample, prompts),
            "refine-cold": partial(refine_cold, model, sample, prompts),
            "process": partial(processes, sample, prompts, keys.subject),
        }
        rows += [{"method": name, "rows": size, **measures[name]()} for name in wanted]
    return rows


def prompted(sample: Sample, seed: int) -> list[dict[str, Any]]:
    """Point prompts at random rows, in the form of a prompts file."""
    rng = np.random.default_rng(seed)
    at = np.sort(rng.choice(len(sample.states_T), PROMPTS + REFINES, replace=False))
    rng.shuffle(at)
    return [{"row": int(row), "label": sample.names[int(sample.states_T[row])]} for row in at]


def encode(model: Model, sample: Sample) -> dict[str, Any]:
    """The series to tokens, twice."""
    gap_T = np.zeros(len(sample.values_TC), dtype=bool)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        model.encode(sample.values_TC, gap_T, [f"c{i}" for i in range(CHANNELS)])
        seconds.append(time.perf_counter() - start)
    best = min(seconds)
    return {"seconds": best, "first": seconds[0], "rows_per_second": len(gap_T) / best}


def refine(model: Model, sample: Sample, prompts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """From a new prompt to new states, in a process that holds the series and 60 prompts."""
    segmenter = Segmenter(model, keys=SegmentKeys(cache="off")).fit(sample.values_TC)
    segmenter.prompt(*prompts[:PROMPTS])
    segmenter.levels()
    seconds = []
    for record in prompts[PROMPTS:]:
        start = time.perf_counter()
        segmenter.prompt(record)
        segmenter.levels()
        seconds.append(time.perf_counter() - start)
    return {"seconds": float(np.median(seconds)), "p95": float(np.quantile(seconds, 0.95))}


def refine_cold(model: Model, sample: Sample, prompts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The same without kept embeddings: the series is encoded again."""
    start = time.perf_counter()
    segmenter = Segmenter(model, keys=SegmentKeys(cache="off")).fit(sample.values_TC)
    segmenter.prompt(*prompts[: PROMPTS + 1])
    segmenter.levels()
    return {"seconds": time.perf_counter() - start}


def processes(sample: Sample, prompts: Sequence[dict[str, Any]], subject: str) -> dict[str, Any]:
    """`memtok segment` from a process's start to its last byte: first with an empty cache, then again."""
    with tempfile.TemporaryDirectory(prefix="memtok-speed-") as folder:
        series, said = Path(folder, "series.csv"), Path(folder, "series.prompts.jsonl")
        write_csv(sample, series, labelled=False)
        said.write_text("".join(json.dumps(record) + "\n" for record in prompts[:PROMPTS]))
        command = [sys.executable, "-m", "memtoken_cli", "segment", str(series)]
        command += [f"model={subject}", f"cache={Path(folder, 'cache')}", "rows=states", "--prompts"]
        first, mib = _run(command, Path(folder, "out.csv"))
        cached, again = _run(command, Path(folder, "out.csv"))
    return {"seconds": first, "cached": cached, "mib": max(mib, again)}


def _run(command: Sequence[str], out: Path) -> tuple[float, float]:
    """(seconds, MiB at most). Raises DataError where the command fails."""
    start = time.perf_counter()
    with out.open("wb") as stream, tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(command, stdout=stream, stderr=errors)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        if child.returncode:
            errors.seek(0)
            raise DataError(f"`memtok segment` failed: {errors.read().decode(errors='replace').strip()}")
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss: bytes there, KiB elsewhere
    return seconds, usage.ru_maxrss / unit
