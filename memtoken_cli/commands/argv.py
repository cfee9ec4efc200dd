"""What is done to argv before Typer sees it, and to its positionals after: pure functions, no I/O.

Typer has no options with an optional value, takes `-5` for an option and forgets where `--` stood;
the three are settled here, on plain lists of strings.
"""

import re
from collections.abc import Sequence

KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*=")
NUMBER = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
AUTO = "auto"

# Options without a value (a test compares them with the app's), and the common ones that take one.
COMMON_FLAGS = frozenset({"--json", "--quiet", "--verbose"})
_OWN_FLAGS = {"--dry-run", "--fresh", "--trust-remote-code", "--in-place", "--recouple"}
FLAGS = frozenset({*COMMON_FLAGS, *_OWN_FLAGS, "--help", "--version"})
COMMON_VALUED = frozenset({"--seed", "--device"})
_SHORT_COMMON = re.compile(r"-[qv]+")
# Commands whose only positional is a file: there a literal `--` needs no marking.
_SINGLE = frozenset({"inspect"})


def prepare(argv: Sequence[str]) -> list[str]:
    """argv as Typer should see it.

    - common options written before the command move behind it (`memtok -q compress` works);
    - a bare `--prompts` becomes `--prompts=auto`; it is bare at the end, before an option, before `--`
      and before KEY=VALUE (a file of such a name is written `./a=b`);
    - a negative number that is no option's value becomes a positional;
    - a literal `--` is doubled, so that `split` still sees which positionals are verbatim.
    """
    argv = _hoist(list(argv))
    cut = argv.index("--") if "--" in argv else len(argv)
    head, tail = argv[:cut], argv[cut + 1 :]
    kept: list[str] = []
    verbatim: list[str] = []
    for i, token in enumerate(head):
        following = head[i + 1] if i + 1 < len(head) else None
        if token == "--prompts" and not _is_file(following):
            kept.append(f"--prompts={AUTO}")
        elif NUMBER.fullmatch(token) and not (i and _awaits_value(head[i - 1])):
            verbatim.append(token)
        else:
            kept.append(token)
    if cut == len(argv) and not verbatim:
        return kept
    marks = ["--"] if kept[:1] and kept[0] in _SINGLE else ["--", "--"]
    return kept + marks + verbatim + tail


def split(arguments: Sequence[str | None]) -> tuple[list[str], list[str]]:
    """(positionals, KEY=VALUE overrides); whatever stands after a literal `--` is a positional."""
    given = [argument for argument in arguments if argument is not None]
    cut = given.index("--") if "--" in given else len(given)
    mixed, verbatim = given[:cut], given[cut + 1 :]
    overrides = [token for token in mixed if KEY.match(token)]
    return [token for token in mixed if not KEY.match(token)] + verbatim, overrides


def verbosity(argv: Sequence[str]) -> int:
    """How many -v stand before a literal `--`: needed even where parsing itself fails."""
    head = argv[: list(argv).index("--")] if "--" in argv else argv
    short = sum(token.count("v") for token in head if _SHORT_COMMON.fullmatch(token))
    return short + sum(token == "--verbose" for token in head)


def _hoist(argv: list[str]) -> list[str]:
    i = 0
    while i < len(argv):
        name, equals, _ = argv[i].partition("=")
        if name in COMMON_VALUED:
            i += 1 if equals else 2
        elif argv[i] in COMMON_FLAGS or _SHORT_COMMON.fullmatch(argv[i]):
            i += 1
        else:
            break
    if not 0 < i < len(argv) or argv[i].startswith("-"):
        return argv
    return [argv[i], *argv[:i], *argv[i + 1 :]]


def _is_file(token: str | None) -> bool:
    return token is not None and (token == "-" or not (token.startswith("-") or KEY.match(token)))


def _awaits_value(token: str) -> bool:
    return token.startswith("--") and "=" not in token and token not in FLAGS
