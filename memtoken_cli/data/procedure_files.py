"""Files that hold procedures: JSONL, tasks of Super-NaturalInstructions, skill files, a folder of tools
(that of the Berkeley leaderboard is `bfcl.py`'s).

A faulty record is noted in its procedure with its file:line; how samples are split is `procedures.py`'s.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import yaml

from memtoken_cli.data import bfcl
from memtoken_cli.data.procedures import Raw, Sample, Split, tool_of
from memtoken_cli.io.errors import DataError, Problems
from memtoken_cli.io.records import Record, decode, iter_lines, kind_of, parse_jsonl, parse_object, read_jsonl

EXAMPLE = '{"input": "a query", "output": "its response"}'
SKILL = "SKILL.md"
EXAMPLES = "examples.jsonl"
TOOLS, TOOL_SAMPLES = "tools.json", "samples.jsonl"
NOTES = frozenset({"readme.md", "source.md", "license.md"})  # about the data, not part of them
SPLITS = ("train", "val", "test")
HEAD_KEYS = frozenset({"procedure", "description", "instruction"})


def read_folder(path: Path, problems: Problems) -> list[Raw]:
    """Every procedure under `path`, in the order of the file names; faults of whole files go to `problems`.

    Raises DataError where there is no such path.
    """
    if not path.exists():
        raise DataError(f"no such file or folder: {path}")
    if path.is_dir() and (path / TOOLS).is_file():
        return read_tools(path)
    if (path / bfcl.ANSWERS).is_dir():
        return bfcl.read_bfcl(path)
    raws = []
    for file in files_of(path):
        try:
            raws.append(_read(file))
        except DataError as error:
            problems.add(error)
    return raws


def files_of(path: Path) -> list[Path]:
    """The files that each hold a procedure; a folder NAME with a SKILL.md counts as that file."""
    if path.is_file():
        return [path]
    inside = [p for p in path.iterdir() if p.is_file() and p.name.lower() not in NOTES]
    found = [p for p in inside if p.suffix in (".jsonl", ".json", ".md")]
    found += [p / SKILL for p in path.iterdir() if (p / SKILL).is_file()]
    if not found and (path / "tasks").is_dir():
        return files_of(path / "tasks")
    return sorted(found)


def _read(file: Path) -> Raw:
    if file.suffix == ".jsonl":
        return read_jsonl_procedure(file)
    return read_skill(file) if file.suffix == ".md" else read_sni(file)


def read_jsonl_procedure(file: Path) -> Raw:
    """{"input", "output"} a line; the first may be {"procedure", "description", "instruction"}. Raises
    DataError."""
    raw = Raw(file.stem, str(file))
    for record in _records(file, raw):
        where = f"{file}:{record.line}"
        if not raw.samples and not raw.problems and "procedure" in record.value:
            _head(raw, record.value, where)
        else:
            _collect(raw, record.value, where)
    return raw


def _records(file: Path, raw: Raw) -> Iterator[Record]:
    for number, line in iter_lines(file):
        try:
            yield from parse_jsonl([(number, line)], str(file))
        except DataError as error:
            raw.problems.append(error)


def _head(raw: Raw, value: Mapping[str, Any], where: str) -> None:
    raw.where = where
    unknown = sorted(value.keys() - HEAD_KEYS)
    if unknown:
        raw.problems.append(DataError(f"unknown key {unknown[0]!r} of a procedure", where=where))
    for key in HEAD_KEYS & value.keys():
        if not isinstance(value[key], str):
            raw.problems.append(DataError(f'"{key}" must be a string', where=where))
            return
    raw.name = value["procedure"]
    raw.description, raw.instruction = value.get("description", ""), value.get("instruction", "")


def _collect(raw: Raw, value: Mapping[str, Any], where: str) -> None:
    try:
        raw.samples.append(sample_of(value, where))
    except DataError as error:
        raw.problems.append(error)


def sample_of(value: Mapping[str, Any], where: str) -> Sample:
    """A record {"input", "output", "split"?, "id"?}. Raises DataError."""
    outputs = value.get("output")
    listed = [outputs] if isinstance(outputs, str) else outputs
    text = value.get("input")
    if not isinstance(text, str) or not isinstance(listed, list):
        what = "input" if not isinstance(text, str) else "output"
        found = kind_of(value[what]) if what in value else "nothing"
        raise DataError(f'"{what}" must be a string, found {found}', hint=f"such as {EXAMPLE}", where=where)
    if not text.strip():
        raise DataError('"input" is empty', where=where)
    if not listed or not all(isinstance(one, str) and one.strip() for one in listed):
        raise DataError('"output" is empty', where=where)
    split, name = value.get("split"), value.get("id", "")
    if split is not None and split not in SPLITS:
        raise DataError(f'"split" is one of {", ".join(SPLITS)}', where=where)
    return Sample(text, tuple(listed), where, str(name), cast("Split | None", split))


def read_sni(file: Path) -> Raw:
    """A task of Super-NaturalInstructions. Raises DataError where the file is not one."""
    text = "\n".join(decode(line, f"{file}:{number}") for number, line in iter_lines(file))
    value = _json(text, file)
    if not isinstance(value, dict) or not isinstance(value.get("Instances"), list):
        raise DataError('no "Instances": not a task of Super-NaturalInstructions', where=str(file))
    definition = value.get("Definition", "")
    joined = " ".join(definition) if isinstance(definition, list) else str(definition)
    categories = tuple(str(c) for c in value.get("Categories", ()))
    raw = Raw(file.stem, str(file), instruction=joined.strip(), categories=categories)
    places: list[int] | None = None
    for i, one in enumerate(value["Instances"]):
        try:
            raw.samples.append(sample_of(one if isinstance(one, dict) else {}, str(file)))
        except DataError as error:
            # places cost a second reading, so they are found only for an error
            places = places or _places(text, "Instances")
            raw.problems.append(DataError(error.message, hint=error.hint, where=f"{file}:{places[i]}"))
    for one in value.get("Positive Examples", ()):
        try:
            raw.demonstrations.append(sample_of(one, str(file)))
        except (DataError, AttributeError):
            continue  # a help to baselines; nothing is learned from it
    return raw


def _json(text: str, file: Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"not JSON: {error.msg}", where=f"{file}:{error.lineno}") from None
    except RecursionError:
        raise DataError("JSON nested too deeply", where=str(file)) from None


def _places(text: str, key: str) -> list[int]:
    """The line of each element of the list under a top-level key."""
    decoder = json.JSONDecoder()
    found = re.search(rf'"{key}"\s*:\s*\[', text)
    out: list[int] = []
    at = found.end() if found else len(text)
    while at < len(text):
        at += len(text[at:]) - len(text[at:].lstrip(" \t\r\n,"))
        if text[at : at + 1] in ("]", ""):
            break
        out.append(text.count("\n", 0, at) + 1)
        _, at = decoder.raw_decode(text, at)
    return out


def read_skill(file: Path) -> Raw:
    """A skill: front matter with name and description, the body as instruction, examples in fenced `jsonl`
    blocks or in examples.jsonl beside it. Raises DataError."""
    lines = [decode(line, f"{file}:{number}") for number, line in iter_lines(file)]
    named = file.parent.name if file.name == SKILL else file.stem
    raw = Raw(named, f"{file}:1")
    body, first = _front(lines, raw, file)
    text: list[str] = []
    inside = False
    for number, line in enumerate(body, first):
        if not inside and line.strip().lower() == "```jsonl":
            inside = True
        elif inside and line.strip() == "```":
            inside = False
        elif inside and line.strip():
            where = f"{file}:{number}"
            try:
                raw.samples.append(sample_of(parse_object(line, where), where))
            except DataError as error:
                raw.problems.append(error)
        elif not inside:
            text.append(line)
    raw.instruction = "\n".join(text).strip()
    beside = (file.parent if file.name == SKILL else file.parent / file.stem) / EXAMPLES
    if beside.is_file():
        for record in _records(beside, raw):
            _collect(raw, record.value, f"{beside}:{record.line}")
    return raw


def _front(lines: list[str], raw: Raw, file: Path) -> tuple[list[str], int]:
    """(the body, its first line's number)."""
    if not lines or lines[0].strip() != "---":
        raise DataError("a skill begins with front matter: ---, name, description, ---", where=f"{file}:1")
    end = next((i for i, line in enumerate(lines[1:], 1) if line.strip() == "---"), None)
    if end is None:
        raise DataError("the front matter has no end", hint="a line of ---", where=f"{file}:1")
    try:
        value = yaml.safe_load("\n".join(lines[1:end])) or {}
    except yaml.YAMLError as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"the front matter is not YAML: {reason}", where=f"{file}:1") from None
    if not isinstance(value, dict) or not isinstance(value.get("description"), str):
        raise DataError("the front matter lacks a description", where=f"{file}:1")
    raw.name, raw.description = str(value.get("name", raw.name)), value["description"].strip()
    return lines[end + 1 :], end + 2


