"""Masks to a gzipped CSV, each row decoded again and compared before it is written, in shards that survive a kill.

However the rows are split into shards, the joined file has the same bytes, as long as each shard but the last has a
multiple of `ROWS_PER_BLOCK` rows. The header holds neither a time nor a name.

The gzip file consists of blocks that are compressed by themselves, by another thread or in another process. Each ends
on a whole byte, so that blocks one after another are one deflate stream (as in Mark Adler's pigz). It is one gzip
member rather than one per block, since not every reader continues after the first member.
Formats: RFC 1951 (deflate), RFC 1952 (gzip).
"""
import pathlib
import zlib
from collections.abc import Iterable
from typing import IO

import numpy as np
from numpy.typing import NDArray

from pipeline.masks import rle
from pipeline.runtime.files import replacing
from pipeline.runtime.problem import Problem
from pipeline.runtime.progress import batches, in_order

ROWS_PER_BLOCK = 256  # some 2 MB of text
# On rows of real masks level 1 packs 75 MB/s of text to 46 %, level 6 packs 10 MB/s to 43 %: 12 s or 90 s a submission.
COMPRESSION_LEVEL = 1
GZIP_HEADER = b"\x1f\x8b\x08" + bytes(6) + b"\xff"  # deflate; no file name, no time, unknown operating system
LAST_BLOCK = b"\x03\x00"  # an empty block with the flag that no other follows
TRAILER_BYTES = len(LAST_BLOCK) + 8
Row = tuple[str, str]  # name of an image and its run lengths


def write_shard(path: pathlib.Path, rows: Iterable[Row]) -> int:
    """Write rows without a header, for `join_shards`; return their number. The file appears when it is whole."""
    count = 0
    with replacing(path) as draft, open(draft, "wb") as file:
        gzip_file = BlockGzipWriter(file)
        # One thread compresses while this one makes rows; more would only compete for the interpreter's lock.
        for rows_in_block, text, block in in_order(compress_rows, batches(rows, ROWS_PER_BLOCK), threads=1):
            gzip_file.add(text, block)
            count += rows_in_block
        gzip_file.end()
    return count


def join_shards(shards: Iterable[pathlib.Path], path: pathlib.Path, header: tuple[str, str]) -> None:
    """Write the submission that has the rows of all shards, in order, after comparing the checksum of each.

    Raises Problem for a shard that is missing or damaged.
    """
    with replacing(path) as draft, open(draft, "wb") as file:
        submission = BlockGzipWriter(file)
        submission.add(text := csv_line(header), compress(text))
        for shard in shards:
            try:
                submission.add(*read_blocks(shard.read_bytes()))
            except (OSError, zlib.error):
                raise Problem(f"The shard {shard} is missing or damaged; delete it and predict again.") from None
        submission.end()


# --- rows ------------------------------------------------------------------------------------------------------------


def verified_rle(mask: NDArray[np.bool_], bounds: NDArray[np.int64] | None = None) -> str:
    """Return the run lengths of a mask (height, width), decoded again and compared.

    bounds: of the mask's runs, as `rle.bounds` gives them, if they are known already.
    """
    bits_u64 = rle.bits(mask)
    text = rle.text(rle.bounds_of_bits(bits_u64) if bounds is None else bounds)
    if not rle.bounds_match_bits(rle.parse(text, mask.size), bits_u64):
        raise AssertionError("run lengths do not decode to the mask that they were made of; this is a bug")
    return text


def compress_rows(rows: list[Row]) -> tuple[int, bytes, bytes]:
    """Return the number of rows, their text, and the text as a deflate block."""
    text = b"".join(map(csv_line, rows))
    return len(rows), text, compress(text)


def csv_line(fields: tuple[str, str]) -> bytes:
    return f"{fields[0]},{fields[1]}\n".encode("ascii")


# --- gzip ------------------------------------------------------------------------------------------------------------


def compress(text: bytes) -> bytes:
    """Return a deflate block that refers to nothing before it and that any other block may follow."""
    compressor = zlib.compressobj(COMPRESSION_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    return compressor.compress(text) + compressor.flush(zlib.Z_SYNC_FLUSH)


def read_blocks(gzip_bytes: bytes) -> tuple[bytes, bytes]:
    """Return the text and the blocks of a file that `BlockGzipWriter` wrote. Raises zlib.error if it is damaged."""
    text = zlib.decompress(gzip_bytes, wbits=16 + zlib.MAX_WBITS)
    return text, gzip_bytes[len(GZIP_HEADER) : -TRAILER_BYTES]


class BlockGzipWriter:
    """A gzip file: `add` the blocks in order, then `end`."""

    def __init__(self, file: IO[bytes]):
        self.file, self.crc, self.length_bytes = file, 0, 0
        file.write(GZIP_HEADER)

    def add(self, text: bytes, blocks: bytes) -> None:
        """blocks: `compress(text)`, or several of them joined."""
        self.file.write(blocks)
        self.crc = zlib.crc32(text, self.crc)
        self.length_bytes += len(text)

    def end(self) -> None:
        length = self.length_bytes % 2**32
        self.file.write(LAST_BLOCK + self.crc.to_bytes(4, "little") + length.to_bytes(4, "little"))
