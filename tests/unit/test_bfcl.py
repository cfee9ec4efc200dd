"""Files of the Berkeley leaderboard as procedures, and calls that its gold allows."""

import json
import random

import pytest

from memtoken_cli.data.bfcl import read_bfcl, said
from memtoken_cli.data.chains import join, read_negatives
from memtoken_cli.data.procedures import read_procedures
from memtoken_cli.io.errors import DataError
from memtoken_cli.methods.tokmem.exam import chain_questions
from memtoken_cli.metrics.calls import Call, allowed, marks

AREA = {
    "name": "geo.area",
    "description": "Area of a triangle.",
    "parameters": {
        "type": "dict",
        "properties": {"base": {"type": "integer"}, "unit": {"type": "string"}},
        "required": ["base"],
    },
}


def question(number, text, *functions):
    return {"id": f"q{number}", "question": [[{"role": "user", "content": text}]], "function": functions}


def folder(path, questions, answers, name="BFCL_v4_simple.json"):
    (path / "possible_answer").mkdir(exist_ok=True)
    for file, records in ((path / name, questions), (path / "possible_answer" / name, answers)):
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def gold(number, *calls):
    return {"id": f"q{number}", "ground_truth": list(calls)}


CALL = {"geo.area": {"base": [10, 10.5], "unit": ["cm", ""]}}


def test_functions_are_procedures_and_questions_with_one_call_their_samples(tmp_path):
    other = AREA | {"description": "Another one of the name."}
    asked = [question(n, f"area of {n}?", AREA if n < 3 else other) for n in range(5)]
    right = [gold(n, CALL) for n in range(4)] + [gold(4, CALL, CALL)]
    (folder(tmp_path, asked, right) / "SOURCE.md").write_text("# where it is from\n")
    (raw,) = read_bfcl(tmp_path)
    assert [s.input for s in raw.samples] == [f"area of {n}?" for n in range(4)]
    assert raw.samples[2].where.endswith("BFCL_v4_simple.json:3")
    assert raw.samples[0].output == '{"base": 10}'  # what may be absent is left out
    assert "geo.area (Area of a triangle.)" in raw.instruction
    assert raw.instruction.endswith("Parameters: base (integer), unit (string, optional).")
    (procedure,) = read_procedures(tmp_path).items
    assert procedure.name == "geo.area" and len(procedure.train) == 2
    chain = join([("geo.area", raw.samples[0]), ("geo.area", raw.samples[1])], random.Random(0))
    (asked_for,) = chain_questions([chain])
    made = [Call("geo.area", text) for text in ('{"base": 10.5}', '{"base": 10, "unit": "cm"}')]
    assert marks(made, asked_for.calls).exact == 1


def test_the_shortest_call_is_among_the_allowed():
    inside = {"items": [[{"item": ["burger"], "quantity": [5], "note": [""]}]], "tip": [0.5, ""], "to": ["x"]}
    assert said(inside) == {"items": [{"item": "burger", "quantity": 5}], "to": "x"}
    assert allowed(said(inside), inside)


@pytest.mark.parametrize(
    ("made", "right"),
    [
        ('{"base": 10}', True),
        ('{"unit": "cm", "base": 10.5}', True),
        ('{"base": 11}', False),
        ('{"base": 10, "unit": "mm"}', False),
        ('{"base": 10, "more": 1}', False),
        ("{", False),
    ],
)
def test_a_call_is_right_if_the_gold_allows_it(made, right):
    wanted = [Call("geo.area", '{"base": 10}', json.dumps(CALL["geo.area"]))]
    found = marks([Call("geo.area", made)], wanted)
    assert (found.arg_f1, found.call_f1, found.exact) == (float(right),) * 3
    # under another name only equal arguments are equal
    elsewhere = marks([Call("other", made)], wanted)
    assert elsewhere.call_f1 == 0 and elsewhere.arg_f1 == float(made == '{"base": 10}')


def test_an_allowed_call_counts_once():
    wanted = [Call("a", '{"x": 1}', '{"x": [1, 2]}'), Call("a", '{"x": 3}')]
    found = marks([Call("a", '{"x": 2}'), Call("a", '{"x": 1}')], wanted)
    assert found.call_f1 == 0.5 and found.exact == 0


def test_irrelevant_questions_are_negatives(tmp_path):
    file = tmp_path / "irrelevance.json"
    lines = [question(0, "none of these", AREA), {"query": "nor this"}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_negatives(file) == ["none of these", "nor this"]
    file.write_text('{"question": [[{"role": "system", "content": "x"}]]}\n')
    with pytest.raises(DataError, match=r"irrelevance\.json:1"):
        read_negatives(file)


@pytest.mark.parametrize(
    ("asked", "answered", "said"),
    [
        (question(0, "x", AREA), gold(1, CALL), "no question with the id 'q1'"),
        (question(0, "x", AREA), gold(0, {"geo.area": {"base": 10}}), '"ground_truth" must be'),
        (question(0, "x", AREA), {"id": "q0"}, '"ground_truth" must be'),
        (question(0, " ", AREA), gold(0, CALL), '"question" must hold'),
        (question(0, "x"), gold(0, CALL), "does not define geo.area"),
        (question(0, "x", {"name": "geo.area", "parameters": 3}), gold(0, CALL), "does not define geo.area"),
    ],
)
def test_files_of_another_shape(tmp_path, asked, answered, said):
    with pytest.raises(DataError) as error:
        read_bfcl(folder(tmp_path, [asked], [answered]))
    assert said in str(error.value) and "BFCL_v4_simple.json:1" in str(error.value)


def test_answers_without_their_questions_file(tmp_path):
    folder(tmp_path, [question(0, "x", AREA)], [gold(0, CALL)])
    (tmp_path / "BFCL_v4_simple.json").unlink()
    with pytest.raises(DataError, match=r"BFCL_v4_simple\.json"):
        read_bfcl(tmp_path)
