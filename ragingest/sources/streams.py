"""Bytes of a file or of standard input, decompressed as they come, in bounded memory."""

from __future__ import annotations

import bz2
import hashlib
import lzma
import os
import select
import stat
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol

from ragingest.errors import TerminalError, UsageError
from ragingest.protocols import PartInfo

__all__ = [
    "COMPRESSIONS",
    "ByteStream",
    "FileStream",
    "compression_of",
    "identify",
    "open_file",
    "open_stdin",
    "same_content",
]

READ_BYTES = 256 * 1024
# A decoder that fails keeps back what this call had decoded: so each call is asked for little.
STEP_BYTES = 16 * 1024
ZLIB_INPUT_BYTES = 4 * 1024
# A zstd block of 4 bytes can stand for 128 KiB, and its decoder cannot be told to stop half-way.
ZSTD_INPUT_BYTES = 32
SAMPLE_BYTES = 64 * 1024
STDIN_POLL_SECONDS = 0.2

COMPRESSIONS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}


class ByteStream(Protocol):
    """Bytes in order. `consumed` counts those of the file itself, compressed if it is."""

    @property
    def consumed(self) -> int: ...

    def read(self) -> bytes:
        """Some bytes, at most about a megabyte; b"" at the end.

        Raises:
            TerminalError: the file broke here. What could be read before the break has been returned
                (of a compressed file whose bytes were changed, all but the last 16 KiB).
        """
        ...

    def close(self) -> None: ...


class FileStream(ByteStream, Protocol):
    """The bytes of a regular file."""

    def check(self, part: PartInfo) -> None:
        """At the end: see that what was read is the file that `part` tells of, perhaps with more behind it.

        Raises:
            TerminalError: it was changed meanwhile, so that nobody knows what was read.
        """
        ...


class _Decompressor(Protocol):
    """One compressed member; the shape that bz2 and lzma share."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _Fed:
    """Keeps the input of a decoder that takes it in pieces."""

    def __init__(self) -> None:
        self._input = b""
        self._at = 0

    def _feed(self, data: bytes) -> None:
        if data:
            self._input, self._at = self._input[self._at :] + data, 0

    def _piece(self, size: int) -> bytes:
        piece = self._input[self._at : self._at + size]
        self._at += len(piece)
        return piece

    @property
    def _rest(self) -> bytes:
        return self._input[self._at :]

    @property
    def _used_up(self) -> bool:
        return self._at >= len(self._input)


class _Zlib(_Fed):
    """gzip by zlib."""

    def __init__(self) -> None:
        super().__init__()
        self._object = zlib.decompressobj(wbits=31)
        self.needs_input = True

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        self._feed(data)
        piece = self._object.unconsumed_tail or self._piece(ZLIB_INPUT_BYTES)
        out = self._object.decompress(piece, max_length)
        self.needs_input = self._used_up and not self._object.unconsumed_tail and len(out) < max_length
        return out

    @property
    def eof(self) -> bool:
        return self._object.eof

    @property
    def unused_data(self) -> bytes:
        return self._object.unused_data + self._rest


class _Zstd(_Fed):
    """One zstd frame, fed in pieces so small that a bomb cannot unfold far at once."""

    def __init__(self) -> None:
        try:
            import zstandard
        except ImportError:
            raise UsageError("reading .zst needs the package zstandard", "pip install zstandard") from None
        super().__init__()
        self._object = zstandard.ZstdDecompressor().decompressobj()
        self.needs_input = True

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        self._feed(data)
        out = self._object.decompress(self._piece(ZSTD_INPUT_BYTES))
        self.needs_input = self._used_up
        return out

    @property
    def eof(self) -> bool:
        return bool(self._object.eof)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._object.unused_data) + self._rest


_DECOMPRESSORS: dict[str, Callable[[], _Decompressor]] = {
    "gzip": _Zlib,
    "bzip2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ),
    "zstd": _Zstd,
}


class _Plain:
    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name
        self.consumed = 0

    def seek(self, offset: int) -> None:
        self._file.seek(offset)
        self.consumed = offset

    def read(self) -> bytes:
        try:
            data = self._file.read(READ_BYTES)
        except OSError as error:
            raise _unreadable(self._name, error) from None
        self.consumed += len(data)
        return data

    def check(self, part: PartInfo) -> None:
        before = part.size or 0
        try:
            found = os.fstat(self._file.fileno())
            if found.st_mtime_ns == part.mtime_ns and found.st_size == before:
                return
            grown = found.st_size > before and _samples(self._file, before) == part.digest
        except OSError as error:
            raise _unreadable(self._name, error) from None
        if not grown:
            raise TerminalError(
                f"{self._name} was changed while it was read",
                "resume once nobody writes it: it is read from its start, and the ledger says what is stored already",
            )

    def close(self) -> None:
        self._file.close()


class _Decompressed:
    """Members one after the other, as `cat a.gz b.gz` makes them."""

    def __init__(self, raw: FileStream, kind: str, name: str) -> None:
        self._raw = raw
        self._kind = kind
        self._name = name
        self._new = _DECOMPRESSORS[kind]
        self._member = self._new()
        self._input = b""
        self._started = False
        self._broken: Exception | None = None

    @property
    def consumed(self) -> int:
        return self._raw.consumed

    def read(self) -> bytes:
        pieces: list[bytes] = []
        size = 0
        while size < READ_BYTES:
            if self._broken or self._member.eof or (self._member.needs_input and not self._input):
                if pieces:
                    break
                if not self._go_on():
                    return b""
            piece, self._input = self._input, b""
            try:
                out = self._member.decompress(piece, STEP_BYTES)
            except (zlib.error, OSError, EOFError, lzma.LZMAError, RuntimeError) as error:
                self._broken = error
                continue
            except Exception as error:
                if type(error).__module__.partition(".")[0] != "zstandard":
                    raise
                self._broken = error
                continue
            self._started = True
            if out:
                pieces.append(out)
                size += len(out)
        return b"".join(pieces)

    def _go_on(self) -> bool:
        """Get the input that the member needs, or begin the next member; False at the end."""
        if self._broken:
            raise self._break(str(self._broken))
        if self._member.eof:
            # Padding with zeros is allowed between members and behind the last one.
            self._input = self._member.unused_data.lstrip(b"\0")
            while not self._input:
                data = self._raw.read()
                if not data:
                    return False
                self._input = data.lstrip(b"\0")
            self._member, self._started = self._new(), False
            return True
        self._input = self._raw.read()
        if not self._input:
            if not self._started and self._raw.consumed == 0:
                return False
            raise self._break("it ends in the middle: the file was cut")
        return True

    def _break(self, why: str) -> TerminalError:
        return TerminalError(
            f"{self._name} is broken near byte {self._raw.consumed:,} of the {self._kind} file: {why}",
            "every record before that point is kept; replace the file and run the same command again",
        )

    def check(self, part: PartInfo) -> None:
        self._raw.check(part)

    def close(self) -> None:
        self._raw.close()


class StdinStream:
    """Standard input, which a stop request can interrupt while it waits."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._stopped = threading.Event()
        self._waits = _can_poll(handle)
        self.consumed = 0

    def stop(self) -> None:
        self._stopped.set()

    def read(self) -> bytes:
        while self._waits and not self._stopped.is_set():
            if select.select([self._handle], [], [], STDIN_POLL_SECONDS)[0]:
                break
        if self._stopped.is_set():
            return b""
        try:
            data = os.read(self._handle, READ_BYTES)
        except OSError as error:
            raise _unreadable("standard input", error) from None
        self.consumed += len(data)
        return data

    def close(self) -> None:
        self._stopped.set()


