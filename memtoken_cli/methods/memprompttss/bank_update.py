"""What a list of prompts changes in a bank: rows added, taken out, or encoded anew because their series
changed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from memtoken_cli.data.prompts import Prompt
from memtoken_cli.data.series import Series
from memtoken_cli.io.errors import DataError
from memtoken_cli.methods.memprompttss import bank as banks
from memtoken_cli.methods.memprompttss.bank import Bank, Known
from memtoken_cli.methods.memprompttss.hard import named
from memtoken_cli.methods.memprompttss.model import Encoded, Model


@dataclass
class Changes:
    """What happened, counted, and what the user should be told."""

    added: int = 0
    removed: int = 0
    encoded_again: int = 0
    dropped: int = 0
    warnings: list[str] = field(default_factory=list)


def refreshed(
    bank: Bank, model: Model, encoded: Encoded, series: Series, changes: Changes, force: bool = False
) -> Bank:
    """With the series' own prompts encoded again where it is no longer what it was. Raises DataError for a
    prompt whose rows have gone."""
    known = bank.series.get(series.name)
    if known is None or not (
        force or known.fingerprint != series.fingerprint or known.stride != encoded.stride
    ):
        return bank
    prompts = [row.written.prompt for row in bank.of(series.name)]
    for prompt in prompts:
        if prompt.end > len(series):
            raise DataError(
                f"{series.name} has {len(series)} rows now: the bank's {named(prompt)} lies beyond",
                hint=f'delete it: echo \'{{"id": "{prompt.id}", "delete": true}}\' | ... --prompts -',
            )
    changes.encoded_again = len(prompts)
    return bank.with_rows(banks.write(model, encoded, series, prompts), Known.of(series, encoded))


def deleted(bank: Bank, series: str, ids: Sequence[str], labels: Sequence[str], changes: Changes) -> Bank:
    """Without the prompts that a user took back, by id (of this series, else of any) or by label."""
    gone = set()
    for name in ids:
        found = [row.key for row in bank.rows if row.written.prompt.id == name]
        own = [key for key in found if key[0] == series]
        if not found:
            changes.warnings.append(f"no prompt {name} in the bank")
        gone |= set(own or found)
    for label in labels:
        found = [row.key for row in bank.rows if label in row.written.prompt.labels]
        if not found:
            changes.warnings.append(f"no prompt labelled {label!r} in the bank")
        gone |= set(found)
    changes.removed += len(gone)
    return bank.without(gone)


def kept_only(bank: Bank, series: str, ids: Collection[str], changes: Changes) -> Bank:
    """Without the series' prompts that are not among `ids`."""
    gone = {row.key for row in bank.of(series) if row.written.prompt.id not in ids}
    changes.removed += len(gone)
    return bank.without(gone)


def told(
    bank: Bank,
    model: Model,
    encoded: Encoded,
    series: Series,
    prompts: Sequence[Prompt],
    changes: Changes,
) -> Bank:
    """With `prompts`; those that are there already are left as they are."""
    before, new = bank, []
    for prompt in {prompt.id: prompt for prompt in prompts}.values():
        row = bank.find((series.name, prompt.id))
        if row is None or not banks.same(row.written.prompt, prompt):
            new.append(prompt)
    ids = {prompt.id for prompt in new}
    out = set()
    for prompt in new:
        for row in bank.of(series.name):
            old = row.written.prompt
            if old.id not in ids and row.key not in out and _excludes(old, prompt):
                changes.warnings.append(
                    f"{named(prompt)} replaces {named(old)}: both are about the same rows"
                )
                out.add(row.key)
    bank = bank.without(out)
    changes.removed += len(out)
    if new:
        known = before.series.get(series.name)
        if known is None or not known.fits(series, encoded):
            known = Known.of(series, encoded)
        bank = bank.with_rows(banks.write(model, encoded, series, new), known)
        changes.added += len(new)
    full = bank.overfull()
    changes.dropped += len(full)
    return bank.without(full)


def rebuilt(bank: Bank, model: Model) -> Bank:
    """The bank as this model's, its rows still to be encoded by it."""
    return replace(bank, model=model.name, digest=model.digest, features=model.features)


def _excludes(old: Prompt, new: Prompt) -> bool:
    """Whether two prompts cannot both be true because they speak of the very same rows."""
    if old.level != new.level or (old.start, old.end) != (new.start, new.end):
        return False
    kinds = {old.type, new.type}
    if kinds == {"label"}:
        return old.labels != new.labels
    if kinds == {"label", "not"}:
        shown, ruled = (old, new) if old.type == "label" else (new, old)
        return shown.labels[0] in ruled.labels
    return kinds == {"boundary", "no-boundary"}
