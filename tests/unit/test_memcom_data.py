"""Synthetic tasks and the batches that compressors learn from: the fast path is the text, nothing leaks."""

from dataclasses import replace

import pytest
import torch
from tiny import tiny_llama
from torch import Tensor

from memtoken_cli.data.icl import TEMPLATE, Stream
from memtoken_cli.data.intents import CLASSES, intents
from memtoken_cli.data.render import Template, query_ids, render
from memtoken_cli.data.shots import Query
from memtoken_cli.engine.fresh import word_tokenizer
from memtoken_cli.engine.seeds import generator
from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.methods.memcom.episodes import (
    IGNORE,
    Batch,
    CorpusEpisodes,
    Mixed,
    ShotEpisodes,
    StreamEpisodes,
)

STREAM = Stream(classes=4, pool=3, content=2, filler=1, words=14, fillers=5, labels=6, noise=0.0)


def test_ids_are_what_the_tokenizer_makes_of_the_text() -> None:
    drawn = STREAM.draw(1, 9, generator(0, "task"))
    shots, queries = STREAM.task(9, 0, generator(0, "task"))
    tokenizer = word_tokenizer(STREAM.vocabulary)
    rendered = render(shots, Template(TEMPLATE), tokenizer)
    assert rendered.ids == drawn.ids_BT[0].tolist() and queries == ()
    assert [span.end - span.start for span in rendered.spans] == [STREAM.shot_tokens] * 9
    assert rendered.head == 1


def test_words_belong_to_one_class_of_a_task() -> None:
    drawn = STREAM.draw(20, 40, generator(1))
    first_word = STREAM.vocabulary.index("word0")
    for ids_T, label_S in zip(drawn.ids_BT, drawn.label_BS, strict=True):
        means: dict[int, set[int]] = {}
        shots = ids_T[1:].view(-1, STREAM.shot_tokens)
        assert torch.equal(shots[:, -1], label_S)
        for shot, label in zip(shots, label_S.tolist(), strict=True):
            words = [i for i in shot[:-1].tolist() if i >= first_word]
            assert len(set(words)) == STREAM.content
            for word in words:
                means.setdefault(word, set()).add(label)
        assert all(len(labels) == 1 for labels in means.values())
        assert len(means) <= STREAM.classes * STREAM.pool


def test_noise_changes_what_is_said_and_not_what_is_right() -> None:
    noisy = replace(STREAM, noise=0.4)
    drawn, clean = noisy.draw(50, 40, generator(1)), STREAM.draw(50, 40, generator(1))
    assert torch.equal(drawn.label_BS, clean.label_BS)
    words, plain = (x.ids_BT[:, 1:].view(50, 40, -1) for x in (drawn, clean))
    said = words[..., -1]
    wrong = float((said != drawn.label_BS).float().mean())
    assert 0.27 < wrong < 0.33  # one draw in four is the right one
    assert torch.equal(words[..., :-1], plain[..., :-1])
    for seed in range(5):
        shots, queries = noisy.task(30, 30, generator(seed))
        means = {w: q.output for q in queries for w in q.input.split() if w.startswith("word")}
        again = {w: q.output for q in reversed(queries) for w in q.input.split() if w.startswith("word")}
        assert means == again and len(shots.items) == 30


def test_tasks_differ_and_seeds_repeat() -> None:
    a, b = STREAM.draw(2, 30, generator(2)), STREAM.draw(2, 30, generator(2))
    assert torch.equal(a.ids_BT, b.ids_BT) and not torch.equal(a.ids_BT[0], a.ids_BT[1])


def test_a_stream_that_cannot_be() -> None:
    for bad in ({"classes": 8}, {"labels": 3}, {"content": 5}):
        with pytest.raises(UsageError):
            Stream(**({"classes": 4, "pool": 4, "words": 16} | bad))


def test_intents_are_seeded_and_labelled() -> None:
    shots, queries = intents(40, 10, seed=3)
    again, _ = intents(40, 10, seed=3)
    assert shots.items == again.items and shots.labels == tuple(sorted(CLASSES))
    assert len({s.input for s in shots.items}) > 30 and all(q.output in CLASSES for q in queries)
    assert intents(8, 0, classes=4)[0].outputs == tuple(sorted(CLASSES[:4]))


