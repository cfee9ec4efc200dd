"""BABILong: the budget, the order of facts, answers worked out again from the text, and bAbI's files."""

import hashlib
import random
import re

import pytest
import torch

from memtoken_cli.data import babi, sentences
from memtoken_cli.data.babi import Story
from memtoken_cli.data.byte_words import BYTE_WORDS
from memtoken_cli.data.spelling import MARKER, MARKER_TEXT, split_words
from memtoken_cli.data.stream_babilong import LEAST, MADE, RESERVE, BabiLong, Noise
from memtoken_cli.data.streams import IGNORE, PAD, stream_for
from memtoken_cli.data.task_config import TaskSection
from memtoken_cli.engine.bytes_tokenizer import bytes_tokenizer
from memtoken_cli.engine.fresh import word_tokenizer
from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.metrics.answers import exact, only_label

OWN = """1 Ann walked to the cellar.
2 Bob walked to the attic.
3 Where is Ann? \tcellar\t1
4 Ann walked to the attic.
5 Where is Ann? \tattic\t4
1 Bob walked to the cellar.
2 Where is Bob? \tcellar\t1
"""
TALE = (
    " ".join(f"This is sentence number {i} of a tale that goes on and on." for i in range(60)) + " Short one."
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stream(segment: int = 64, tokenizer=None, **task) -> BabiLong:
    return BabiLong(TaskSection(name="babilong", **task), segment, 3, tokenizer)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "qa1_x_train.txt").write_text(OWN)
    (tmp_path / "qa1_x_test.txt").write_text(OWN.replace("cellar", "yard"))
    (tmp_path / "qa3_valid_small.txt").write_text(OWN)
    (tmp_path / "tale.txt").write_text(TALE)
    return tmp_path


def worked_out(story: Story) -> str:
    """The answer, by reading the facts."""
    at, has, lies = {}, {}, {}
    for fact in story.facts:
        words = fact.rstrip(".").split()
        if words[-1] in babi.PLACES:
            assert at.get(words[0]) != words[-1], "moved to where it was"
            at[words[0]] = words[-1]
            continue
        (thing,) = set(words) & set(babi.THINGS)
        if re.search("dropped|left|discarded|put down", fact):
            assert has.pop(thing) == words[0], "put down what it did not have"
            lies[thing] = at[words[0]]
        else:
            assert thing not in has, "took what another has"
            assert lies.get(thing, at[words[0]]) == at[words[0]], "took what was elsewhere"
            has[thing] = words[0]
    asked = story.question.rstrip("?").split()[-1]
    return at[asked] if asked in at else at[has[asked]] if asked in has else lies[asked]


@pytest.mark.parametrize("kind", babi.MADE)
def test_made_stories_can_be_answered_from_their_facts(kind):
    rng = random.Random(kind)
    stories = [babi.made_story(kind, count, rng) for count in babi.MADE[kind] for _ in range(100)]
    for story in stories:
        assert worked_out(story) == story.answer
        assert {w for text in (*story.facts, story.question) for w in split_words(text)} <= {
            *babi.made_words(), ".", "?",
        }  # fmt: skip
    assert {story.answer for story in stories} == set(babi.PLACES)
    assert {len(story.facts) for story in stories} == set(babi.MADE[kind])
    if kind == "qa2":
        # the place is said in another fact than the thing, and often not in the last one
        assert sum(story.answer in story.facts[-1] for story in stories) < len(stories) / 2


