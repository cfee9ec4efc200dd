"""Quadratic equations: every formula re-evaluated by Python's own arithmetic."""

import re

import pytest

from memtoken_cli.data.stream_quadratic import WIDTH, solution
from memtoken_cli.data.streams import IGNORE, stream_for
from memtoken_cli.data.task_config import TaskSection
from memtoken_cli.engine.seeds import generator


def stream(**keys):
    return stream_for(TaskSection(name="quadratic", **keys), 30, seed=0)


def drawn(rows, **keys):
    """Each row's text, and the text of its scored targets."""
    task = stream(**keys)
    batch = task.draw(1, rows, generator(0, "data"))
    for ids, target, length in zip(batch.ids_BT, batch.target_BT, batch.length_B.tolist(), strict=True):
        yield tuple(
            "".join(task.vocabulary[i] for i in part.tolist())
            for part in (ids[:length], target[target != IGNORE])
        )


def read_lines(text):
    """The formulas of a row, each behind its line's fill."""
    lines = [text[i : i + WIDTH] for i in range(0, len(text), WIDTH)]
    assert all(re.fullmatch(r"[^;]+;+", line) and len(line) == WIDTH for line in lines)
    return [line.rstrip(";") for line in lines]


def value(formula, x=None):
    assert re.fullmatch(r"[-+*/^()x0-9]+", formula)
    return eval(formula.replace("^", "**"), {"x": x})


def check_equation(lines):
    """Whether there are real roots; every formula re-evaluated by Python's own arithmetic."""
    problem, reduced, discriminant, *rest = lines
    sides = [line.split("=") for line in (problem, reduced)]
    assert [right for _, right in sides] == ["0", "0"]
    (long, _), (short, _) = sides
    a = value(long.split("*")[0])
    assert all(value(long, x) == a * value(short, x) for x in (-3, 0, 2))
    c = value(short, 0)
    b = value(short, 1) - 1 - c
    name, formula, D, *root = discriminant.split("=")
    assert (name, formula) == ("D", f"{abs(b)}^2-4*1*{c}")
    assert value(formula) == int(D) == b * b - 4 * c
    if not rest:
        assert int(D) < 0 and not root
        return False
    assert value(root[0]) == int(D)
    *steps, answer = rest
    found = [int(r) for r in answer.split(",")]
    assert found == sorted(found) and all(value(short, r) == value(long, r) == 0 for r in found)
    for step, r in zip(steps, found, strict=True):
        left, formula, right = step.split("=")
        assert left == "x" and value(formula) == int(right) == r
    assert found[0] + found[1] == -b
    return True


def test_quadratic_equations_are_right():
    real = 0
    for text, answer in drawn(600):
        assert answer == text[WIDTH:]
        lines = read_lines(text)
        ok = check_equation(lines)
        assert len(lines) == (6 if ok else 3)
        real += ok
    assert real == pytest.approx(480, rel=0.08)
    assert stream().final == WIDTH


def test_quadratic_characters_have_the_published_ids():
    assert stream().vocabulary[2:24] == tuple("0123456789+-*/^=()xD;,")


@pytest.mark.parametrize("bound", [2, 10])
def test_roots_are_below_the_bound(bound):
    roots, scales = set(), set()
    for text, _ in drawn(400, bound=bound, no_root=0.0, scale=3):
        lines = read_lines(text)
        roots |= {int(r) for r in lines[-1].split(",")}
        scales.add(int(lines[0].split("*")[0]))
    assert roots == set(range(1 - bound, bound))
    assert scales == {-3, -2, -1, 1, 2, 3}


def test_the_widest_equations_fit_their_lines():
    longest = 0
    ends = (-99, -98, -10, -9, -1, 0, 1, 9, 10, 98, 99)
    for a in (-1000, 1000):
        for r1 in ends:
            for r2 in ends:
                for extra in (0, 1, 100**2):
                    lines = solution(a, r1, r2, extra)
                    longest = max(longest, *map(len, lines))
                    check_equation(lines)
    assert longest == WIDTH - 1
