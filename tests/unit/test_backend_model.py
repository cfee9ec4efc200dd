"""A trained backend where `segment` wants a model: its own channels and classes, prompts of every kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from memtoken_cli.data.prompts import DEFAULT_LEVEL, Prompt
from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.methods.memprompttss.backend_model import BackendModel, centres, rows_of
from memtoken_cli.methods.memprompttss.config import Config
from memtoken_cli.methods.memprompttss.learn import network_of
from memtoken_cli.methods.memprompttss.model import Encoded
from memtoken_cli.methods.memprompttss.train import Trained

CHANNELS = ("a", "b", "c")
CLASSES = (((3,), (10,), (7,)), ((3, 10), (7,)))


def trained(**more: object) -> Trained:
    small = {"width": 16, "blocks": 2, "encoder_layers": 1, "rows": 32, "stride": 16, "windows": 3}
    config = Config.model_validate(small | more)
    network = network_of(config, 3, 3, 2, 0).eval()
    mean, std = torch.tensor([1.0, 0.0, -2.0]), torch.tensor([2.0, 1.0, 0.5])
    return Trained(network, config, CHANNELS, mean, std, CLASSES, "d" * 64, {})


@pytest.fixture
def model() -> BackendModel:
    return BackendModel(trained(), "mine.safetensors")


def values(rows: int = 200) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, 3)).astype(np.float32) * 2 + 1


def encoded(model: BackendModel, rows: int = 200) -> Encoded:
    return model.encode(values(rows), np.zeros(rows, dtype=bool), CHANNELS)


def said(row: int, label: str = "10", **more: object) -> Prompt:
    prompt = Prompt(f"p{row}", "label", row, row + 1, (label,))
    return replace(prompt, **more)  # type: ignore[arg-type]


def test_a_series_is_its_standardised_rows(model: BackendModel) -> None:
    rows = 9003
    found = model.encode(values(rows), np.arange(rows) >= 8990, CHANNELS)
    assert (found.rows, found.stride, found.tokens, found.hand_NF) == (rows, 8, 1126, None)
    assert found.gap_N.nonzero()[:, 0].tolist() == [1124, 1125]
    x = (torch.from_numpy(values(rows)) - model.trained.mean_C) / model.trained.std_C
    torch.testing.assert_close(rows_of(found), x, rtol=1e-3, atol=1e-3)
    assert centres(found)[[0, -1]].tolist() == [4, 9002]


def test_channels_are_known_by_name_and_else_by_number(model: BackendModel) -> None:
    x = values()
    gap = np.zeros(200, dtype=bool)
    mixed = model.encode(x[:, [2, 0, 1]], gap, ("c", "a", "b"))
    assert torch.equal(mixed.embed_NE, encoded(model).embed_NE)
    more = model.encode(np.hstack([x, x[:, :1]]), gap, (*CHANNELS, "d"))
    assert torch.equal(more.embed_NE, mixed.embed_NE)
    assert torch.equal(model.encode(x, gap, ("u", "v", "w")).embed_NE, mixed.embed_NE)
    with pytest.raises(DataError, match=r"3 channels .a, b, c., the series has 2") as caught:
        model.encode(x[:, :2], gap, ("a", "b"))
    assert "tss-base" in str(caught.value.hint)


@pytest.mark.parametrize("rows", [20, 33, 200])
def test_costs_are_the_mean_chances_of_the_windows(model: BackendModel, rows: int) -> None:
    found = encoded(model, rows)
    bank = model.write(found, [said(5), said(rows - 1, "7"), said(9, "7", level="level1")], "s")
    unary = model.read(found, "s", bank, DEFAULT_LEVEL)
    assert unary.labels == ("10", "3", "7")
    x = rows_of(found)
    x = x[torch.arange(max(rows, 32)).clamp(max=rows - 1)]
    m = torch.stack([bank[0].token_D, bank[1].token_D])[None]
    total, n = torch.zeros(len(x), 3), torch.zeros(len(x), 1)
    starts = [*range(0, len(x) - 31, 16)]
    for start in starts if starts[-1] == len(x) - 32 else [*starts, len(x) - 32]:
        with torch.no_grad():
            total[start : start + 32] += model.network.read(
                model.network.encoder(x[None, start : start + 32]), m
            )[0].softmax(-1)
        n[start : start + 32] += 1
    by_hand = -(total / n)[centres(found)].log()[:, [1, 0, 2]]
    torch.testing.assert_close(unary.cost_NK, by_hand, rtol=1e-3, atol=1e-3)
    coarse = model.read(found, "s", bank, "level1")
    assert coarse.labels == ("3+10", "7") and coarse.cost_NK.shape == (found.tokens, 2)
    strange = model.strangeness(found, bank, DEFAULT_LEVEL)
    torch.testing.assert_close(strange.value_N, 1 - (-unary.cost_NK.min(1).values).exp())
    assert 0 < strange.threshold < 1


def test_a_token_is_what_training_would_write(model: BackendModel) -> None:
    from memtoken_cli.methods.memprompttss.placement import Said

    found = encoded(model)
    kinds = [
        (said(40, "7"), (0, 1, 2)),
        (said(40, "7", type="not"), (0, 0, 2)),
        (said(40, type="boundary", labels=()), (1, 1, 1)),
        (said(40, type="no-boundary", labels=()), (1, 1, 0)),
        (said(38, type="same", end=43, labels=()), (1, 1, 0)),
    ]
    for prompt, told in kinds:
        one = Said(torch.tensor([[40]]), *(torch.tensor([[v]]) for v in told))
        with torch.no_grad():
            expected = model.network.write(rows_of(found)[None], one)[0, 0]
        torch.testing.assert_close(model.write(found, [prompt], "s")[0].token_D, expected)
    both = model.write(found, [said(40, type="not", labels=("3", "7"))], "s")[0].token_D
    assert not torch.allclose(both, model.write(found, [kinds[1][0]], "s")[0].token_D)


def test_each_row_of_the_bank_depends_on_its_own_prompt(model: BackendModel) -> None:
    found = encoded(model)
    every = [said(5), said(90, "7"), said(150, "3")]
    together = model.write(found, every, "s")
    assert [w.prompt for w in together] == every
    for prompt, written in zip(every, together, strict=True):
        assert torch.equal(model.write(found, [prompt], "s")[0].token_D, written.token_D)
    assert together[1].at_M.tolist() == [90] and together[1].stride == 1


def test_evidence_is_a_share_for_each_prompt_of_the_level(model: BackendModel) -> None:
    found = encoded(model)
    bank = model.write(found, [said(5), said(90, "7", level="level1"), said(150, "3")], "s")
    share: Tensor = model.evidence(found, "s", bank, DEFAULT_LEVEL, 10, 20)
    assert (
        share[1] == 0 and float(share.sum()) == pytest.approx(1, abs=1e-5) and bool((share[[0, 2]] > 0).all())
    )
    assert float(model.evidence(found, "s", bank[1:2], DEFAULT_LEVEL, 10, 20).sum()) == 0


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        call()
    return f"{caught.value.message} {caught.value.hint}"


def test_what_it_does_not_know_is_said(model: BackendModel) -> None:
    found = encoded(model)
    assert "no state 'run'" in refused(lambda: model.write(found, [said(5, "run")], "s"))
    assert "tss-base" in refused(lambda: model.write(found, [said(5, "run")], "s"))
    assert "no level 'gait'" in refused(lambda: model.read(found, "s", [], "gait"))
    with pytest.raises(UsageError, match="no memory"):
        BackendModel(trained(backend="prompttss"), "own.safetensors")
