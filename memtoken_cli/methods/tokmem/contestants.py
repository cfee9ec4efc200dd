"""Who sits a bench, in the order of its table: each unit answers the questions under one seed.

Which of them run, and what is kept, is `bench.py`'s; how they answer is `writers.py`'s and `banks.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from memtoken_cli.methods.tokmem.banks import CONTROL, control, sequential, trained
from memtoken_cli.methods.tokmem.exam_config import RowName
from memtoken_cli.methods.tokmem.extras import need_peft
from memtoken_cli.methods.tokmem.setting import Setting, Sit
from memtoken_cli.methods.tokmem.writers import lora, prompting

ENCODED: tuple[RowName, ...] = (
    "rag-paper", "rag-demonstrations", "rag-strong", "minilm-1nn", "minilm-centroid", "minilm-lda",
)  # fmt: skip
REPLAYED = 0.2  # of a batch, as in the paper


@dataclass(frozen=True)
class Unit:
    """Rows that come out of one piece of work.

    seeded: whether seeds change them. writes: whether they only answer, with nothing to route by. check:
    raises UsageError where an extra is missing. keys: of `data.bench`, that these rows alone depend on.
    """

    rows: tuple[RowName, ...]
    sit: Sit
    seeded: bool = True
    writes: bool = False
    check: Callable[[Setting], object] = lambda setting: None
    keys: tuple[str, ...] = ()


def _encoder(setting: Setting) -> object:
    return setting.encoder


def _peft(setting: Setting) -> None:
    need_peft("LoRA")


def _tuned(name: RowName, sit: Sit) -> Unit:
    return Unit((name,), sit, True, True, _peft, ("rates", "epochs", "blocks"))


def _grown(name: RowName, address: str, replay: str = "none", renorm: str = "none") -> Unit:
    return Unit((name,), sequential(name, address, replay, renorm), keys=("blocks",))


UNITS: tuple[Unit, ...] = (
    *(Unit((name,), prompting(name), False, True) for name in ("base", "base-instructed", "icl")),
    *(
        Unit((name,), prompting(name), False, True, _encoder)
        for name in ("rag-paper", "rag-demonstrations", "rag-strong")
    ),
    _tuned("lora-r1", lora("lora-r1", 1)),
    _tuned("lora-r1-sequential", lora("lora-r1-sequential", 1, True)),
    _tuned("lora-r1-replay", lora("lora-r1-replay", 1, True, REPLAYED)),
    _tuned("lora-r8", lora("lora-r8", 8)),
    _tuned("lora-r8-sequential", lora("lora-r8-sequential", 8, True)),
    _tuned("lora-r8-replay", lora("lora-r8-replay", 8, True, REPLAYED)),
    Unit(CONTROL, control),
    Unit(("tokmem-coupled",), trained("tokmem-coupled", "coupled")),
    Unit(("tokmem-decoupled",), trained("tokmem-decoupled", "decoupled")),
    _grown("sequential-lda", "lda"),
    _grown("sequential-coupled", "coupled"),
    _grown("sequential-coupled-renorm", "coupled", renorm="paper"),
    _grown("sequential-coupled-replay", "coupled", "stats"),
    _grown("sequential-decoupled-replay", "decoupled", "stats"),
)
