"""The exam of the paper's protocol: the rule that fills, figures by level and far from prompts, by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from memtoken_cli.io.errors import UsageError
from memtoken_cli.methods.memprompttss.config import Config, DataConfig
from memtoken_cli.methods.memprompttss.learn import network_of
from memtoken_cli.methods.memprompttss.paper_data import Material, Part, material
from memtoken_cli.methods.memprompttss.paper_exam import (
    Fill,
    Majority,
    Model,
    Sheet,
    checked,
    mean,
    pooled,
    sit,
    table,
)
from memtoken_cli.methods.memprompttss.placement import BOUNDARY, CORRECT, LABEL, WRONG, Said
from memtoken_cli.methods.memprompttss.train import majority
from memtoken_cli.methods.memprompttss.windows import Geometry

SMALL = Config(width=16, blocks=1, rows=32, stride=16, windows=3, encoder_layers=1)


def part(y: list[list[int]]) -> Part:
    y_BL = torch.tensor(y)
    B, L = y_BL.shape
    return Part(torch.zeros(B, L, 1), y_BL[None], torch.full((B,), L), tuple(f"s@{i}" for i in range(B)))


def test_fill_takes_the_nearest_row_whose_class_was_said() -> None:
    g = Geometry(2, 1, 5)
    fill = Fill(g, [9])
    first = Said(*(torch.tensor([x]) for x in ([1, 4], [BOUNDARY, LABEL], [CORRECT, WRONG], [1, 3])))
    second = Said(*(torch.tensor([x]) for x in ([4, 0], [LABEL, LABEL], [CORRECT, CORRECT], [5, 2])))
    answers = fill(part([[0] * 6]), [0], 0, [first, second])
    assert torch.equal(answers[0], torch.full((1, 5, 2), 9))
    assert torch.equal(
        answers[1], g.cut(torch.tensor([[2, 2, 5, 5, 5, 5]]))
    )  # of two as near, the first said
    assert torch.equal(Majority(g, [9])(part([[0] * 6]), [0], 0, [first])[0], answers[0])


def test_figures_of_a_sheet() -> None:
    sheet = Sheet(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), np.array([True, True, False, False]))
    found = sheet.figures()
    assert found["accuracy"] == 0.75 and found["far"] == 0.5
    assert found["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert found["ari"] == pytest.approx(0.0) and 0 < found["nmi"] < 1
    both = pooled([sheet, Sheet(np.array([0]), np.array([0]), np.array([True]))]).figures()
    assert both["accuracy"] == pytest.approx(0.8) and both["far"] == pytest.approx(2 / 3)
    assert mean([{"a": 1.0}, {"a": 2.0}]) == {"a": 1.5}
    assert np.isnan(Sheet(sheet.true_X, sheet.true_X, np.zeros(4, dtype=bool)).figures()["far"])


@pytest.fixture(scope="module")
def found() -> Material:
    said = {"levels": 2, "generated": {"series": 5, "rows": 200, "channels": 2, "states": 3}}
    return material(DataConfig.model_validate(said), SMALL, 0)


def test_only_real_rows_count_and_windows_with_a_prompt_are_near(found: Material) -> None:
    said: list[Said] = []

    def spy(part: Part, of: list[int], level: int, told: list[Said]) -> list[torch.Tensor]:
        said.extend(told)
        g = Geometry(32, 16, 3)
        return [g.cut(part.y_GBL[level][torch.tensor(of)]) for _ in told]

    sheets = sit(spy, found, SMALL, [2, 2], 0.5, 0)  # type: ignore[arg-type]
    assert len(sheets) == 2 and len(sheets[0]) == 2
    real = found.test.real_BL()
    counted = int(Geometry(32, 16, 3).cut(real).sum())
    assert bool((~real).any()), "the last subsequence is padded"
    assert all(len(s.true_X) == counted and s.figures()["accuracy"] == 1 for level in sheets for s in level)
    rows = torch.cat([said[0].row_BP, said[1].row_BP], 1)
    near = torch.stack([((rows >= w * 16) & (rows < w * 16 + 32)).any(1) for w in range(3)], 1)
    far = (~near)[..., None].expand(-1, -1, 32)[Geometry(32, 16, 3).cut(real)]
    assert sheets[1][0].far_X.tolist() == far.tolist()
    first = (~Geometry(32, 16, 3).holds(said[0].row_BP))[..., None].expand(-1, -1, 32)
    assert sheets[0][0].far_X.sum() == first[Geometry(32, 16, 3).cut(real)].sum() >= sheets[1][0].far_X.sum()


def test_a_table_tells_levels_iterations_and_gain(found: Material) -> None:
    said = {"levels": 2, "seeds": 2, "paper": {"iterations": 3, "prompts": 2, "budget": 0.1}}
    g = Geometry(32, 16, 3)
    common = majority(found)
    rows = table(
        {"fill": Fill(g, common), "memprompt": Majority(g, common)},
        found,
        SMALL,
        DataConfig.model_validate(said),
        0,
    )
    main = {row["method"]: row for row in rows}
    steps = main["fill"]["iterations"]
    assert len(steps) == 3 and steps[0].keys() == {"accuracy", "macro_f1", "ari", "nmi", "far"}
    assert main["fill"]["first"] == steps[0]["accuracy"] and main["fill"]["last"] == steps[-1]["accuracy"]
    assert main["fill"]["gain"] == pytest.approx((main["fill"]["last"] - main["fill"]["first"]) / 2)
    assert main["memprompt"]["gain"] == 0
    over = main["memprompt"]["accuracy"] - main["fill"]["accuracy"]
    assert main["memprompt"]["over_fill"] == over and "over_memprompt" not in main["memprompt"]
    levels = [r["accuracy"] for r in main["memprompt"]["levels"]]
    assert main["memprompt"]["accuracy"] == pytest.approx(np.mean(levels))
    assert levels == [main["memprompt"]["level_0"], main["memprompt"]["level_1"]]


def test_a_bank_that_is_off_or_shuffled_is_told_other_things(found: Material) -> None:
    network = network_of(SMALL, 2, found.outputs, 2, 0).eval()
    model = Model(network, SMALL, (3, 2), 4, torch.device("cpu"))
    told = Said(*(torch.tensor([x]) for x in ([1, 2, 3], [LABEL, LABEL, BOUNDARY], [1, 0, 1], [2, 0, 1])))
    off = Model(network, SMALL, (3, 2), 4, torch.device("cpu"), "off")._told(told, 0)
    assert off.row_BP.shape == (1, 0)
    shuffled = Model(network, SMALL, (3, 2), 4, torch.device("cpu"), "shuffled")._told(told, 0)
    assert shuffled.value_BP.tolist() == [[0, 1, 1]] and model._told(told, 0) is told


def test_a_contestant_that_is_not_there_is_named() -> None:
    assert checked(["fill", "memprompt"]) == ("fill", "memprompt")
    with pytest.raises(UsageError) as caught:
        checked(["memprmpt"])
    assert "did you mean memprompt?" in str(caught.value.hint)


HERE = [
    ("mocap", 256, 64, 3, 10, (0.781, 0.732, 0.555, 0.741), 0.353, (0.830, 0.861), 0.735),
    ("usc_had", 512, 128, 2, 15, (0.766, 0.567, 0.813, 0.857), 0.238, (0.831, 0.716), 0.681),
    ("pump", 256, 64, 3, 18, (0.598, 0.310, 0.681, 0.823), 0.104, (0.705, 0.473), 0.466),
]


@pytest.mark.data
@pytest.mark.parametrize("reference", HERE, ids=lambda r: r[0])
def test_the_rule_that_fills_has_its_reference_figures(
    reference: tuple[str, int, int, int, int, tuple[float, ...], float, tuple[float, float], float],
    data_folder: Path,
) -> None:
    """Released placement and split; single level, majority, pooled levels, far from the prompt."""
    name, rows, stride, levels, tests, single, common, pool, far = reference
    config = Config.model_validate({"rows": rows, "stride": stride, "placement": "single", "tail": "drop"})
    data = DataConfig(path=str(data_folder / name), levels=levels)
    found = material(data, config, 0)
    assert len(found.test) == tests
    g = Geometry(rows, stride, 8)
    [sheets] = sit(Fill(g, majority(found)), found, config, [int(0.05 * config.length)], 0.25, 0)
    figures = sheets[0].figures()
    assert [figures[k] for k in ("accuracy", "macro_f1", "ari", "nmi")] == pytest.approx(single, abs=6e-4)
    assert figures["far"] == pytest.approx(far, abs=6e-4)
    whole = pooled(sheets).figures()
    assert [whole["accuracy"], whole["macro_f1"]] == pytest.approx(pool, abs=1.1e-3)
    [least] = sit(Majority(g, majority(found)), found, config, [1], 0.25, 0)
    assert least[0].figures()["accuracy"] == pytest.approx(common, abs=6e-4)
