"""A bank's prompts encoded again by another model: every series that they are about must be at hand."""

from __future__ import annotations

from pathlib import Path

from memtoken_cli.data.series import Series, SeriesKeys, read_series
from memtoken_cli.engine.method import Run
from memtoken_cli.io.errors import DataError
from memtoken_cli.methods.memprompttss import bank_update
from memtoken_cli.methods.memprompttss.bank import Bank
from memtoken_cli.methods.memprompttss.bank_update import Changes
from memtoken_cli.methods.memprompttss.cache import Cache
from memtoken_cli.methods.memprompttss.model import Encoded, Model

SUFFIXES = (".csv", ".tsv", ".txt", ".parquet", ".npz", ".mat", ".ts")


def rebuilt(
    bank: Bank, model: Model, series: Series, encoded: Encoded, source: str, cache: Cache, run: Run
) -> Bank:
    """Other series than the one in hand are looked for beside its file, by their names. Raises DataError
    where one is not there, or is not what it was."""
    bank = bank_update.rebuilt(bank, model)
    for name, known in bank.series.items():
        if name == series.name:
            other, tokens = series, encoded
        else:
            other = _beside(source, name)
            if other.fingerprint != known.fingerprint:
                raise DataError(
                    f"{other.source} is not the series {name} that the bank was written from",
                    hint=f"put the old file there, or delete the prompts of {name}",
                )
            tokens = cache.get(model, other, known.stride)
        changes = Changes()
        bank = bank_update.refreshed(bank, model, tokens, other, changes, force=True)
        run.note(f"{name}: {changes.encoded_again} prompts encoded again by {model.name}")
    return bank


def _beside(source: str, name: str) -> Series:
    folder = Path() if source == "-" else Path(source).parent
    for suffix in SUFFIXES:
        path = folder / f"{name}{suffix}"
        if path.is_file():
            return read_series(path, SeriesKeys(series=name))
    raise DataError(
        f"the bank's series {name} is not at hand",
        hint=f"put {name}.csv beside the series, then rebuild=true",
    )
