"""The command line, ``numconv`` or ``python -m numconv``: ``tour``, ``info``, ``explain`` and ``bench``."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from . import __version__
from .arguments import BOUNDARIES, PADDING_NAMES, as_int, one_of
from .select import ALGORITHMS


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv : sequence of str, optional
        The words after the program's name, by default those of this process. No command means ``tour``.

    Returns
    -------
    int
        0 if all went well, 1 if the tour found results that do not agree, 2 for bad input, whose reason is printed
        to stderr in one line.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help", "--version")):
        words.insert(0, "tour")
    try:
        arguments = parser().parse_args(words)
        code = int(arguments.run(arguments))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader, head for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, TypeError, OSError, ImportError, MemoryError, RuntimeError) as error:
        print(f"numconv: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


class Parser(argparse.ArgumentParser):
    """A parser whose errors are exceptions and not the end of the process."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parser() -> argparse.ArgumentParser:
    """All commands with their options."""
    top = Parser(prog="numconv", description="Convolution as matrix computation.")
    top.add_argument("--version", action="version", version=f"numconv {__version__}")
    commands = top.add_subparsers(required=True, metavar="command")

    tour = commands.add_parser("tour", help="filter a photograph, learn handwriting, draw a picture (the default)")
    tour.add_argument("--image", metavar="FILE", help="a photograph instead of scikit-learn's china.jpg")
    tour.add_argument("--output", metavar="FILE", default="numconv-tour.png", help="the picture (default: %(default)s)")
    tour.add_argument("--epochs", type=int, help="how often the network sees the digits")
    tour.set_defaults(run=run_tour)

    info = commands.add_parser("info", help="versions, processor, threads, devices, cache and memory")
    info.set_defaults(run=run_info)

    explain = commands.add_parser("explain", help="print the matrices of a small convolution as symbols")
    explain.add_argument("input", type=shape, help="spatial shape of the input, such as 3x3")
    explain.add_argument("kernel", type=shape, help="spatial shape of the kernel, such as 2x2")
    explain.add_argument("--stride", type=shape, default=(1,), help="one number, or one for each axis: 2x1")
    explain.add_argument("--dilation", type=shape, default=(1,), help="likewise")
    explain.add_argument("--padding", type=padding, default=0, help="likewise, or lo:hi for each axis: 1:0x2:1, or "
                         + ", ".join(PADDING_NAMES))  # fmt: skip
    explain.add_argument("--boundary", choices=BOUNDARIES, default="constant", help="what padded pixels hold")
    explain.add_argument("--no-flip", action="store_true", help="do not turn the kernel: cross-correlation")
    explain.add_argument("--channels", type=int, metavar="C", help="input channels")
    explain.add_argument("--out-channels", type=int, metavar="K", help="output channels")
    explain.add_argument("--groups", type=int, metavar="G", default=1, help="groups of channels")
    explain.add_argument("--html", metavar="FILE", help="write the page in colour")
    explain.add_argument("--plot", metavar="FILE", help="draw X_conv and W_conv (needs matplotlib)")
    explain.set_defaults(run=run_explain)

    bench = commands.add_parser(
        "bench", help="measure numconv beside torch, SciPy and OpenCV",
        description="Measure numconv beside its peers on the same work: results compared first, times in turns, "
        "every library in a process of its own. A ratio above 1 says that numconv is faster.",
    )  # fmt: skip
    bench.add_argument("--peers", type=words, metavar="NAMES", help="with commas: torch,scipy,opencv,"
                       "sparse_convolution, or none (default: all that are installed)")
    bench.add_argument("--layers", type=words, metavar="NAMES", help="with commas: resnet50,grad,image,1d,3d,matrices "
                       "(default: all)")  # fmt: skip
    bench.add_argument("--case", default="", metavar="PART", help="only cases whose group and name contain this")
    bench.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    bench.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where all compute; on a GPU beside "
                       "torch (cuDNN, allow_tf32 False and True) and CuPy")  # fmt: skip
    bench.add_argument("--threads", type=int, metavar="N", help="for every library (default: all cores)")
    bench.add_argument("--seconds", type=float, default=1.0, help="for each case and peer (default: %(default)s)")
    bench.add_argument("--algorithm", choices=("auto", *ALGORITHMS), default="auto", help="of numconv")
    bench.add_argument("--json", metavar="FILE", help="write machine, versions, peak and every time")
    bench.set_defaults(run=run_bench)
    return top


# reading words ------------------------------------------------------------------------------------------------------


