"""Text files, plain or compressed, as blocks of text in bounded memory. Decompression releases the GIL."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from recsys_opt.errors import InputError, RecsysOptError

Compression = Literal["none", "gzip", "zstd"]

_MAGIC: dict[bytes, Compression] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_SUFFIXES: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd"}
_READ_BYTES = 1 << 20
_BLOCK_BYTES = 1 << 20
# zstd hands out all that its input holds, up to some 40,000 times more: small inputs bound the blocks.
_ZSTD_READ_BYTES = 1 << 14


def compression_of(path: Path) -> Compression:
    """From the first bytes; a name that promises a compression the bytes lack is an error."""
    try:
        with open(path, "rb") as f:
            head = f.read(4)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    kinds = [kind for magic, kind in _MAGIC.items() if head.startswith(magic)]
    found = kinds[0] if kinds else "none"
    named = _SUFFIXES.get(path.suffix, "none")
    if named != "none" and found != named:
        what = (
            "is empty" if not head else f"begins with the bytes {head.hex(' ')}, which no {named} file does"
        )
        raise InputError(f"{path} {what}; fetch the file again, or rename it if it is plain text")
    return found


def text_blocks(path: Path, advance: Callable[[int], None] = lambda _: None) -> Iterator[bytes]:
    """The text of a file, block by block; `advance` is told the bytes of the file itself as they are read."""
    compression = compression_of(path)
    try:
        with open(path, "rb") as f:
            size = _ZSTD_READ_BYTES if compression == "zstd" else _READ_BYTES

            def read() -> bytes:
                block = f.read(size)
                advance(len(block))
                return block

            if compression == "gzip":
                yield from _gunzip(path, read)
            elif compression == "zstd":
                yield from _unzstd(path, read)
            else:
                while block := read():
                    yield block
    except OSError as error:
        raise RecsysOptError(f"cannot read {path}: {error.strerror}") from error


def _gunzip(path: Path, read: Callable[[], bytes]) -> Iterator[bytes]:
    stream = zlib.decompressobj(wbits=31)
    fresh = True  # no byte of the current member seen yet
    while data := read():
        while data:
            if stream.eof:
                # A file may hold several members, and zero padding after the last one.
                data = data.lstrip(b"\0")
                if not data:
                    break
                stream, fresh = zlib.decompressobj(wbits=31), True
            try:
                block = stream.decompress(data, _BLOCK_BYTES)
            except zlib.error as error:
                raise _damaged(path, "gzip", str(error)) from None
            fresh = False
            data = stream.unused_data if stream.eof else stream.unconsumed_tail
            if block:
                yield block
    while not stream.eof and (block := stream.decompress(b"", _BLOCK_BYTES)):
        yield block
    if fresh or not stream.eof:
        raise _truncated(path, "gzip")


def _unzstd(path: Path, read: Callable[[], bytes]) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError:
        raise InputError(f"reading {path} needs the zstandard package: pip install zstandard") from None
    decompressor = zstandard.ZstdDecompressor()
    stream: Any = None
    while data := read():
        while data:
            if stream is None:
                stream = decompressor.decompressobj()
            try:
                block = stream.decompress(data)
            except zstandard.ZstdError as error:
                raise _damaged(path, "zstd", str(error)) from None
            if block:
                yield block
            if not stream.eof:
                break
            data, stream = stream.unused_data, None
    if stream is not None:
        raise _truncated(path, "zstd")


def _truncated(path: Path, kind: str) -> InputError:
    return InputError(
        f"{path} is truncated: its {kind} stream stops after {path.stat().st_size} bytes, before its end "
        "mark; fetch the file again"
    )


def _damaged(path: Path, kind: str, what: str) -> InputError:
    return InputError(f"{path} is damaged: its {kind} stream cannot be read ({what}); fetch the file again")
