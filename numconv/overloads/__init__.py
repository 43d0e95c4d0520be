"""numconv's functions inside the caller's own ``@njit`` functions.

numba calls ``init`` before it compiles anything (entry point ``numba_extensions``). What stands here runs while the
caller's function is compiled: it reads the types of the arguments, and gives back the few lines that bring arrays to
``cpu.compiled`` and results back. Words must be literal strings, since types follow from them.

A function of numconv is made known to numba when somebody first asks for it, so that programs without numconv do not
wait for it.
"""

from __future__ import annotations

import inspect
import sys
from importlib import import_module
from typing import Any

#: Where the overload of a public function stands.
ROOMS = {
    "conv": "products", "conv_grad_input": "products", "conv_grad_weight": "products", "convolve": "products",
    "im2col": "matrices", "col2im": "matrices", "kernel2row": "matrices", "csr_matvec": "matrices",
    "csr_rmatvec": "matrices",
}

_registered: set[str] = set()


def init() -> None:
    """Register what is loaded; the package does the same for whatever it loads from now on."""
    from ..cpu import words

    words.register()
    package = vars(sys.modules["numconv"])
    for name in ROOMS:
        if name in package:
            register(name, package[name])


def register(name: str, function: Any) -> None:
    """Tell numba that there is code for a public function; which, it asks when something calls it."""
    from numba.core.registry import cpu_target
    from numba.extending import overload

    from . import halves

    if name not in ROOMS or name in _registered:
        return
    if not _registered:
        halves.register()
    _registered.add(name)

    def typed(*arguments: Any, **named: Any) -> Any:
        return getattr(import_module(f"{__name__}.{ROOMS[name]}"), name)(*arguments, **named)

    signature = inspect.signature(function)
    plain = [p.replace(kind=p.POSITIONAL_OR_KEYWORD, annotation=p.empty) for p in signature.parameters.values()]
    typed.__signature__ = inspect.Signature(plain)  # type: ignore[attr-defined]
    overload(function, prefer_literal=True)(typed)
    cpu_target.typing_context.refresh()  # a function that is being compiled may just have asked
