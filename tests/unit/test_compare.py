"""One runner for all contestants: what each is measured against, draws, averages, tables and pictures."""

import json

import pytest
import torch
from pydantic import ValidationError
from tiny import tiny_gemma3, tiny_llama

from memtoken_cli.data.pool import draw, read_pool
from memtoken_cli.data.render import Template, answer_ids, query_ids
from memtoken_cli.data.shots import Query, Shot, Shots
from memtoken_cli.engine.answer import label_trees
from memtoken_cli.engine.calibrate import calibrate
from memtoken_cli.engine.compare import Sitting, average, compare, exam
from memtoken_cli.engine.compare_config import BenchConfig
from memtoken_cli.engine.compare_report import HEADERS, cells, plot, report
from memtoken_cli.engine.contest import Contestant, context, entrant
from memtoken_cli.engine.evaluate import evaluate
from memtoken_cli.engine.leave_one_out import hidden_tokens, loo_scores
from memtoken_cli.engine.memory import Tokens
from memtoken_cli.engine.method import Made
from memtoken_cli.engine.rivals import rivals
from memtoken_cli.engine.trie import score_alone
from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.io.sink import Sink

POOL = [Query(f"text {i} {'abc'[i % 3]}", ("ab", "cd", "e")[i % 3], i + 1) for i in range(60)]
EVICT = ("uniform", "kvzip")


@pytest.fixture(scope="module")
def backbone():
    return tiny_llama()


@pytest.fixture(scope="module")
def sitting(backbone):
    drawn = draw(POOL, classes=3, per_class=3, queries=10, seed=0)
    ctx = context(backbone, drawn.shots, Template())
    return Sitting(ctx, exam(backbone, Template(), ctx.labels, drawn.queries))


@pytest.fixture(scope="module")
def rows(backbone):
    draws = [draw(POOL, classes=3, per_class=3, queries=10, seed=seed) for seed in (0, 1)]
    return list(compare(backbone, draws, Template(), rivals(["none", "fewer", *EVICT]), [4, 2]))


def test_full_is_the_reference(sitting):
    row = sitting.full
    assert (row.agreement, row.kl_first, row.kl_answer, row.accuracy_over_full) == (1, 0, 0, 1)
    assert (row.slots, row.ratio) == (sitting.ctx.tokens, None)


def test_the_exam_is_scored_like_labels_alone(sitting):
    ctx, template = sitting.ctx, Template()
    labels = [answer_ids(template, ctx.backbone.tokenizer, label) for label in ctx.labels]
    alone = score_alone(ctx.backbone, ctx.rendered.ids, sitting.test.rows, labels)
    right = (alone.argmax(1) == torch.tensor(sitting.test.gold)).double().mean()
    assert sitting.full.accuracy == pytest.approx(float(right))


def test_everything_at_ratio_one_is_full(sitting):
    for contestant in rivals(["uniform", "kvzip", "h2o"]):
        row = sitting.sit(contestant, 1)
        assert (row.accuracy, row.agreement) == (sitting.full.accuracy, 1)
        assert row.kl_first == pytest.approx(0, abs=1e-6)
        assert row.accuracy_calibrated == sitting.full.accuracy_calibrated


def test_rows_are_one_a_contestant_and_ratio(rows):
    keys = [(row.method, row.ratio) for row in rows[0]]
    assert keys[:2] == [("full", None), ("none", None)]
    assert keys[2:] == [(name, ratio) for name in ("fewer", *EVICT) for ratio in (2, 4)]
    full, none = rows[0][:2]
    assert none.kl_first > 0
    assert none.accuracy_calibrated is None
    assert full.accuracy_calibrated is not None
    for row in rows[0][2:]:
        assert row.slots <= row.tokens / row.ratio
        assert row.bytes < full.bytes


def test_averages_are_over_draws(rows):
    one, two = rows
    mean = average(rows)
    assert len(mean) == len(one)
    for a, b, m in zip(one, two, mean, strict=True):
        assert m.accuracy == pytest.approx((a.accuracy + b.accuracy) / 2)
        assert m.kl_answer == pytest.approx((a.kl_answer + b.kl_answer) / 2)
        assert (m.method, m.ratio, m.queries, m.draws) == (a.method, a.ratio, 20, 2)
        assert m.low <= m.accuracy <= m.high
        assert m.high - m.low <= max(a.high - a.low, b.high - b.low)


