"""The Berkeley Function Calling Leaderboard's files: functions as procedures, and its irrelevant queries.

A folder holds BFCL_v4_*.json and, of the same names, possible_answer/. A question with one gold call is a
sample of its function; the others, and files without answers, are left alone. How calls are compared with
what the gold allows is `metrics/calls.py`'s.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memtoken_cli.data.procedures import Raw, Sample, tool_of
from memtoken_cli.io.errors import DataError
from memtoken_cli.io.records import iter_jsonl

ANSWERS = "possible_answer"


def read_bfcl(folder: Path) -> list[Raw]:
    """Every function that a question with one call asks for, by the first definition of its name.

    Raises DataError for a record of another shape, and for an answer without its question.
    """
    raws: dict[str, Raw] = {}
    for file in sorted((folder / ANSWERS).glob("*.json")):
        source = folder / file.name
        asked = {record.value.get("id"): (record.line, record.value) for record in iter_jsonl(source)}
        for record in iter_jsonl(file):
            where, number = f"{file}:{record.line}", record.value.get("id")
            if number not in asked:
                raise DataError(f"no question with the id {number!r} in {source}", where=where)
            (line, question), calls = asked[number], record.value.get("ground_truth")
            if not isinstance(calls, list) or not all(_is_call(call) for call in calls):
                raise DataError('"ground_truth" must be a list of {function: arguments}', where=where)
            if len(calls) != 1:
                continue
            ((name, allowed),) = calls[0].items()
            place = f"{source}:{line}"
            query, output = asked_text(question, place), json.dumps(said(allowed), ensure_ascii=False)
            if name not in raws:
                raws[name] = _function(name, question, place)
            sample = Sample(query, (output,), place, str(number), allowed=json.dumps(allowed))
            raws[name].samples.append(sample)
    return list(raws.values())


def asked_text(record: Mapping[str, Any], where: str) -> str:
    """What the user says in a question's first turn. Raises DataError."""
    try:
        text = next(m["content"] for m in reversed(record["question"][0]) if m["role"] == "user")
    except (KeyError, IndexError, TypeError, StopIteration):
        text = None
    if not isinstance(text, str) or not text.strip():
        hint = 'such as {"question": [[{"role": "user", "content": ".."}]]}'
        raise DataError('"question" must hold what a user says', hint=hint, where=where)
    return text


def said(allowed: Mapping[str, Any]) -> dict[str, Any]:
    """The shortest call that the gold allows: the first value of each argument, without those that may be
    absent."""
    return {name: _value(values[0]) for name, values in allowed.items() if values and "" not in values}


def _value(value: Any) -> Any:
    if isinstance(value, dict):  # lists of values again
        return {k: _value(v[0]) if isinstance(v, list) and v else v for k, v in value.items() if v != [""]}
    return [_value(v) for v in value] if isinstance(value, list) else value


def _is_call(call: Any) -> bool:
    return (
        isinstance(call, dict)
        and len(call) == 1
        and all(isinstance(a, dict) and all(isinstance(v, list) for v in a.values()) for a in call.values())
    )


def _function(name: str, question: Mapping[str, Any], where: str) -> Raw:
    try:
        told = next(f for f in question["function"] if f["name"] == name)
        parameters = told.get("parameters", {})
        required = parameters.get("required", [])
        listed = [
            f"{key} ({about.get('type', 'any')}{'' if key in required else ', optional'})"
            for key, about in parameters.get("properties", {}).items()
        ]
        description = str(told.get("description", ""))
    except (KeyError, TypeError, AttributeError, StopIteration):
        raise DataError(f'"function" does not define {name}', where=where) from None
    return tool_of(name, where, description, listed)
