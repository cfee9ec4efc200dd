"""Where columns stand and what they see: the table of position policies, both masks, the limits; and that a
gap in the positions is never taken for the seam of packed sequences."""

import pytest
import torch
from rmt_policies import gentle, made, rows, run
from tiny import tiny_gemma3, tiny_gpt2, tiny_llama

from memtoken_cli.engine import models
from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.methods.rmt.config import Config
from memtoken_cli.methods.rmt.places import Places, additive, laid, part
from memtoken_cli.methods.rmt.policies import policy_for
from memtoken_cli.methods.rmt.run import built
from memtoken_cli.recipe.schema import parse

# policy: read, text, write positions of m 2, S 4, n 3
TABLE = {
    "contiguous": ([0, 1], [2, 3, 4], [5, 6]),
    "pinned": ([0, 1], [2, 3, 4], [6, 7]),
    "zero": ([0, 0], [0, 1, 2], [4, 4]),
    "offset:9": ([0, 1], [9, 10, 11], [13, 14]),
}
BEHIND = {
    "contiguous": [3, 4],
    "pinned": [4, 5],
    "wrapped": [30, 31],
}  # without a read block, of 32 positions


def whole(places, *counts, columns=3):
    return places.whole(torch.tensor(counts), columns).tolist()


@pytest.mark.parametrize("policy", TABLE)
def test_positions(policy):
    read, text, write = TABLE[policy]
    places = Places(policy, 4, 2, 2)
    assert whole(places, 3) == [read + text + write]
    front = Places(policy, 4, 2, 2, front=1)
    assert whole(front, 3) == [[0] + [x + 1 for x in read + text + write]]
    assert places.largest() == (write[1] if policy != "contiguous" else 7)


@pytest.mark.parametrize("policy", BEHIND)
def test_positions_without_a_read_block(policy):
    assert whole(Places(policy, 4, 0, 2, limit=32), 3) == [[0, 1, 2] + BEHIND[policy]]


def test_write_positions_are_each_rows_own():
    assert whole(Places("contiguous", 4, 1, 2), 3, 1, 0) == [
        [0, 1, 2, 3, 4, 5],
        [0, 1, 2, 3, 2, 3],
        [0, 1, 2, 3, 1, 2],
    ]
    assert whole(Places("pinned", 4, 1, 2), 3, 1) == [[0, 1, 2, 3, 5, 6]] * 2


def test_a_full_segment_stands_alike_pinned_and_contiguous():
    pinned, contiguous = (Places(x, 4, 2, 2) for x in ("pinned", "contiguous"))
    assert whole(pinned, 4, columns=4) == whole(contiguous, 4, columns=4)


CAUSAL = """
x......
xx.....
xxx....
xxxx...
xxxxx..
xxxxxx.
xxxxxxx
"""
BLOCKS = """
xx.....
xx.....
xxx....
xxxx...
xxxxx..
xxxxxxx
xxxxxxx
"""
PADDED = """
xx.....
xx.....
xxx....
xxxx...
xxxxx..
xxxx.xx
xxxx.xx
"""
FRONT = """
x......
xxx....
xxx....
xxxx...
xxxxx..
xxxxxxx
xxxxxxx
"""


def drawn(sees):
    return "\n" + "\n".join("".join("x" if x else "." for x in line) for line in sees.tolist()) + "\n"


@pytest.mark.parametrize(
    ("places", "count", "columns", "expected"),
    [
        (Places("pinned", 4, 2, 2), 3, 3, CAUSAL),
        (Places("pinned", 4, 2, 2, blocks=True), 3, 3, BLOCKS),
        (Places("pinned", 4, 2, 2, blocks=True), 2, 3, PADDED),
        (Places("pinned", 4, 2, 2, front=1, blocks=True), 2, 2, FRONT),
    ],
    ids=["causal", "blocks", "padded", "front"],
)
def test_masks(places, count, columns, expected):
    assert drawn(places.sees(torch.tensor([count]), columns)[0]) == expected


