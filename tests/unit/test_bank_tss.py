"""The bank of prompts: canonical order, exact retraction, capacity, changed series, defects of the file."""

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_segment import NAMES, Stub, walk

from memtoken_cli.data.prompts import Prompt
from memtoken_cli.data.series import Series, SeriesKeys, series_of
from memtoken_cli.io.errors import DataError
from memtoken_cli.methods.memprompttss import bank_file, bank_update
from memtoken_cli.methods.memprompttss.bank import Bank, Known
from memtoken_cli.methods.memprompttss.bank_update import Changes
from memtoken_cli.methods.memprompttss.model import Encoded

MODEL = Stub()


def made(name: str = "a", rows: int = 3000, seed: int = 0) -> tuple[Series, Encoded]:
    series = series_of(walk(rows, seed=seed)[0], keys=SeriesKeys(series=name))
    return series, MODEL.encode(series.values_TC, series.gap_T, series.channels)


def shown(row: int, label: str, level: str = "default") -> Prompt:
    return Prompt(f"p{row}", "label", row, row + 1, (label,), level, line=row)


PROMPTS = [shown(row, NAMES[row % 3]) for row in (10, 900, 1700, 2500)]
PROMPTS += [Prompt("b", "boundary", 500, 501, ()), Prompt("i", "label", 600, 700, ("run",), "coarse")]
PROMPTS += [Prompt("n", "not", 20, 21, ("rest", "walk"), weight=2.0, by="me", note="é,\n")]


def told(bank: Bank, prompts: list[Prompt], name: str = "a", seed: int = 0) -> Bank:
    series, encoded = made(name, seed=seed)
    return bank_update.told(bank, MODEL, encoded, series, prompts, Changes())


def full() -> Bank:
    return told(told(Bank.empty(MODEL), PROMPTS), PROMPTS[:2], "b", seed=1)


def test_save_then_load_is_the_identity(tmp_path: Path) -> None:
    bank = full()
    bank.save(tmp_path / "b")
    again = bank_file.load(tmp_path / "b")
    assert bank_file.to_bytes(again) == (tmp_path / "b").read_bytes()
    assert again.series == bank.series and again.levels == ("coarse", "default")
    for old, new in zip(bank.written, again.written, strict=True):
        assert old.prompt == new.prompt and (old.tokens, old.stride) == (new.tokens, new.stride)
        for name in ("token_D", "at_M", "embed_ME", "hand_MF"):
            assert torch.equal(getattr(old, name), getattr(new, name))


def test_order_and_repetition_leave_no_trace() -> None:
    whole = bank_file.to_bytes(full())
    for seed in range(5):
        mixed = [dataclasses.replace(p, line=seed) for p in PROMPTS]
        random.Random(seed).shuffle(mixed)
        bank = told(Bank.empty(MODEL), PROMPTS[:2], "b", seed=1)
        for prompt in mixed:
            bank = told(bank, [prompt, mixed[0]])
        assert bank_file.to_bytes(told(bank, mixed)) == whole


def test_what_is_known_already_is_left_as_it_is() -> None:
    bank = full()
    assert told(bank, PROMPTS) is bank


@pytest.mark.parametrize("gone", range(len(PROMPTS)))
def test_retraction_is_exact(gone: int) -> None:
    never = [p for at, p in enumerate(PROMPTS) if at != gone]
    bank = bank_update.deleted(told(Bank.empty(MODEL), PROMPTS), "a", [PROMPTS[gone].id], [], Changes())
    assert bank_file.to_bytes(bank) == bank_file.to_bytes(told(Bank.empty(MODEL), never))


def test_a_series_goes_with_its_last_prompt() -> None:
    bank = bank_update.kept_only(full(), "b", (), Changes())
    assert bank_file.to_bytes(bank) == bank_file.to_bytes(told(Bank.empty(MODEL), PROMPTS))
    empty = bank_update.kept_only(bank, "a", (), Changes())
    assert bank_file.to_bytes(empty) == bank_file.to_bytes(Bank.empty(MODEL))


def test_deleting_by_label_and_by_unknown_names() -> None:
    changes = Changes()
    bank = bank_update.deleted(full(), "a", ["nobody"], ["run", "swim"], changes)
    assert "run" not in {label for w in bank.written for label in w.prompt.labels}
    assert len(changes.warnings) == 2 and changes.removed == len(full().rows) - len(bank.rows)


