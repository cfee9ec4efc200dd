"""`memtok evaluate`: how good a trained run or a compressed prompt is."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from memtoken_cli.commands.argv import split
from memtoken_cli.commands.choose import method_for
from memtoken_cli.commands.options import Common, Device, Json, Keys, Quiet, Seed, Trust, Verbose
from memtoken_cli.commands.running import Request, is_recipe, load_recipe, recipe_files
from memtoken_cli.commands.tables import print_report, print_rows
from memtoken_cli.io.errors import DataError, UsageError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from memtoken_cli.commands.artifacts import Source
    from memtoken_cli.commands.reader import Reader
    from memtoken_cli.data.shots import Query, Shots
    from memtoken_cli.engine.compare_config import EvaluateConfig
    from memtoken_cli.engine.method import Evaluates, Examines

EXAMPLE = "memtok evaluate prompts.memory.safetensors --data test.jsonl"


def evaluate(
    subject: Annotated[
        str | None, typer.Argument(metavar="RECIPE|ARTIFACT", hidden=True, autocompletion=recipe_files)
    ] = None,
    keys: Keys = None,
    data: Annotated[
        str | None, typer.Option(metavar="FILE|-", help='Test records: JSONL {"input", "output"}, or CSV.')
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="M", help="Language model.  [default: the artifact's]")
    ] = None,
    trust_remote_code: Trust = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
    seed: Seed = None,
    device: Device = None,
) -> None:
    """Measure a trained run (RECIPE) or a compressed prompt (ARTIFACT).

    \b
    RECIPE     a YAML file whose run is finished
    ARTIFACT   a memory; needs --data. Or a trained recurrent memory
    KEY=VALUE  replaces a key of the recipe; for an artifact:
               shots=FILE          the shots it was made of: adds the whole prompt, fewer
                                   shots at the same budget and agreement
               queries=N           at most so many records
               labels=first_token  score labels by their first token alone
               calibrate=false     no calibrated column
               For series (a bank of prompts, a trained backend), --data is a folder:
               task=clicks|transfer|unsup|prompts  clicks=N  k=[1,3]  smoke=true
               For a bank of procedures, --data is a folder with one in a file:
               tasks=FILE|N  test=N  prompt=query|instruction+query  negatives=FILE
               chains=FILE   max_new_tokens=N  batch=N  generate=false  adapter=DIR
               plot=FILE (accuracy over the blocks of a bank that grew)
               For a recurrent memory, on its own task or another:
               task.KEY=VALUE  sizes=[24,48]  teacher=true  tests=N  plot=FILE

    Example: memtok evaluate prompts.memory.safetensors --data test.jsonl
    """
    common = Common(json, quiet, verbose, seed, device, trust_remote_code)
    positionals, overrides = split([subject, *(keys or [])])
    if len(positionals) != 1:
        raise UsageError("evaluate takes one recipe or artifact", hint=EXAMPLE)
    if is_recipe(positionals[0]):
        _recipe(positionals[0], overrides, data, common)
    else:
        _artifact(positionals[0], overrides, data, model, common)


def _recipe(path: str, overrides: list[str], data: str | None, common: Common) -> None:
    recipe = load_recipe(path, [*overrides, *([] if data is None else [f"data.path={data}"])], common)
    spec = method_for("evaluate", recipe.method)
    from memtoken_cli import methods

    with common.sink() as sink:
        method = cast("Evaluates", methods.load(spec.name))
        print_report(method.evaluate(recipe, Request.of(common, sink)), sink)


def _artifact(path: str, overrides: list[str], data: str | None, model: str | None, common: Common) -> None:
    from memtoken_cli import methods
    from memtoken_cli.commands.artifacts import peek

    for key, _, value in (argument.partition("=") for argument in overrides):
        if key in ("data", "data.path"):  # as of a recipe
            hint = f"memtok evaluate {path} --data {value}"
            raise UsageError(f"{key} is a recipe's key, an artifact's data are an option", hint=hint)
    if path != "-" and _examined(path, overrides, data, model, common):
        return
    source = peek(path)
    own = vars(methods.config_module(source.header.method)).get("EvaluateKeys")
    if own is None:
        _queries(path, overrides, data, model, common)
    else:
        _own(source, own, overrides, data, model, common)


def _examined(path: str, overrides: list[str], data: str | None, model: str | None, common: Common) -> bool:
    """Measure an artifact of a method that opens its own; False where that is left to the engine.

    Where the method's keys have a path, a model or a seed, the options set those, and --data may be left out.
    """
    from memtoken_cli import methods
    from memtoken_cli.io.artifact import read_header
    from memtoken_cli.recipe.overrides import flat

    header = read_header(path)
    spec = methods.discover().get(header.method)
    if spec is None or "evaluate" not in spec.verbs:
        return False
    schema = vars(methods.config_module(spec.name)).get("EvaluateKeys")
    # one that answers through a language model opens its trained models, and leaves memories to the engine
    if schema is None or (spec.needs_model and header.kind != "model"):
        return False
    given = {"path": data, "model": model, "seed": common.seed}
    options = [f"{k}={v}" for k, v in given.items() if v is not None and k in schema.model_fields]
    asked = flat([*overrides, *options], schema)
    if data is None and "path" not in schema.model_fields:
        raise UsageError("no data to measure the artifact on", hint=f"memtok evaluate {path} --data DIR")
    method = cast("Examines", methods.load(spec.name))
    with common.sink() as sink:
        run = Request.of(common, sink)
        rows = method.examine(path, header.kind, data, asked, common.seed or 0, run)
        sink.document({"path": path, "method": header.method, "kind": header.kind})
        print_rows(rows, sink)
    return True


def _own(
    source: "Source",
    schema: type["BaseModel"],
    overrides: list[str],
    data: str | None,
    model: str | None,
    common: Common,
) -> None:
    """A memory that its method measures by itself."""
    from memtoken_cli import methods
    from memtoken_cli.commands.artifacts import backbone_for, check_backbone, open_memory
    from memtoken_cli.engine.method import Measures
    from memtoken_cli.recipe.overrides import flat

    header = source.header
    spec = method_for("evaluate", header.method)
    asked = flat(overrides, schema)
    method = methods.load(spec.name)
    if not isinstance(method, Measures):
        raise UsageError(
            f"{source.path} is a memory of {header.method}, which evaluates trained models",
            hint="memtok evaluate MODEL, the artifact that it was made with",
        )
    if data is None:
        raise UsageError(
            "no data to measure the artifact on", hint=f"memtok evaluate {source.path} --data DIR"
        )
    opened = open_memory(source)
    backbone = backbone_for(spec, model or (header.model.name if header.model else ""), common)
    check_backbone(opened, backbone)
    with common.sink() as sink:
        run = Request.of(common, sink)
        rows = method.measure(backbone, opened.memory, header.about, data, asked, run)
        sink.document({"path": source.path, "method": header.method})
        print_rows(rows, sink)


def _queries(path: str, overrides: list[str], data: str | None, model: str | None, common: Common) -> None:
    """A memory that queries are put to, beside the baselines that its shots allow."""
    from memtoken_cli.commands.keys import GenerateKeys
    from memtoken_cli.commands.reader import Reader
    from memtoken_cli.data.shots import read_shots
    from memtoken_cli.engine.compare_config import EvaluateConfig
    from memtoken_cli.recipe.overrides import flat

    given = {"path": data, "seed": common.seed}
    options = [f"{key}={value}" for key, value in given.items() if value is not None]
    asked = flat([*overrides, *options], EvaluateConfig)
    if asked.path is None:
        raise UsageError("no records to measure the artifact on", hint=EXAMPLE)
    with common.sink() as sink:
        queries = labelled(asked.path)
        if len(queries) > asked.queries:
            sink.note(f"the first {asked.queries} of {len(queries)} queries")
        reader = Reader([path], model, common, GenerateKeys(calibrate=asked.calibrate), sink)
        check_labels(queries, asked.path, reader.about.get("labels"))
        shots = read_shots(asked.shots) if asked.shots else None
        if shots is not None and shots.sha256 != reader.opened[0].header.source.get("sha256"):
            raise DataError(
                f"{asked.shots} is not what {path} was made of",
                hint="shots= names the file given to compress",
            )
        reader.load()
        if reader.backbone is None:
            rows = [score(reader, queries[: asked.queries])]
        else:
            rows = measure(reader, queries[: asked.queries], shots, asked)
        header = reader.opened[0].header
        sink.document({"path": path, "method": header.method, "ratio": header.ratio, "slots": header.slots})
        print_rows(rows, sink)


def labelled(path: str) -> "list[Query]":
    """The test records. Raises DataError where one has no output."""
    from memtoken_cli.data.pool import read_pool

    return read_pool(path)


def check_labels(queries: "Sequence[Query]", path: str, labels: Sequence[str] | None) -> None:
    """Raise DataError for a record whose label is none of the memory's, where those are a closed set."""
    known = set(labels or ())
    for query in queries:
        if known and query.output not in known:
            raise DataError(
                f"the label {query.output!r} is none of the memory's", where=f"{path}:{query.line}"
            )


def measure(
    reader: "Reader", queries: "Sequence[Query]", shots: "Shots | None", asked: "EvaluateConfig"
) -> list[dict[str, Any]]:
    """The memory beside the baselines that its shots allow, through its language model."""
    from memtoken_cli.engine.evaluate import evaluate as measured

    return measured(
        reader.backbone,
        reader.memory,
        reader.about,
        queries,
        shots=shots,
        method=reader.spec.name,
        scoring=asked.labels,
        calibrated=asked.calibrate,
        batch_tokens=asked.batch_tokens,
        seed=asked.seed,
    )


def score(reader: "Reader", queries: "Sequence[Query]") -> dict[str, Any]:
    """Accuracy with its 95 % interval, of a method that reads its memory without a language model."""
    from memtoken_cli.metrics.choice import accuracy

    reader.options = replace(reader.options, labels=tuple(reader.about.get("labels") or ()) or None)
    answers = [answer.output for answer in reader.answers([query.input for query in queries])]
    found = accuracy(answers, [query.output for query in queries])
    return {
        "method": reader.spec.name,
        "accuracy": found.value,
        "low": found.low,
        "high": found.high,
        "queries": found.count,
    }