def test_a_mask_is_a_float_that_is_added():
    mask = additive(torch.tensor([[[True, False]]]), torch.float16)
    assert mask.dtype == torch.float16 and mask.shape == (1, 1, 1, 2)
    assert mask.flatten().tolist() == [0, torch.finfo(torch.float16).min]


@pytest.mark.parametrize("blocks", [False, True])
def test_parts_are_parts_of_the_whole(blocks):
    places = Places("pinned", 4, 2, 2, blocks=blocks)
    _, mask = laid(places, torch.tensor([4]), 4, torch.float32)
    device = torch.device("cpu")
    for start, stop, columns in ((0, 2, 0), (2, 5, 3), (5, 6, 4), (6, 8, 4)):
        asked = part(places, start, stop, columns, torch.float32, device)
        assert torch.equal(asked, mask[:, :, start:stop, :stop]), (start, stop)


def test_limits():
    Places("pinned", 4, 2, 2).check(8, (None,))
    for policy, fits in (("pinned", 8), ("contiguous", 8), ("zero", 5), ("offset:9", 15)):
        places = Places(policy, 4, 2, 2)
        places.check(fits, (None, 8))
        with pytest.raises(UsageError, match=f"up to {fits - 1} do not fit the model's {fits - 1}"):
            places.check(fits - 1, (None,))
    with pytest.raises(UsageError, match=r"8 columns .* sliding window of 7") as told:
        Places("pinned", 4, 2, 2).check(99, (None, 7))
    assert told.value.hint == "rmt.segment=3"


@pytest.mark.parametrize("policy", ["rmt", "prmt", "armt", "static"])
def test_limits_of_a_model_are_told_at_once(policy):
    columns = {"rmt": 8, "prmt": 8, "armt": 6, "static": 6}[policy]
    made(tiny_llama(context=columns), policy=policy)
    made(tiny_gemma3(window=columns), policy=policy)
    with pytest.raises(UsageError, match="positions"):
        made(tiny_llama(context=columns - 1), policy=policy)
    with pytest.raises(UsageError, match="sliding window"):
        made(tiny_gemma3(window=columns - 1), policy=policy)


RECIPE = """
method: rmt
model: {{name: {folder}}}
task: {{name: copy}}
rmt: {{policy: {policy}, slots: 2, segment: {segment}}}
"""


@pytest.mark.parametrize("policy", ["rmt", "prmt", "armt", "static", "none", "xl"])
@pytest.mark.parametrize("make", [lambda: tiny_llama(context=20), lambda: tiny_gemma3(window=20)])
def test_limits_of_a_named_model_are_told_before_it_is_loaded(policy, make, tmp_path):
    backbone = make()
    backbone.model.config.save_pretrained(tmp_path)
    backbone.tokenizer.save_pretrained(tmp_path)  # and no weights
    columns = {"rmt": 4, "prmt": 4, "armt": 2, "static": 2, "none": 0, "xl": 2}[policy]

    def said(segment):
        return parse(RECIPE.format(folder=tmp_path, policy=policy, segment=segment).encode())

    with pytest.raises(UsageError, match="do not fit the model's"):
        built(said(21 - columns), "cpu")
    with pytest.raises(DataError, match="does not load"):
        built(said(20 - columns), "cpu")


@pytest.mark.parametrize("section", ["policy: window", "init: none.safetensors"])
def test_what_a_configuration_cannot_say_is_left_to_the_loaded_model(section, monkeypatch):
    monkeypatch.setattr(models, "limits", lambda name: pytest.fail("asked"))
    with pytest.raises(UsageError, match="no model at"):
        built(parse(f"method: rmt\nmodel: {{name: ./nowhere}}\nrmt: {{{section}}}\n".encode()), "cpu")