def shape(word: str) -> tuple[int, ...]:
    """``3x3`` as ``(3, 3)``."""
    try:
        return tuple(int(number) for number in word.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be numbers with x between them, such as 3x3, got {word!r}") from None


def padding(word: str) -> Any:
    """A word that names a padding, ``1x2``, or ``1:0x2:1`` as ``((1, 0), (2, 1))``."""
    if word in PADDING_NAMES:
        return word
    pairs = tuple(shape(part.replace(":", "x")) for part in word.lower().split("x"))
    return tuple(pair if len(pair) > 1 else pair[0] for pair in pairs)


def words(word: str) -> tuple[str, ...]:
    """``one,two`` as ``("one", "two")``."""
    return tuple(filter(None, word.lower().split(",")))


def for_each_axis(values: Any, d: int) -> Any:
    """One value that stands for all axes, or the values as they are."""
    return values * d if isinstance(values, tuple) and len(values) == 1 else values


# the commands -------------------------------------------------------------------------------------------------------


def run_tour(arguments: argparse.Namespace) -> int:
    """The tour; 1 if something that must agree does not."""
    # OpenMP threads that wait spin, and on a busy machine take the time of those that work
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from .tour import tour

    options = {} if arguments.epochs is None else {"epochs": arguments.epochs}
    return 0 if tour(arguments.image, arguments.output, **options).ok else 1


def run_explain(arguments: argparse.Namespace) -> int:
    """The matrices of one geometry as text, and in colour where a file is named for it."""
    from .explain import explain
    from .geometry import conv_geometry

    a, d = arguments, len(arguments.input)
    plain = a.channels is None and a.out_channels is None and a.groups == 1
    C = a.groups if a.channels is None else a.channels
    K = a.groups if a.out_channels is None else a.out_channels
    input_shape, kernel_shape = (a.input, a.kernel) if plain else ((C, *a.input), (K, C // max(a.groups, 1), *a.kernel))
    page = explain(conv_geometry(
        input_shape, kernel_shape, plain=plain, stride=for_each_axis(a.stride, d),
        padding=for_each_axis(a.padding, d), dilation=for_each_axis(a.dilation, d), groups=a.groups,
        boundary=a.boundary, flip=not a.no_flip, names=("input", "kernel"),
    ))  # fmt: skip
    print(page)
    if a.html:
        Path(a.html).write_text(page.to_html(), encoding="utf-8")
    if a.plot:
        page.plot().savefig(a.plot)
    return 0


def run_bench(arguments: argparse.Namespace) -> int:
    """numconv beside its peers; 1 if a result differs."""
    from .bench.cases import LAYERS, choose
    from .bench.command import bench
    from .bench.peers import GPU_PEERS, PEERS, Settings
    from .dispatch import choose_device

    a = arguments
    valid_peers: tuple[str, ...] = tuple(PEERS) if a.device == "cpu" else GPU_PEERS
    peers, layers = () if a.peers == ("none",) else a.peers or valid_peers, a.layers or LAYERS
    for name, given, valid in (("--peers", peers, valid_peers), ("--layers", layers, LAYERS)):
        for word in given:
            one_of(name, word, valid)
    threads = as_int("--threads", cores() if a.threads is None else a.threads, 1)
    if not 0 <= a.seconds < float("inf"):
        raise ValueError(f"--seconds must be at least 0, got {a.seconds}")
    cases = choose(layers, a.case, a.device)
    if not cases:
        raise ValueError(f"--case {a.case!r} is part of no case of --layers {','.join(layers)}")
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    machine = {"processor": processor(), "system": f"{platform.platform()}, python {platform.python_version()}"}
    if choose_device(a.device) == "cuda":  # an error if there is no GPU
        from .bench import gpu

        machine |= gpu.machine()
    settings = Settings(a.dtype, threads, a.algorithm, a.device)
    return bench(cases, peers, settings, a.seconds, machine, a.json, colour)


def cores() -> int:
    """How many logical cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_info(_: argparse.Namespace) -> int:
    """What numconv runs on, one fact a line."""
    for name, fact in facts():
        print(f"{name:18} {fact}")
    return 0


def facts() -> Iterator[tuple[str, str]]:
    """Versions, processor, threads, devices, cache and memory, each asked of who knows it."""
    import numconv

    from ._memory import available
    from .cpu.target import VECTOR_BYTES
    from .cpu.threads import layer, reason, thread_count

    yield "numconv", f"{__version__} in {Path(__file__).parent}"
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    for name in ("numpy", "numba", "llvmlite", "scipy"):
        yield name, version(name)
    yield "processor", f"{processor()}, vectors of {8 * VECTOR_BYTES} bits"
    yield "threads", f"{thread_count()} on {os.cpu_count()} logical cores, layer {layer()}, {reason()}"
    for device in numconv.devices():
        state = "usable" if device.usable else f"not usable: {device.reason}"
        yield f"device {device.name}", f"{device.description}, {state}"
    yield "compiled kernels", cache_folder()
    yield "memory", f"{available() / 2**30:.1f} GiB available"


def processor() -> str:
    """The processor's own name where the system tells it, and the kind that LLVM compiles for."""
    from .cpu.target import NAME

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()} ({NAME})"


def cache_folder() -> str:
    """Where compiled kernels are kept, asked of one of them."""
    from .cpu import im2col
    from .cpu._jit import Kernel

    kernel = next(kernel for kernel in vars(im2col).values() if isinstance(kernel, Kernel))
    stats = getattr(kernel.code, "stats", None)
    return str(stats.cache_path or "none, no folder can be written to") if stats else "none, NUMBA_DISABLE_JIT is set"