@pytest.mark.parametrize("tokenizer", [None, "bytes"])
def test_the_budget_is_exact_and_facts_keep_their_order(tokenizer):
    spelt = bytes_tokenizer(BYTE_WORDS) if tokenizer else None
    task = stream(200, spelt, questions=("qa1", "qa2"))
    pool = sentences.made_sentences(6, MADE)
    noise = " ".join(pool) if tokenizer else " ".join(split_words(" ".join(pool)))
    for n in (2, 5):
        batch, stories = task.told(n, 12, seeded(n))
        for b, story in enumerate(stories):
            given = int(batch.answer_B[b]) + 1
            shown = task.text(batch.ids_BT[b, :given])
            if tokenizer:
                tail, answer = f" {story.question}{MARKER_TEXT}", f" {story.answer}"
                after = len(tail) + len(answer) + 1
                size = given - len(tail)
            else:
                tail, answer = f" {' '.join(split_words(story.question))} {MARKER}", story.answer
                after = len(tail.split()) + 2
                size = given - len(tail.split())
            assert size == n * 200 - max(RESERVE, after)
            assert int(batch.length_B[b]) == size + after - 1 <= n * 200 == task.tokens(n)
            assert shown.endswith(tail)
            rest, at = shown.removesuffix(tail), 0
            for fact in story.facts:
                found = rest.index(fact if tokenizer else " ".join(split_words(fact)), at)
                length = len(fact if tokenizer else " ".join(split_words(fact)))
                rest, at = rest[:found] + rest[found + length :], found
            # what is left is one run of the background
            assert " ".join(rest.split()) in noise
            target = batch.target_BT[b]
            wanted = target[target != IGNORE]
            assert task.text(wanted) == answer
            assert int(wanted[-1]) == (258 if tokenizer else task.vocabulary.index("</s>"))
            assert torch.equal(target[given - 1 : given - 1 + len(wanted)], wanted)
            assert torch.equal(batch.ids_BT[b, given : batch.length_B[b]], wanted[:-1])
            assert (batch.ids_BT[b, batch.length_B[b] :] == PAD).all()


def test_facts_lie_evenly_over_the_text():
    task = stream(500)
    places: dict[int, list[float]] = {}
    batch, stories = task.told(1, 600, seeded())
    for b, story in enumerate(stories):
        words = [task.vocabulary[i] for i in batch.ids_BT[b].tolist()]
        first = min(words.index(actor) for actor in babi.ACTORS if actor in words)
        places.setdefault(len(story.facts), []).append(first / 480)
    for count, found in places.items():
        # the least of `count` uniform places is at 1/(count + 1) on average
        assert len(found) > 60
        assert abs(sum(found) / len(found) - 1 / (count + 1)) < 0.05


class Numbers:
    """A spelling in which sentences are their numbers, so many times."""

    first, marker, last, words = [], [], 0, ()

    def encode(self, sentences):
        return [[int(s)] * int(s) for s in sentences]

    def decode(self, ids):
        return ""


def test_a_background_is_whole_sentences_but_for_the_last():
    noise, seen = Noise(["12", "3", "10", "15"], Numbers()), set()
    flat = ([12] * 12 + [10] * 10 + [15] * 15) * 4
    for length in (*range(28), 36, 37, 38, 80):
        for seed in range(12):
            ids_K, starts = noise.take(length, random.Random(seed))
            first = next(i for i in (0, 12, 22) if flat[i] == (*ids_K, 12)[0])
            assert ids_K.tolist() == flat[first : first + length]
            edges = [0, *(i for i in range(1, length) if flat[first + i] != flat[first + i - 1]), length]
            assert starts == (edges if length else [0])
            seen.add(first)
    assert seen == {0, 12, 22}


