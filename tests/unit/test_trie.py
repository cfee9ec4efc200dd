"""Label scoring through a prefix tree, against scoring every label alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_gemma3, tiny_gpt2, tiny_llama, tiny_qwen2

from memtoken_cli.engine import trie
from memtoken_cli.engine.trie import Trie, batches, score, score_alone, tries
from memtoken_cli.io.errors import DataError

PROMPT = "Input: abc\nOutput: card\n\nInput: hello\nOutput: cargo\n\n"
LABELS = (" card\n\n", " cargo\n\n", " cat\n\n", " dog\n\n", " c\n\n")
QUERIES = ("Input: abc\nOutput:", "Input: a much longer question, isn't it?\nOutput:", "x")


def encode(backbone, texts):
    return [backbone.tokenizer.encode(text, add_special_tokens=False) for text in texts]


@pytest.mark.parametrize("make", [tiny_llama, tiny_qwen2, tiny_gemma3, tiny_gpt2])
@pytest.mark.parametrize("limit", [trie.NODES, 3])
def test_equals_every_label_alone(make, limit):
    backbone = make()
    ids = backbone.tokenizer.encode(PROMPT)
    rows, labels = encode(backbone, QUERIES), encode(backbone, LABELS)
    trees = tries(labels, limit)
    assert (len(trees) > 1) == (limit == 3)
    found = score(backbone, backbone.prefill(ids), rows, trees)
    torch.testing.assert_close(found.scores_RK, score_alone(backbone, ids, rows, labels), atol=1e-4, rtol=0)


def test_batches_change_nothing():
    backbone = tiny_llama()
    memory = backbone.prefill(backbone.tokenizer.encode(PROMPT))
    rows, trees = encode(backbone, QUERIES), tries(encode(backbone, LABELS))
    together = score(backbone, memory, rows, trees, batch_tokens=10_000, watch=True, gold=[0, 3, 1])
    singly = score(backbone, memory, rows, trees, batch_tokens=1, watch=True, gold=[0, 3, 1])
    torch.testing.assert_close(together.scores_RK, singly.scores_RK, atol=1e-5, rtol=0)
    for a, b in zip(together.watched, singly.watched, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_a_row_ignores_its_neighbours():
    backbone = tiny_llama()
    memory = backbone.prefill(backbone.tokenizer.encode(PROMPT))
    rows, trees = encode(backbone, QUERIES), tries(encode(backbone, LABELS))
    one = score(backbone, memory, rows, trees).scores_RK[0]
    other = score(backbone, memory, [rows[0], *encode(backbone, ["zzz", "y?"])], trees).scores_RK[0]
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_watched_are_the_answers_distributions():
    backbone = tiny_llama()
    ids = backbone.tokenizer.encode(PROMPT)
    rows, labels = encode(backbone, QUERIES), encode(backbone, LABELS)
    for limit in (trie.NODES, 3):
        found = score(backbone, backbone.prefill(ids), rows, tries(labels, limit), watch=True, gold=[4, 1, 3])
        for row, gold, watched_AV in zip(rows, (4, 1, 3), found.watched, strict=True):
            text = torch.tensor([[*ids, *row, *labels[gold]]])
            logits = backbone.model(input_ids=text).logits[0, -len(labels[gold]) - 1 : -1]
            torch.testing.assert_close(watched_AV, logits.log_softmax(-1), atol=1e-4, rtol=0)


def test_watching_without_an_answer_is_the_first_token_only():
    backbone = tiny_llama()
    memory = backbone.prefill(backbone.tokenizer.encode(PROMPT))
    rows, labels = encode(backbone, QUERIES), encode(backbone, LABELS)
    found = score(backbone, memory, rows, tries(labels, 3), watch=True)
    assert [x.shape for x in found.watched] == [(1, 64)] * 3
    assert torch.allclose(found.watched[0].exp().sum(), torch.tensor(1.0))


def test_hidden_tokens_might_hold_anything():
    backbone = tiny_llama()
    ids = backbone.tokenizer.encode(PROMPT)
    memory = backbone.prefill(ids)
    rows, trees = encode(backbone, QUERIES[:2]), tries(encode(backbone, LABELS))
    hidden = torch.zeros(2, len(ids), dtype=torch.bool)
    hidden[0, 5:20] = True
    seen = score(backbone, memory, rows, trees).scores_RK
    found = score(backbone, memory, rows, trees, hidden_RM=hidden).scores_RK
    for kv in memory.layers:
        kv.v_XD.view(2, len(ids), -1)[:, 5:20] = 1e3
    altered = score(backbone, memory, rows, trees, hidden_RM=hidden).scores_RK
    assert not torch.allclose(seen[0], found[0])
    torch.testing.assert_close(seen[1], found[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(altered[0], found[0], atol=1e-5, rtol=0)
    assert not torch.allclose(altered[1], found[1])


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([], "no labels"),
        ([[1, 2], []], "label 2 has no tokens"),
        ([[1, 2], [3], [1, 2]], "labels 1 and 3 are the same"),
        ([[5, 6, 7], [5, 6]], "label 2 begins label 1"),
    ],
)
def test_labels_that_cannot_be_told_apart(labels, words):
    with pytest.raises(DataError, match=words):
        tries(labels)


def test_a_query_beyond_the_context():
    backbone = tiny_gpt2(context=64)
    memory = backbone.prefill([5] * 50)
    trees = tries([[7, 8, 9], [10]])
    assert score(backbone, memory, [[6] * 11], trees).scores_RK.shape == (1, 2)
    with pytest.raises(DataError, match="query 2 of 12 tokens ends at 65, beyond the 64"):
        score(backbone, memory, [[6], [6] * 12], trees)
    with pytest.raises(DataError, match="query 1 has no tokens"):
        score(backbone, memory, [[]], trees)


strings = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=1, max_size=12)


@given(strings, st.integers(1, 8))
def test_trees_hold_every_label_once(labels, limit):
    labels = [[*label, 9] for label in {tuple(label): label for label in labels}.values()]
    trees = tries(labels, limit)
    assert sorted(k for tree in trees for k in tree.columns) == list(range(len(labels)))
    for tree in trees:
        assert tree.size <= limit or len(tree.columns) == 1
        for column, path_E, nodes in zip(tree.columns, tree.path_EK.T, tree.nodes, strict=True):
            edges = path_E.nonzero()[:, 0]
            assert sorted(tree.token_E[edges].tolist()) == sorted(labels[column])
            assert sorted(tree.node_E[edges].tolist()) == sorted(nodes)
            above = tree.ancestor_PP[nodes[-1] - 1] if len(nodes) > 1 else torch.zeros(0)
            assert int(above.sum()) == len(nodes) - 1


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 100))
def test_batches_are_a_partition_by_length(lengths, tokens):
    found = list(batches(lengths, tokens))
    assert sorted(i for batch in found for i in batch) == list(range(len(lengths)))
    flat = [lengths[i] for batch in found for i in batch]
    assert flat == sorted(flat, reverse=True)
    assert all(len(batch) == 1 or sum(lengths[i] for i in batch) <= tokens for batch in found)


def test_shared_prefixes_are_computed_once():
    tree = Trie.of([[1, 2, 3, 9], [1, 2, 4, 9], [1, 9]])
    assert tree.size == 4  # 1, 12, 123, 124
    assert tree.depth_P.tolist() == [1, 2, 3, 3]
