"""Stage `shrink`: a competition folder in, a copy at 1/2, 1/4 or 1/8 out, for a slow link to a rented GPU.

Images are decoded at that scale and packed again, as progressive JPEGs: at quality 30 they are a sixth smaller than
others of the same pixels, and take twice as long to decode. The masks are copied as full-size run lengths, so that a
network trained on the copy is still evaluated at full size. `shrink.json` tells later stages the scale.
"""
import json
import os
import pathlib
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import cv2

from pipeline.data.competition import Competition, FileMasks, ImageSet
from pipeline.data.csv_table import find_table
from pipeline.data.dataset import competition_of
from pipeline.data.zip_reader import ARCHIVE_DATE
from pipeline.runtime.files import locked, replacing, write_json
from pipeline.runtime.problem import Problem
from pipeline.runtime.progress import progress

SOLUTION = "solution.csv"
LEFT_BY_A_KILL = (".lock", ".shrink.json.draft")  # before shrink.json is there


def main(
    folder: pathlib.Path, out: pathlib.Path, scale: int, quality: int, train_only: bool = False, kind: str = "carvana"
) -> None:
    """Copy `folder` to `out` at 1/scale.

    quality: of the new JPEGs, 1 to 100. train_only: leave the test images out, with the tables that belong to them.
    kind: `data.kind`, a competition.
    """
    competition = competition_of(kind)
    if out.resolve() == folder.resolve():
        raise Problem(f"The copy of {folder} needs a folder of its own; name another with OUT=.")
    if not 1 <= quality <= 100:
        raise Problem(f"The JPEG quality is {quality}, but it must lie between 1 and 100.")
    marker = {"scale": scale, "quality": quality, "from": folder.name} | ({"train_only": True} if train_only else {})
    marker_path = out / "shrink.json"
    if marker_path.is_file() and marker_path.read_text() == json.dumps(marker, indent=2) + "\n":
        print(f"{out} is there already, at 1/{scale}.")
        return
    if not marker_path.is_file() and out.is_dir() and any(path.name not in LEFT_BY_A_KILL for path in out.iterdir()):
        raise Problem(f"{out} holds other files; name a new or empty folder with OUT=.")
    with locked(out / ".lock", f"{out} is being made by another process; wait until it is done."):
        write_json(marker_path, marker | {"whole": False})  # so that an interrupted copy is begun again
        for name in (competition.train_set, *([] if train_only else [competition.test_set])):
            pack(competition.open_images(folder, name), out / f"{name}.zip", scale, quality)
        of_test_set = (competition.sample_table, SOLUTION)
        for name in (*competition.tables, SOLUTION):
            table = find_table(folder, name)
            if table is not None and name != competition.mask_table and not (train_only and name in of_test_set):
                with replacing(out / table.name) as draft:
                    shutil.copyfile(table, draft)
        copy_masks(folder, out, competition)
        write_json(marker_path, marker)
    size_mb = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    print(f"{out}: {folder} at 1/{scale}, {size_mb:.0f} MB.")


def copy_masks(folder: pathlib.Path, out: pathlib.Path, competition: Competition) -> None:
    """Write the masks as a packed table of run lengths, from such a table or from mask files.

    A competition whose masks are files alone keeps them, packed in one archive.
    """
    name = competition.mask_table
    table = find_table(folder, name) if name else None
    if table is not None and table.suffix == ".zip":
        with replacing(out / table.name) as draft:
            shutil.copyfile(table, draft)
    elif table is not None:
        write_packed(out / f"{name}.zip", {name: [table.read_bytes()]})
    elif name:
        lines = (line.encode() for line in mask_lines(FileMasks(folder, competition)))
        write_packed(out / f"{name}.zip", {name: lines})
    else:
        files, mask_set = FileMasks(folder, competition).files, competition.mask_set
        write_packed(out / f"{mask_set}.zip", {f"{mask_set}/{each}": [files.read(each)] for each in files.names})


def write_packed(path: pathlib.Path, chunks_of_member: dict[str, Iterable[bytes]]) -> None:
    """Write a zip archive of these members."""
    with replacing(path) as draft, zipfile.ZipFile(draft, "w") as archive:
        for name, chunks in chunks_of_member.items():
            member = zipfile.ZipInfo(name, ARCHIVE_DATE)
            member.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(member, "w") as file:
                for chunk in chunks:
                    file.write(chunk)


def mask_lines(masks: FileMasks) -> Iterator[str]:
    """Yield the lines of the table of run lengths of masks from image files."""
    yield ",".join(masks.competition.submission_header) + "\n"
    for name in progress(masks.names, "masks"):
        yield f"{name},{masks.competition.encode(masks.read(name))}\n"


def pack(images: ImageSet, archive_path: pathlib.Path, scale: int, quality: int) -> None:
    """Write images at 1/scale into a zip archive, in the order of their names."""
    suffix = images.competition.image_suffix
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_PROGRESSIVE, 1] if suffix == ".jpg" else []

    def encode(name: str) -> bytes:
        bgr = cv2.cvtColor(images.read(name, scale), cv2.COLOR_RGB2BGR)
        return cv2.imencode(suffix, bgr, options)[1].tobytes()

    chunks = [images.names[i : i + 64] for i in range(0, len(images.names), 64)]
    with ThreadPoolExecutor(os.cpu_count()) as pool, replacing(archive_path) as draft:
        with zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED) as archive:
            for chunk in progress(chunks, archive_path.name, unit="64 images"):
                for name, data in zip(chunk, pool.map(encode, chunk)):
                    member = f"{archive_path.stem}/{images.competition.image_file(name)}"
                    archive.writestr(zipfile.ZipInfo(member, ARCHIVE_DATE), data)
