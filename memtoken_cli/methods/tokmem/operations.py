"""What `memtok bank` does with files: read, change, and put the result in its place by one rename.

The algebra is `bank.py`'s; adding and exporting, which need the backbone, are `add.py`'s and `export.py`'s.
Every verb is a no-op where its result is there already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.engine.memory import Rows, from_tensors
from memtoken_cli.engine.method import BankCall, Run
from memtoken_cli.io import artifact, atomic
from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.io.lock import file_lock
from memtoken_cli.methods.tokmem import bank_file
from memtoken_cli.methods.tokmem.bank import Bank, OnClash, SharedBlocks, digest_of
from memtoken_cli.methods.tokmem.config import BankKeys

CLASHES = ("error", "keep", "rename")
BLOCKS = ("refuse", "first")
FAR = 10.0  # times the median norm: worth a look


def run(call: BankCall, keys: BankKeys, run: Run) -> Iterator[Mapping[str, Any]]:
    """Rows that tell what was found or done. Raises UsageError, DataError, Locked."""
    _check(call, keys)
    if call.action == "diff":
        yield from differences(Bank.load(call.file), Bank.load(call.arguments[0]), run)
    elif call.action == "verify":
        yield from verify(call, keys, run)
    elif call.action == "export":
        from memtoken_cli.methods.tokmem.export import export

        yield export(Bank.load(call.file), call, keys, run)
    else:
        make = {"add": _add, "remove": _remove, "rename": _rename, "merge": _merge, "select": _select}
        yield _write(call, run, lambda: make[call.action](call, keys, run))


def backbone_of(bank: Bank, call: BankCall, keys: BankKeys, run: Run, dtype: str | None = None) -> CausalLM:
    """The bank's model, or the one that --model names, in the dtype that features were read in, with the
    adapter that the bank was made under.

    Raises DataError where its weights, its tokenizer or the adapter are not those of the bank.
    """
    from memtoken_cli.engine import models
    from memtoken_cli.methods.tokmem import adapter

    made_for = bank.model
    name = call.model or (made_for.name if made_for else "")
    if not name:
        raise UsageError("the bank names no model", hint="--model M")
    backbone = models.load(name, run.device, dtype or bank.meta.dtype, call.trust_remote_code)
    if made_for is not None:
        made_for.check(backbone, call.file, hint=f"--model {made_for.name}")
    adapter.wear_as(bank.meta, backbone, keys.adapter, call.file)
    return backbone


def _check(call: BankCall, keys: BankKeys) -> None:
    for option, value, known in (
        ("--on-clash", call.on_clash, CLASHES),
        ("--shared-blocks", call.shared_blocks, BLOCKS),
    ):
        if value not in known:
            raise UsageError(f"{option} {value}: unknown", hint=f"{option} {' or '.join(known)}")
    strange = keys.model_fields_set - ({"adapter"} if call.action in ("verify", "export") else set())
    if strange and call.action != "add":
        given = sorted(strange)[0]
        raise UsageError(f"{given}= belongs to add, not to {call.action}", hint=f"leave {given}= out")


def _write(call: BankCall, run: Run, make: Callable[[], Bank]) -> Mapping[str, Any]:
    target = call.target
    with file_lock(target) if call.in_place else nullcontext():
        before = _existing(target)
        bank = make()
        header = bank_file.header(bank)
        data, stored = artifact.to_bytes(bank_file.memory(bank).tensors(), header)
        if before is not None and before.digest == stored.digest and Path(target).read_bytes() == data:
            run.note(f"{target}: already done")
        else:
            if before is not None and not call.in_place:
                run.note(f"{target}: replaced, it held another result")
            atomic.write_bytes(target, data)
    return {"path": target, "procedures": len(bank), "digest": stored.digest}


def _existing(target: str) -> artifact.Header | None:
    """The header of what the target holds. Raises UsageError where that is no artifact: it is left alone."""
    path = Path(target)
    if not path.is_file() or not path.stat().st_size:
        return None
    try:
        return artifact.read_header(target)
    except DataError as error:
        raise UsageError(
            f"{target} exists and is not an artifact: it is left alone",
            hint="--out another file, or remove it",
        ) from error


def _noted(bank: Bank, *entries: str) -> Bank:
    return replace(bank, meta=replace(bank.meta, history=(*bank.meta.history, *entries)))


def _entry(action: str, *parts: str) -> str:
    """What the history keeps: that something was done, by digest, so that names that are gone stay gone."""
    return f"{action}:{digest_of(*parts)}"


def _add(call: BankCall, keys: BankKeys, run: Run) -> Bank:
    from memtoken_cli.methods.tokmem.add import add

    return add(Bank.load(call.file), call, keys, run)


def _remove(call: BankCall, keys: BankKeys, run: Run) -> Bank:
    bank = Bank.load(call.file)
    gone = [
        name
        for name in dict.fromkeys(call.arguments)
        if name in bank.names or _entry("remove", name) not in bank.meta.history
    ]
    if not gone:
        return bank
    return _noted(bank.remove(gone), *(_entry("remove", name) for name in gone))


def _rename(call: BankCall, keys: BankKeys, run: Run) -> Bank:
    bank = Bank.load(call.file)
    old, new = call.arguments
    entry = _entry("rename", old, new)
    if old not in bank.names and new in bank.names and entry in bank.meta.history:
        return bank
    renamed = bank.rename(old, new)
    return renamed if renamed is bank else _noted(renamed, entry)


def _select(call: BankCall, keys: BankKeys, run: Run) -> Bank:
    return Bank.load(call.file).select(call.arguments)


def _merge(call: BankCall, keys: BankKeys, run: Run) -> Bank:
    bank = Bank.load(call.file)
    for path in call.arguments:
        other = Bank.load(path)
        entry = _entry("merge", artifact.read_header(path).digest)
        if entry in bank.meta.history and other.block_ids <= bank.block_ids:
            continue  # the same command again
        if other.meta.dtype != bank.meta.dtype:
            run.note(f"warning: {path} was made in {other.meta.dtype}, {call.file} in {bank.meta.dtype}")
        shared = cast(SharedBlocks, call.shared_blocks)
        bank = _noted(bank.merge([other], cast(OnClash, call.on_clash), shared), entry)
    return bank


def differences(a: Bank, b: Bank, run: Run) -> Iterator[dict[str, Any]]:
    """One row a procedure that is not the same in both, and one a part of the whole that differs."""
    found = False
    for name in sorted({*a.names, *b.names}):
        change = _change(a, b, name)
        if change:
            found = True
            yield {"name": name, **change}
    for key in vars(a.meta):
        if vars(a.meta)[key] != vars(b.meta)[key] and key not in ("notes", "history"):
            found = True
            yield {"part": key, "first": _plain(vars(a.meta)[key]), "second": _plain(vars(b.meta)[key])}
    for part, x, y in (("model", a.model, b.model), ("alpha", dict(a.alpha), dict(b.alpha))):
        if x != y:
            found = True
            yield {"part": part, "first": _plain(x), "second": _plain(y)}
    if not found:
        run.note("no difference")


def _change(a: Bank, b: Bank, name: str) -> dict[str, Any] | None:
    if name not in a.names or name not in b.names:
        return {"change": "added" if name in b.names else "removed"}
    i, j = a.index(name), b.index(name)
    parts = []
    if a.control_PkE[i].shape != b.control_PkE[j].shape or not torch.equal(
        a.control_PkE[i], b.control_PkE[j]
    ):
        parts.append("control")
    elif not a.same_row(b, name):
        parts.append("address")
    parts += [key for key in vars(a.rows[i]) if vars(a.rows[i])[key] != vars(b.rows[j])[key]]
    return {"change": "changed", "parts": parts} if parts else None


def verify(call: BankCall, keys: BankKeys, run: Run) -> Iterator[dict[str, Any]]:
    """One row a check. Raises DataError, after all rows, where one has failed."""
    header, tensors = artifact.read(call.file)
    yield {"check": "digest", "state": "ok", "detail": header.digest}
    rows = from_tensors(str(header.port), tensors, names=header.about.get(bank_file.NAMES, ()))
    assert isinstance(rows, Rows), "the header named this method"
    bank = bank_file.of(rows, header.about, header.model)
    yield {"check": "shapes and numbers", "state": "ok", "detail": f"{len(bank)} procedures"}
    yield from _norms(bank)
    yield from _twins(bank)
    for why in bank.meta.approximate:
        yield {"check": "scores", "state": "warn", "detail": f"approximate: {why}"}
    if call.model is not None:
        backbone = backbone_of(bank, call, keys, run)
        yield {"check": "weights", "state": "ok", "detail": backbone.fingerprint}
        from memtoken_cli.methods.tokmem.prompt import Prompts

        if bank.meta.prompt not in ("", Prompts(backbone.tokenizer).digest):
            raise DataError(f"{call.file}: the chat template of {backbone.name} is not the bank's")
        yield {"check": "tokenizer and chat template", "state": "ok", "detail": backbone.tokenizer_digest}


def _norms(bank: Bank) -> Iterator[dict[str, Any]]:
    norm_P = bank.control_PkE.norm(dim=2).mean(1)
    if not len(norm_P):
        return
    median = float(norm_P.median())
    far = [name for name, n in zip(bank.names, norm_P.tolist(), strict=True) if n > FAR * median]
    detail = f"median {median:.4g}" + (f", more than {FAR:g} times that: {', '.join(far)}" if far else "")
    yield {"check": "norms", "state": "warn" if far else "ok", "detail": detail}


def _twins(bank: Bank) -> Iterator[dict[str, Any]]:
    seen: dict[bytes, str] = {}
    twins = []
    for name, row_kE in zip(bank.names, bank.control_PkE, strict=True):
        first = seen.setdefault(row_kE.numpy().tobytes(), name)
        if first != name:
            twins.append(f"{name} = {first}")
    detail = ", ".join(twins) or "none"
    yield {"check": "equal rows", "state": "warn" if twins else "ok", "detail": detail}


def _plain(value: Any) -> Any:
    """For JSON: numbers and texts as they are."""
    return value if isinstance(value, str | int | float | bool | dict | None) else str(value)
