"""Compiled code on disk: numba's cache, for disks that fail, machines that differ, and folders that are only read.

What numba reads it unpickles and hands to LLVM as it is, and a page that a power cut left empty ends the process. Here
a checksum stands before everything, and what is wrong, or for something else, counts as not there.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import os
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module, resources
from pathlib import Path
from typing import Any

import numba
from numba.core import caching
from numba.core.runtime import rtsys

from . import target

#: What unpickling raises beside that where something is missing here, and LLVM for what it cannot read.
DAMAGED = (
    pickle.UnpicklingError, EOFError, ValueError, AttributeError, ImportError, LookupError, TypeError, RuntimeError,
    OverflowError, MemoryError,
)

NO_FOLDER = "there is no folder for compiled code, every process compiles it: NUMBA_CACHE_DIR may name one"

#: What kernels are compiled from, in numconv's folder. numba looks at the file alone in which a kernel stands.
SOURCES = ("cpu", "_indexing.py", "_memory.py", "costs.py", "select.py")

#: What numba can be told of the code that it makes.
SWITCHES = (
    "OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "LLVM_REFPRUNE_PASS", "LLVM_REFPRUNE_FLAGS", "BOUNDSCHECK",
    "DEBUGINFO_DEFAULT", "USING_SVML",
)


@cache
def sources() -> str:
    """A checksum of the sources that kernels are compiled from."""
    checksum = hashlib.sha256(sys.modules["numconv"].__version__.encode())
    for name in SOURCES:
        for text in texts(resources.files("numconv") / name):
            checksum.update(text)
    return checksum.hexdigest()


def texts(place: Any) -> Iterator[bytes]:
    """The names and contents of sources."""
    if place.is_file():
        yield place.name.encode()
        yield place.read_bytes()
    elif place.is_dir():
        for entry in sorted(place.iterdir(), key=lambda entry: entry.name):
            if entry.name.endswith(".py") or (entry.is_dir() and entry.name != "__pycache__"):
                yield from texts(entry)


class Files(caching.IndexDataCacheFile):
    """The files of a function in a folder: an index, and one for each kind of arguments and of processor.

    Other processes may write at the same time, and two that store something else may give it one name. So each file
    says what it is for, and the index, which is written last, names only what is there.
    """

    def save(self, key: Any, data: Any) -> None:
        """Keep ``data`` for a ``key``."""
        names = self._known()
        taken, numbers = set(names.values()), itertools.count(1)
        name = names.get(key) or next(name for name in map(self._data_name, numbers) if name not in taken)
        self._write(self._data_path(name), (key, data))
        names = self._known()
        others = {other: its for other, its in names.items() if its != name}  # who took it meanwhile lost it
        if names != {**others, key: name}:
            self._save_index({**others, key: name})

    def load(self, key: Any) -> Any:
        """What is kept for a ``key``, or None; one of ``DAMAGED`` if what is there cannot be used."""
        name = self._load_index().get(key)
        stored, data = (self._read(self._data_path(name)) if name else None) or (None, None)
        return data if stored == key else None

    def _known(self) -> dict[Any, str]:
        try:
            return self._load_index()
        except DAMAGED:
            return {}

    def _load_index(self) -> dict[Any, str]:
        return self._read(self._index_path) or {}

    def _save_index(self, names: dict[Any, str]) -> None:
        self._write(self._index_path, names)

    def _write(self, path: str, content: Any) -> None:
        # beside it, and then in its place: numba's way
        body = self._dump((self._version, self._source_stamp, self._dump(content)))
        with self._open_for_write(path) as file:
            file.write(hashlib.sha256(body).digest() + body)

    def _read(self, path: str) -> Any:
        """The content of a file; None if there is none, or none for these sources."""
        try:
            with open(path, "rb") as file:
                checksum, body = file.read(hashlib.sha256().digest_size), file.read()
        except OSError:
            return None
        if hashlib.sha256(body).digest() != checksum:
            raise ValueError(f"the checksum of {os.path.basename(path)} is another")
        *made_by, content = pickle.loads(body)
        return pickle.loads(content) if made_by == [self._version, self._source_stamp] else None


class Place(caching.CompileResultCacheImpl):
    """A folder for the compiled code of a function, which ``locator`` found."""

    def __init__(self, loop: Callable[..., Any], locator: Any) -> None:
        self._lineno, self._locator = loop.__code__.co_firstlineno, locator
        source = Path(inspect.getfile(loop))
        name = self.get_filename_base(f"{source.stem}.{loop.__qualname__}", getattr(sys, "abiflags", ""))
        own = Path(__file__).parents[1] in source.parents  # then it is among the sources
        stamp = sources(), None if own else locator.get_source_stamp()
        self.folder = locator.get_cache_path()
        self.files = Files(self.folder, f"{name}.sha256", stamp)


def places(loop: Callable[..., Any]) -> tuple[list[Place], bool]:
    """Folders for the code of a function, of which the last can be written to, and whether it can."""
    found, writable = locators(loop)
    return [Place(loop, locator) for locator in found], writable


def locators(loop: Callable[..., Any]) -> tuple[list[Any], bool]:
    """Where numba would look, up to the first folder that can be written to, and whether there is such a one.

    numba takes that one alone, so what somebody else has compiled, and may be read, it would compile again.
    """
    found = []
    for kind in _locators():
        anywhere: Any = type(kind.__name__, (kind,), {"ensure_cache_path": lambda self: None})
        locator = anywhere.from_function(loop, inspect.getfile(loop))
        if locator is None:
            continue
        found.append(locator)
        if _writable(kind, locator):
            return found, True
    return found, False


def _locators() -> list[Any]:
    chosen = numba.config.CACHE_LOCATOR_CLASSES  # type: ignore[attr-defined]  # numba sets it as it reads the environment
    if not chosen:
        return caching.CompileResultCacheImpl._locator_classes
    names = [name.strip().rpartition(".") for name in chosen.split(",")]
    return [getattr(import_module(module or caching.__name__), name) for module, _, name in names]


def _writable(kind: Any, locator: Any) -> bool:
    try:
        kind.ensure_cache_path(locator)
    except OSError:
        return False
    return True


class Cache(caching.FunctionCache):
    """numba's cache of a function, in all the places that it has, of which the last is written to.

    numba's own imports all that it compiles with, and SciPy's linear algebra, before it looks; code that is loaded
    needs none of that, but numba's counted memory.
    """

    def __init__(self, loop: Callable[..., Any]) -> None:
        self._name, self._py_func = repr(loop), loop
        self._places, self._writable = places(loop)
        self.enable()

    @property
    def cache_path(self) -> str | None:
        """The last of its folders."""
        return self._places[-1].folder if self._places else None

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        rtsys.initialize(target_context)
        key = self._index_key(sig, target_context.codegen())
        for place in self._places if self._enabled else ():
            try:
                data = place.files.load(key)
                if data is not None:
                    return place.rebuild(target_context, data)
            except DAMAGED as error:
                _warn(f"the compiled code in {place.folder} is damaged ({error}) and is compiled anew")
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        if not self._enabled:
            return
        if not self._writable:
            warn_once(NO_FOLDER)
            return
        place = self._places[-1]
        if place.check_cachable(data):
            key, content = self._index_key(sig, data.codegen), place.reduce(data)
            self._write(lambda: place.files.save(key, content))

    def holds(self, sig: Any, target_context: Any) -> bool:
        """Whether an index names this, without a look at the code itself."""
        key = self._index_key(sig, target_context.codegen())
        return any(key in place.files._known() for place in self._places)

    def flush(self) -> None:
        if self._writable:
            self._write(self._places[-1].files.flush)

    def _write(self, save: Callable[[], None]) -> None:
        folder = self._places[-1].folder
        try:
            with self._guard_against_spurious_io_errors():
                os.makedirs(folder, exist_ok=True)
                save()
        except OSError as error:
            warn_once(cannot_keep(folder, error), stacklevel=4)

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        switches = tuple(str(getattr(numba.config, name, None)) for name in SWITCHES)
        return *super()._index_key(sig, codegen), target.VECTOR_BYTES, target.REGISTERS, switches


def cannot_keep(folder: Any, error: OSError) -> str:
    """What is said where code cannot be written."""
    return f"compiled code cannot be kept in {folder} ({error.strerror}), every process compiles it"


def _warn(message: str, stacklevel: int = 3) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel)


warn_once = cache(_warn)  # Python forgets what it has said where somebody catches warnings, as numba does
