"""TokMem's sections of a recipe, and its KEY=VALUE options of generate, evaluate and bank. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from memtoken_cli.data.chains import Case
from memtoken_cli.methods.tokmem.exam_config import BenchSection
from memtoken_cli.methods.tokmem.keys import GenerateKeys as GenerateKeys
from memtoken_cli.recipe.sections import Section, TrainSection

MAX_TOKENS = 16
AddressMode = Literal["lda", "coupled", "decoupled"]
SegmentEnd = Literal["none", "eoc", "json"]
Following = Literal["parts", "states"]


class Feature(Section):
    """What routing looks at: a hidden state of the frozen prompt.

    Attributes:
        depth: which state, as a share of the layers; 1 is what the LM head reads.
        pool: the last token, the mean over the user's tokens, a mean that leans to the first of them (for
            queries that ask for several procedures), or (after a segment) the mean over that.
    """

    depth: float = Field(default=1.0, gt=0, le=1)
    pool: Literal["last", "user", "lead", "segment"] = "last"


FEATURES = (
    Feature(depth=2 / 3, pool="last"),
    Feature(depth=1 / 2, pool="user"),
    Feature(depth=1.0, pool="user"),
)
FINAL = Feature(depth=1.0, pool="last")
SEGMENT = Feature(depth=1.0, pool="segment")


def by_parts(following: Following, features: Sequence[Feature]) -> bool:
    """Whether queries are read in parts, by features that allow it."""
    return following == "parts" and any(feature.pool == "user" for feature in features)


class LdaSection(Section):
    """`tokmem.lda:` the closed-form address.

    Attributes:
        features: what it looks at; left out: three for `address: lda`, the final state for trained ones.
        shrinkage: weight of the identity in the covariance, in units of its mean variance.
        keep_val: features a class keeps, on which the scale of the scores is fitted.
        keep_features: keep all of them, so that a procedure can be removed exactly.
        scatter: shared (grows with every block), or frozen after the first one.
        project: map features to so many dimensions by a seeded orthonormal map; left out: no map.
        following: what tells which procedure comes after another: the parts of the query, for which queries
            for one procedure are enough, or the states behind each segment, which takes chains to learn (so
            does parts without a feature that is a mean over the user's tokens).
    """

    features: tuple[Feature, ...] | None = Field(default=None, min_length=1)
    shrinkage: float = Field(default=0.1, gt=0)
    keep_val: int = Field(default=4, ge=0)
    keep_features: bool = False
    scatter: Literal["shared", "frozen"] = "shared"
    project: int | None = Field(default=None, ge=1)
    following: Following = "parts"


class AdaptSection(Section):
    """`tokmem.adapt:` train no bank, but a model that banks of other procedures are then made for.

    Attributes:
        rank, alpha, dropout, lr: of the LoRA on query and value projections; rows learn at train.lr.
    """

    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=32, gt=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    lr: float = Field(default=5e-5, gt=0)


class Config(Section):
    """`tokmem:`.

    Attributes:
        bank: a bank to add to; it is not changed, the result is a new one.
        on_clash: what a name that is in the bank already means: an error, more data for that row, or NAME-2.
        address: a closed form over frozen features, the control row itself (the paper's default), or a
            trained row of its own (the paper's TokMem+DC).
        tokens: control tokens a procedure; auto: 1 or 4, by validation loss.
        init: of the control rows; also from:NAME, a row of the bank.
        prompt: what training shows: both forms, the query alone, or instruction and query.
        segment_end: how a segment tells that it is over.
        max_procedures: how many procedures an answer may use; left out: 1, or 4 where there are chains.
        route_softmax: trained addresses compete with the vocabulary, or among themselves.
        route_weight: of the routing positions in the loss.
        replay: pseudo-states of old procedures while new addresses train, or nothing.
        renorm: new rows are kept at the mean norm of the old ones (the paper's eq. 5-6), or not.
        adapter: a folder with a LoRA adapter, which the model wears.
        adapt: make an adapted model instead of a bank; its folder is then the model of banks.
    """

    bank: str | None = None
    on_clash: Literal["error", "update", "rename"] = "error"
    address: AddressMode = "lda"
    tokens: int | Literal["auto"] = 1
    init: str = Field(default="mean", pattern=r"^(mean|text|orthogonal|hidden|from:.+)$")
    prompt: Literal["mixed", "query", "instruction+query"] = "mixed"
    segment_end: SegmentEnd = "none"
    max_procedures: int | None = Field(default=None, ge=1)
    route_softmax: Literal["full", "bank"] = "full"
    route_weight: float = Field(default=1.0, ge=0)
    replay: Literal["stats", "none"] = "stats"
    renorm: Literal["none", "paper"] = "none"
    lda: LdaSection = Field(default_factory=LdaSection)
    adapter: str | None = None
    adapt: AdaptSection | None = None

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if isinstance(self.tokens, int) and not 1 <= self.tokens <= MAX_TOKENS:
            raise ValueError(f"tokens: 1 to {MAX_TOKENS}, or auto")
        if any(f.pool == "segment" for f in self.features):
            raise ValueError("lda.features: pool: segment is added by itself where segments end")
        return self

    @property
    def features(self) -> tuple[Feature, ...]:
        """What the statistics of the first site are of."""
        if self.lda.features is not None:
            return self.lda.features
        return FEATURES if self.address == "lda" else (FINAL,)

    @property
    def by_parts(self) -> bool:
        """Whether queries are read in parts, each of which is answered by itself."""
        return self.address == "lda" and not self.by_states

    @property
    def by_states(self) -> bool:
        """Whether what follows a call is learned from the states behind segments."""
        return self.address == "lda" and not by_parts(self.lda.following, self.features)


class ToySection(Section):
    """`data.toy:` seeded string operations, for which no data are needed.

    Attributes:
        procedures, samples: how many, and training samples of each.
        chains: training and test chains of two and three operations.
    """

    procedures: int = Field(default=8, ge=1)
    samples: int = Field(default=32, ge=1)
    chains: int = Field(default=0, ge=0)


class DataConfig(Section):
    """`data:` procedures: a folder with one in a file, or the toy's.

    Attributes:
        path: folder of *.jsonl, SNI *.json or skill files, of tools.json and samples.jsonl, or of BFCL's
            files with possible_answer/; excludes toy.
        tasks: of the folder, a file with names, names, or the N with the shortest inputs.
        chains: JSONL {"query", "calls"}, or so many, made of training samples.
        negatives: JSONL {"query"} (or BFCL's) to which no procedure answers.
        train, val, test: at most so many samples of a procedure.
        blocks: procedures are added in so many steps, or in the given numbers.
        described: a procedure without examples is taken by its description alone.
        skip_bad: leave bad records out and count them.
        case: of the later parts of a generated chain: lower the first letter, or all.
        bench: what `memtok bench` compares, and on how much.
    """

    path: str | None = None
    toy: ToySection | None = None
    tasks: str | int | tuple[str, ...] | None = None
    chains: str | int | None = None
    negatives: str | None = None
    train: int = Field(default=500, ge=1)
    val: int = Field(default=10, ge=0)
    test: int = Field(default=50, ge=0)
    blocks: int | tuple[int, ...] = 1
    described: bool = False
    skip_bad: bool = False
    case: Case = "first"
    bench: BenchSection = Field(default_factory=BenchSection)

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if (self.path is None) == (self.toy is None):
            raise ValueError("give path or toy")
        return self


class TrainConfig(TrainSection):
    """`train:` the control rows, and addresses where those are trained.

    Attributes:
        epochs: over the samples; excludes steps.
        lr: the peak rate; find: five values on the validation split.
        address_epochs, address_lr: of decoupled addresses, a linear layer on stored states; 0 epochs: trained
            with the control rows in one loss, as in the paper.
        max_length: tokens of a prompt and its response.
        cache_gib: memory for stored keys and values of prompts.
    """

    epochs: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1)  # type: ignore[assignment]
    batch: int = Field(default=8, ge=1)
    lr: float | Literal["find"] = 1e-2  # type: ignore[assignment]
    warmup: float = Field(default=0.1, ge=0, le=1)
    decay: Literal["cosine", "linear", "constant"] = "linear"
    weight_decay: float = Field(default=0.0, ge=0)
    address_epochs: int = Field(default=30, ge=0)
    address_lr: float = Field(default=5e-3, gt=0)
    max_length: int = Field(default=1024, ge=2)
    cache_gib: float = Field(default=4.0, ge=0)

    def longest(self, context: int) -> int:
        """Tokens that a prompt and its response may have on a model of this context."""
        return min(self.max_length, context)

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give epochs or steps")
        if self.lr != "find" and self.lr <= 0:
            raise ValueError("lr: above 0, or find")
        return self


class EvaluateKeys(Section):
    """The keys of `memtok evaluate BANK --data DIR`. adapter: as in a recipe's `tokmem:`. plot: accuracy over
    the bank's blocks as a picture (.png, .svg, .pdf)."""

    tasks: str | int | None = None
    test: int = Field(default=50, ge=1)
    prompt: Literal["query", "instruction+query"] = "query"
    negatives: str | None = None
    chains: str | None = None
    adapter: str | None = None
    max_new_tokens: int = Field(default=256, ge=1)
    batch: int = Field(default=8, ge=1)
    generate: bool = True
    plot: str | None = None


class BankKeys(Section):
    """The keys of `memtok bank`; all but `adapter` belong to `add`.

    Attributes:
        steps: of training for the new control rows; 0: none, they start at their text.
        lr, batch: of those steps.
        tasks, train, chains, described, skip_bad: as in a recipe's `data:`; chains are a file here, and may
            call procedures that the bank has.
        on_clash, adapter: as in a recipe's `tokmem:`.
    """

    steps: int = Field(default=0, ge=0)
    lr: float = Field(default=1e-2, gt=0)
    batch: int = Field(default=8, ge=1)
    tasks: str | int | None = None
    train: int = Field(default=500, ge=1)
    chains: str | None = None
    described: bool = False
    skip_bad: bool = False
    on_clash: Literal["error", "update", "rename"] = "error"
    adapter: str | None = None
