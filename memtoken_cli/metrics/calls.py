"""How right a list of tool calls is. A call is a procedure's name and its arguments as text, a JSON object.

Sets follow the paper (TokMem, 4.2): two equal argument objects count once, and names are not compared with
them. The multiset figures are stricter.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

NUMBERS = (2, 3, 4)  # of gold calls, over which the paper averages


@dataclass(frozen=True)
class Call:
    """arguments: JSON. allowed: of a gold call, JSON too: other arguments that are right (see `allowed`)."""

    procedure: str
    arguments: str
    allowed: str = ""


@dataclass(frozen=True)
class Marks:
    """One example's marks, each 0 to 1.

    Attributes:
        tool_f1: F1 of the sets of names; tool_f1_multi: of the multisets.
        arg_f1: F1 of the sets of argument objects; call_f1: of the multisets of (name, arguments).
        exact: the calls are the gold ones, in order.
        parse_error: the share of the made calls whose arguments are not a JSON object.
    """

    tool_f1: float
    tool_f1_multi: float
    arg_f1: float
    call_f1: float
    exact: float
    parse_error: float


def canonical(text: str) -> str | None:
    """The one spelling of a JSON object: keys sorted, 7 for 7.0, strings NFC and trimmed, lists in order.

    None where the text is no JSON object, repeats a key, or holds a number that is not finite.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse)
        if not isinstance(value, dict):
            return None
        return json.dumps(plain(value), sort_keys=True, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        return None


def plain(value: Any) -> Any:
    """A JSON value with strings NFC and trimmed and whole floats as integers. Raises ValueError for keys
    that become one."""
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value).strip()
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return _object([(plain(key), plain(item)) for key, item in value.items()])
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def marks(made: Sequence[Call], gold: Sequence[Call]) -> Marks:
    """One example. Arguments that do not parse are wrong. Raises ValueError where a gold call's do not."""
    right = [(call.procedure, canonical(call.arguments)) for call in gold]
    if any(arguments is None for _, arguments in right):
        raise ValueError("a gold call whose arguments are not a JSON object")
    # an unparseable one is an element of its own, equal to no gold one
    found = [(call.procedure, _as_gold(call, gold) or ("?", call.arguments)) for call in made]
    failed = sum(isinstance(arguments, tuple) for _, arguments in found)
    names, gold_names = [name for name, _ in found], [name for name, _ in right]
    arguments, gold_arguments = [a for _, a in found], [a for _, a in right]
    return Marks(
        tool_f1=f1(set(names), set(gold_names)),
        tool_f1_multi=f1(names, gold_names),
        arg_f1=f1(set(arguments), set(gold_arguments)),
        call_f1=f1(found, right),
        exact=float(found == right),
        parse_error=failed / len(found) if found else 0.0,
    )


def _as_gold(call: Call, gold: Sequence[Call]) -> str | None:
    """The canonical arguments of a made call; of one that a gold call of its name allows, that one's."""
    found = canonical(call.arguments)
    if found is None:
        return None
    same = (right for right in gold if right.allowed and right.procedure == call.procedure)
    right = next((r for r in same if allowed(json.loads(found), json.loads(r.allowed))), None)
    return found if right is None else canonical(right.arguments)


def f1(made: Sequence[Hashable] | set[Any], gold: Sequence[Hashable] | set[Any]) -> float:
    """F1 of two multisets (sets are multisets of ones); 1 where both are empty."""
    if not made and not gold:
        return 1.0
    shared = (Counter(made) & Counter(gold)).total()
    return 2 * shared / (len(made) + len(gold))


def by_number(each: Sequence[Marks], calls: Sequence[int]) -> dict[str, dict[str, float]]:
    """Mean marks by the number of gold calls ("1", "2", ...); "avg": unweighted over those of 2, 3 and 4
    that occur, where any does."""
    names = [field.name for field in fields(Marks)]
    table: dict[str, dict[str, float]] = {}
    for number in sorted(set(calls)):
        some = [asdict(mark) for mark, count in zip(each, calls, strict=True) if count == number]
        table[str(number)] = {name: sum(mark[name] for mark in some) / len(some) for name in names}
    several = [table[str(number)] for number in NUMBERS if str(number) in table]
    if several:
        table["avg"] = {name: sum(row[name] for row in several) / len(several) for name in names}
    return table


def allowed(arguments: Mapping[str, Any], gold: Mapping[str, Any]) -> bool:
    """Whether arguments are among those that BFCL's gold allows: a list of values a parameter, "" in it:
    may be absent; objects inside hold such lists too, or a value as it is."""
    if not arguments.keys() <= gold.keys():
        return False
    for name, given in gold.items():
        values = given if isinstance(given, list) else [given]
        if name not in arguments:
            if "" not in values:
                return False
        elif not any(_fits(arguments[name], value) for value in values):
            return False
    return True


def _fits(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict) and isinstance(value, dict):
        return allowed(value, wanted)
    if isinstance(wanted, list) and isinstance(value, list):
        return len(value) == len(wanted) and all(map(_fits, value, wanted))
    # as text: True is not 1
    return json.dumps(plain(value), sort_keys=True) == json.dumps(plain(wanted), sort_keys=True)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a repeated key")
    return found


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