def test_an_id_of_two_series_is_deleted_in_the_one_at_hand() -> None:
    bank = bank_update.deleted(full(), "b", [PROMPTS[0].id], [], Changes())
    assert [row.key[0] for row in bank.rows if row.key[1] == PROMPTS[0].id] == ["a"]


def test_the_later_of_two_about_the_same_rows_stays() -> None:
    changes = Changes()
    series, encoded = made()
    new = [Prompt("x", "label", 10, 11, ("swim",)), Prompt("y", "no-boundary", 500, 501, ())]
    bank = bank_update.told(full(), MODEL, encoded, series, new, changes)
    ids = {row.key[1] for row in bank.of("a")}
    assert {"x", "y"} <= ids and not ids & {"p10", "b"}
    assert len(changes.warnings) == 2 and all("replaces" in text for text in changes.warnings)


def test_a_changed_series_is_encoded_again_and_a_short_one_is_told() -> None:
    bank = full()
    series, encoded = made(seed=5)
    changes = Changes()
    fresh = bank_update.refreshed(bank, MODEL, encoded, series, changes)
    assert changes.encoded_again == len(PROMPTS)
    again = bank_update.told(Bank.empty(MODEL), MODEL, encoded, series, PROMPTS, Changes())
    other = told(again, PROMPTS[:2], "b", seed=1)
    assert bank_file.to_bytes(fresh) == bank_file.to_bytes(other)
    same = made()
    assert bank_update.refreshed(bank, MODEL, same[1], same[0], changes) is bank
    short = made(rows=1000)
    with pytest.raises(DataError, match="has 1000 rows now") as error:
        bank_update.refreshed(bank, MODEL, short[1], short[0], changes)
    assert error.value.exit_code == 3


def test_capacity_drops_the_oldest_of_a_state() -> None:
    bank = Bank.empty(MODEL, capacity=1)
    for row in (900, 10, 500):
        bank = told(bank, [shown(row, "walk")])
    bank = told(bank, [shown(2000, "run")])
    assert [row.written.prompt.start for row in bank.rows] == [500, 2000]
    assert (
        bank_file.of(bank_file.memory(bank), bank_file.about(bank), None or _ref(bank)).arrived
        == bank.arrived
    )
    assert bank.limited(None).arrived == ()


def _ref(bank: Bank) -> object:
    from memtoken_cli.io.artifact import ModelRef

    return ModelRef(name=bank.model, fingerprint=bank.digest)


def test_another_model_or_version_is_named() -> None:
    bank = full()
    bank_file.check_model(bank, MODEL, "bank")
    with pytest.raises(DataError, match=r"written by stub .* not by other") as error:
        bank_file.check_model(bank, Stub("other"), "bank")
    assert "rebuild=true" in str(error.value)
    with pytest.raises(DataError, match="version 1, stub has 2"):
        bank_file.check_model(bank, Stub(features=2), "bank")
    bank_file.check_model(Bank.empty(MODEL), Stub("other"), "bank")


def test_every_truncation_and_flipped_byte_is_told(tmp_path: Path) -> None:
    data = bank_file.to_bytes(full())
    path = tmp_path / "b"
    for size in range(0, len(data), 256):
        path.write_bytes(data[:size])
        with pytest.raises(DataError):
            bank_file.load(path)
    for at in np.random.default_rng(0).integers(0, len(data), 60).tolist():
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(DataError):
            bank_file.load(path)


def test_a_bank_of_another_kind_is_refused(tmp_path: Path) -> None:
    from memtoken_cli.io import artifact

    artifact.write(tmp_path / "m", {"x": torch.zeros(1)}, artifact.Header(method="toy", kind="model"))
    with pytest.raises(DataError, match="a model of toy, not a bank"):
        bank_file.load(tmp_path / "m")


def test_what_a_bank_knows_of_a_series_is_found_once_and_again_when_it_changed() -> None:
    series, encoded = made()
    bank = Bank.empty(MODEL)
    for row, label in ((250, "walk"), (750, "run")):
        before = bank.series.get("a")
        bank = bank_update.told(bank, MODEL, encoded, series, [shown(row, label)], Changes())
        known = bank.series["a"]
        assert known == Known.of(series, encoded) and known.fits(series, encoded)
    assert known is before
    assert not known.fits(*made(seed=1)) and not known.fits(*made(name="b"))
