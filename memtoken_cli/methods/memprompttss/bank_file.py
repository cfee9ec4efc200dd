"""A bank as an artifact: which tensor and which part of the header holds what. Nothing else knows the layout.

Neighbourhoods lie end to end, hand features a series apart: series with other channels have others.
Shape suffixes: P prompts, D width of a memory token, X neighbours of all prompts, E embedding width, F hand
features.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from memtoken_cli.data.prompts import Prompt, Type
from memtoken_cli.engine.memory import Tokens, from_tensors
from memtoken_cli.io import artifact, atomic
from memtoken_cli.io.artifact import Header, ModelRef
from memtoken_cli.io.errors import DataError
from memtoken_cli.io.records import source_name
from memtoken_cli.methods.memprompttss import SPEC
from memtoken_cli.methods.memprompttss.bank import Bank, Known, Row
from memtoken_cli.methods.memprompttss.model import Model, Written

AGAIN = "copy the bank again from where it came, or make it anew from the prompts"
NAMES, EMBED, AT, SIZES = "names", "embed_XE", "at_X", "sizes_P"


class _Row(BaseModel):
    """A prompt in the log; `name` is its id."""

    model_config = ConfigDict(extra="forbid")

    name: str
    series: str
    level: str
    type: Type
    labels: list[str]
    start_row: int
    end_row: int
    time: float
    until: float
    weight: float
    by: str | None = None
    note: str | None = None
    tokens: int


class _Series(BaseModel):
    """See `bank.Known`; prompts: how many. order: labels as its prompts show them in time, a level."""

    model_config = ConfigDict(extra="forbid")

    name: str
    fingerprint: str
    rows: int
    step: float
    stride: int
    channels: list[str]
    mean: list[float]
    std: list[float]
    prompts: int
    order: dict[str, list[str]]


def memory(bank: Bank) -> Tokens:
    """The bank's tensors, by their names in the artifact."""
    written = bank.written
    if not written:
        return Tokens("cross", torch.zeros(0, 0))
    kept: dict[str, Tensor] = {
        EMBED: torch.cat([w.embed_ME for w in written]),
        AT: torch.cat([w.at_M.int() for w in written]),
        SIZES: torch.tensor([len(w.at_M) for w in written], dtype=torch.int32),
    }
    for number, name in enumerate(bank.series):
        hand = [w.hand_MF for w in written if w.series == name and w.hand_MF is not None]
        if hand:
            kept[_hand(number)] = torch.cat(hand)
    return Tokens("cross", torch.stack([w.token_D for w in written]), _names(bank), kept)


def about(bank: Bank) -> dict[str, Any]:
    """The header's notes: everything of the bank that is no tensor."""
    return {
        NAMES: list(_names(bank)),
        "features": bank.features,
        "levels": {level: _counted(bank, level) for level in bank.levels},
        "series": [_known(bank, known).model_dump() for known in bank.series.values()],
        "rows": [_logged(row).model_dump(exclude_none=True) for row in bank.rows],
        "capacity": bank.capacity,
        "arrived": [list(key) for key in bank.arrived],
    }


def to_bytes(bank: Bank) -> bytes:
    """The artifact: the same bank gives the same bytes."""
    header = Header(
        method=SPEC.name,
        kind="memory",
        port=SPEC.port,
        model=ModelRef(name=bank.model, fingerprint=bank.digest),
        source={"prompts": len(bank.rows), "series": len(bank.series)},
        slots=len(bank.rows),
        about=about(bank),
    )
    return artifact.to_bytes(memory(bank).tensors(), header)[0]


def save(bank: Bank, path: str | Path) -> None:
    """Write, atomically. Raises OSError."""
    atomic.write_bytes(path, to_bytes(bank))


def load(path: str | Path) -> Bank:
    """Read and check; "-" is standard input. Raises DataError where the file is damaged or no bank of
    ours."""
    where = source_name(path)
    header, tensors = artifact.read(path)
    if header.method != SPEC.name or header.kind != "memory" or header.model is None:
        raise DataError(
            f"{where} holds a {header.kind} of {header.method}, not a bank of prompts",
            hint="memtok segment SERIES --prompts FILE --memory NEW",
        )
    try:
        tokens = from_tensors(str(header.port), tensors, names=header.about.get(NAMES, ()))
        if not isinstance(tokens, Tokens):
            raise DataError("its tokens do not enter by cross-attention", hint=AGAIN)
        return of(tokens, header.about, header.model)
    except DataError as error:
        raise DataError(error.message, hint=error.hint or AGAIN, where=where) from None


def of(tokens: Tokens, notes: Mapping[str, Any], model: ModelRef) -> Bank:
    """What `memory` and `about` came from. Raises DataError where they do not fit each other."""
    try:
        log = TypeAdapter(list[_Row]).validate_python(notes["rows"])
        series = TypeAdapter(list[_Series]).validate_python(notes["series"])
        features = TypeAdapter(int).validate_python(notes["features"])
        capacity = TypeAdapter(int | None).validate_python(notes["capacity"])
        arrived = TypeAdapter(tuple[tuple[str, str], ...]).validate_python(notes["arrived"])
    except (ValidationError, KeyError) as error:
        raise DataError(f"not a bank's header: {str(error).splitlines()[0]}", hint=AGAIN) from None
    known = {s.name: _from_known(s) for s in series}
    if len(log) != len(tokens.tokens_MD) or {row.series for row in log} != set(known):
        raise DataError("the bank's prompts and its tokens differ", hint=AGAIN)
    rows = _rows(log, tokens, known) if log else ()
    return Bank(model.name, model.fingerprint, features, rows, known, capacity, arrived)


