"""What `memtok bench` compares a bank with, as the section `data.bench` of a recipe. No torch here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from memtoken_cli.data.chains import Wording
from memtoken_cli.recipe.sections import Section

RowName = Literal[
    "base",
    "base-instructed",
    "icl",
    "rag-paper",
    "rag-demonstrations",
    "rag-strong",
    "lora-r1",
    "lora-r1-sequential",
    "lora-r1-replay",
    "lora-r8",
    "lora-r8-sequential",
    "lora-r8-replay",
    "tokmem-lda",
    "tokmem-lda-final",
    "oracle",
    "minilm-1nn",
    "minilm-centroid",
    "minilm-lda",
    "tfidf-centroid",
    "tokmem-coupled",
    "tokmem-decoupled",
    "sequential-lda",
    "sequential-coupled",
    "sequential-coupled-renorm",
    "sequential-coupled-replay",
    "sequential-decoupled-replay",
]
ROWS: tuple[RowName, ...] = RowName.__args__  # type: ignore[attr-defined]
Rate = Annotated[float, Field(gt=0)]


class BenchSection(Section):
    """`data.bench:`.

    Attributes:
        rows: contestants; left out: all, those whose extra is missing as skipped.
        seeds: how many, from the recipe's on; contestants without training have one.
        lora_seeds: of LoRA, which takes longest; left out: as many.
        tests: questions of each procedure. chains: generated test chains; left out: 150 where training has
            some.
        wording: the connecting words of test chains: those of the generated training chains, or others.
        prompt: the form of the questions.
        max_new_tokens, batch: of decoding.
        generate: also answers; otherwise routing alone, with untrained control rows.
        blocks: steps of the sequential rows.
        rates: LoRA's learning rates, of which validation takes one under the first seed, and which go on by
            factors of two where the best is the last; a single one is taken as it is.
        epochs: LoRA's at most, of which validation takes the best; left out: the recipe's.
        plot: the forgetting curves as a picture (.png, .svg, .pdf).
    """

    rows: tuple[RowName, ...] | None = Field(default=None, min_length=1)
    seeds: int = Field(default=3, ge=1)
    lora_seeds: int | None = Field(default=None, ge=1)
    tests: int = Field(default=40, ge=1)
    chains: int | None = Field(default=None, ge=0)
    wording: Wording = "trained"
    prompt: Literal["query", "instruction+query"] = "query"
    max_new_tokens: int = Field(default=256, ge=1)
    batch: int = Field(default=16, ge=1)
    generate: bool = True
    blocks: int = Field(default=6, ge=1)
    rates: tuple[Rate, ...] = Field(default=(2e-3, 4e-3), min_length=1)
    epochs: int | None = Field(default=None, ge=1)
    plot: str | None = None
