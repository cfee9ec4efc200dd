"""Calibration out of the score pass: the scores of whole labels, or a difference that is told."""

import pytest
import torch
from tiny_prompt import family, shots
from torch import Tensor

from memtoken_cli.data.render import Rendered, Template, answer_ids, render
from memtoken_cli.data.shots import Shots, shots_of
from memtoken_cli.engine.answer import label_trees
from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.engine.calibrate import calibrate, fit_bias
from memtoken_cli.engine.leave_one_out import LooScores, loo_scores
from memtoken_cli.engine.memory import Layers
from memtoken_cli.methods.compact.calibration import calibration, first_scores
from memtoken_cli.methods.compact.config import Config
from memtoken_cli.methods.compact.reference import Reference, reference
from memtoken_cli.methods.compact.write import write

OWN = Template("{input}>{output}\n")  # each label begins with a letter of its own
SHARED = Template("{input} > {output}\n")  # each begins with the same space
LETTER = Template("{input}>{output}")


def letters() -> Shots:
    """Labels of one token."""
    items = [{"input": shot.input, "output": (shot.output or "")[0]} for shot in shots().items]
    return shots_of(items)


def passed(
    backbone: CausalLM, given: Shots, template: Template, most: int
) -> tuple[Layers, Rendered, Reference, Tensor]:
    """The prompt, its reference rows and what the score pass predicts at their answers."""
    rendered = render(given, template, backbone.tokenizer)
    full = backbone.prefill(rendered.ids)
    g = torch.Generator().manual_seed(0)
    rows = reference(
        backbone, rendered, given, template, queries="shots", most=most, tokens=10**6, generator=g
    )
    return full, rendered, rows, write(backbone, full, rows, 20, Config(dtype="float32")).teacher_WV


def read(
    name: str, given: Shots, template: Template, most: int
) -> tuple[LooScores, LooScores, LooScores, Reference]:
    """Scores out of the score pass, of whole labels, and of first tokens alone."""
    backbone = family(name)
    full, rendered, rows, teacher_WV = passed(backbone, given, template, most)
    first_K = [answer_ids(template, backbone.tokenizer, label)[0] for label in given.labels]
    fast = first_scores(backbone, full, rendered, given, template, rows, teacher_WV, first_K)
    ways = [
        loo_scores(
            backbone,
            full,
            rendered,
            given.items,
            given.labels,
            label_trees(backbone, template, given.labels, scoring),
        )
        for scoring in ("whole", "first_token")
    ]
    return fast, ways[0], ways[1], rows


@pytest.mark.parametrize("most", [60, 5])
@pytest.mark.parametrize("name", ["gqa", "sliding", "softcap", "sinks"])
def test_labels_of_one_token_have_the_scores_of_whole_labels(name: str, most: int) -> None:
    fast, whole, _, rows = read(name, letters(), LETTER, most)
    assert len(rows.shots) == min(most, 12)
    torch.testing.assert_close(fast.scores_SK, whole.scores_SK, atol=1e-4, rtol=1e-4)
    assert torch.equal(fast.label_S, whole.label_S)
    bias_K, plain_K = (fit_bias(x.scores_SK, x.label_S, 0.1) for x in (fast, whole))
    assert float(plain_K.abs().max()) > 0.01
    torch.testing.assert_close(bias_K, plain_K, atol=1e-3, rtol=1e-3)


def test_twins_are_asked_once() -> None:
    """Copies in a row change no fold and no bias: the scores are of the distinct shots, in their order."""
    items = [{"input": shot.input, "output": shot.output or ""} for shot in letters().items]
    fast, whole, _, _ = read("gqa", shots_of(items + items[:5]), LETTER, 7)
    assert fast.asked == whole.asked == tuple(range(12))
    assert fast.scores_SK.shape == whole.scores_SK.shape == (12, 3)
    torch.testing.assert_close(fast.scores_SK, whole.scores_SK, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("most", [60, 5])
def test_what_follows_a_first_token_is_the_mean_of_the_labels_own_rows(most: int) -> None:
    given = shots()
    fast, whole, first, rows = read("gqa", given, OWN, most)
    for k in range(len(given.labels)):
        own = [s for s in rows.shots if int(whole.label_S[s]) == k]
        follows = torch.stack([whole.scores_SK[s, k] - first.scores_SK[s, k] for s in own]).mean()
        expected = first.scores_SK[:, k] + follows
        torch.testing.assert_close(fast.scores_SK[:, k], expected, atol=1e-4, rtol=1e-4)


def test_labels_that_begin_alike_are_scored_whole() -> None:
    backbone, given = family("gqa"), shots(9)
    full, rendered, rows, teacher_WV = passed(backbone, given, SHARED, 60)
    trees = label_trees(backbone, SHARED, given.labels)
    loo = loo_scores(backbone, full, rendered, given.items, given.labels, trees)
    plain = calibrate(loo.scores_SK, loo.label_S)
    found = calibration(backbone, full, rendered, given, SHARED, rows, teacher_WV.zero_())
    assert found == (None if plain is None else plain.named(given.labels))


def test_reference_rows_that_are_no_shots_are_not_read() -> None:
    backbone, given = family("gqa"), shots(9)
    full, rendered, _, _ = passed(backbone, given, OWN, 60)
    g = torch.Generator().manual_seed(0)
    rows = reference(backbone, rendered, given, OWN, queries="repeat", most=9, tokens=999, generator=g)
    trees = label_trees(backbone, OWN, given.labels)
    loo = loo_scores(backbone, full, rendered, given.items, given.labels, trees)
    plain = calibrate(loo.scores_SK, loo.label_S)
    found = calibration(backbone, full, rendered, given, OWN, rows, torch.zeros(0))
    assert found == (None if plain is None else plain.named(given.labels))
