"""A session as one artifact: what it has read (session_tensors.py), how far it is, and where its weights are.

    state.* last_BD pending_ids_BT history_ids_BT tail_text generator
    memory.* armt.* lora.* weights.*    what was trained; of a model above 32 MiB the header names its file

Nothing of when, where or from what bytes it was made is in it: the same text gives the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NoReturn

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from memtoken_cli.io import artifact
from memtoken_cli.io.artifact import Header, ModelRef
from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.methods.rmt import SPEC, model_file
from memtoken_cli.methods.rmt import parent as parents
from memtoken_cli.methods.rmt.config import Config
from memtoken_cli.methods.rmt.generate_config import HISTORY
from memtoken_cli.methods.rmt.model_file import Model
from memtoken_cli.methods.rmt.session import Session
from memtoken_cli.methods.rmt.session_state import Read, Snapshot
from memtoken_cli.methods.rmt.session_tensors import Parts, mine, parts_of, tensors_of

NotNegative = Annotated[int, Field(ge=0)]
AGAIN = "make it again: memtok generate - --memory MODEL --out FILE max_new_tokens=0"


class Counts(BaseModel):
    """How far a session is; of several rows, lists. bytes: of the streams that were read, the tail's too; one
    number for several rows is each one's."""

    model_config = ConfigDict(extra="forbid", strict=True)

    tokens: int | list[int]
    segments: int | list[int]
    pending: int | list[int]
    bytes: NotNegative | list[NotNegative]


