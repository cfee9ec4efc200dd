"""`memtok generate`: queries to answers, read through one memory that is loaded once."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memtoken_cli.commands.argv import split
from memtoken_cli.commands.options import Common, Device, Json, Keys, Quiet, Seed, Trust, Verbose
from memtoken_cli.io.errors import DataError, PartialFailure, UsageError

if TYPE_CHECKING:
    from memtoken_cli.commands.reader import Reader
    from memtoken_cli.data.shots import Query
    from memtoken_cli.engine.method import Answer
    from memtoken_cli.io.sink import Sink


def generate(
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT|-", hidden=True)] = None,
    keys: Keys = None,
    memory: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE|-", help="The memory; - is standard input. Twice: joined.", show_default=False
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="M", help="Language model.  [default: the memory's]")
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="FILE|-", help="Where answers go.  [default: standard output]")
    ] = None,
    trust_remote_code: Trust = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
    seed: Seed = None,
    device: Device = None,
) -> None:
    """Answer queries from a memory.

    \b
    PROMPT     one query: its answer is printed
    -          queries from standard input, JSONL {"input"} or bare lines; answers are
               JSONL {"input", "output"} in the same order
    KEY=VALUE  labels=FILE         choose among these labels, one a line; rows get "scores"
               labels=memory       choose among the labels of the shots
               max_new_tokens=N    temperature=X  top_k=N  top_p=X  beams=N  stop=TEXT
               batch=N             queries read at once
               calibrate=false     without the memory's label calibration
               errors=skip         leave bad queries out, exit 4

    Example: memtok generate "where is my card?" --memory prompts.memory.safetensors
    """
    common = Common(json, quiet, verbose, seed, device, trust_remote_code)
    positionals, overrides = split([prompt, *(keys or [])])
    from memtoken_cli.commands.keys import GenerateKeys
    from memtoken_cli.recipe.overrides import flat

    asked = flat(overrides, GenerateKeys)
    text = _prompt(positionals, memory or [])
    with common.sink(out) as sink:
        from memtoken_cli.commands.reader import Reader

        reader = Reader(memory or [], model, common, asked, sink)
        if text is None:
            _answer_rows(reader, asked.batch, asked.errors == "skip", sink)
        else:
            _answer_one(reader, text, sink)


def _prompt(positionals: Sequence[str], memory: Sequence[str]) -> str | None:
    """The one query, or None for standard input."""
    if not memory:
        raise UsageError(
            "no memory to read", hint='memtok generate "a query" --memory prompts.memory.safetensors'
        )
    if len(positionals) > 1:
        raise UsageError(f"more than one prompt: {' '.join(map(repr, positionals))}", hint="quote the prompt")
    if not positionals and sys.stdin.isatty():
        raise UsageError("no prompt", hint='memtok generate "a query" --memory FILE, or - for standard input')
    text = positionals[0] if positionals else "-"
    if memory.count("-") + (text == "-") > 1:
        raise UsageError(
            "standard input cannot be both the memory and the queries", hint='give the prompt: "a query"'
        )
    if not text.strip():
        raise UsageError("the prompt is empty")
    if any("\ud800" <= c <= "\udfff" for c in text):  # how Python keeps argument bytes that are not UTF-8
        raise UsageError("the prompt is not UTF-8", hint="convert it: iconv -t utf-8")
    return None if text == "-" else text


def _answer_one(reader: "Reader", text: str, sink: "Sink") -> None:
    reader.load()
    answer = next(iter(reader.answers([text])))
    sink.text(answer.output)
    sink.document(_row(text, answer))


def _answer_rows(reader: "Reader", batch: int, skip: bool, sink: "Sink") -> None:
    """Rows in the order of the queries. Raises PartialFailure after the last where some were skipped."""
    from memtoken_cli.data.shots import iter_queries

    unread, unanswered = Skipped(skip, sink), Skipped(skip, sink)
    answered = 0
    for chunk in _batched(iter_queries("-", unread), batch):
        reader.load()
        for query, answer in _answer_chunk(reader, chunk, unanswered):
            sink.row(_row(query.input, answer))
            answered += 1
    total = answered + unanswered.count + unread.count
    if not total:
        raise DataError(
            "no queries: standard input is empty", hint="one query or JSON object a line", where="<stdin>"
        )
    if answered < total:
        raise PartialFailure(
            f"{total - answered} of {total} queries were skipped", hint="each is named above"
        )


@dataclass
class Skipped:
    """What becomes of a bad query: the end of the command, or a warning that is counted."""

    skip: bool
    sink: "Sink"
    count: int = 0

    def __call__(self, error: DataError) -> None:
        if not self.skip:
            raise error
        self.count += 1
        self.sink.warn(f"skipped: {error.message}" + (f" in {error.where}" if error.where else ""))


def _answer_chunk(
    reader: "Reader", chunk: Sequence["Query"], bad: Skipped
) -> "Iterator[tuple[Query, Answer]]":
    done = 0
    try:
        for query, answer in zip(chunk, reader.answers([query.input for query in chunk]), strict=True):
            yield query, answer
            done += 1
        return
    except DataError:
        pass  # one of the rest is at fault: read one at a time, they tell which
    for query in chunk[done:]:
        try:
            answer = next(iter(reader.answers([query.input])))
        except DataError as error:
            bad(DataError(error.message, hint=error.hint, where=f"<stdin>:{query.line}"))
        else:
            yield query, answer


def _batched(queries: Iterable["Query"], size: int) -> Iterator[list["Query"]]:
    rest = iter(queries)
    while chunk := list(islice(rest, size)):
        yield chunk


def _row(text: str, answer: "Answer") -> dict[str, Any]:
    row: dict[str, Any] = {"input": text, "output": answer.output}
    if answer.scores is not None:
        row["scores"] = dict(answer.scores)
    return row
