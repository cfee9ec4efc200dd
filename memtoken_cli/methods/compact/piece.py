"""One prompt, or a piece of one too long for the model: rendered, prefilled, written, refined, calibrated."""

import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from ...data.render import Rendered, Template, render
from ...data.shots import Shots
from ...engine.backbone import CausalLM
from ...engine.contest import subset
from ...engine.memory import Layers
from ...engine.method import Budget, Made
from ...io.errors import DataError
from .calibration import calibration
from .config import Config
from .estimate import estimate
from .reference import enough, given, reference
from .refine import refine
from .write import write

ROOM = 32  # tokens of an answer that must still fit behind the longest shot


def cut(backbone: CausalLM, shots: Shots, template: Template, config: Config) -> tuple[list[Shots], int]:
    """The prompt in pieces that the context holds (one, where it fits), and how many shots were dropped.

    Raises DataError where it does not fit and the user allowed neither truncating nor chunking."""
    rendered = render(shots, template, backbone.tokenizer, config.instruction)
    longest = max(span.end - span.start for span in rendered.spans)
    limit = backbone.dims.context - longest - ROOM
    size = config.chunk if isinstance(config.chunk, int) else backbone.dims.context // 2
    if config.chunk != "none" and len(rendered.ids) > min(size, limit):
        return [subset(shots, piece) for piece in _runs(rendered, min(size, limit), shots.source)], 0
    if len(rendered.ids) <= limit:
        return [shots], 0
    fitting = sum(span.end <= limit for span in rendered.spans)
    if config.truncate == "shots" and fitting > 1:
        return [subset(shots, range(fitting))], len(shots.items) - fitting
    raise DataError(
        f"the prompt has {len(rendered.ids)} tokens, the context of {backbone.name} holds {limit}: "
        f"{fitting} of {len(shots.items)} shots fit",
        hint="truncate=shots drops the rest, chunk=auto compacts the prompt in pieces",
        where=shots.source,
    )


def _runs(rendered: Rendered, size: int, source: str) -> list[list[int]]:
    runs: list[list[int]] = [[]]
    used = rendered.head
    for number, span in enumerate(rendered.spans):
        length = span.end - span.start
        if rendered.head + length > size:
            raise DataError(
                f"shot {number + 1} alone has {length} tokens, more than a piece holds", where=source
            )
        if runs[-1] and used + length > size:
            runs.append([])
            used = rendered.head
        runs[-1].append(number)
        used += length
    if len(runs) > 1 and len(runs[-1]) == 1 and len(runs[-2]) > 2:
        # a shot alone would have nothing left to read while its own copy is hidden
        before = rendered.spans[runs[-2][-1]]
        if used + before.end - before.start <= size:
            runs[-1].insert(0, runs[-2].pop())
    return runs


def shares(
    backbone: CausalLM, pieces: Sequence[Shots], template: Template, budget: Budget, config: Config
) -> list[Budget]:
    """A budget a piece, by its tokens: together what the whole prompt may keep. Raises DataError."""
    if len(pieces) == 1:
        return [budget]
    parts = [render(piece, template, backbone.tokenizer, config.instruction) for piece in pieces]
    lengths = [len(part.ids) for part in parts]
    total, tokens = budget.slots_for(sum(lengths) - (len(parts) - 1) * parts[0].head), sum(lengths)
    ends = [total * sum(lengths[:i]) // tokens for i in range(len(lengths) + 1)]
    slots = [stop - start for start, stop in pairwise(ends)]
    if min(slots) < 1:
        raise DataError(
            f"{total} slots are too few for {len(pieces)} pieces", hint="keep more, or a larger chunk="
        )
    return [Budget(slots=n) for n in slots]


def written(
    backbone: CausalLM, shots: Shots, template: Template, budget: Budget, config: Config, seed: int
) -> Made:
    """The memory of one piece, with its report. Raises DataError where the budget leaves no token."""
    rendered = render(shots, template, backbone.tokenizer, config.instruction)
    slots = budget.slots_for(len(rendered.ids))
    clock = time.perf_counter()
    full = backbone.prefill(rendered.ids)
    seconds = {"prefill": time.perf_counter() - clock}
    rows = reference(
        backbone,
        rendered,
        shots,
        template,
        queries=config.queries,
        most=config.references,
        tokens=config.tokens or enough(len(rendered.ids), slots),
        generator=torch.Generator().manual_seed(seed),
    )
    found = write(backbone, full, rows, slots, config)
    memory, report = found.memory, dict(found.report)
    seconds |= report.pop("seconds")
    if config.refine:
        clock = time.perf_counter()
        practice = rows
        if config.data is not None:
            t = len(rendered.ids)
            practice = rows.beside(given(backbone, template, config.data, t, config.references))
        refined = refine(backbone, memory, found.chosen, full, practice, config.refine, seed)
        memory = refined.memory
        report["refine"] = {
            "steps": refined.steps,
            "kl_before": refined.kl_before,
            "kl_after": refined.kl_after,
        }
        seconds["refine"] = time.perf_counter() - clock
    clock = time.perf_counter()
    lost, where = estimate(backbone, full, memory, found.chosen, rendered, shots, rows)
    report |= {"kl_estimate": round(lost, 5), "kl_shots": where}
    seconds["estimate"] = time.perf_counter() - clock
    clock = time.perf_counter()
    bias = None
    if config.calibrate == "auto":
        bias = calibration(backbone, full, rendered, shots, template, rows, found.teacher_WV)
    seconds["calibrate"] = time.perf_counter() - clock
    report |= {"tokens": len(rendered.ids), "seconds": {key: round(s, 3) for key, s in seconds.items()}}
    return Made(memory, {"calibration": bias}, report)


def total(reports: Sequence[Mapping[str, Any]], memory: Layers, dropped: int) -> dict[str, Any]:
    """One report of all pieces: tokens and seconds added up, errors averaged."""
    count = len(reports)
    seconds: dict[str, float] = {}
    for report in reports:
        for key, value in report["seconds"].items():
            seconds[key] = round(seconds.get(key, 0.0) + value, 3)
    tokens = sum(report["tokens"] for report in reports)
    return dict(reports[0]) | {
        "tokens": tokens,
        "slots": memory.slots,
        "ratio": round(tokens / memory.slots, 3),
        "memory_bytes": memory.nbytes,
        "fit_error": [round(sum(e) / count, 5) for e in zip(*(r["fit_error"] for r in reports), strict=True)],
        "kl_estimate": round(sum(r["kl_estimate"] for r in reports) / count, 5),
        "kl_shots": "held out" if all(r["kl_shots"] == "held out" for r in reports) else "fitted",
        "seconds": seconds,
        "pieces": count,
        "dropped": dropped,
    }
