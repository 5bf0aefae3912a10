"""Stage `shrink`: a competition folder in, a light copy at 1/2, 1/4 or 1/8 out, for a slow link to a rented GPU.

Pictures are decoded at that scale and packed again; the masks travel as full-size run lengths, so that a
network trained on the copy is still judged at full size. `shrink.json` tells the later stages.
"""
import json
import os
import pathlib
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor

import cv2

from pipeline import carvana
from pipeline.data import competition
from pipeline.data.zip_reader import find_table
from pipeline.data.competition import ImageSet
from pipeline.runtime.files import locked, replacing, write_json
from pipeline.masks import rle
from pipeline.runtime.problem import Problem
from pipeline.runtime.progress import progress

TABLES = ("metadata.csv", "train_masks.csv", "sample_submission.csv", "solution.csv")
LEFT_BY_A_KILL = (".lock", ".shrink.json.draft")  # before shrink.json is there


def main(folder: pathlib.Path, out: pathlib.Path, scale: int, quality: int) -> None:
    """quality: of the new JPEGs, 1 to 100."""
    if out.resolve() == folder.resolve():
        raise Problem(f"The copy of {folder} needs a folder of its own; name another with OUT=.")
    if not 1 <= quality <= 100:
        raise Problem(f"The JPEG quality is {quality}, but it must lie between 1 and 100.")
    marker = {"scale": scale, "quality": quality, "from": folder.name}
    about = out / "shrink.json"
    if about.is_file() and about.read_text() == json.dumps(marker, indent=2) + "\n":
        print(f"{out} is there already, at 1/{scale}.")
        return
    if not about.is_file() and out.is_dir() and any(path.name not in LEFT_BY_A_KILL for path in out.iterdir()):
        raise Problem(f"{out} holds other files; name a new or empty folder with OUT=.")
    with locked(out / ".lock", f"{out} is being made by another process; wait until it is done."):
        write_json(about, marker | {"whole": False})  # so that a copy that was cut off is begun again
        for name in ("train", "test"):
            pack(ImageSet(folder, name), out / f"{name}.zip", scale, quality)
        for name in TABLES:
            table = find_table(folder, name)
            if table is not None:
                with replacing(out / table.name) as draft:
                    shutil.copyfile(table, draft)
        if find_table(folder, "train_masks.csv") is None:
            write_masks(competition.GifMasks(folder), out / "train_masks.csv")
        write_json(about, marker)
    size_mb = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    print(f"{out}: {folder} at 1/{scale}, {size_mb:.0f} MB.")


def write_masks(masks: competition.GifMasks, path: pathlib.Path) -> None:
    """The GIFs as the table of run lengths that Kaggle serves too."""
    with replacing(path) as draft, open(draft, "w") as file:
        file.write(",".join(carvana.SUBMISSION_HEADER) + "\n")
        for name in progress(masks.names, path.name):
            file.write(f"{name},{rle.encode(masks.read(name))}\n")


def pack(pictures: ImageSet, archive_path: pathlib.Path, scale: int, quality: int) -> None:
    """Write pictures at 1/scale into a zip archive, in the order of their names."""

    def encode(name: str) -> bytes:
        bgr = cv2.cvtColor(pictures.read(name, scale), cv2.COLOR_RGB2BGR)
        return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()

    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        replacing(archive_path) as draft,
        zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED) as archive,
    ):
        chunks = [pictures.names[i : i + 64] for i in range(0, len(pictures.names), 64)]
        for chunk in progress(chunks, archive_path.name, unit="64 pictures"):
            for name, data in zip(chunk, pool.map(encode, chunk)):
                archive.writestr(zipfile.ZipInfo(f"{archive_path.stem}/{name}", carvana.ARCHIVE_DATE), data)
