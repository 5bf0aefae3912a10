"""Masks to a submission, each row proven before it is written."""
import gzip
import io
import pathlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from pipeline.files import replacing
from pipeline.masks import rle


def write(path: pathlib.Path, header: tuple[str, str], masks: Iterable[tuple[str, NDArray[np.bool_]]]) -> int:
    """Write `name, mask` pairs as a gzipped CSV, in their order; return the number of rows.

    The file appears under its name when it is whole. The same masks give the same bytes: the gzip header
    carries neither a time nor a name.
    """
    rows = 0
    with (
        replacing(path) as draft,
        open(draft, "wb") as file,
        gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="ascii", newline="") as text,
    ):
        text.write(",".join(header) + "\n")
        for name, mask in masks:
            text.write(f"{name},{proven_text(mask)}\n")
            rows += 1
    return rows


def proven_text(mask: NDArray[np.bool_]) -> str:
    """The run lengths of a mask (height, width), decoded again and compared."""
    text = rle.encode(mask)
    if not np.array_equal(rle.decode(text, *mask.shape), mask):
        raise AssertionError("run lengths do not decode to the mask that they were made of; this is a bug")
    return text
