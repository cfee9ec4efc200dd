"""`memtok generate`: queries to answers, read through one memory that is loaded once."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from memtoken_cli.commands.argv import split
from memtoken_cli.commands.artifacts import SECONDS
from memtoken_cli.commands.options import Common, Device, Json, Keys, Quiet, Seed, Trust, Verbose
from memtoken_cli.io.errors import DataError, PartialFailure, UsageError

if TYPE_CHECKING:
    from memtoken_cli.commands.keys import Asked
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
               For a bank of procedures (each answer has its routes beside it):
               procedures=auto|auto!|none|NAME[,NAME]   pipe=NAME,NAME
               allow=NAME  deny=NAME  max_procedures=N  min_prob=X  top_k=N
               max_new_tokens=N  temperature=X  constrain=none  batch=N
               trace=true          tell the routes on standard error
               input=FILE.jsonl    records {"prompt", "procedures"?, "allow"?}
               adapter=DIR         what the bank was made under, where it is not there any more
               For a recurrent memory, a trained model or a session (- is text without
               end, --out the session's file, which a later --memory goes on with):
               max_new_tokens=0    only read, print the path of --out
               save_every=N        write --out again each N segments
               suffix=TEXT  template=chat  errors=replace  reset=true
               any sampling field of transformers' GenerationConfig; penalties of
               repetition see the last history=2048 tokens

    Example: memtok generate "where is my card?" --memory prompts.memory.safetensors
    """
    common = Common(json, quiet, verbose, seed, device, trust_remote_code)
    positionals, overrides = split([prompt, *(keys or [])])
    text = _prompt(positionals, memory or [], any(o.startswith("input=") for o in overrides))
    from memtoken_cli.commands.artifacts import peek
    from memtoken_cli.commands.keys import generate_keys
    from memtoken_cli.commands.streaming import head, stream
    from memtoken_cli.recipe.overrides import flat

    heads = [head(path) for path in memory or []]
    if any(one.streams for one in heads):
        stream(heads, text, overrides, out, model, common)
        return
    sources = [peek(one.path, one.data) for one in heads]
    asked: Asked = cast("Asked", flat(overrides, generate_keys(sources[0].header.method)))
    if text is not None and asked.input is not None:
        raise UsageError("both a prompt and input= are given", hint="leave one of them out")
    with common.sink(out) as sink:
        from memtoken_cli.commands.reader import Reader

        reader = Reader(sources, model, common, asked, sink)
        if text is None:
            _answer_rows(reader, asked.input or "-", sink)
        else:
            _answer_one(reader, text, sink)


def _prompt(positionals: Sequence[str], memory: Sequence[str], file: bool) -> str | None:
    """The one query, or None for standard input or (`file`) a file of queries."""
    if not memory:
        raise UsageError(
            "no memory to read", hint='memtok generate "a query" --memory prompts.memory.safetensors'
        )
    if len(positionals) > 1:
        raise UsageError(f"more than one prompt: {' '.join(map(repr, positionals))}", hint="quote the prompt")
    if not positionals and not file and sys.stdin.isatty():
        raise UsageError("no prompt", hint='memtok generate "a query" --memory FILE, or - for standard input')
    text = positionals[0] if positionals else "-"
    if memory.count("-") + (text == "-" and not file) > 1:
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
    if sink.json or reader.asked.trace:  # how it came about is told before the answer
        answer = next(iter(reader.answers([text])))
        _tell(reader, answer, sink)
        sink.text(answer.output)
        sink.document(_row(text, answer, sink.json))
        return
    for piece in reader.spoken(text):
        sink.text(piece, end="")
    sink.text("")


def _answer_rows(reader: "Reader", path: str, sink: "Sink") -> None:
    """Rows in the order of the queries. Raises PartialFailure after the last where some were skipped."""
    from memtoken_cli.data.shots import iter_queries
    from memtoken_cli.io.records import source_name

    asked, name = reader.asked, source_name(path)
    unread, unanswered = (Skipped(asked.errors == "skip", sink, name) for _ in range(2))
    answered = 0
    read = _checked(reader, iter_queries(path, unread, asked.texts), unread)
    for chunk in _batched(read, asked.batch):
        reader.load()
        for query, answer in _answer_chunk(reader, chunk, unanswered):
            _tell(reader, answer, sink)
            sink.row(_row(query.input, answer, sink.json))
            answered += 1
    total = answered + unanswered.count + unread.count
    if not total:
        source = "standard input" if path == "-" else "the file"
        raise DataError(f"no queries: {source} is empty", hint="one query or JSON object a line", where=name)
    if answered < total:
        raise PartialFailure(
            f"{total - answered} of {total} queries were skipped", hint="each is named above"
        )


@dataclass
class Skipped:
    """What becomes of a bad query: the end of the command, or a warning that is counted."""

    skip: bool
    sink: "Sink"
    source: str
    count: int = 0

    def __call__(self, error: DataError) -> None:
        if not self.skip:
            raise error
        self.count += 1
        self.sink.warn(f"skipped: {error.message}" + (f" in {error.where}" if error.where else ""))

    def at(self, query: "Query", error: DataError) -> None:
        """The same for what is wrong with a query that was read."""
        self(DataError(error.message, hint=error.hint, where=f"{self.source}:{query.line}"))


def _answer_chunk(
    reader: "Reader", chunk: Sequence["Query"], bad: Skipped
) -> "Iterator[tuple[Query, Answer]]":
    done = 0
    try:
        for query, answer in zip(chunk, reader.answers([q.input for q in chunk], chunk), strict=True):
            yield query, answer
            done += 1
        return
    except DataError:
        pass  # one of the rest is at fault: read one at a time, they tell which
    for query in chunk[done:]:
        try:
            answer = next(iter(reader.answers([query.input], [query])))
        except DataError as error:
            bad.at(query, error)
        else:
            yield query, answer


def _checked(reader: "Reader", queries: Iterable["Query"], bad: "Skipped") -> Iterator["Query"]:
    """Queries whose own options the header allows: known before a model is loaded."""
    for query in queries:
        try:
            reader.asked.check(query.record, reader.about)
        except DataError as error:
            bad.at(query, error)
        else:
            yield query


def _batched(queries: Iterable["Query"], size: int) -> Iterator[list["Query"]]:
    """Chunks of `size`; what came before a bad line is a chunk of its own, so that it is answered first."""
    rest = iter(queries)
    while True:
        chunk: list[Query] = []
        try:
            for query in islice(rest, size):
                chunk.append(query)
        except DataError:
            if chunk:
                yield chunk
            raise
        if not chunk:
            return
        yield chunk


def _tell(reader: "Reader", answer: "Answer", sink: "Sink") -> None:
    """The trace on standard error: it was asked for, so that -q does not silence it."""
    if reader.asked.trace and answer.trace is not None:
        for line in reader.asked.told(answer.trace):
            sink.told(line)


def _row(text: str, answer: "Answer", timed: bool) -> dict[str, Any]:
    """`timed`: seconds too. Rows of JSONL leave them out: the same queries give the same bytes."""
    row: dict[str, Any] = {"input": text, "output": answer.output}
    if answer.scores is not None:
        row["scores"] = dict(answer.scores)
    if answer.trace is not None:
        row |= {key: value for key, value in answer.trace.items() if timed or key != SECONDS}
    return row
