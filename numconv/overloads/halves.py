"""float16 in the memory of compiled callers. numba knows the type and has no numbers of it on a CPU.

Arrays of it may come in, be sliced and go out; numconv's functions compute with them in float32, as outside.

numba has one memory for all callers, so functions that do not call numconv meet this, too. Nothing that compiled is
changed for them: the models of all other types are numba's own, and float16 had none. What numba refuses, it refuses by
the same ``NotImplementedError``, with more words; what only moves arrays of float16 compiles.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core.datamodel import default_manager
from numba.extending import models

INSTEAD = (
    "numba has no float16 numbers, only arrays of them that numconv's functions take: give those dtype=np.float32, "
    "call with x.astype(np.float32), or with float(number)"
)


class Half(models.PrimitiveModel):
    """float16 as 16 bits of an array that nobody looks at."""

    def __init__(self, manager: Any) -> None:
        super().__init__(manager, types.float16, ir.IntType(16))

    def get_data_type(self) -> Any:
        """Of an item in an array."""
        return self.be_type

    def get_value_type(self) -> Any:
        """Of a number."""
        raise NotImplementedError(INSTEAD)

    def from_data(self, builder: Any, value: Any) -> Any:
        """An item becomes a number."""
        raise NotImplementedError(INSTEAD)

    def as_data(self, builder: Any, value: Any) -> Any:
        """A number becomes an item."""
        raise NotImplementedError(INSTEAD)


def register() -> None:
    """Tell numba, unless it knows more."""
    try:
        default_manager.lookup(types.float16)
    except NotImplementedError:
        default_manager._cache[types.float16] = Half(default_manager)