class About(BaseModel):
    """A session's own part of the header. seed, new: as the trained model's. chain: the digest of each row's
    segments, hex."""

    model_config = ConfigDict(extra="forbid", strict=True)

    policy: str
    segment: int
    width: int
    config: dict[str, Any]
    seed: int
    new: dict[str, Any] | None
    counts: Counts
    chain: list[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(min_length=1)


@dataclass(frozen=True)
class Opened:
    """A session with the text that it has not cut yet."""

    session: Session
    tail: str = ""

    @property
    def read(self) -> int:
        """Bytes of the streams that were read, of all rows."""
        return sum(row.streamed for row in self.session.read)


def save(session: Session, target: str | Path | BinaryIO, tail: str = "", read: int | None = None) -> Header:
    """Write a session (a path: atomically) with `tail`, text that is not cut into pieces.

    read: bytes of the stream that its one row was read from; None: what every row knows of that. The live
    session becomes canonical, so that it goes on as the loaded one does. Raises OSError; UsageError
    for a session that no artifact stands behind."""
    model = session.model
    if model is None:
        raise UsageError(
            "this session has no trained model's file behind it", hint="Session.new(open_model(...))"
        )
    snapshot = session.snapshot()
    beside = Path(os.path.realpath(target)).parent if isinstance(target, str | Path) else Path.cwd()
    apart = parents.apart(model)
    weights = {} if apart else {name: x.detach() for name, x in model.own.items()}
    about = About(
        policy=model.config.policy,
        segment=model.config.segment,
        width=model.backbone.dims.width,
        config=model.config.model_dump(mode="json"),
        seed=int(model.about["seed"]),
        new=None if apart else model.about["new"],
        counts=Counts(
            tokens=_one_or_all([row.tokens for row in snapshot.read]),
            segments=_one_or_all([row.segments for row in snapshot.read]),
            pending=_one_or_all([len(ids) for ids in snapshot.pending]),
            bytes=_one_or_all([row.streamed for row in snapshot.read] if read is None else [read]),
        ),
        chain=[row.digest.hex() for row in snapshot.read],
    )
    header = Header(
        method=SPEC.name,
        kind="memory",
        port=SPEC.port,
        model=ModelRef.of(model.backbone),
        slots=model.config.slots,
        parent=parents.parent_of(model, beside) if apart else None,
        about=about.model_dump(mode="json"),
    )
    return artifact.write(target, tensors_of(snapshot, model.config, tail) | weights, header)


def opened(
    path: str,
    data: bytes | None = None,
    device: str | None = None,
    model: str | None = None,
    trust_remote_code: bool = False,
    history: int = HISTORY,
) -> Opened:
    """The session of a file, or a new one in front of a trained model's file.

    Args:
        data: the file's bytes, where they were read already.
        model: the language model, where it is not the header's.
        history: ids that are kept of each row for penalties of repetition.

    Raises DataError where the file is neither, is damaged, or its parent or model is not the one it was made
    with (the message has both fingerprints); UsageError for a model that the file holds itself."""
    where = Path.cwd() / "-" if path == "-" else Path(os.path.realpath(path))
    header, tensors = artifact.read(path if data is None else data, name=path)
    if header.method != SPEC.name:
        raise DataError(
            f"{path} holds a {header.kind} of {header.method}, not a recurrent memory", hint=AGAIN
        )
    if model is not None and header.about.get("new") is not None:
        raise UsageError(f"{path} holds its own language model", hint="leave --model out")
    if header.kind == "model":
        if data is None and os.path.getsize(path) > parents.INLINE:
            parents.hashing(path)  # what saving will need
        found = model_file.rebuilt(path, header, tensors, device, model, trust_remote_code)
        session = Session.new(replace(found, path=path if data is None else ""))
        session.history = history
        return Opened(session)
    about = _about(path, header)
    own = {name: x for name, x in tensors.items() if mine(name)}
    if header.parent is not None:
        found = parents.model_of(path, where.parent, header.parent, device, model, trust_remote_code)
    else:
        weights = {name: x for name, x in tensors.items() if name not in own}
        found = model_file.rebuilt(path, header, weights, device, model, trust_remote_code)
    _check_model(path, header, about, found)
    with torch.no_grad():
        start = found.policy.start(len(about.chain))
    parts = parts_of(own, found.config, start, found.backbone.dims.width, path)
    snapshot = _snapshot(path, about, parts, found.backbone.dims.vocab)
    session = Session.restored(found.backbone, found.policy, snapshot, history, found)
    return Opened(session, parts.tail)


def _one_or_all(values: Sequence[int]) -> int | list[int]:
    return values[0] if len(values) == 1 else list(values)


def _check_model(path: str, header: Header, about: About, model: Model) -> None:
    """Raise DataError unless the session was made with this model, policy and all."""
    if header.model is None:
        _wrong(path, f"expected no model, found {model.backbone.name}")
    header.model.check(model.backbone, path, hint=AGAIN)
    # both with every key: a file may be older than a key that has a default
    said = Config.model_validate(about.config).model_dump(mode="json")
    config, width = model.config.model_dump(mode="json"), model.backbone.dims.width
    if (said, about.width) != (config, width):
        _wrong(path, f"expected width {about.width}, {said}, found {width}, {config}")


def _about(path: str, header: Header) -> About:
    try:
        about = About.model_validate(header.about)
        config = Config.model_validate(about.config)
    except ValidationError as error:
        first = error.errors()[0]
        _wrong(path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
    if (about.policy, about.segment) != (config.policy, config.segment):
        expected, found = f"{about.policy}, {about.segment}", f"{config.policy}, {config.segment}"
        _wrong(path, f"expected policy and segment {expected}, found {found}")
    for tokens, segments, pending, _ in zip(*_by_row(path, about), strict=True):
        if tokens != segments * about.segment + pending or not 0 <= pending < about.segment:
            _wrong(path, f"{tokens} tokens are not {segments} segments of {about.segment} and {pending}")
    return about


def _by_row(path: str, about: About) -> list[list[int]]:
    """tokens, segments, pending and bytes, each a list of all rows."""
    counts = about.counts
    columns = [[x] if isinstance(x, int) else x for x in (counts.tokens, counts.segments, counts.pending)]
    columns.append([counts.bytes] * len(about.chain) if isinstance(counts.bytes, int) else counts.bytes)
    if any(len(column) != len(about.chain) for column in columns):
        _wrong(path, "its counts are not those of its rows")
    return columns


def _snapshot(path: str, about: About, parts: Parts, vocab: int) -> Snapshot:
    tokens, segments, pending, streamed = _by_row(path, about)
    rows = len(about.chain)
    if [len(ids) for ids in parts.pending] != pending or {len(parts.history), len(parts.last_BD)} != {rows}:
        _wrong(path, "its ids are not as many as it says")
    if any(not 0 <= i < vocab for ids in (*parts.pending, *parts.history) for i in ids):
        _wrong(path, f"ids are not all from 0 to {vocab - 1}")
    read = tuple(
        Read(t, s, bytes.fromhex(digest), torch.tensor(ids, dtype=torch.int64), count)
        for t, s, digest, ids, count in zip(
            tokens, segments, about.chain, parts.history, streamed, strict=True
        )
    )
    return Snapshot(parts.state, tuple(map(tuple, parts.pending)), parts.last_BD, read, parts.generator)


def _wrong(path: str, what: str) -> NoReturn:
    raise DataError(f"{path} is no session: {what}", hint=AGAIN)
