"""Masks to a submission, each row proven before it is written, at once or in parts.

`write` makes the file in one go. `write_part` and `join` make the same bytes by way of parts that outlive a kill,
as long as each part but the last has a multiple of `ROWS_PER_BLOCK` rows.
"""
import pathlib
import zlib
from collections.abc import Iterable, Iterator
from typing import IO

import numpy as np
from numpy.typing import NDArray

from pipeline.runtime.files import replacing
from pipeline.submission.writer import GzipOfBlocks, blocks_of, pack
from pipeline.masks import rle
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
        return write_rows(file, header, proven_rows(masks))


def write_part(path: pathlib.Path, rows: Iterable[Row]) -> int:
    """Write some rows, and no header, for `join`; return their number. The file appears when it is whole.

    rows: (name, run lengths), proven beforehand, as `proven_rows` gives them.
    """
    with replacing(path) as draft, open(draft, "wb") as file:
        return write_rows(file, None, rows)


def join(parts: Iterable[pathlib.Path], path: pathlib.Path, header: tuple[str, str]) -> None:
    """Write the submission whose rows are those of the parts, in order; the checksum of each is compared.

    Raises Problem for a part that is missing or damaged.
    """
    with replacing(path) as draft, open(draft, "wb") as file:
        submission = GzipOfBlocks(file)
        submission.add(text := line_of(header), pack(text))
        for part in parts:
            try:
                submission.add(*blocks_of(part.read_bytes()))
            except (OSError, zlib.error):
                raise Problem(f"The part {part} is missing or damaged; delete it and predict again.") from None
        submission.end()


def proven_rows(masks: Iterable[tuple[str, NDArray[np.bool_]]]) -> Iterator[Row]:
    """(name, mask (height, width)) -> (name, run lengths), each decoded again and compared."""
    return ((name, proven_text(mask)) for name, mask in masks)


def proven_text(mask: NDArray[np.bool_], bounds: NDArray[np.int64] | None = None) -> str:
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