def filled(of, ids, state):
    """The segment with dummy columns in the gaps of its positions, hidden by the mask: no gap is left."""
    m, model = of.config.slots, of.backbone.model
    x = torch.cat([state, model.get_input_embeddings()(torch.tensor(ids)), state])
    place = whole(of.policy.places, len(ids), columns=len(ids))[0]
    T = place[-1] + 1
    all_TE = torch.full((T, x.shape[1]), 7.0)
    all_TE[place] = x
    real = torch.zeros(T, dtype=torch.bool)
    real[place] = True
    sees = (torch.ones(T, T).tril().bool() & real) | torch.eye(T, dtype=torch.bool)
    mask = torch.zeros(T, T).masked_fill(~sees, torch.finfo(torch.float32).min)[None, None]
    out = model(
        inputs_embeds=all_TE[None],
        position_ids=torch.arange(T)[None],
        attention_mask=mask,
        output_hidden_states=True,
        use_cache=False,
    )
    text = place[m : m + len(ids)]
    return x, place, out.logits[0, text], out.hidden_states[-1][0, place[-m:]]


@pytest.mark.parametrize("positions", ["pinned", "offset:9"])
@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_a_gap_is_not_the_seam_of_packed_sequences(make, positions):
    of = made(gentle(make()), positions=positions, state_norm="final", slots=3)
    ids = rows((2,))
    with torch.no_grad():
        logits, (state,) = run(of, ids)
        x, place, expected, written = filled(of, ids[0], of.parameters["memory.init_MD"])
        torch.testing.assert_close(logits[0], expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(state[0], written, atol=1e-5, rtol=0)
        model = of.backbone.model
        told = {"inputs_embeds": x[None], "position_ids": torch.tensor([place])}
        bare = model.get_decoder()(**told, use_cache=False).last_hidden_state[0]
        assert (bare[-3:] - written).abs().max() > 1e-2, "without a mask the gap must cut attention"


@pytest.mark.parametrize("policy", ["rmt", "prmt", "armt"])
def test_eager_attention_agrees(policy):
    """It adds its mask, where another kind takes a bool one."""
    of = made(policy=policy, mask="blocks")
    ids = rows()
    logits, state = run(of, ids)
    of.backbone.model.set_attn_implementation("eager")
    again, also = run(of, ids)
    for a, b in zip([*logits, state[0]], [*again, also[0]], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_a_sink_is_the_embedding_of_bos_before_the_read_block():
    of = made(sink="bos", state_norm="final")
    (ids,) = rows((4,))
    model, start = of.backbone.model, of.parameters["memory.init_MD"]
    bos, text = (
        model.get_input_embeddings()(torch.tensor([1])),
        model.get_input_embeddings()(torch.tensor(ids)),
    )
    out = model(inputs_embeds=torch.cat([bos, start, text, start])[None], output_hidden_states=True)
    logits, (state,) = run(of, [ids])
    torch.testing.assert_close(logits[0], out.logits[0, 3:7], atol=1e-5, rtol=0)
    torch.testing.assert_close(state, out.hidden_states[-1][:, -2:], atol=1e-5, rtol=0)


def test_a_sink_that_nothing_can_stand_for_is_refused():
    backbone = tiny_llama()
    backbone.tokenizer.bos_token = None
    config = Config(sink="bos", slots=2, segment=4)
    with pytest.raises(UsageError, match="no BOS") as caught:
        policy_for(backbone, config, 0)
    assert caught.value.hint == "rmt.sink=none"
    policy_for(backbone, config.model_copy(update={"policy": "none"}), 0)
    for policy in ("prmt", "armt"):
        with pytest.raises(ValueError, match="read block"):
            Config(policy=policy, sink="bos")


def test_only_rmt_may_be_without_slots():
    for policy in ("prmt", "armt", "static", "xl"):
        with pytest.raises(ValueError, match="needs slots"):
            Config(policy=policy, slots=0)
    for policy in ("rmt", "none", "window", "full"):
        assert Config(policy=policy, slots=0).slots == 0
