"""The laws of a memory on the shipped model of `segment`: exact, the same in pieces, blind to units and
names."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_segment import NAMES, walk

import memtoken_cli
from memtoken_cli.data.series import SeriesKeys, series_of
from memtoken_cli.methods.memprompttss import bank_file, encode
from memtoken_cli.methods.memprompttss.bank import Bank
from memtoken_cli.methods.memprompttss.model import load_model
from memtoken_cli.methods.memprompttss.segment_config import SegmentKeys
from memtoken_cli.methods.memprompttss.segmenter import Prediction, Segmenter
from memtoken_cli.methods.memprompttss.tss import shipped

X_TC, TRUTH_T = walk(3000)
SAID = [
    {"row": 250, "label": "walk"},
    {"row": 750, "label": "run"},
    {"start_row": 1200, "end_row": 1260, "label": "rest"},
    {"row": 1000, "type": "boundary"},
    {"row": 2700, "not": "walk"},
]


def seg(bank: Bank | None = None, **keys: object) -> Segmenter:
    return Segmenter(load_model("tss-base"), bank, SegmentKeys.model_validate({"cache": "off", **keys}))


def bits(found: Prediction) -> tuple[object, ...]:
    rows = [segment.row() for segment in found.segments]
    return rows, found.states_T.tolist(), found.confidence_T.tobytes()


def accuracy(found: Prediction) -> float:
    return float(np.mean([state == NAMES[k] for state, k in zip(found.states_T, TRUTH_T, strict=True)]))


@pytest.fixture(scope="module")
def whole() -> Segmenter:
    return seg().fit(X_TC).prompt(*SAID)


def test_it_propagates_and_every_prompted_row_carries_its_prompt(whole: Segmenter) -> None:
    found = whole.predict()
    assert accuracy(found) > 0.9
    assert found.states_T[250] == "walk" and set(found.states_T[1200:1260]) == {"rest"}
    assert found.states_T[999] != found.states_T[1000] and found.states_T[2700] != "walk"


def test_law_1_an_empty_bank_is_no_bank(whole: Segmenter) -> None:
    other = seg(whole.memory).fit(X_TC)
    for row in list(other.bank.rows):
        other.retract(row.key[1])
    assert bits(other.predict()) == bits(seg().fit(X_TC).predict())
    assert bank_file.to_bytes(other.memory) == bank_file.to_bytes(seg().memory)


def test_order_and_repetition_change_no_bit(whole: Segmenter) -> None:
    data, found = bank_file.to_bytes(whole.memory), bits(whole.predict())
    for order in itertools.islice(itertools.permutations(SAID), 0, 120, 23):
        other = seg().fit(X_TC)
        for said in (*order, order[1]):
            other.prompt(said)
        assert bank_file.to_bytes(other.memory) == data and bits(other.predict()) == found


@pytest.mark.parametrize("gone", range(len(SAID)))
def test_retraction_changes_every_bit_back(whole: Segmenter, gone: int) -> None:
    never = seg().fit(X_TC).prompt(*(said for at, said in enumerate(SAID) if at != gone))
    kept = {row.key for row in never.bank.rows}
    [key] = [row.key for row in whole.bank.rows if row.key not in kept]
    other = seg(whole.memory).fit(X_TC).retract(key[1])
    assert bank_file.to_bytes(other.memory) == bank_file.to_bytes(never.memory)
    assert bits(other.predict()) == bits(never.predict())


PROCESS = """
import json, sys
import numpy as np
import memtoken_cli
segmenter = memtoken_cli.Segmenter.load(memory=sys.argv[1], options={"series": sys.argv[3]})
found = segmenter.fit(np.load(sys.argv[2])).predict()
rows = [s.row() for s in found.segments]
print(json.dumps([rows, found.states_T.tolist(), found.confidence_T.tobytes().hex()]))
"""


@pytest.mark.parametrize("name", ["series", "another"])
def test_law_6_in_a_new_process_every_bit_is_there(whole: Segmenter, tmp_path: Path, name: str) -> None:
    whole.memory.save(tmp_path / "bank")
    x_TC = X_TC if name == "series" else walk(3000, seed=4)[0]
    np.save(tmp_path / "x.npy", x_TC)
    here = seg(whole.memory, series=name).fit(x_TC).predict()
    environment = {**os.environ, "PYTHONPATH": str(Path(memtoken_cli.__file__).parents[1])}
    command = [sys.executable, "-c", PROCESS, str(tmp_path / "bank"), str(tmp_path / "x.npy"), name]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    rows, states, sure = json.loads(ran.stdout)
    assert (rows, states, sure) == (
        json.loads(json.dumps(bits(here)[0])),
        here.states_T.tolist(),
        here.confidence_T.tobytes().hex(),
    )


def test_law_8_one_block_or_canonical_blocks() -> None:
    model = shipped()
    x_TC = walk(6000)[0].astype(np.float32)
    gap_T = np.zeros(len(x_TC), bool)
    whole = model.encode(x_TC, gap_T, ("a", "b", "c"))
    parts = encode.encode(model.network.encoder, x_TC, gap_T, ("a", "b", "c"), block=2048)
    assert whole.hand_NF is not None and parts.hand_NF is not None
    # float16 is rounded after: one unit in its last place
    np.testing.assert_allclose(parts.embed_NE.float(), whole.embed_NE.float(), rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(parts.hand_NF.float(), whole.hand_NF.float(), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("stride", [1, 3, 12])
def test_rows_a_token_change_little_and_show_shorter_segments(whole: Segmenter, stride: int) -> None:
    found = seg(stride=stride).fit(X_TC).prompt(*SAID).predict()
    assert found.stride == stride and accuracy(found) > 0.9
    assert (found.states_T == whole.predict().states_T).mean() > 0.95
    assert found.states_T[250] == "walk" and set(found.states_T[1200:1260]) == {"rest"}


def test_blocks_of_tokens_of_any_length() -> None:
    model = shipped()
    x_TC = walk(6000)[0].astype(np.float32)
    gap_T = np.zeros(len(x_TC), bool)
    whole = model.encode(x_TC, gap_T, ("a", "b", "c"), stride=3)
    parts = encode.encode(model.network.encoder, x_TC, gap_T, ("a", "b", "c"), block=2048, stride=3)
    np.testing.assert_allclose(parts.embed_NE.float(), whole.embed_NE.float(), rtol=2e-3, atol=2e-3)


def test_units_and_the_order_of_channels_do_not_matter(whole: Segmenter) -> None:
    plain = seg().fit(X_TC, channels=["a", "b", "c"]).prompt(*SAID).predict()
    scaled = X_TC * np.array([1e3, 0.01, 7.0]) + np.array([5.0, -2.0, 1e4])
    # the solver of the head stops at a tolerance, which another order of features meets elsewhere
    for x_TC, names, near in ((scaled, ["a", "b", "c"], 1e-3), (X_TC[:, [2, 0, 1]], ["c", "a", "b"], 0.2)):
        other = seg().fit(x_TC, channels=names).prompt(*SAID).predict()
        assert [s.state for s in other.segments] == [s.state for s in plain.segments]
        assert (other.states_T == plain.states_T).mean() > 0.995
        np.testing.assert_allclose(other.confidence_T, plain.confidence_T, atol=near)


def test_renaming_labels_renames_the_states(whole: Segmenter) -> None:
    names = {"walk": "b", "run": "a", "rest": "c"}
    said = json.loads(json.dumps(SAID))
    for one in said:
        for key in ("label", "not"):
            if key in one:
                one[key] = names[one[key]]
    other = seg().fit(X_TC).prompt(*said).predict()
    before = whole.predict()
    assert [names[state] for state in before.states_T] == other.states_T.tolist()
    assert other.confidence_T.tobytes() == before.confidence_T.tobytes()


@pytest.mark.parametrize("channels", [1, 2, 23, 300])
def test_any_number_of_channels(channels: int) -> None:
    x_TC, truth_T = walk(1500, channels)
    said = [{"row": 125 + 250 * k, "label": NAMES[k]} for k in range(3)]
    found = seg().fit(x_TC).prompt(*said).predict()
    assert set(found.states_T) == set(NAMES)
    right = [state == NAMES[k] for state, k in zip(found.states_T, truth_T, strict=True)]
    assert np.mean(right) > (0.6 if channels == 1 else 0.9)


def test_sixty_labels_never_seen_before() -> None:
    said = [{"row": 25 + 50 * k, "label": f"état {k}"} for k in range(60)]
    found = seg().fit(X_TC).prompt(*said).predict()
    assert all(found.states_T[one["row"]] == one["label"] for one in said)


def test_the_memory_does_it(whole: Segmenter) -> None:
    """Labels shuffled among the tokens: another series is then labelled wrongly."""
    import dataclasses

    x_TC = walk(3000, seed=4)[0]
    series = series_of(x_TC, keys=SeriesKeys(series="b"))
    moved = {"walk": "run", "run": "rest", "rest": "walk"}
    rows = tuple(
        dataclasses.replace(
            row,
            written=dataclasses.replace(
                row.written,
                prompt=dataclasses.replace(
                    row.written.prompt, labels=tuple(moved[label] for label in row.written.prompt.labels)
                ),
            ),
        )
        for row in whole.bank.rows
    )
    right = accuracy(seg(whole.memory, order="off").fit_series(series).predict())
    wrong = accuracy(
        seg(dataclasses.replace(whole.memory, rows=rows), order="off").fit_series(series).predict()
    )
    assert right > 0.9 and wrong < 0.2


@pytest.mark.parametrize("rows", [1, 2, 5, 15, 16, 17, 40, 100])
def test_series_of_a_few_rows(rows: int) -> None:
    x_TC = np.random.default_rng(rows).normal(size=(rows, 2))
    assert set(seg().fit(x_TC).predict().states_T) >= {"s1"}
    said = [{"row": rows - 1, "label": "b"}, {"row": 0, "label": "a"}][: min(rows, 2)]
    found = seg().fit(x_TC).prompt(*said).predict()
    assert (
        len(found.states_T) == rows and found.states_T[-1] == "b" and (rows == 1 or found.states_T[0] == "a")
    )
