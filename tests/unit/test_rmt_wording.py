"""Text to ids and back as it comes: against the whole text at once."""

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from memtoken_cli.data.byte_words import BYTE_WORDS
from memtoken_cli.engine.bytes_tokenizer import bytes_tokenizer
from memtoken_cli.engine.fresh import word_tokenizer
from memtoken_cli.io.errors import UsageError
from memtoken_cli.methods.rmt.wording import HELD, Hearing, Speaking, around

BYTES = bytes_tokenizer(BYTE_WORDS)
WORDS = word_tokenizer(("<pad>", "<s>", "a", "b", "c", "</s>", "<unk>"))


def said(tokenizer, ids, sizes):
    speaking, parts, start = Speaking(tokenizer), [], 0
    for size in sizes:
        parts.append(speaking.add(ids[start : start + size]))
        start += size
    return [*parts, speaking.add(ids[start:]), speaking.end()]


def whole(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


# ASCII, continuation bytes, starts of two-, three- and four-byte characters, and special tokens
IDS = st.lists(
    st.sampled_from([*(2 + b for b in (0x41, 0x20, 0x80, 0xA9, 0xC3, 0xE2, 0xF0)), 1, 258]), max_size=30
)


@given(IDS, st.lists(st.integers(1, 3), max_size=12))
def test_parts_are_the_whole_text_of_any_bytes(ids: list[int], sizes: list[int]) -> None:
    assert "".join(said(BYTES, ids, sizes)) == whole(BYTES, ids)


@given(st.text(max_size=40))
def test_characters_of_real_text_come_whole_and_at_once(text: str) -> None:
    data = text.encode()
    speaking, shown = Speaking(BYTES), ""
    for end, byte in enumerate(data, 1):
        shown += speaking.add([2 + byte])
        complete = data[:end].decode(errors="ignore")
        assert shown == complete or (complete.endswith("\ufffd") and complete == shown + "\ufffd")
    assert shown + speaking.end() == text


@given(st.lists(st.integers(0, 6), max_size=40), st.lists(st.integers(1, 3), max_size=20))
def test_spaces_between_words_are_kept(ids: list[int], sizes: list[int]) -> None:
    ids = [i for i in ids if i not in (0, 1, 5)]
    assert "".join(said(WORDS, ids, sizes)) == whole(WORDS, ids)


def test_endless_bad_bytes_are_not_held_for_ever() -> None:
    speaking = Speaking(BYTES)
    shown = [speaking.add([2 + 0xE2]) for _ in range(4 * HELD)]
    assert len("".join(shown)) > 3 * HELD
    assert len(speaking._ids) <= HELD


def test_bos_comes_once_and_not_from_the_text() -> None:
    tokenizer = tiny.tiny_tokenizer()
    hearing = Hearing(tokenizer)
    first, second = hearing.ids("ab"), hearing.ids("</s>")
    assert first == [1, *tokenizer.convert_tokens_to_ids(["a", "b"])]
    assert 1 not in second and 2 not in second and len(second) == 4
    assert Hearing(tokenizer, started=True).ids("ab") == first[1:]
    assert Hearing(tiny.tiny_tokenizer(bos=False)).ids("ab") == first[1:]


def test_a_template_is_split_around_the_text() -> None:
    tokenizer = tiny.tiny_tokenizer()
    assert around(tokenizer, True) == ("u: ", "\na: ")
    assert around(tokenizer, False) == ("u: ", "\n")
    hearing = Hearing(tokenizer)
    assert hearing.marked("u: ")[0] == 1 and hearing.marked("</s>") == [2]
    tokenizer.chat_template = "<s>{% for m in messages %}{{ m['content'] }}{% endfor %}"
    before, behind = around(tokenizer, True)
    assert (before, behind) == ("<s>", "")
    assert Hearing(tokenizer).marked(before) == [1] and Hearing(tokenizer, started=True).marked(before) == []


@pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ m['content'] | length }}{% endfor %}"])
def test_a_template_that_does_not_show_the_text_is_refused(template: str | None) -> None:
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(UsageError, match="template=chat"):
        around(tokenizer, True)
