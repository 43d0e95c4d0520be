"""Which tiles of a result are done, in a file: a process that is killed is resumed where it was."""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from . import __version__
from .arguments import as_path

#: What the first line of a record says it is, and how that line begins in every version.
FORMAT = "tiles, version 2"
BEGINS = b'{"numconv": "tiles, version '

#: No first line is as long: of a file that is something else no more is read.
LONGEST = 1 << 16


@contextmanager
def record(path: Any, facts: dict[str, Any]) -> Iterator[Record]:
    """The record at ``path``, for this process alone; begun if nothing is there.

    What is there is left as it is unless its first line is that of a record of this very work.
    """
    path = place_of(path)
    line = json.dumps({"numconv": FORMAT, "release": __version__} | facts).encode() + b"\n"
    try:
        file = _opened(path, line)
    except OSError as error:
        raise OSError(error.errno, f"resume: {error.strerror}", path) from None
    with file:
        _lock(file, path)
        yield Record(path, file)


class Record:
    """A text file: a line of what is computed, then a line for each finished tile with its number and two checksums.

    One is of what the tile read, the other of what it wrote. The line is written in one piece after the values of the
    tile. A process may end at any moment: the tile that it had in hand is not there, a line that is cut off is dropped,
    and a tile whose values did not reach the file, or were changed, has another checksum. So nothing depends on the
    order in which the system brings the two files to the disk.
    """

    def __init__(self, path: str, file: Any) -> None:
        self.path, self.file = path, file
        #: What tiles read and wrote, by their number.
        self.done: dict[int, tuple[int, int]] = {}
        file.seek(0)
        begin, end, text = 0, 0, file.read()
        while (end := text.find(b"\n", begin) + 1) > 0 and (begin == 0 or self._understood(text[begin:end])):
            begin = end
        if begin < len(text):  # not whole: the process or the machine stopped here
            file.truncate(begin)

    def _understood(self, line: bytes) -> bool:
        try:
            tile, read, wrote = (int(json.loads(line)[name]) for name in ("tile", "read", "wrote"))
        except (ValueError, KeyError, TypeError, RecursionError):
            return False
        self.done[tile] = read, wrote
        return True

    def add(self, i: int, read: int, wrote: int) -> None:
        """Tile ``i`` is in the result."""
        _write(self.file, json.dumps({"tile": i, "read": read, "wrote": wrote}).encode() + b"\n")

    def refuse(self, name: str, why: str) -> ValueError:
        """The error of a record that was made with another argument ``name``."""
        return _another(self.path, [name], [f"{name} {why}"])


class Read:
    """An array that is read block by block, and the checksum of what was read."""

    def __init__(self, array: Any) -> None:
        self.array, self.shape, self.dtype, self._sum = array, array.shape, array.dtype, 0

    def __getitem__(self, place: Any) -> np.ndarray:
        part = np.asarray(self.array[place])
        self._sum = checksum(part, self._sum)
        return part

    def checksum(self) -> int:
        """That of all that was read since this was asked last."""
        found, self._sum = self._sum, 0
        return found


def checksum(part: Any, before: int = 0) -> int:
    """A checksum of every byte of an array, going on from that of what came before."""
    return zlib.crc32(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data, before)


# arrays in files ------------------------------------------------------------------------------------------------------


def mapped(array: Any) -> np.memmap | None:
    """The memory map that an array is part of, if what is written to it goes to its file."""
    found = None
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap) and array.filename is not None and array.mode != "c":
            found = array
        array = array.base
    return found


def identity(out: Any, path: Any) -> dict[str, Any]:
    """What tells an array from others in another process; its file as it is found from the folder of the record."""
    facts: dict[str, Any] = {"shape": list(out.shape), "dtype": np.dtype(out.dtype).str}
    root = mapped(out)
    if root is not None:
        offset = root.offset + out.ctypes.data - root.ctypes.data
        facts |= {"file": _seen_from(path, root.filename), "offset": offset, "strides": list(out.strides)}
    elif isinstance(out, np.ndarray):
        facts["file"] = None
    else:
        file, name = getattr(getattr(out, "file", None), "filename", None), getattr(out, "name", None)
        facts |= {"file": _seen_from(path, file) if isinstance(file, (str, bytes)) else None}
        facts |= {"name": str(name) if name is not None else None, "of": type(out).__name__}
    return facts


