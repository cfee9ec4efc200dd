"""Which installed method answers a verb: asked of the SPECs, never of a list in here."""

from typing import TYPE_CHECKING

from memtoken_cli.io.errors import UsageError

if TYPE_CHECKING:
    from memtoken_cli.engine.method import Spec


def method_for(verb: str, name: str | None = None, source: str | None = None) -> "Spec":
    """The SPEC of the method that answers `verb`.

    Args:
        name: the user's --method; None takes the verb's default, or the only method there is.
        source: what the positional SOURCE is ("shots", "series"); checked against the SPEC where given.

    Raises:
        UsageError: unknown method, one that lacks the verb or the source, or none at all.
    """
    from memtoken_cli import methods
    from memtoken_cli.engine.method import ENTRY_POINTS

    specs = methods.discover()
    able = {found: spec for found, spec in specs.items() if verb in spec.verbs}
    if name is not None and name not in specs:
        methods.load(name)  # says what is wrong: unknown, or not importable
    if not able:
        raise UsageError(
            f"no installed method answers `memtok {verb}`",
            hint=f"pip install a package whose entry points {ENTRY_POINTS} name one with this verb",
        )
    if name is not None and name not in able:
        hint = specs[name].instead.get(verb, f"--method {' or '.join(able)}")
        raise UsageError(f"method {name!r} does not answer `memtok {verb}`", hint=hint)
    spec = able[name or _default(verb, able)]
    if source is not None and spec.sources and source not in spec.sources:
        raise UsageError(f"method {spec.name!r} reads {', '.join(sorted(spec.sources))}, not {source}")
    return spec


def _default(verb: str, able: "dict[str, Spec]") -> str:
    defaults = [name for name, spec in able.items() if verb in spec.default_for]
    if len(defaults) == 1 or len(able) == 1:
        return (defaults or list(able))[0]
    raise UsageError(
        f"several methods answer `memtok {verb}`", hint=f"--method {' or '.join(defaults or able)}"
    )


def method_names(verb: str, incomplete: str = "") -> list[str]:
    """Names to complete `--method` with."""
    from memtoken_cli import methods

    return [n for n, spec in methods.discover().items() if verb in spec.verbs and n.startswith(incomplete)]
