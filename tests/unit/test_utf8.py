"""UTF-8 as it arrives: cut anywhere, text, places of bad bytes and counts are those of the whole."""

import io
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtoken_cli.data.utf8 import BLOCK, Utf8, blocks, decoded, read_text
from memtoken_cli.io.errors import DataError

TEXT = "naïve \x00\x1b\r\n日本語 \N{GRINNING FACE}é\ufeff￿\ufffd end"
BITS = [
    b"a",
    b" ",
    b"\xc3\xa9",
    b"\xe6\x97\xa5",
    b"\xf0\x9f\x98\x80",
    b"\xef\xbf\xbd",
    b"\xff",
    b"\xc3",
    b"\x80",
]
BITS += [
    b"\xe6\x97",
    b"\xf0\x9f",
    b"\xf0\x9f\x98",
    b"\xed\xa0\x80",
    b"\xc0\xaf",
    b"\xf5",
    b"\xef\xbf",
    b"\xbd",
]
DIRTY = st.lists(st.sampled_from(BITS), max_size=30).map(b"".join)


def read(data: bytes, cuts: list[int], errors: str = "strict") -> tuple[str, Utf8]:
    """All text of `data` arriving cut at `cuts`."""
    decoder, out, edges = Utf8(errors), [], [0, *sorted(cuts), len(data)]
    for start, stop in pairwise(edges):
        out += decoder.add(data[start:stop])
    out += decoder.end()
    return "".join(out), decoder


class Slow(io.BytesIO):
    """Gives at most `step` bytes at a time, as a pipe does."""

    def __init__(self, data: bytes, step: int):
        super().__init__(data)
        self.step = step

    def read1(self, size: int = -1, /) -> bytes:
        return super().read1(min(size, self.step))


def test_a_character_may_be_cut_at_any_place():
    data = TEXT.encode()
    for cut in range(len(data) + 1):
        text, decoder = read(data, [cut])
        assert text == TEXT
        assert decoder.taken == len(data)
    assert read(data, list(range(len(data))))[0] == TEXT


@pytest.mark.parametrize("character", ["é", "日", "\N{GRINNING FACE}"])
def test_a_character_across_the_edge_of_a_block(character):
    size = len(character.encode())
    for before in range(BLOCK - size, BLOCK + 1):
        text = "x" * before + character + "y"
        assert "".join(decoded(io.BytesIO(text.encode()), Utf8())) == text


def test_taken_counts_whole_characters_only():
    decoder = Utf8()
    assert list(decoder.add("ab日".encode()[:4])) == ["ab"]
    assert decoder.taken == 2
    assert list(decoder.add("日".encode()[2:] + b"c")) == ["日c"]
    assert decoder.taken == 6


@given(DIRTY, st.lists(st.integers(0, 60), max_size=5))
def test_a_bad_byte_is_named_by_its_place_however_it_arrives(data, cuts):
    cuts = [cut for cut in cuts if cut <= len(data)]
    try:
        good = data.decode()
    except UnicodeDecodeError as error:
        decoder, out = Utf8(name="standard input"), []
        edges = [0, *sorted(cuts), len(data)]
        with pytest.raises(DataError, match=rf"^error: not UTF-8 at byte {error.start} of standard input\n"):
            for start, stop in pairwise(edges):
                for text in decoder.add(data[start:stop]):
                    out.append(text)
            out += decoder.end()
        assert "".join(out) == data[: error.start].decode()
    else:
        assert read(data, cuts)[0] == good


@given(DIRTY, st.lists(st.integers(0, 60), max_size=5))
def test_replaced_text_and_count_do_not_depend_on_arrival(data, cuts):
    expected, counted, at = [], 0, 0
    while at < len(data):
        try:
            expected.append(data[at:].decode())
            break
        except UnicodeDecodeError as error:
            expected += [data[at : at + error.start].decode(), "\ufffd"]
            counted += 1
            at += error.end
    text, decoder = read(data, [cut for cut in cuts if cut <= len(data)], "replace")
    assert text == "".join(expected)
    assert decoder.replaced == counted
    assert decoder.taken == len(data)


def test_a_block_does_not_wait_to_be_full():
    assert list(blocks(Slow(b"abcdefg", 3))) == [b"abc", b"def", b"g"]


def test_the_end_inside_a_character():
    with pytest.raises(DataError, match="not UTF-8 at byte 2 of log") as found:
        list(decoded(io.BytesIO("ab日".encode()[:-1]), Utf8(name="log")))
    assert "iconv" in (found.value.hint or "")
    assert list(decoded(io.BytesIO(b"ab\xe6\x97"), Utf8("replace"))) == ["ab", "\ufffd"]


def test_files(tmp_path):
    (tmp_path / "text").write_bytes(TEXT.encode() * 5000)
    assert "".join(read_text(tmp_path / "text")) == TEXT * 5000
    (tmp_path / "bad").write_bytes(b"x" * 70_000 + b"\xff")
    with pytest.raises(DataError, match=r"not UTF-8 at byte 70000 of .*bad"):
        list(read_text(tmp_path / "bad"))
    with pytest.raises(DataError, match="no such file"):
        list(read_text(tmp_path / "none"))
    with pytest.raises(DataError, match="cannot read"):
        list(read_text(tmp_path))
