"""Pieces of a text: the same however it arrives, and tokenised one by one they give the whole text's ids."""

import sysconfig
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from memtoken_cli.data.byte_words import BYTE_WORDS, byte_ids
from memtoken_cli.data.pieces import LEAST, MOST, Pieces, cut
from memtoken_cli.data.spelling import plain_ids
from memtoken_cli.engine import weights
from memtoken_cli.engine.bytes_tokenizer import bytes_tokenizer

RUNS = st.lists(
    st.tuples(
        st.sampled_from(["a", " ", "\n", "\t", "\u3000", "\xa0", "é", "ab ", "a\n ", "\x1c "]),
        st.integers(1, 9000),
    ),
    max_size=6,
)
TEXTS = RUNS.map(lambda runs: "".join((unit * count)[:count] for unit, count in runs))


def naive(text: str) -> list[str]:
    """The definition, character by character."""
    out, start = [], 0
    for i in range(1, len(text)):
        length = i - start
        if length == MOST or (length >= LEAST and text[i] == " " and not text[i - 1].isspace()):
            out.append(text[start:i])
            start = i
    return [*out, text[start:]] if text else []


@given(TEXTS, st.lists(st.integers(0, 50_000), max_size=8))
@example("a" * MOST, [])
@example("a" * (MOST + LEAST) + " b", [MOST, MOST + 1])
@example("a" * LEAST + " " + "b" * LEAST, [LEAST, LEAST + 1])
@example("a" * (LEAST - 1) + " " * LEAST + "b c", [])
def test_pieces_do_not_depend_on_how_the_text_arrives(text, cuts):
    edges = [0, *sorted(c for c in cuts if c <= len(text)), len(text)]
    parts = [text[a:b] for a, b in pairwise(edges)]
    found = list(cut(parts))
    assert found == naive(text)
    assert "".join(found) == text


@given(TEXTS, st.integers(0, 50_000))
def test_the_rest_is_all_that_has_to_be_kept(text, at):
    first = Pieces()
    found = first.add(text[:at])
    assert len(first.rest) < MOST
    second = Pieces(first.rest)
    found += second.add(text[at:]) + second.flush()
    assert found == naive(text)
    assert second.rest == ""
    assert second.flush() == []


def test_one_character_at_a_time():
    text = ("word " * 400 + "x" * (MOST + 700) + " and\n  so on " * 90)[: MOST + 5000]
    pieces, found = Pieces(), []
    for character in text:
        found += pieces.add(character)
    assert [*found, *pieces.flush()] == naive(text)


def python_source(size: int) -> str:
    """About `size` characters of the standard library, with a little that no ASCII source has."""
    out: list[str] = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        out.append(path.read_text(encoding="utf-8", errors="replace"))
        out.append("  ünïcode\u00a0日本語\t \N{GRINNING FACE}  12345.678 <|im_start|> </s>\r\n\r\n   ")
        if sum(map(len, out)) > size:
            break
    return "".join(out)[:size]


def built_in(name: str) -> PreTrainedTokenizerBase:
    if not weights.ready(name):
        pytest.skip(f"{name} has not been unpacked into {weights.folder(name)}")
    return AutoTokenizer.from_pretrained(weights.folder(name))


@pytest.mark.parametrize("name", ["bytes", *weights.ALIASES])
def test_pieces_have_the_ids_of_the_whole_text(name):
    tokenizer = bytes_tokenizer(BYTE_WORDS) if name == "bytes" else built_in(name)
    text = python_source(1_000_000)
    pieces = list(cut([text]))
    assert len(pieces) > 1000
    whole = plain_ids(tokenizer, [text])[0]
    assert tokenizer.decode(whole) == text
    if name == "gemma3-270m":  # not byte-level: a rare token spans a cut, and nothing else may differ
        alone, both = (plain_ids(tokenizer, x) for x in (pieces, [a + b for a, b in pairwise(pieces)]))
        spanned = [i for i, (a, b) in enumerate(pairwise(alone)) if a + b != both[i]]
        assert len(spanned) <= len(pieces) / 500
        for i in reversed(spanned):
            pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
    assert [i for ids in plain_ids(tokenizer, pieces) for i in ids] == whole


def test_bytes_are_ids_and_ids_are_the_text(tmp_path):
    tokenizer = bytes_tokenizer(BYTE_WORDS)
    text = "".join(map(chr, range(0x250))) + "<s> </s> <unk><pad>\N{GRINNING FACE}"
    ids = plain_ids(tokenizer, [text])[0]
    assert ids == [2 + byte for byte in text.encode()] == byte_ids(text).tolist()
    assert tokenizer.decode(ids) == text
    assert tokenizer("a").input_ids == [2 + ord("a")]
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 258)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert plain_ids(again, [text])[0] == ids
    assert again.decode(ids) == text


def test_a_vocabulary_without_a_byte_is_refused():
    with pytest.raises(ValueError, match="no word for A"):
        bytes_tokenizer([word for word in BYTE_WORDS if word != "A"])
