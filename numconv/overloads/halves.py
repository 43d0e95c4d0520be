"""float16 in the memory of compiled callers. numba knows the type and has no numbers of it on a CPU.

Arrays of it may come in, be sliced and go out; numconv's functions compute with them in float32, as outside.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core.datamodel import default_manager
from numba.core.errors import TypingError
from numba.extending import models, register_model

INSTEAD = (
    "numba has no float16 numbers, only arrays of them that numconv's functions take: give those dtype=np.float32, "
    "call with x.astype(np.float32), or with float(number)"
)


class Floats(models.FloatModel):
    """numba's model of floats, and float16 as 16 bits of an array that nobody looks at."""

    def __init__(self, manager: Any, kind: Any) -> None:
        if kind == types.float16:
            models.PrimitiveModel.__init__(self, manager, kind, ir.IntType(16))
        else:
            super().__init__(manager, kind)

    def get_data_type(self) -> Any:
        """Of an item in an array."""
        return self.be_type

    def get_value_type(self) -> Any:
        """Of a number."""
        self._refuse_halves()
        return super().get_value_type()

    def from_data(self, builder: Any, value: Any) -> Any:
        """An item becomes a number."""
        self._refuse_halves()
        return super().from_data(builder, value)

    def as_data(self, builder: Any, value: Any) -> Any:
        """A number becomes an item."""
        self._refuse_halves()
        return super().as_data(builder, value)

    def _refuse_halves(self) -> None:
        if self.fe_type == types.float16:
            raise TypingError(INSTEAD)


def register() -> None:
    """Tell numba, unless it knows more."""
    try:
        default_manager.lookup(types.float16)
    except NotImplementedError:
        register_model(types.Float)(Floats)
