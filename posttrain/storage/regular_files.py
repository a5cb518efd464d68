"""Opens files that the user named: regular files only, and small texts only up to a size.

A pipe, device or directory is refused before it is opened, since it may block or never end; so are files under /proc
and /sys, which report no size.
"""

from __future__ import annotations

import os
import stat
from io import BufferedReader
from pathlib import Path

from posttrain.errors import InputError

MOST_TEXT = 10_000_000  # bytes of a recipe, a rubric, a reward file, a word list
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


class NotRegularError(InputError):
    """The path is not a regular file."""


class TooLargeError(InputError):
    """The file is larger than the limit for its kind."""


def open_regular(path: Path) -> BufferedReader:
    """Opens a file for reading bytes. Links are followed.

    Raises:
        NotRegularError: it is a folder, pipe, device or socket, or lies under /proc or /sys.
        OSError: it is not there, or may not be read.
    """
    _refuse(path, path.stat().st_mode)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # put there since, a pipe must not block
    try:
        _refuse(path, os.fstat(descriptor).st_mode)
        os.set_blocking(descriptor, True)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_text(path: Path, most: int = MOST_TEXT) -> str:
    """Reads a small UTF-8 file, with `\\n` as line ends.

    Raises:
        NotRegularError, OSError: as above.
        TooLargeError: it has more than `most` bytes.
        UnicodeDecodeError: it is no UTF-8.
    """
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise TooLargeError(
            f"the file has more than {most // 1_000_000} MB, the most that is read here",
            file=str(path),
            hint="name the right file, or make it smaller",
            rule="data-file-size",
        )
    return content.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")


def not_regular(path: Path) -> str | None:
    """The kind of file at a path in words, None for a regular file. Raises OSError if nothing is there."""
    return _kind(path, path.stat().st_mode)


def _kind(path: Path, mode: int) -> str | None:
    if not stat.S_ISREG(mode):
        return _KINDS.get(stat.S_IFMT(mode), "no file")
    return "a view of the system" if os.path.realpath(path).startswith(("/proc/", "/sys/")) else None


def _refuse(path: Path, mode: int) -> None:
    kind = _kind(path, mode)
    if kind is not None:
        raise NotRegularError(
            f"is {kind}, and only regular files are read",
            file=str(path),
            hint="write what is to be read into a file, and name that",
            rule="data-not-regular",
        )
