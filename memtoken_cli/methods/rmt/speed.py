"""Speed and memory of policies by length: every cell in a process of its own, so that its peak is its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from memtoken_cli.io.errors import UsageError
from memtoken_cli.methods.rmt.config import LAYERWISE, Config
from memtoken_cli.methods.rmt.exam_config import BenchSection
from memtoken_cli.methods.rmt.variants import with_policy
from memtoken_cli.recipe.canonical import dump
from memtoken_cli.recipe.schema import Recipe

SEGMENTS = (8, 64)  # read where no lengths are given


def table(
    recipe: Recipe, policies: Sequence[str], device: str | None, note: Callable[[str], None]
) -> list[dict[str, Any]]:
    """A row a policy and length: tokens read a second, ms a generated token at the end, peak MiB above the
    loaded model, bytes of state; or why a policy cannot."""
    section: BenchSection = recipe.own["bench"]
    lengths = section.lengths or tuple(n * recipe.config.segment for n in SEGMENTS)
    rows: list[dict[str, Any]] = []
    for policy in policies:
        try:
            ways = _ways(with_policy(recipe, policy))
        except UsageError as error:
            rows.append({"method": policy, "table": "speed", "why": error.message})
            continue
        for name, entrant in ways:
            for length in lengths:
                note(f"{name}: {length} tokens")
                row = {"method": name, "table": "speed", "length": length}
                rows.append(row | cell(entrant, length, section, device))
    return rows


def _ways(recipe: Recipe) -> list[tuple[str, Recipe]]:
    """How a policy reads, by name: a layer-wise one segment after segment, and diagonally."""
    config: Config = recipe.config
    if config.policy not in LAYERWISE or config.diagonal == "off":
        return [(config.policy, recipe)]
    ways = (("", "off"), ("-diagonal", "on"))
    return [
        (config.policy + name, replace(recipe, config=config.model_copy(update={"diagonal": value})))
        for name, value in ways
    ]


def cell(recipe: Recipe, length: int, section: BenchSection, device: str | None) -> dict[str, Any]:
    """What the child finds; `why` where it fails."""
    request = {
        "recipe": dump(recipe.resolved()),
        "length": length,
        "generate": section.generate,
        "repeats": section.repeats,
        "device": device,
    }
    command = [sys.executable, "-m", "memtoken_cli.methods.rmt.cell"]
    ran = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False)
    if ran.returncode == 0:
        return dict(json.loads(ran.stdout.splitlines()[-1]))
    said = ran.stderr.strip().splitlines()
    killed = f"killed by signal {-ran.returncode}" if ran.returncode < 0 else ""
    return {"why": killed or (said[-1] if said else f"exit {ran.returncode}")}
