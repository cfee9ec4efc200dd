"""Examples with their prompts read: what training and statistics take prefixes from.

Prompts are read by group and form, whatever else a block holds, so that a procedure's features do not depend
on the company it is learned in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from memtoken_cli.methods.tokmem.config import Config
from memtoken_cli.methods.tokmem.examples import FULL, QUERY, Example
from memtoken_cli.methods.tokmem.features import Frozen, Prefix
from memtoken_cli.methods.tokmem.statistics import FACETS


def trained_forms(config: Config) -> tuple[str, ...]:
    """The forms of prompts that training shows."""
    return FACETS if config.prompt == "mixed" else (config.prompt,)


def shown_forms(example: Example, config: Config) -> tuple[str, ...]:
    """Those that an example has; the query alone where it lacks the wanted one."""
    found = tuple(form for form in trained_forms(config) if form in example.prompts)
    return found or (QUERY,)


@dataclass
class Pool:
    """Prefixes by example key and form. Keys and values are kept for forms that training shows; a group that
    was read before is not read again."""

    frozen: Frozen
    config: Config
    found: dict[tuple[str, str], Prefix] = field(default_factory=dict)

    def read(self, examples: Sequence[Example]) -> None:
        """Read every prompt of these examples, both forms."""
        groups: dict[tuple[str, str], list[Example]] = {}
        for example in examples:
            for form in (QUERY, FULL):
                if form in example.prompts:
                    groups.setdefault((example.group, form), []).append(example)
        for (_, form), members in groups.items():
            prompts = [example.prompts[form] for example in members]
            if all(self._has(example, form) for example in members):
                continue
            shown = any(form in shown_forms(example, self.config) for example in members)
            made = self.frozen.prepare(prompts) if shown else [p.bare for p in self.frozen.read(prompts)]
            for example, prefix in zip(members, made, strict=True):
                self.found[example.key, form] = prefix

    def _has(self, example: Example, form: str) -> bool:
        prefix = self.found.get((example.key, form))
        return prefix is not None and prefix.prompt == example.prompts[form]

    def get(self, example: Example, form: str) -> Prefix:
        return self.found[example.key, form]

    def forms(self, example: Example) -> Mapping[str, Prefix]:
        """All forms that an example has."""
        return {form: self.found[example.key, form] for form in example.prompts}