def read_tools(folder: Path) -> list[Raw]:
    """A folder of tools.json (name, description, parameters) and samples.jsonl (tool, query, arguments).

    A response is the arguments as JSON, in the order of the tool's parameters. Raises DataError.
    """
    file = folder / TOOLS
    listed = _json("\n".join(decode(line, f"{file}:{n}") for n, line in iter_lines(file)), file)
    try:
        tools = {tool["name"]: tool for tool in listed}
    except (TypeError, KeyError):
        raise DataError('a list of tools with "name" is wanted', where=str(file)) from None
    raws = {name: _tool(name, tool, file) for name, tool in tools.items()}
    source = folder / TOOL_SAMPLES
    for record in read_jsonl(source):
        where = f"{source}:{record.line}"
        name, query, arguments = (record.value.get(key) for key in ("tool", "query", "arguments"))
        if name not in raws:
            raise DataError(f"a sample of an unknown tool {name!r}", where=where)
        if not isinstance(query, str) or not isinstance(arguments, dict):
            raws[name].problems.append(DataError('"query" and "arguments" are wanted', where=where))
            continue
        order = list(tools[name].get("parameters", {}))
        sorted_ = {key: arguments[key] for key in [*order, *arguments] if key in arguments}
        output = json.dumps(sorted_, ensure_ascii=False)
        raws[name].samples.append(Sample(query, (output,), where))
    return list(raws.values())


def _tool(name: str, tool: Mapping[str, Any], file: Path) -> Raw:
    return tool_of(name, str(file), str(tool.get("description", "")), list(tool.get("parameters", {})))