def check_model(bank: Bank, model: Model, where: str) -> None:
    """Raise DataError where another model, or another version of its features, wrote the bank."""
    if not bank.rows:
        return
    if bank.digest != model.digest:
        found = f"{bank.model} ({bank.digest[:12]})"
        what = f"the bank was written by {found}, not by {model.name} ({model.digest[:12]})"
    elif bank.features != model.features:
        what = f"the bank has hand features of version {bank.features}, {model.name} has {model.features}"
    else:
        return
    raise DataError(
        what, hint=f"model={bank.model}, or rebuild=true to encode its prompts again", where=where
    )


def _rows(log: list[_Row], tokens: Tokens, known: Mapping[str, Known]) -> tuple[Row, ...]:
    sizes = [row.tokens for row in log]
    if any(name not in tokens.kept for name in (EMBED, AT, SIZES)) or tokens.kept[SIZES].tolist() != sizes:
        raise DataError("the bank lacks a tensor, or one does not fit its header", hint=AGAIN)
    embed_XE, at_X = tokens.kept[EMBED], tokens.kept[AT].long()
    if len(embed_XE) != sum(sizes) or len(at_X) != sum(sizes):
        raise DataError("the bank's neighbourhoods do not fit its header", hint=AGAIN)
    hands = _hands(log, tokens, list(known))
    rows = []
    parts = zip(log, tokens.tokens_MD, at_X.split(sizes), embed_XE.split(sizes), hands, strict=True)
    for said, token_D, at_M, embed_ME, hand_MF in parts:
        prompt = Prompt(
            said.name, said.type, said.start_row, said.end_row, tuple(said.labels), said.level, said.series,
            said.weight, said.by, said.note,
        )  # fmt: skip
        of_series = known[said.series]
        count = -(-of_series.rows // of_series.stride)
        written = Written(
            prompt, said.series, of_series.stride, count, of_series.channels, token_D, at_M, embed_ME, hand_MF
        )
        rows.append(Row(written, said.time, said.until))
    return tuple(rows)


def _hands(log: list[_Row], tokens: Tokens, names: list[str]) -> list[Tensor | None]:
    """Every prompt's hand features, or None where its series has none."""
    found: list[Tensor | None] = [None] * len(log)
    for number, name in enumerate(names):
        hand_XF = tokens.kept.get(_hand(number))
        places = [at for at, row in enumerate(log) if row.series == name]
        sizes = [log[at].tokens for at in places]
        if hand_XF is None:
            continue
        if len(hand_XF) != sum(sizes):
            raise DataError("the bank's hand features do not fit its header", hint=AGAIN)
        for at, hand_MF in zip(places, hand_XF.split(sizes), strict=True):
            found[at] = hand_MF
    return found


def _hand(number: int) -> str:
    return f"hand.{number}_XF"


def _names(bank: Bank) -> tuple[str, ...]:
    return tuple(row.written.prompt.id for row in bank.rows)


def _logged(row: Row) -> _Row:
    p = row.written.prompt
    return _Row(
        name=p.id, series=row.written.series, level=p.level, type=p.type, labels=list(p.labels),
        start_row=p.start, end_row=p.end, time=row.time, until=row.until, weight=p.weight, by=p.by,
        note=p.note, tokens=len(row.written.at_M),
    )  # fmt: skip


def _counted(bank: Bank, level: str) -> dict[str, int]:
    """Memory tokens of every state; of prompts that show none, by their type."""
    count: dict[str, int] = {}
    for written in bank.written:
        if written.prompt.level == level:
            prompt = written.prompt
            shown = prompt.labels[0] if prompt.type == "label" else f"({prompt.type})"
            count[shown] = count.get(shown, 0) + 1
    return dict(sorted(count.items()))


def _known(bank: Bank, known: Known) -> _Series:
    order: dict[str, list[str]] = {}
    for row in bank.of(known.name):
        prompt = row.written.prompt
        shown = order.setdefault(prompt.level, [])
        if prompt.type == "label" and shown[-1:] != [prompt.labels[0]]:
            shown.append(prompt.labels[0])
    return _Series(
        name=known.name, fingerprint=known.fingerprint, rows=known.rows, step=known.step,
        stride=known.stride, channels=list(known.channels), mean=list(known.mean), std=list(known.std),
        prompts=len(bank.of(known.name)), order=order,
    )  # fmt: skip


def _from_known(told: _Series) -> Known:
    return Known(
        told.name, told.fingerprint, told.rows, told.step, told.stride, tuple(told.channels),
        tuple(told.mean), tuple(told.std),
    )  # fmt: skip