def test_rows_come_from_the_generator_alone():
    task, other = stream(questions=("qa1", "qa2")), stream(questions=("qa1", "qa2"))
    whole, g = task.draw(3, 5, seeded(1)), seeded(1)
    parts = [other.draw(3, rows, g) for rows in (2, 3)]
    for name in ("length_B", "answer_B"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    for b, row in enumerate([row for part in parts for row in part.ids_BT]):
        assert torch.equal(row[: whole.length_B[b]], whole.ids_BT[b, : whole.length_B[b]])
    assert not torch.equal(whole.ids_BT[0, :100], whole.ids_BT[1, :100])
    again = task.draw(3, 5, seeded(2))
    assert not torch.equal(whole.ids_BT[0, :100], again.ids_BT[0, :100])


def test_rows_are_what_they_were():
    batch = stream(questions=("qa1", "qa2")).draw(2, 4, seeded())
    text = repr((batch.ids_BT.tolist(), batch.target_BT.tolist(), batch.length_B.tolist()))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "bdbcad8e37eca522"


def test_a_row_too_short_for_any_story(folder):
    for task in (stream(8), stream(8, facts=str(folder)), stream(8, questions=("qa2",))):
        with pytest.raises(UsageError, match="have no room for a story of qa") as found:
            task.draw(1, 1, seeded())
        enough = int(re.search(r"curriculum.start=(\d+)", found.value.hint)[1])
        for seed in range(30):
            assert task.draw(enough, 4, seeded(seed)).length_B.max() <= 8 * enough
    with pytest.raises(UsageError, match="at least 1"):
        stream().draw(0, 1, seeded())


def test_a_word_tokenizer_spells_as_the_stream_of_a_new_model():
    own = stream()
    task = TaskSection(name="babilong", questions=("qa2",))
    given = stream_for(task, 64, 3, word_tokenizer(own.vocabulary))
    mine = stream_for(task, 64, 3)
    assert given.vocabulary == mine.vocabulary == own.vocabulary
    assert own.vocabulary[:3] == ("<pad>", "<s>", MARKER)
    assert own.vocabulary[-2:] == ("</s>", "<unk>")
    assert torch.equal(given.draw(2, 3, seeded()).ids_BT, mine.draw(2, 3, seeded()).ids_BT)
    ids = word_tokenizer(own.vocabulary)("Mary moved to the kitchen . Where is Mary ? <gen>").input_ids
    assert ids[0] == int(mine.draw(1, 1, seeded()).ids_BT[0, 0]) == 1
    assert own.vocabulary.index("<unk>") not in ids
    assert mine.text([1, ids[1], 0, 10_000, own.vocabulary.index("</s>")]) == "Mary <unk>"


def test_every_question_is_a_sample_with_the_facts_before_it(folder):
    stories = babi.read_stories(folder / "qa1_x_train.txt")
    assert [(len(s.facts), s.question, s.answer) for s in stories] == [
        (2, "Where is Ann?", "cellar"), (3, "Where is Ann?", "attic"), (1, "Where is Bob?", "cellar"),
    ]  # fmt: skip
    assert stories[1].facts == (
        "Ann walked to the cellar.", "Bob walked to the attic.", "Ann walked to the attic.",
    )  # fmt: skip
    assert all(s.labels == ("attic", "cellar") for s in stories)


def test_files_of_either_split(folder):
    task = stream(facts=str(folder), background=str(folder / "tale.txt"))
    trained = task.told(2, 40, seeded())[1]
    tested = task.held_out().told(2, 40, seeded())[1]
    assert {s.answer for s in trained} == {"attic", "cellar"}
    assert {s.answer for s in tested} == {"attic", "yard"}
    assert len({s.facts for s in trained}) == 3
    assert task.held_out().vocabulary == task.vocabulary
    assert {"yard", "cellar", "tale"} <= set(task.vocabulary)
    assert stream(facts=str(folder)).vocabulary != task.vocabulary


def test_a_background_of_ones_own(folder):
    batch = stream(facts=str(folder), background=str(folder / "tale.txt")).draw(8, 20, seeded())
    words = stream(facts=str(folder), background=str(folder / "tale.txt")).vocabulary
    seen = {words[i] for i in batch.ids_BT.flatten().tolist()}
    assert "<unk>" not in seen
    assert "Short" not in seen, "a sentence of fewer tokens than LEAST"
    # the last twentieth is for testing: sentences 58 and 59, and the short one
    assert "57" in seen
    assert not {"58", "59"} & seen
    held = stream(facts=str(folder), background=str(folder / "tale.txt")).held_out().draw(8, 20, seeded())
    assert {"58", "59"} & {words[i] for i in held.ids_BT.flatten().tolist()}
    assert not {"3", "57"} & {words[i] for i in held.ids_BT.flatten().tolist()}


def test_made_backgrounds_of_the_splits_differ():
    assert not set(sentences.made_sentences(6, 20)) & set(sentences.made_sentences(7, 20))
    task = stream()
    assert not torch.equal(
        task.draw(1, 1, seeded()).ids_BT[0, :20], task.held_out().draw(1, 1, seeded()).ids_BT[0, :20]
    )


def test_wrong_folders_and_files(folder, tmp_path):
    assert stream(facts=str(folder)).tokens(3) == 192
    assert babi.find_file(folder, "qa3").name == "qa3_valid_small.txt"
    with pytest.raises(DataError, match=r"no qa3_.*test\.txt") as found:
        babi.find_file(folder, "qa3", test=True)
    assert "qa1, qa3" in found.value.hint
    with pytest.raises(DataError, match="no such folder"):
        stream(facts=str(folder / "none"))
    with pytest.raises(UsageError, match="qa5 cannot be made, only qa1 and qa2"):
        stream(questions=("qa1", "qa5"))
    (tmp_path / "empty").write_text(" \n")
    with pytest.raises(DataError, match="no text in"):
        stream(background=str(tmp_path / "empty"))
    (tmp_path / "short").write_text("Too short. Also this.")
    with pytest.raises(DataError, match=f"no sentence of {LEAST} tokens"):
        stream(background=str(tmp_path / "short")).draw(1, 1, seeded())


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("1 A fact.\nno number\n", 2, "neither a fact nor a question"),
        ("1 A fact.\n3 Another.\n", 2, "line number 3 follows 1"),
        ("1 A question?\tyes\t1\n", 1, "a question before any fact"),
        ("1 A fact.\n2 A question?\t\t1\n", 2, "neither a fact nor a question"),
    ],
)
def test_a_bad_line_is_named(tmp_path, text, line, what):
    (tmp_path / "qa1_train.txt").write_text(text)
    with pytest.raises(DataError, match=what) as found:
        babi.read_stories(tmp_path / "qa1_train.txt")
    assert found.value.where == f"{tmp_path / 'qa1_train.txt'}:{line}"