def test_stream_queries_are_rows_of_their_own() -> None:
    batch = StreamEpisodes(STREAM, (6,), 3).batch(2, 4, generator(5))
    drawn = STREAM.draw(2, 9, after(generator(5)))
    size = STREAM.shot_tokens
    assert batch.slots == (1 + 6 * size) // 4
    assert torch.equal(batch.source_BT, drawn.ids_BT[:, : 1 + 6 * size])
    asked = drawn.ids_BT[:, 1 + 6 * size :].view(2, 3, size)[..., :-1]
    assert torch.equal(batch.after_BU.view(2, 3, size - 1), asked)
    assert torch.equal(batch.target_BW, drawn.label_BS[:, 6:])
    block = torch.ones(size - 1, size - 1, dtype=torch.bool).tril()
    assert torch.equal(batch.seen_BUU[1], torch.block_diag(block, block, block).bool())


def after(g: torch.Generator) -> torch.Generator:
    torch.randint(1, (1,), generator=g)  # the number of shots is drawn first
    return g


RECORDS = [Query(text, label, 1) for text, label in [(q.input, q.output) for q in intents(60, 0)[0].items]]


def shot_episodes(**changed: object) -> ShotEpisodes:
    tokenizer = tiny_llama().tokenizer
    given = {"classes": 5, "counts": (6,), "queries": 3, "longest": 4000} | changed
    return ShotEpisodes(RECORDS, Template(), tokenizer, **given)  # type: ignore[arg-type]


def test_records_become_padded_prompts_and_answers() -> None:
    batch = shot_episodes().batch(3, 4, generator(7))
    tokenizer = tiny_llama().tokenizer
    assert batch.slots == int(batch.length_B.min()) // 4
    for b in range(3):
        real = batch.source_BT[b, : batch.length_B[b]]
        assert tokenizer.decode(real).count("Input") == 6
        assert not bool(batch.source_BT[b, batch.length_B[b] :].any())
        wanted = batch.target_BW[b] != IGNORE
        # what is asked for is the label and the template's end, and is never seen before it is asked
        text = tokenizer.decode(batch.target_BW[b][wanted])
        answers = [answer.strip() for answer in text.split("\n\n") if answer.strip()]
        assert len(answers) == 3 and all(answer in CLASSES for answer in answers)
        starts = (batch.offset_BU[b] == 0) & batch.after_BU[b].bool()
        assert int(starts.sum()) == 3
        for u in starts.nonzero()[:, 0].tolist():
            assert batch.seen_BUU[b, u].nonzero()[:, 0].tolist() == [u]


def test_a_query_in_a_row_equals_the_query_alone() -> None:
    batch = shot_episodes().batch(2, 4, generator(8))
    tokenizer = tiny_llama().tokenizer
    for b in range(2):
        starts = ((batch.offset_BU[b] == 0) & batch.after_BU[b].bool()).nonzero()[:, 0].tolist()
        for u in starts:
            ids = batch.after_BU[b, u:].tolist()
            text = tokenizer.decode(ids).partition("Output:")[0].removeprefix("Input: ").strip()
            front = query_ids(Template(), tokenizer, text)
            assert ids[: len(front)] == front


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"counts": (60,)}, "too few"), ({"longest": 20}, "tokens, the model reads 20")],
)
def test_tasks_that_do_not_fit(changed: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        shot_episodes(**changed).batch(1, 4, generator(0))


def test_a_corpus_is_cut_into_source_and_what_follows() -> None:
    tokenizer = tiny_llama().tokenizer
    text = "".join(chr(ord("a") + i % 26) for i in range(200))
    batch = CorpusEpisodes.of([text], tokenizer, 20, 10).batch(4, 5, generator(1))
    assert batch.slots == 4 and batch.source_BT.shape == (4, 20)
    for source, behind, target in zip(batch.source_BT, batch.after_BU, batch.target_BW, strict=True):
        whole = tokenizer.decode(torch.cat([source, behind, target[-1:]]))
        assert whole in text + "\n\n"
        assert torch.equal(target[:-1], behind[1:])
    with pytest.raises(DataError, match="a piece needs 300"):
        CorpusEpisodes.of([text], tokenizer, 290, 10)


def test_mixed_batches_come_from_both() -> None:
    class Named:
        def __init__(self, name: int) -> None:
            self.name = name

        def batch(self, rows: int, ratio: float, g: torch.Generator) -> Batch:
            ids: Tensor = torch.full((rows, 4), self.name)
            flat = torch.zeros(rows, 1)
            return Batch(ids, flat, 1, flat, flat, flat, flat, flat)

    mixed = Mixed([Named(0), Named(1)], [1, 3])
    g = generator(4)
    names = [int(mixed.batch(1, 2, g).source_BT[0, 0]) for _ in range(200)]
    assert 30 < names.count(0) < 75
