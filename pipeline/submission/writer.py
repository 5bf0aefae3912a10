"""Masks to a submission, each row proven before it is written, at once or in parts.

`write` makes the file in one go. `write_shard` and `join` make the same bytes by way of parts that outlive a kill,
as long as each part but the last has a multiple of `ROWS_PER_BLOCK` rows.
"""
import pathlib
import zlib
from collections.abc import Iterable, Iterator
from typing import IO

import numpy as np
from numpy.typing import NDArray

from pipeline.masks import rle
from pipeline.runtime.files import replacing
from pipeline.runtime.problem import Problem
from pipeline.runtime.progress import batches, in_order

ROWS_PER_BLOCK = 256  # some 2 MB of text
Row = tuple[str, str]  # the name of a picture and its run lengths


def write(path: pathlib.Path, header: tuple[str, str], masks: Iterable[tuple[str, NDArray[np.bool_]]]) -> int:
    """Write `name, mask` pairs as a gzipped CSV, in their order; return the number of rows.

    The file appears under its name when it is whole. The same masks give the same bytes: the gzip header
    carries neither a time nor a name.
    """
    with replacing(path) as draft, open(draft, "wb") as file:
        return write_rows(file, header, verified_rows(masks))


def write_shard(path: pathlib.Path, rows: Iterable[Row]) -> int:
    """Write some rows, and no header, for `join`; return their number. The file appears when it is whole.

    rows: (name, run lengths), proven beforehand, as `verified_rows` gives them.
    """
    with replacing(path) as draft, open(draft, "wb") as file:
        return write_rows(file, None, rows)


def join(shards: Iterable[pathlib.Path], path: pathlib.Path, header: tuple[str, str]) -> None:
    """Write the submission whose rows are those of the parts, in order; the checksum of each is compared.

    Raises Problem for a part that is missing or damaged.
    """
    with replacing(path) as draft, open(draft, "wb") as file:
        submission = GzipOfBlocks(file)
        submission.add(text := line_of(header), pack(text))
        for shard in shards:
            try:
                submission.add(*blocks_of(shard.read_bytes()))
            except (OSError, zlib.error):
                raise Problem(f"The part {shard} is missing or damaged; delete it and predict again.") from None
        submission.end()


def verified_rows(masks: Iterable[tuple[str, NDArray[np.bool_]]]) -> Iterator[Row]:
    """(name, mask (height, width)) -> (name, run lengths), each decoded again and compared."""
    return ((name, verified_rle(mask)) for name, mask in masks)


def verified_rle(mask: NDArray[np.bool_], bounds: NDArray[np.int64] | None = None) -> str:
    """The run lengths of a mask (height, width), decoded again and compared.

    bounds: of its runs, as `rle.bounds` gives them, where they are known already.
    """
    bits = rle.bits(mask)
    text = rle.text(rle.bounds_of_bits(bits) if bounds is None else bounds)
    if not rle.is_mask_of(rle.parse(text, mask.size), bits):
        raise AssertionError("run lengths do not decode to the mask that they were made of; this is a bug")
    return text


def write_rows(file: IO[bytes], header: tuple[str, str] | None, rows: Iterable[Row]) -> int:
    """A gzip file of the header, if any, and the rows; return the number of rows."""
    packed, count = GzipOfBlocks(file), 0
    if header:
        packed.add(text := line_of(header), pack(text))
    # One thread packs while this one makes rows; more would only fight for the interpreter's lock.
    for rows_in_block, text, block in in_order(packed_block, batches(rows, ROWS_PER_BLOCK), threads=1):
        packed.add(text, block)
        count += rows_in_block
    packed.end()
    return count


def packed_block(rows: list[Row]) -> tuple[int, bytes, bytes]:
    """The number of rows, their text, and the text packed."""
    text = b"".join(map(line_of, rows))
    return len(rows), text, pack(text)


def line_of(fields: tuple[str, str]) -> bytes:
    return f"{fields[0]},{fields[1]}\n".encode("ascii")


# --- gzip ------------------------------------------------------------------------------------------------------------

# A gzip file out of blocks that threads compress, the same bytes whatever their number.
#
# Each block is compressed by itself and ends on a whole byte, so that blocks joined one after another are one deflate
# stream (as in Mark Adler's pigz). One member and not one a block: not every reader goes on behind the first.
# Formats: RFC 1951 (deflate), RFC 1952 (gzip).

# On rows of real masks level 1 packs 75 MB/s of text to 46 %, level 6 packs 10 MB/s to 43 %: 12 s or 90 s a submission.
LEVEL = 1
START = b"\x1f\x8b\x08" + bytes(6) + b"\xff"  # deflate; no name, no time, of no system
LAST_BLOCK = b"\x03\x00"  # an empty one that says so
TRAILER_BYTES = len(LAST_BLOCK) + 8


def pack(text: bytes) -> bytes:
    """One block: deflate that looks at nothing before it, and that any other block may follow."""
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(text) + packer.flush(zlib.Z_SYNC_FLUSH)


def blocks_of(packed_file: bytes) -> tuple[bytes, bytes]:
    """The text and the blocks of a whole file that `GzipOfBlocks` wrote. Raises zlib.error when it is damaged."""
    text = zlib.decompress(packed_file, wbits=16 + zlib.MAX_WBITS)
    return text, packed_file[len(START) : -TRAILER_BYTES]


class GzipOfBlocks:
    """`add` the blocks in order, then `end`."""

    def __init__(self, file: IO[bytes]):
        self.file, self.crc, self.length_bytes = file, 0, 0
        file.write(START)

    def add(self, text: bytes, blocks: bytes) -> None:
        """blocks: `pack(text)`, or several of them joined."""
        self.file.write(blocks)
        self.crc = zlib.crc32(text, self.crc)
        self.length_bytes += len(text)

    def end(self) -> None:
        length = self.length_bytes % 2**32
        self.file.write(LAST_BLOCK + self.crc.to_bytes(4, "little") + length.to_bytes(4, "little"))