def test_a_method_enters_with_one_line(sitting):
    asked = []

    def make(ctx, slots):
        asked.append(slots)
        wild = {label: 1e4 * (label == "cd") for label in ctx.labels}
        return Made(ctx.full, {"calibration": wild})

    row = sitting.sit(Contestant("ours", make), 3)
    assert asked == [sitting.ctx.tokens // 3]
    assert row.agreement == 1
    share = sitting.test.gold.count(sitting.ctx.labels.index("cd")) / len(sitting.test.gold)
    assert row.accuracy_calibrated == pytest.approx(share)


class Copier:
    """A method that keeps the prompt's first `slots` tokens."""

    spec = None

    def compress(self, backbone, shots, budget, config, seed):
        assert config == "config"
        ids = context(backbone, shots, Template()).rendered.ids
        return Made(backbone.prefill(ids[: budget.slots_for(len(ids))]))


def test_a_method_that_compresses_enters_as_it_is(sitting):
    row = sitting.sit(entrant("copier", Copier(), "config"), 2)
    assert (row.method, row.slots) == ("copier", sitting.ctx.tokens // 2)


def test_what_cannot_sit(sitting):
    prefix = Contestant("soft", lambda ctx, slots: Made(Tokens("prefix", torch.zeros(1, 32))))
    with pytest.raises(DataError, match="soft made a memory of the prefix port"):
        sitting.sit(prefix, 2)
    with pytest.raises(DataError, match="leaves none"):
        sitting.sit(prefix, 1e6)


def test_queries_need_known_labels(backbone):
    with pytest.raises(DataError, match=r"no shot has the label 'zz' in line 7"):
        exam(backbone, Template(), ("ab", "cd"), [Query("q", "zz", 7)])
    with pytest.raises(DataError, match="without a label"):
        exam(backbone, Template(), ("ab", "cd"), [Query("q", None, 7)])


@pytest.mark.parametrize("make", [tiny_llama, tiny_gemma3])
def test_leave_one_out_hides_the_shot_and_its_copies(make):
    backbone = make()
    items = [Shot("one", "ab", 1), Shot("two", "cd", 2), Shot("one", "ab", 3), Shot("one", "cd", 4)]
    ctx = context(backbone, Shots(items, "pairs", "x", ""), Template())
    hidden_SM = hidden_tokens(items, ctx.rendered)
    spans = ctx.rendered.spans
    covered = [sorted({i for i, s in enumerate(spans) if row[s.start : s.end].all()}) for row in hidden_SM]
    assert covered == [[0, 2], [1], [0, 2], [3]]
    assert int(hidden_SM[1].sum()) == spans[1].end - spans[1].start
    trees = label_trees(backbone, Template(), ctx.labels)
    found = loo_scores(backbone, ctx.full, ctx.rendered, items, ctx.labels, trees)
    assert (found.asked, found.label_S.tolist()) == ((0, 1, 3), [0, 1, 1])  # a copy is no shot of its own
    for kv in ctx.full.layers:
        if kv.sizes[0] == len(ctx.rendered.ids):  # a sliding window has lost that shot
            kv.v_XD.view(2, kv.sizes[0], -1)[:, spans[1].start : spans[1].end] = 1e3
    again = loo_scores(backbone, ctx.full, ctx.rendered, items, ctx.labels, trees)
    torch.testing.assert_close(again.scores_SK[1], found.scores_SK[1], atol=1e-4, rtol=0)
    assert not torch.allclose(again.scores_SK[0], found.scores_SK[0])


def test_fewer_is_calibrated_by_its_own_shots(sitting):
    (contestant,) = rivals(["fewer"])
    ctx = sitting.ctx
    made = contestant.make(ctx, ctx.tokens // 2)
    items = [ctx.shots.items[i] for i in made.about["shots"]]
    own = context(ctx.backbone, Shots(items, "pairs", "x", ""), Template())
    loo = loo_scores(ctx.backbone, own.full, own.rendered, items, ctx.labels, sitting.test.trees)
    fitted = calibrate(loo.scores_SK, loo.label_S)
    expected = torch.zeros(3, dtype=torch.float64) if fitted is None else fitted.bias_K
    torch.testing.assert_close(sitting.bias(contestant, made), expected)
    assert sitting.bias(contestant, Made(ctx.full, {"shots": []})) is None


def test_draws_are_seeded_and_clean():
    one = draw(POOL, classes=2, per_class=4, queries=9, seed=3)
    assert one == draw(POOL, classes=2, per_class=4, queries=9, seed=3)
    assert one != draw(POOL, classes=2, per_class=4, queries=9, seed=4)
    labels = [shot.output for shot in one.shots.items]
    assert sorted(map(labels.count, set(labels))) == [4, 4]
    assert labels != sorted(labels)
    assert {q.output for q in one.queries} <= set(labels)
    assert not {q.input for q in one.queries} & {s.input for s in one.shots.items}
    assert len({q.input for q in one.queries}) == 9


def test_queries_come_from_a_test_file_where_there_is_one():
    test = [Query("new", "ab", 1), Query("new too", "zz", 2), POOL[0]]
    found = draw(POOL, classes=3, per_class=20, queries=9, seed=0, test=test)
    assert [q.input for q in found.queries] == ["new"]


def test_labels_of_a_draw_have_keys_of_their_own():
    pool = [Query(f"{label}{i}", label, i) for label in ("aa", "ab", "ba", "bb", "c") for i in range(3)]
    for seed in range(5):
        found = draw(pool, classes=3, per_class=2, queries=3, seed=seed, distinct=lambda label: label[0])
        assert sorted({s.output[0] for s in found.shots.items}) == ["a", "b", "c"]
    with pytest.raises(UsageError, match="3 usable labels"):
        draw(pool, classes=4, per_class=2, queries=3, seed=0, distinct=lambda label: label[0])
    with pytest.raises(UsageError, match="0 usable labels of 4 records"):
        draw(pool, classes=2, per_class=3, queries=3, seed=0)


def test_pools_are_csv_or_jsonl(tmp_path):
    table, lines = tmp_path / "p.csv", tmp_path / "p.jsonl"
    table.write_text('output,n,input\nab,1,"one, two"\ncd,2,"a\nb"\n')
    lines.write_text('{"input": "one, two", "output": "ab"}\n{"input": "a\\nb", "output": "cd"}\n')
    pairs = [[(q.input, q.output) for q in read_pool(path)] for path in (table, lines)]
    assert pairs == [[("one, two", "ab"), ("a\nb", "cd")]] * 2
    table.write_text("text,category\nhello,greeting\n")
    assert [(q.input, q.output) for q in read_pool(table)] == [("hello", "greeting")]
    table.write_text("text,category\nhello,greeting\nonly\n")
    with pytest.raises(DataError, match=r"p\.csv:3"):
        read_pool(table)
    lines.write_text('{"input": "x", "output": "y"}\n{"input": "x"}\n')
    with pytest.raises(DataError, match=r"p\.jsonl:2"):
        read_pool(lines)


def test_the_report_is_a_table_or_records(rows, capsys):
    mean = average(rows)
    with Sink() as sink:
        report(sink, mean)
    text = capsys.readouterr().out.splitlines()
    assert len(text) == 2 + len(mean)
    assert text[0].split()[0] == HEADERS[0]
    assert all(len(cells(row)) == len(HEADERS) for row in mean)
    with Sink(json=True) as sink:
        report(sink, mean)
    found = json.loads(capsys.readouterr().out)["rows"]
    assert [(r["method"], r["ratio"]) for r in found] == [(r.method, r.ratio) for r in mean]
    assert found[0]["accuracy"] == mean[0].accuracy


def test_the_picture_is_the_same_every_time(rows, tmp_path):
    for name in ("a.svg", "b.svg"):
        plot(str(tmp_path / name), average(rows))
    first, second = ((tmp_path / name).read_bytes() for name in ("a.svg", "b.svg"))
    assert first == second
    assert first.count(b"kvzip") >= 1
    with pytest.raises(UsageError, match="cannot draw"):
        plot(str(tmp_path / "a.txt"), average(rows))


def test_evaluate_beside_the_original_shots(sitting):
    ctx = sitting.ctx
    queries = [Query(f"text {i}", label, i) for i, label in enumerate(ctx.labels * 2)]
    memory = rivals(["uniform"])[0].make(ctx, ctx.tokens // 2).memory
    about = {
        "template": Template().text,
        "labels": list(ctx.labels),
        "calibration": {"ab": 0, "cd": 0, "e": 0},
    }
    found = evaluate(ctx.backbone, memory, about, queries, shots=ctx.shots, method="mine")
    assert [r["method"] for r in found] == ["full", "mine", "fewer", "none"]
    alone = evaluate(ctx.backbone, memory, about, queries, method="mine")
    assert [r["method"] for r in alone] == ["mine", "none"]
    assert alone[0]["accuracy"] == found[1]["accuracy"] == alone[0]["accuracy_calibrated"]
    other = draw(POOL, classes=2, per_class=3, queries=1, seed=0).shots
    with pytest.raises(DataError, match="not the ones"):
        evaluate(ctx.backbone, memory, about, queries, shots=other)
    with pytest.raises(DataError, match="no shot has the label"):
        evaluate(ctx.backbone, memory, about, [Query("x", "zz", 3)])


def test_evaluate_without_a_closed_set_compares_text(sitting):
    ctx = sitting.ctx
    row = query_ids(Template(), ctx.backbone.tokenizer, "x")
    out = ctx.backbone.model.generate(
        torch.tensor([[*ctx.rendered.ids, *row]]), max_new_tokens=64, do_sample=False, pad_token_id=0
    )
    said = ctx.backbone.tokenizer.decode(out[0, ctx.tokens + len(row) :], skip_special_tokens=True)
    queries = [Query("x", said.partition("\n\n")[0].strip(), 1), Query("x", "something else", 2)]
    (found,) = evaluate(ctx.backbone, ctx.full, {"template": Template().text}, queries)
    assert (found["accuracy"], found["queries"]) == (0.5, 2)


def test_a_bench_names_one_source():
    assert BenchConfig(pool="p.csv").ratios == (2, 4, 8, 16)
    for wrong in ({}, {"shots": "a"}, {"pool": "a", "shots": "b"}, {"shots": "a", "path": "b", "draws": 2}):
        with pytest.raises(ValidationError):
            BenchConfig(**wrong)
    assert BenchConfig(shots="a", path="b").draws == 1
    with pytest.raises(ValidationError):
        BenchConfig(pool="p", ratios=(0.5,))
    with pytest.raises(ValidationError):
        BenchConfig(pool="p", rivals=("nobody",))
