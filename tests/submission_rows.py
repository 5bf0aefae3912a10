"""Rows of a small submission, for tests that write, check and score one."""
import gzip
import pathlib
import tempfile
import zipfile
from collections.abc import Iterable

import numpy as np

from pipeline import carvana
from pipeline.submission import checks, writer

HEADER = carvana.CARVANA.submission_header
NAMES = [carvana.image_name("0004d4463b50", angle) for angle in carvana.ANGLE_CODES[:6]]
PIXELS = carvana.WIDTH_PX * carvana.HEIGHT_PX
CAR = f"{PIXELS // 3} {PIXELS // 5}"  # a run over a fifth of the image
Rows = list[list[str]]


def check(path: pathlib.Path, names: list[str]) -> float:
    """Check a submission without training masks; return the mean coverage."""
    return checks.check(path, names, carvana.CARVANA).mean_coverage


def good_rows() -> Rows:
    return [list(HEADER)] + [[name, CAR] for name in NAMES]


def write(path: pathlib.Path, header: tuple[str, str], masks: Iterable[tuple[str, np.ndarray]]) -> None:
    """Write a submission from one shard of all masks."""
    with tempfile.TemporaryDirectory() as folder:
        shard = pathlib.Path(folder) / "all.gz"
        writer.write_shard(shard, ((name, writer.verified_rle(mask)) for name, mask in masks))
        writer.join_shards([shard], path, header)


def text_of(rows: Rows) -> str:
    return "".join(",".join(row) + "\n" for row in rows)


def save(path: pathlib.Path, rows: Rows) -> pathlib.Path:
    """Write rows as .csv, .csv.gz or .csv.zip, by the name."""
    data = text_of(rows).encode()
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(data))
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(path.stem, data)
    else:
        path.write_bytes(data)
    return path
