"""Hooks between the decoder layers: what enters and what leaves each of them, the model left as it was.

Shape suffixes: B rows, T columns, E model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

Enter = Callable[[int, Tensor], Tensor]
"""Layer l and its input [B,T,E] -> what it reads instead."""
Leave = Callable[[int, Tensor], None]
"""Layer l and its output [B,T,E]."""


@contextmanager
def between(layers: nn.ModuleList, enter: Enter | None = None, leave: Leave | None = None) -> Iterator[None]:
    """Inside, every decoder layer reads what `enter` gives and shows `leave` what it made.

    Gradients pass through both. The hooks are gone afterwards, also after an error.
    """

    def before(number: int) -> Any:
        def hook(_layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
            assert enter is not None
            if args:
                return (enter(number, args[0]), *args[1:]), named
            return args, named | {"hidden_states": enter(number, named["hidden_states"])}

        return hook

    def after(number: int) -> Any:
        def hook(_layer: nn.Module, _args: Any, output: Any) -> None:
            assert leave is not None
            leave(number, output if isinstance(output, Tensor) else output[0])

        return hook

    with ExitStack() as stack:
        for number, layer in enumerate(layers):
            if enter is not None:
                handle = layer.register_forward_pre_hook(before(number), with_kwargs=True)
                stack.callback(handle.remove)
            if leave is not None:
                stack.callback(layer.register_forward_hook(after(number)).remove)
        yield
