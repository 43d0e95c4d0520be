"""The processor that code is compiled for: this machine's, or the one of ``NUMBA_CPU_NAME`` and ``NUMBA_CPU_FEATURES``.

Machines of different kinds share compiled code under such a name, so whatever the code depends on follows from what
numba compiles for, and nothing from the machine that happens to compile.
"""

from __future__ import annotations

import re

import numba
from llvmlite import binding
from numba.core.registry import cpu_target

#: A multiply-add of more numbers than any register holds: the registers in LLVM's code for it are the widest there are.
MULTIPLY_ADD = """
declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)
define <16 x float> @multiply_add(<16 x float> %x) {
  %y = call <16 x float> @llvm.fma.v16f32(<16 x float> %x, <16 x float> %x, <16 x float> %x)
  ret <16 x float> %y
}
"""


def vectors_of(triple: str, name: str, features: str) -> tuple[int, int]:
    """Bytes in a vector register of a processor, and how many of them there are."""
    if "x86_64" not in triple:
        return 16, 32 if "aarch64" in triple or "arm64" in triple else 16
    machine = binding.Target.from_triple(triple).create_target_machine(cpu=name, features=features)
    code = machine.emit_assembly(binding.parse_assembly(MULTIPLY_ADD))
    widest = re.findall(r"\tvfmadd.*%([yz])mm", code)
    return {"z": (64, 32), "y": (32, 16)}[max(widest)] if widest else (16, 16)


def _target() -> tuple[str, str, int, int]:
    """Name and features of the processor that numba compiles for, and its vectors.

    With a name alone numba still allows all features of this machine. Vectors are no wider than the name says: LLVM
    has to be told no more than that it is a processor of 64 bits, for it ends the process where it does not know it.
    """
    triple, name, features = cpu_target.target_context.codegen().magic_tuple()
    vectors = vectors_of(triple, name, features)
    if numba.config.CPU_NAME is not None:  # type: ignore[attr-defined]  # numba sets it as it reads the environment
        vectors = min(vectors, vectors_of(triple, name, "+64bit"))
    return name, features, *vectors


NAME, FEATURES, VECTOR_BYTES, REGISTERS = _target()
