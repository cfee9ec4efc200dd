"""Finding methods: the folders beside this file and the entry points `memtok.methods`. Nothing names one.

An entry point's value is a module that has SPEC and load(), such as `pkg.mymethod`; its config module is
`pkg.mymethod.config` where that is a package, otherwise the module itself.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any, cast

from memtoken_cli.engine.method import ENTRY_POINTS, Method, Spec
from memtoken_cli.io.errors import UsageError, nearest


def _modules() -> dict[str, str]:
    """Method name to module name; built-in folders win over entry points of the same name."""
    found = {e.name: e.value.partition(":")[0] for e in entry_points(group=ENTRY_POINTS)}
    found |= {m.name: f"{__name__}.{m.name}" for m in pkgutil.iter_modules(__path__) if m.ispkg}
    return dict(sorted(found.items()))


@cache
def discover() -> dict[str, Spec]:
    """Every method's Spec by name, sorted; one that cannot be imported is left out (`load` says why)."""
    specs = {}
    for name, module in _modules().items():
        try:
            specs[name] = cast(Spec, importlib.import_module(module).SPEC)
        except Exception:  # another package's module raises what it likes, and must not break the others
            if module.startswith(__name__ + "."):
                raise
    return specs


def _module(name: str) -> ModuleType:
    modules = _modules()
    if name not in modules:
        close = nearest(name, modules)
        known = ", ".join(modules) or "none"
        hint = f"did you mean {close}?" if close else f"methods: {known}"
        raise UsageError(f"unknown method {name!r}", hint=hint)
    try:
        return importlib.import_module(modules[name])
    except Exception as error:
        if modules[name].startswith(__name__ + "."):
            raise
        raise UsageError(f"method {name!r} ({modules[name]}) cannot be imported: {error}") from error


def load(name: str) -> Method:
    """The method itself (may import torch). Raises UsageError with the nearest name where there is none."""
    return cast(Method, _module(name).load())


def front_door(name: str, part: str) -> Any:
    """A class of the method's own Python interface. Raises AttributeError where it has none of that name."""
    return getattr(_module(name), part)


def config_module(name: str) -> ModuleType:
    """The module with the method's Config, perhaps DataConfig and TrainConfig; imports pydantic only."""
    module = _module(name)
    own = f"{module.__name__}.config"
    if module.__spec__ is not None and module.__spec__.submodule_search_locations is not None:
        return importlib.import_module(own)
    return module


def default_for(verb: str) -> str:
    """The method that answers `verb` where the user names none. Raises UsageError where there is none."""
    for name, spec in discover().items():
        if verb in spec.default_for:
            return name
    raise UsageError(f"no method is the default of {verb}", hint="name one with --method")
