"""``docs/gpu.md``, from the table of public calls that the tests run: ``python tests/gpu/table.py > docs/gpu.md``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from public_calls import CALLS, COLUMNS, HERE, THERE, Call, interop

BEGIN = """\
# What runs on a GPU

*Made by `python tests/gpu/table.py` from the table of public calls in `tests/public_calls.py`. Its rows run in numba's
simulator (values and dtypes against those of the CPU, every kernel thread by thread), over a stand-in for the driver
(launches, streams, copies) and, with `pytest -m gpu`, on a GPU; a test fails where this page is not what they say.*

## How to get there

    pip install 'numconv-jit[cuda13]'      # or [cuda12], as the driver is; brings numba-cuda and NVIDIA's compiler
    python -c "import numconv; print(numconv.devices()[1])"

`devices()` says what is missing, which file, and which `pip install` brings it. The compiler may also be a toolkit's
(`CUDA_HOME`, `CUDA_PATH`, conda's environment, `/usr/local/cuda`, `/usr/local/cuda-*`, `/opt/cuda`) or come with torch.

- **CuPy's arrays and torch's CUDA tensors** are computed where they lie, on the library's current stream; results are
  the library's own, from its pool, and nothing waits.
- **Others with `__cuda_array_interface__`** (version 2 or 3) **or DLPack** are computed where they lie, when their
  stream's work is done; results are of their array namespace where they have one, else numba's device arrays, and are
  waited for.
- **NumPy's arrays, and torch's tensors on the CPU**, go there and back where `use_device("cuda")`,
  `NUMCONV_DEVICE=cuda` or a plan's `device="cuda"` says so, and by themselves where the model of costs expects that it
  pays with the transfers. What only moves or adds numbers (`im2col`, `kernel2row`, CSR products, `conv_local`) never
  goes by itself.
- **Inside `@njit` functions** everything is the CPU's.

"""

PRECISION = """\
## Precision of results

- Integers, and whatever is exact in any order, are what the CPU gives, bit for bit; bool is counted and then whether
  there is any. `X_conv` and `W_conv` are copies and the same bits.
- float32 and float64 are summed in their own type, in an order that follows from shapes alone: the same bits in every
  run, and an image has the bits that it has alone. float16 is read and written as it is, summed in float32 and rounded
  once.
- Complex gradients are Hermitian adjoints. NaN and infinity are where the CPU has them, algorithm by algorithm.
- Means (`col2im(reduce="mean")`, `normalized_convolve`) are within the rounding of a quotient.

"""

END = """\
## What only hardware has shown

The simulator knows no races, no types and no time, the stand-in runs no kernels. Streams that are truly concurrent,
transfers, cuBLAS under `algorithm="im2col"`, `compute-sanitizer` and every figure of speed are those of a GPU:
[what GPUs have given](../tests/gpu/results/README.md). `python tests/gpu/lane.py` runs all of it.
"""


def cell(calls: list[Call], library: str) -> str:
    """What a function does with the arrays of a library."""
    there = [call for call in calls if library not in call.without]
    if not there:
        return ""
    works = [call for call in there if not call.refusal(library)]
    own = [call for call in there if call.refusal(library) and not call.refused.get("all")]
    if works:
        return "works" + ("".join(f" [{n}]" for n in sorted({note(call.refusal(library)) for call in own})))
    return "refused" + "".join(f" [{n}]" for n in sorted({note(call.refusal(library)) for call in own}))


NOTES: list[str] = []


def note(refusal: str) -> int:
    """The number of a refusal in the list below."""
    if refusal not in NOTES:
        NOTES.append(refusal)
    return NOTES.index(refusal) + 1


def by_function() -> list[str]:
    """A line for every public call."""
    columns = list(COLUMNS)
    head = " | ".join(("call", "features", *COLUMNS.values()))
    lines = ["## Public calls", "", f"| {head} |"]
    lines.append("|" + "---|" * (2 + len(columns)))
    for function in dict.fromkeys(call.function for call in CALLS):
        calls = [call for call in CALLS if call.function == function]
        cells = [cell(calls, column) for column in columns]
        lines.append(f"| `{function}` | {len(calls)} | " + " | ".join(cells) + " |")
    lines += ["", "A number in brackets is a feature that is refused there, before anything is computed:", ""]
    lines += [f"{i}. `{text} …`" for i, text in enumerate(NOTES, 1)]
    lines += ["", "Refused on the CPU as well, with the same words:", ""]
    everywhere = dict.fromkeys(call.refused["all"] for call in CALLS if "all" in call.refused)
    return [*lines, *(f"- `{text} …`" for text in everywhere), ""]


#: What the features of the table are about, by how their names begin.
KINDS = {
    "boundary": "every boundary", "padding": "padding in words, or wider than the input",
    "fill_value": "`fill_value=`", "group": "groups and depthwise layers",
    "stride": "strides", "dilation": "dilation", "flip": "`flip=`",
    "axes 0": "one pixel", "axes 1": "one axis", "axes 3": "three axes", "axes 4": "four axes", "axes=": "`axes=`",
    "mode": "every `mode=`", "the kernel is the larger": "a kernel larger than the input", "one image": "no batch",
    "output_padding": "`output_padding=`", "dtype f": "float16, float64", "dtype c": "complex64, complex128",
    "dtype b": "bool", "dtype i": "signed integers", "dtype u": "unsigned integers", "dtype=": "`dtype=`",
    "no ": "axes of no items", "strided": "inputs that are strided", "an axis": "inputs with axes that are moved",
    "reversed": "inputs that are reversed", "part": "inputs that are parts of others", "out=": "`out=`, in any layout",
    "algorithm im2col": '`algorithm="im2col"`', "algorithm kernel2row": '`algorithm="kernel2row"`',
    "algorithm implicit": '`algorithm="implicit"`', "algorithm direct": '`algorithm="direct"`',
    "algorithm winograd": '`algorithm="winograd"`', "algorithm fft": '`algorithm="fft"`', "mask=": "`mask=`",
    "max_bytes": "`max_bytes=`, `resume=`", "a mean": "means", "words": "items that are no numbers",
}  # fmt: skip


def by_feature() -> list[str]:
    """A line for every kind of feature."""
    columns = [column for column in COLUMNS if column != HERE]
    head = " | ".join(("feature", "calls", *(COLUMNS[column] for column in columns)))
    lines = ["## Features", "", f"| {head} |"]
    lines.append("|" + "---|" * (2 + len(columns)))
    for begin, what in KINDS.items():
        calls = [call for call in CALLS if begins(call.feature, begin) and not call.refused.get("all")]
        assert calls, begin
        cells = []
        for column in columns:
            here = [call for call in calls if column not in call.without]
            works = sum(not call.refusal(column) for call in here)
            cells.append(
                "" if not here else "works" if works == len(here) else "refused" if not works
                else f"{works} of {len(here)} work"
            )  # fmt: skip
        lines.append(f"| {what} | {len(calls)} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def begins(feature: str, begin: str) -> bool:
    """Whether a feature is of a kind; one that has a stride and something else is of both."""
    return any(part.startswith(begin) for part in feature.split(", "))


ROOMS = {
    "torch": "tensors on the CPU and on a GPU, differentiable, computed where they lie.",
    "autograd": "NumPy's arrays: on the CPU, or sent to a GPU as above.",
    "pylops": "NumPy's arrays: on the CPU, or sent to a GPU by a plan's `device=\"cuda\"`. A kernel there is refused: "
              "`w must be on the CPU for an operator of PyLops …`",
    "dask": "chunks of NumPy's. Chunks on a GPU are refused: `x has chunks on a GPU …`",
}  # fmt: skip


def of_interop() -> list[str]:
    """What other libraries' functions take."""
    lines = ["## `numconv.interop`", "", "| module | its functions | take |", "|---|---|---|"]
    for module, what in ROOMS.items():
        names = ", ".join(f"`{name}`" for name in interop(module))
        lines.append(f"| `{module}` | {names} | {what} |")
    return [*lines, ""]


def count() -> str:
    """How many rows there are, and what becomes of them."""
    rows = [(call, library) for call in CALLS for library in THERE if library not in call.without]
    refused = [1 for call, library in rows if call.refusal(library)]
    own = [1 for call, library in rows if call.refusal(library) and "all" not in call.refused]
    return (
        f"{len(CALLS)} rows; with arrays that lie on a GPU, of {len(THERE)} kinds of libraries, {len(rows)} calls, of "
        f"which {len(rows) - len(refused)} work and {len(refused)} are refused by name, {len(own)} of them there alone."
        "\n"
    )


def page() -> str:
    """The whole of it."""
    NOTES.clear()
    return "\n".join([BEGIN.rstrip("\n"), "", count(), *by_function(), *by_feature(), *of_interop(), PRECISION + END])


if __name__ == "__main__":
    print(page(), end="")