def test_a_file_without_questions(tmp_path):
    (tmp_path / "f").write_text("1 A fact.\n\n2 Another.\n")
    with pytest.raises(DataError, match="no question in"):
        babi.read_stories(tmp_path / "f")


@pytest.mark.data
def test_the_published_files(data_folder):
    for kind, train in (("qa1", 10_000), ("qa2", 10_000), ("qa5", 10_000)):
        stories = babi.read_stories(babi.find_file(data_folder / "babi", kind))
        assert len(stories) == train
        assert len(babi.read_stories(babi.find_file(data_folder / "babi", kind, test=True))) == 1000
        assert not any(only_label(s.question, s.question, s.answer, s.labels) for s in stories)
    assert stories[0].labels == ("Bill", "Fred", "Jeff", "Mary", "apple", "football", "milk")
    assert babi.read_stories(babi.find_file(data_folder / "babi", "qa1"))[0].labels == babi.PLACES
    assert len(babi.read_stories(babi.find_file(data_folder / "babi", "qa3"))) > 500


def test_sentences_of_a_text():
    text = 'Mr. A. Dale left. "He did!" she said.\nWho (so it is.) Then?  It cost 3.5 more.'
    text += "\n\nA title\n \nE.g. this"
    assert sentences.split_sentences(text) == [
        "Mr. A. Dale left.", '"He did!" she said.', "Who (so it is.)", "Then?", "It cost 3.5 more.",
        "A title", "E.g. this",
    ]  # fmt: skip


def test_made_sentences_are_long_and_their_words_known():
    made = sentences.made_sentences(1, 2000)
    assert made == sentences.made_sentences(1, 2000)
    assert min(len(split_words(sentence)) for sentence in made) >= sentences.LEAST >= LEAST
    assert {w for sentence in made for w in split_words(sentence)} == {*sentences.made_words(), ",", "."}
    assert not sentences.made_words() & {*babi.ACTORS, *babi.PLACES, *babi.THINGS}


PLACES = ("garden", "kitchen", "office")


@pytest.mark.parametrize(
    ("made", "question", "target", "right"),
    [
        ("garden", "Where is Mary?", "garden", True),
        (" The Garden, I think. Not the office.", "Where is Mary?", "garden", True),
        ("garden or kitchen", "Where is Mary?", "garden", False),
        ("kitchen", "Where is Mary?", "garden", False),
        ("", "Where is Mary?", "garden", False),
        ("gardener", "Where is Mary?", "garden", False),
        ("before the kitchen: garden", "Where was it before the kitchen?", "garden", True),
    ],
)
def test_the_only_label(made, question, target, right):
    assert only_label(made, question, target, PLACES) is right


def test_a_target_that_is_a_list():
    labels = ("apple,milk", "milk", "nothing")
    assert only_label("milk and apple", "What has Mary?", "apple,milk", labels)
    assert not only_label("milk", "What has Mary?", "apple,milk", labels)
    assert not only_label("milk and nothing", "What has Mary?", "milk", labels)


def test_exact():
    assert exact(" garden\n", "Garden")
    assert not exact("the garden", "garden")