def flush(out: Any) -> None:
    """Have what was written to an array brought to its file, where the library or the system still holds it."""
    root = mapped(out)
    write = getattr(out if root is None else root, "flush", None)
    if callable(write):
        write()


def _seen_from(path: Any, file: Any) -> str:
    file = os.path.realpath(os.fsdecode(file))
    try:
        return os.path.relpath(file, os.path.dirname(place_of(path)))
    except ValueError:  # on another drive
        return file


# the file of the record -----------------------------------------------------------------------------------------------


def place_of(path: Any) -> str:
    """The absolute path that ``resume`` means; a symbolic link means what it leads to."""
    return os.path.realpath(as_path("resume", path))


def _opened(path: str, line: bytes) -> Any:
    """The file of the record with this first line, made if nothing is at ``path``; nothing else is opened to write."""
    try:
        _look(path, line)
    except FileNotFoundError:
        _begin(path, line)
        _look(path, line)
    return open(path, "r+b", buffering=0, opener=_at_the_end)


def _look(path: str, line: bytes) -> None:
    """Raise unless a regular file begins with this line."""
    instead = "name a file that is not there yet, or the record of this work"
    if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe or a device would act on it
        raise ValueError(f"resume: {path} is no record of numconv, and no regular file at all; {instead}")
    with open(path, "rb", buffering=0) as file:
        first = file.read(LONGEST).partition(b"\n")[0] + b"\n"
    if first == line:
        return
    try:
        found = json.loads(first) if first.startswith(BEGINS) else None
    except (ValueError, RecursionError):
        found = None
    if found is None:
        what = f"another file, of {os.stat(path).st_size:,} bytes, and was not touched"
        raise ValueError(f"resume: {path} is no record of numconv, but {what}; {instead}")
    if found["numconv"] != FORMAT:
        raise ValueError(
            f"resume: {path} is a record of another version of numconv ({found['numconv']}, this one writes {FORMAT}); "
            "delete it, or name another file, to compute all of this work"
        )
    facts = json.loads(line)
    other = sorted(name for name in facts.keys() | found.keys() if facts.get(name) != found.get(name))
    raise _another(path, other, [text for n in other for text in _differences(n, found.get(n), facts.get(n))])


def _another(path: str, names: list[str], differences: list[str]) -> ValueError:
    return ValueError(
        f"resume: the record {path} is that of another convolution, with another {', '.join(names)}; "
        f"{', '.join(differences)}; delete it, or name another file, to compute all of this one"
    )


def _differences(name: str, then: Any, now: Any) -> Iterator[str]:
    """In words, what was another then."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in sorted(then.keys() | now.keys()):
            if then.get(key) != now.get(key):
                yield from _differences(f"{name}.{key}", then.get(key), now.get(key))
    elif name.endswith(".sha256"):
        yield f"{name.removesuffix('.sha256')} has other values"
    elif isinstance(then, dict) or isinstance(now, dict):
        yield f"{name} was {'not ' if then is None else ''}given"
    else:
        whence = " (by max_bytes and the number of threads)" if name == "tile" else ""
        yield f"{name} was {then}, is {now}{whence}"


def _begin(path: str, line: bytes) -> None:
    """Put a record of no tiles at ``path``, whole or not at all; if another process was faster, it is that one's."""
    whole = os.path.join(os.path.dirname(path), f".numconv-{secrets.token_hex(8)}")
    with open(whole, "xb", buffering=0) as file:
        try:
            _write(file, line)
            with suppress(FileExistsError):
                try:
                    os.link(whole, path)
                except OSError as error:
                    if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                        raise
                    with open(path, "xb", buffering=0) as only:  # a file system that knows one name for each file
                        _write(only, line)
        finally:
            os.unlink(whole)
        os.fsync(file.fileno())  # last, since it takes long and a process that is killed here leaves one name


def _write(file: Any, line: bytes) -> None:
    while line:  # a disk that is nearly full takes a part, and says so when it is asked again
        line = line[file.write(line) :]


def _at_the_end(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_APPEND)


def _lock(file: Any, path: str) -> None:
    """Raise if another process or thread is at work with this record; the system unlocks it when a process ends."""
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(
            f"resume: another process or thread is at work with the record {path}; wait for it, or name another file "
            "and another out"
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):  # no locks on this file system
            raise
