"""Samples and chains as what training reads: prompts in each form, and segments of response ids.

Raises DataError at file:line for what is too long. What is done with examples is `learn.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from memtoken_cli.data.chains import Chain
from memtoken_cli.data.procedures import Procedure, Sample
from memtoken_cli.io.errors import DataError, Problems
from memtoken_cli.methods.tokmem.config import SegmentEnd
from memtoken_cli.methods.tokmem.prompt import Prompt, Prompts
from memtoken_cli.methods.tokmem.statistics import FACETS

QUERY, FULL = FACETS
IGNORE = -100
Targets = Literal["all", "next", "words"]  # every procedure, those after the first, or none


@dataclass(frozen=True)
class Segment:
    """A procedure, by its row in the bank, and its response."""

    row: int
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Example:
    """key: what its random choices are seeded by. prompts: one a form, by facet. group: examples that are
    read together, since they begin alike."""

    key: str
    group: str
    prompts: Mapping[str, Prompt]
    segments: tuple[Segment, ...]

    @property
    def rows(self) -> tuple[int, ...]:
        return tuple(segment.row for segment in self.segments)


def of_samples(
    prompts: Prompts, procedure: Procedure, samples: Sequence[Sample], row: int, longest: int
) -> list[Example]:
    """A procedure's samples; with its instruction too, where it has one. Raises DataError."""
    problems, out = Problems(), []
    for i, sample in enumerate(samples):
        found = forms_of(prompts, sample.input, procedure.instruction)
        ids = prompts.response(sample.output)
        fault = too_long(found.values(), ids, longest) or ("its response has no token" if not ids else None)
        if fault:
            problems.add(DataError(fault, hint="data.skip_bad=true, or train.max_length", where=sample.where))
            continue
        key = f"{procedure.name}/{i}"
        out.append(Example(key, procedure.name, found, (Segment(row, ids),)))
    problems.raise_any()
    return out


def of_description(prompts: Prompts, procedure: Procedure, row: int) -> Example:
    """A procedure that has a description alone, as a query that is routed to it; it has no response."""
    key = f"described/{procedure.name}"
    return Example(key, key, {QUERY: prompts.render(procedure.description)}, (Segment(row, ()),))


def of_chains(
    prompts: Prompts, chains: Sequence[Chain], rows: Mapping[str, int], longest: int
) -> list[Example]:
    """Chains of procedures by their rows; their query is the only form. Raises DataError."""
    problems, out = Problems(), []
    for i, chain in enumerate(chains):
        prompt = prompts.render(chain.query)
        segments = tuple(Segment(rows[call.procedure], prompts.response(call.output)) for call in chain.calls)
        if fault := too_long([prompt], [t for s in segments for t in s.ids], longest):
            problems.add(DataError(fault, hint="train.max_length", where=chain.where or f"chain {i + 1}"))
            continue
        out.append(Example(f"chain/{i}", "chains", {QUERY: prompt}, segments))
    problems.raise_any()
    return out


def forms_of(prompts: Prompts, query: str, instruction: str) -> dict[str, Prompt]:
    found = {QUERY: prompts.render(query)}
    if instruction:
        found[FULL] = prompts.render(query, instruction)
    return found


def too_long(prompts: Iterable[Prompt], ids: Sequence[int], longest: int) -> str | None:
    """What is wrong with the length of a prompt and its response, or None."""
    length = max(len(p.ids) for p in prompts) + len(ids)
    return f"{length} tokens of prompt and response, {longest} are allowed" if length > longest else None


def fits(prompts: Prompts, longest: int) -> Callable[[str, Sample], str | None]:
    """For `read_procedures`: what is too long about a sample of a procedure with such an instruction."""

    def check(instruction: str, sample: Sample) -> str | None:
        ids = prompts.response(sample.output)
        return too_long(forms_of(prompts, sample.input, instruction).values(), ids, longest)

    return check


@dataclass(frozen=True)
class Layout:
    """The tokens behind a prompt and what each must be followed by.

    ids: virtual ids, EOC = vocab and control token j of row i = vocab + 1 + i k + j. targets: of each, a
    vocabulary id, `vocab` for EOC, `vocab` + 1 + i for procedure i, or IGNORE. first: the target of the
    prompt's last token. ends: a segment's own tokens and the place of its boundary, for each segment.
    """

    ids: tuple[int, ...]
    targets: tuple[int, ...]
    first: int
    ends: tuple[tuple[range, int], ...]


def layout(
    segments: Sequence[Segment], vocab: int, tokens: int, end: int, segment_end: SegmentEnd, targets: Targets
) -> Layout:
    """What `a_m1 r_1 .. [EOC] a_m2 r_2 .. [EOC]` teaches (eq. 2, infix).

    targets: which procedures are to be said. Where none are, every segment ends with the EOS (or EOC) target,
    and what follows it is not the vocabulary's to say.
    """
    ids: list[int] = []
    said: list[int] = []
    ends = []
    for n, segment in enumerate(segments):
        ids += [vocab + 1 + segment.row * tokens + j for j in range(tokens)]
        said += [IGNORE] * (tokens - 1)
        start = len(ids)
        ids += segment.ids
        said += segment.ids
        last = n + 1 == len(segments)
        after = end if last else vocab + 1 + segments[n + 1].row
        if segment_end == "eoc":
            ids.append(vocab)
            said += [vocab, after if targets != "words" else IGNORE]
        else:
            said.append(after if targets != "words" else end)
        ends.append((range(start, start + len(segment.ids)), len(ids) - 1))
    first = vocab + 1 + segments[0].row if targets == "all" else IGNORE
    return Layout(tuple(ids), tuple(said), first, tuple(ends))


def blocks_of(sizes: int | tuple[int, ...], count: int) -> list[range]:
    """`count` procedures in so many runs, as equal as can be, or in runs of these sizes. Raises DataError."""
    if isinstance(sizes, int):
        sizes = tuple(count // sizes + (i < count % sizes) for i in range(sizes))
    if sum(sizes) != count or min(sizes) < 1:
        raise DataError(f"blocks of {list(sizes)} for {count} procedures", hint=f"data.blocks={[count]}")
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [range(start, start + size) for start, size in zip(starts, sizes, strict=True)]
