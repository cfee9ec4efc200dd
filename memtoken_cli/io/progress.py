"""Progress bars on a terminal's standard error, and silence from third parties everywhere else."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
_quiet = False


def set_quiet(quiet: bool) -> None:
    """Whether the user asked for silence (-q): no bar then, terminal or not."""
    global _quiet
    _quiet = quiet


def wanted() -> bool:
    """Whether a bar would be seen: standard error is a terminal and the user did not ask for silence."""
    return not _quiet and sys.stderr.isatty()


def bar(iterable: Iterable[T], desc: str, total: int | None = None) -> Iterator[T]:
    """The items of `iterable`, with a bar on standard error where one is wanted."""
    if not wanted():
        yield from iterable
        return
    from tqdm import tqdm

    colour = None if os.environ.get("NO_COLOR") else "green"
    yield from tqdm(iterable, desc=desc, total=total, leave=False, colour=colour, file=sys.stderr)


def silence_third_party() -> None:
    """Stop the bars, logs and warnings of transformers, datasets and huggingface_hub where no bar is wanted.

    Call it before they are imported: they read the variables then.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if wanted():
        return
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DATASETS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    for name in ("transformers", "datasets", "huggingface_hub", "fsspec", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(transformers|datasets|huggingface_hub|torch)\b")
