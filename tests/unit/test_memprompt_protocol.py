"""The paper's protocol: windows, levels, where prompts lie and what they say, and the parts of the data."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from memtoken_cli.io.errors import DataError
from memtoken_cli.methods.memprompttss.config import Config, DataConfig
from memtoken_cli.methods.memprompttss.paper_data import Asking, material
from memtoken_cli.methods.memprompttss.placement import (
    BOUNDARY,
    CORRECT,
    LABEL,
    Said,
    joined,
    say,
    single_rows,
    spread_blocks,
    spread_rows,
    stacked,
)
from memtoken_cli.methods.memprompttss.windows import Geometry, merge_labels

PUBLISHED = [Geometry(256, 64, 8), Geometry(512, 128, 8)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("y", "group", "level", "expected"),
    [
        ([7, 7, 3, 9, 3], 2, 0, [0, 0, 1, 2, 1]),
        ([7, 7, 3, 9, 3], 2, 1, [0, 0, 0, 1, 0]),
        ([7, 3, 9, 1, 5, 7], 2, 2, [0, 0, 0, 0, 1, 0]),
        ([4, 2, 2, 8, 1, 4, 6], 3, 1, [0, 0, 0, 0, 1, 0, 1]),
        ([5], 2, 3, [0]),
        ([-1, 40, -1, 2], 2, 1, [0, 0, 0, 1]),
    ],
)
def test_merge_labels(y: list[int], group: int, level: int, expected: list[int]) -> None:
    assert merge_labels(np.array(y), group, level).tolist() == expected


def test_merged_levels_halve_the_classes_of_a_programme() -> None:
    y = np.repeat(np.arange(43), 5)
    assert [len(set(merge_labels(y, 2, level).tolist())) for level in range(3)] == [43, 22, 11]
    assert [len(set(merge_labels(y, 3, level).tolist())) for level in range(3)] == [43, 15, 5]


def test_windows_of_a_subsequence_and_their_mean() -> None:
    g = Geometry(4, 2, 3)
    x = torch.randn(2, 8, 5)
    cut = g.cut(x)
    for w in range(3):
        assert torch.equal(cut[:, w], x[:, 2 * w : 2 * w + 4])
    torch.testing.assert_close(g.average(cut), x)
    noisy = torch.randn(2, 3, 4)
    for row in range(8):
        parts = [noisy[:, w, row - 2 * w] for w in range(3) if 0 <= row - 2 * w < 4]
        torch.testing.assert_close(g.average(noisy)[:, row], torch.stack(parts).mean(0))
    assert [Geometry(256, 64, 8).length, Geometry(512, 128, 8).length] == [704, 1408]


@pytest.mark.parametrize("g", PUBLISHED)
def test_the_released_rule_puts_all_prompts_on_one_row_near_the_start(g: Geometry) -> None:
    rows = single_rows(g, 0.25, 35)
    assert rows.tolist() == [g.rows // 2] * 35
    assert g.holds(rows[None])[0].nonzero()[:, 0].tolist() == [0, 1, 2]
    assert sorted(set(single_rows(g, 1.0, 4).tolist())) == [g.rows // 2, g.rows // 2 + g.rows]


@pytest.mark.parametrize("g", [*PUBLISHED, Geometry(64, 16, 8), Geometry(256, 64, 1), Geometry(256, 64, 32)])
@pytest.mark.parametrize("hit", [0.25, 0.5, 0.75, 1.0, 0.0625])
def test_spread_prompts_hit_the_wanted_share_with_distinct_rows(g: Geometry, hit: float) -> None:
    for seed in range(12):
        rows = spread_rows(g, hit, 12, g.length, generator(seed))
        assert len(set(rows.tolist())) == 12 and int(rows.min()) >= 0 and int(rows.max()) < g.length
        assert int(g.holds(rows[None]).sum()) == max(1, round(hit * g.windows))


def test_a_quarter_of_eight_windows_is_the_second_block_or_its_mirror() -> None:
    assert {tuple(spread_blocks(PUBLISHED[0], 0.25, generator(s))) for s in range(20)} == {(1,), (9,)}


def test_rows_that_are_not_there_are_not_prompted() -> None:
    g = Geometry(256, 64, 8)
    for seed in range(8):
        rows = spread_rows(g, 0.25, 4, 90, generator(seed))
        assert int(rows.max()) < 90 and len(set(rows.tolist())) == 4
        assert spread_rows(g, 0.25, 4, 2, generator(seed)).sort().values.tolist() == [0, 0, 1, 1]


def test_what_is_said_is_half_labels_half_boundaries_half_negated() -> None:
    y = torch.randint(0, 5, (4000,), generator=generator())
    told = say(torch.arange(4000), y, 5, 0.0, generator(1))
    label, right = told.kind_BP[0] == LABEL, told.aspect_BP[0] == CORRECT
    assert abs(float(label.double().mean()) - 0.5) < 0.03
    assert abs(float(right[label].double().mean()) - 0.5) < 0.04
    assert abs(float(right[~label].double().mean()) - 0.5) < 0.04
    value = told.value_BP[0]
    assert torch.equal(value[label & right], y[label & right])
    wrong = label & ~right
    assert bool((value[wrong] != y[wrong]).all())
    away = Counter(((value[wrong] - y[wrong]) % 5).tolist())
    assert set(away) == {1, 2, 3, 4} and min(away.values()) > 180, "uniform over the wrong classes"
    bits = torch.cat([torch.zeros(1, dtype=torch.bool), y[1:] != y[:-1]])
    assert torch.equal(value[~label].bool(), bits[~label] ^ ~right[~label])
    assert torch.equal(told.named_BP[0], label & right)


def test_false_prompts_are_false_whatever_their_aspect() -> None:
    y = torch.randint(0, 3, (3000,), generator=generator())
    told = say(torch.arange(3000), y, 3, 1.0, generator(1))
    label, right = told.kind_BP[0] == LABEL, told.aspect_BP[0] == CORRECT
    value = told.value_BP[0]
    assert bool((value[label & right] != y[label & right]).all())
    assert torch.equal(value[label & ~right], y[label & ~right])
    bits = torch.cat([torch.zeros(1, dtype=torch.bool), y[1:] != y[:-1]])
    assert torch.equal(value[~label].bool(), ~bits[~label] ^ ~right[~label])
    few = say(torch.arange(3000), y, 3, 0.1, generator(2))
    named = few.named_BP[0]
    assert abs(float((few.value_BP[0][named] != y[named]).double().mean()) - 0.1) < 0.04
    only = say(torch.arange(300), torch.zeros(300, dtype=torch.int64), 1, 1.0, generator(3))
    assert bool((only.value_BP[0][only.kind_BP[0] == LABEL] == 0).all())


def test_prompts_side_by_side_and_one_below_the_other() -> None:
    a, b = (say(torch.tensor([i, i + 1]), torch.arange(9), 9, 0.0, generator(i)) for i in (1, 4))
    assert joined([a, b]).row_BP.tolist() == [[1, 2, 4, 5]] and stacked([a, b]).row_BP.tolist() == [
        [1, 2],
        [4, 5],
    ]
    assert len(Said.none(3)) == 3 and stacked([a, b])[1:].row_BP.tolist() == [[4, 5]]


SMALL = Config(width=16, blocks=1, rows=32, stride=16, windows=3, encoder_layers=1)  # 64 rows a subsequence


def folder(path: Path, lengths: tuple[int, ...] = (330, 200), constant: bool = False) -> Path:
    path.mkdir(exist_ok=True)
    for i, rows in enumerate(lengths):
        rng = np.random.default_rng(i)
        state = 10 * (np.arange(rows) // 40 % 4) + 3
        x = rng.normal(size=(rows, 2)) + state[:, None] + 100 * i
        still = ",1.5" if constant else ""
        lines = [f"{a:.5f},{b:.5f}{still},{s}" for (a, b), s in zip(x, state, strict=True)]
        (path / f"s{i}.csv").write_text(
            "\n".join(["a,b" + (",still" if constant else "") + ",state", *lines])
        )
    return path


def test_parts_follow_the_files_and_statistics_follow_the_training_part(tmp_path: Path) -> None:
    path = str(folder(tmp_path / "d", constant=True))
    found = material(DataConfig(path=path, levels=2), SMALL, 0)
    # 5 + 1 padded pieces of the first file, 3 + 1 of the second: 7 train, 1 valid, 2 test
    names = [*found.train.names, *found.valid.names, *found.test.names]
    assert names == [f"s0@{i * 64}" for i in range(6)] + [f"s1@{i * 64}" for i in range(4)]
    assert [len(found.train), len(found.valid), len(found.test)] == [7, 1, 2]
    assert found.train.real_B.tolist() == [64] * 5 + [10, 64] and found.test.real_B.tolist() == [64, 8]
    assert found.channels == ("a", "b") and found.outputs == 4 and found.levels == 2
    assert found.classes == (((3,), (13,), (23,), (33,)), ((3, 13), (23, 33)))
    real = found.train.x_BLC[found.train.real_BL()]
    torch.testing.assert_close(real.mean(0), torch.zeros(2), atol=1e-3, rtol=0)
    torch.testing.assert_close(real.std(0, correction=0), torch.ones(2), atol=1e-3, rtol=0)
    last = found.test.x_BLC[1]
    assert torch.equal(last[8:], last[7:8].expand(56, 2)), "padding repeats the last row"


def test_the_released_protocol_drops_tails_and_looks_at_the_test(tmp_path: Path) -> None:
    path = str(folder(tmp_path / "d"))
    released = SMALL.model_copy(update={"tail": "drop", "stats_from": "all"})
    found = material(DataConfig(path=path), released, 0)
    assert [len(found.train), len(found.valid), len(found.test)] == [5, 1, 2]
    ours = material(DataConfig(path=path), SMALL.model_copy(update={"tail": "drop"}), 0)
    assert float(found.mean_C[0]) > float(ours.mean_C[0]) + 10
    assert found.digest == ours.digest != material(DataConfig(path=path), SMALL, 0).digest


def test_another_folder_as_the_test(tmp_path: Path) -> None:
    source, target = str(folder(tmp_path / "a")), str(folder(tmp_path / "b", (200,)))
    data = DataConfig(path=source, transfer=target)
    ours = material(data, SMALL, 0)
    assert len(ours.test) == 4 and [len(ours.train), len(ours.valid)] == [8, 2]
    assert not set(ours.train.names) & set(ours.valid.names)
    leaky = material(data, SMALL.model_copy(update={"transfer_val": "train"}), 0)
    assert len(leaky.train) == 10 and set(leaky.valid.names) <= set(leaky.train.names)


def test_bad_folders_are_named_before_anything_is_built(tmp_path: Path) -> None:
    path = folder(tmp_path / "d")
    with pytest.raises(DataError, match="leave none for valid"):
        material(DataConfig(path=str(path)), Config(), 0)
    (path / "s2.csv").write_text("a,c,state\n" + "1,2,3\n" * 80)
    with pytest.raises(DataError, match=r"columns a, c where s0 has a, b"):
        material(DataConfig(path=str(path)), SMALL, 0)
    (path / "s2.csv").write_text("a,b,state\n" + "1,2,3\n" * 80 + "1,2,3.5\n")
    with pytest.raises(DataError) as caught:
        material(DataConfig(path=str(path)), SMALL, 0)
    assert "s2.csv:82" in str(caught.value.where)


def test_generated_series_come_from_the_seed() -> None:
    data = DataConfig.model_validate({"generated": {"series": 4, "rows": 256, "channels": 2, "states": 3}})
    one, two, other = (material(data, SMALL, seed) for seed in (0, 0, 1))
    assert torch.equal(one.train.x_BLC, two.train.x_BLC) and one.digest == two.digest != other.digest


def test_draws_depend_on_seed_series_and_iteration_alone() -> None:
    data = DataConfig.model_validate({"generated": {"series": 4, "rows": 256, "channels": 2, "states": 3}})
    part = material(data, SMALL, 0).train
    asking = Asking.of(SMALL, 4, 0.5)
    both = asking.draw(part, [3, 1], 0, 3, 7, "test", 2)
    alone = asking.draw(part, [1], 0, 3, 7, "test", 2)
    assert torch.equal(both.row_BP[1:], alone.row_BP) and torch.equal(both.value_BP[1:], alone.value_BP)
    later = asking.draw(part, [1], 0, 3, 7, "test", 3)
    seeded = asking.draw(part, [1], 0, 3, 8, "test", 2)
    assert not torch.equal(later.row_BP, alone.row_BP) and not torch.equal(seeded.row_BP, alone.row_BP)
    single = Asking.of(SMALL.model_copy(update={"placement": "single"}), 4, 0.25)
    assert single.draw(part, [0], 0, 3, 7).row_BP.tolist() == [[16] * 4]
    assert {BOUNDARY, LABEL} >= set(both.kind_BP.flatten().tolist())