def _can_poll(handle: int) -> bool:
    try:
        mode = os.fstat(handle).st_mode
    except OSError:
        return False
    return os.name == "posix" and not stat.S_ISREG(mode)


def compression_of(path: Path) -> str | None:
    """The compression that the file's name tells, if any."""
    return COMPRESSIONS.get(path.suffix.lower())


def open_file(path: Path, offset: int = 0) -> FileStream:
    """Open a regular file, at `offset` unless it is compressed.

    Raises:
        TerminalError: it cannot be read.
        UsageError: its compression needs a package that is not installed.
    """
    try:
        plain = _Plain(path.open("rb", buffering=0), str(path))
    except OSError as error:
        raise _unreadable(str(path), error) from None
    kind = compression_of(path)
    if kind is not None:
        return _Decompressed(plain, kind, str(path))
    plain.seek(offset)
    return plain


def open_stdin() -> StdinStream:
    """Standard input.

    Raises:
        TerminalError: the process was started without one.
    """
    if sys.stdin is None:
        raise TerminalError("standard input is closed", "pipe the records in, or give a file")
    return StdinStream(sys.stdin.fileno())


def identify(path: Path) -> PartInfo:
    """Name, size, mtime and a digest of samples (head, tail) of a file.

    Raises:
        TerminalError: it is missing, is no regular file, or cannot be read.
    """
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise TerminalError(f"{path} is a folder", "give a .jsonl or .json file, or - for standard input")
        if not stat.S_ISREG(found.st_mode):
            raise TerminalError(
                f"{path} is no regular file", f"read it as standard input: ragingest run - < {path}"
            )
        return PartInfo(str(path), found.st_size, found.st_mtime_ns, _samples_of(path, found.st_size))
    except FileNotFoundError:
        raise TerminalError(f"there is no file {path}", "check the path; - reads standard input") from None
    except OSError as error:
        raise _unreadable(str(path), error) from None


def same_content(path: Path, before: PartInfo, current: PartInfo) -> bool:
    """Whether the records that an earlier run saw are still where they were.

    Yes if size and mtime are unchanged, or if the file only grew: it is larger, not compressed, and
    the samples of its first `before.size` bytes are what they were.
    """
    if before.size is None or current.size is None or before.name != current.name:
        return False
    if before.size == current.size:
        return before.mtime_ns == current.mtime_ns and before.digest == current.digest
    if current.size < before.size or compression_of(path) is not None:
        return False
    return _ends_line(path, before.size) and _samples_of(path, before.size) == before.digest


def _ends_line(path: Path, size: int) -> bool:
    with path.open("rb", buffering=0) as file:
        file.seek(max(0, size - 1))
        return size == 0 or file.read(1) == b"\n"


def _samples_of(path: Path, size: int) -> str:
    with path.open("rb", buffering=0) as file:
        return _samples(file, size)


def _samples(file: BinaryIO, size: int) -> str:
    """A digest of the beginning and the end of the first `size` bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for start in (0, max(0, size - SAMPLE_BYTES)):
        file.seek(start)
        digest.update(file.read(min(SAMPLE_BYTES, size - start)))
    return digest.hexdigest()


def _unreadable(name: str, error: OSError) -> TerminalError:
    return TerminalError(f"{name} cannot be read: {error.strerror or error}", "check its path and permissions")
