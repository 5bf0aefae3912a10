"""The competition folder: its pictures, masks and tables, checked where it is entered.

What can be known without decoding a picture is known here, before hours of training: each training car
has its 16 views, each picture its mask, each car its metadata.
"""
import csv
import io
import pathlib
import zipfile

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline import carvana
from pipeline.data import grouping
from pipeline.data.zip_reader import DAMAGE, LARGEST_TABLE_BYTES, FileSet, check_member, find_table
from pipeline.data.images import coverage, coverage_of_runs, decode_gif_mask, decode_jpeg, grid_shape
from pipeline.runtime.files import read_json
from pipeline.masks import rle
from pipeline.runtime.problem import Problem


LONGEST_FIELD = 2**25  # characters of run lengths; a chequered mask has 12 million


class ImageSet:
    """The pictures of a set such as `train` or `test_hq`."""

    def __init__(self, folder: pathlib.Path, set_name: str):
        self.files = FileSet(folder, set_name, carvana.IMAGE_NAME)
        self.names = self.files.names
        self.stored_scale = stored_scale(folder)
        self.stored_shape = grid_shape(carvana.HEIGHT_PX, carvana.WIDTH_PX, self.stored_scale)

    def read(self, name: str, scale: int) -> NDArray[np.uint8]:
        """RGB uint8 array (rows, columns, 3) at 1/scale of the competition's size."""
        if scale % self.stored_scale:
            raise Problem(
                f"The pictures of {self.files.archive_path.parent} are a copy at 1/{self.stored_scale}, "
                f"but data.scale is {scale}; set it to {self.stored_scale} or a multiple."
            )
        data = self.files.read(name)
        return decode_jpeg(data, scale // self.stored_scale, *self.stored_shape, self.files.where(name))


class CsvMasks:
    """The training masks out of `train_masks.csv`: three times as fast to decode as the GIFs."""

    def __init__(self, table: pd.DataFrame, where: str):
        self.where = where
        self.text_of = dict(zip(table["img"], table["rle_mask"]))
        self.names = sorted(self.text_of)

    def read(self, image_name: str) -> NDArray[np.bool_]:
        """bool array (1280, 1918) of the mask of an image."""
        return rle.fill(self.runs(image_name), carvana.HEIGHT_PX, carvana.WIDTH_PX)

    def coverage(self, image_name: str, scale: int) -> NDArray[np.uint8]:
        """`images.coverage` of the mask of an image, uint8 array (rows, columns) at 1/scale."""
        if scale == 1:  # nothing to average
            return coverage(self.read(image_name), scale)
        return coverage_of_runs(self.runs(image_name), carvana.HEIGHT_PX, carvana.WIDTH_PX, scale)

    def runs(self, image_name: str) -> NDArray[np.int64]:
        """Bounds of the runs, int64 array (runs, 2), as `rle.parse` gives them."""
        try:
            return rle.parse(self.text_of[image_name], carvana.HEIGHT_PX * carvana.WIDTH_PX)
        except ValueError as error:
            raise Problem(f"{self.where}, row {image_name}: {error}.") from None


class GifMasks:
    """The training masks out of `train_masks.zip` or `train_masks/`."""

    def __init__(self, folder: pathlib.Path):
        self.files = FileSet(folder, "train_masks", carvana.MASK_NAME)
        self.where = str(self.files.archive_path)
        self.names = [name.removesuffix("_mask.gif") + ".jpg" for name in self.files.names]

    def read(self, image_name: str) -> NDArray[np.bool_]:
        """bool array (1280, 1918) of the mask of an image."""
        name = carvana.mask_name(image_name)
        return decode_gif_mask(
            self.files.read(name), carvana.HEIGHT_PX, carvana.WIDTH_PX, self.files.where(name)
        )

    def coverage(self, image_name: str, scale: int) -> NDArray[np.uint8]:
        """`images.coverage` of the mask of an image, uint8 array (rows, columns) at 1/scale."""
        return coverage(self.read(image_name), scale)


Masks = CsvMasks | GifMasks


class Carvana:
    """The training set as a `data.dataset.SegmentationDataset`, checked. hq: the pictures with less JPEG compression."""

    height, width, channels = carvana.HEIGHT_PX, carvana.WIDTH_PX, 3
    classes: tuple[str, ...] = ()
    fingerprint = ""  # the competition's data are the same for everybody

    def __init__(self, folder: pathlib.Path, hq: bool):
        self.where = str(folder)
        self.pictures = ImageSet(folder, "train_hq" if hq else "train")
        self.masks = open_masks(folder)
        make_of_car = read_makes(folder)
        self.make_of_car = {car: make_of_car[car] for car in check_training_set(self.pictures, self.masks, make_of_car)}
        self.names, self.stored_scale = self.pictures.names, self.pictures.stored_scale

    def read(self, name: str, scale: int) -> NDArray[np.uint8]:
        return self.pictures.read(name, scale)

    def target(self, name: str, scale: int) -> NDArray[np.uint8]:
        return self.masks.coverage(name, scale)

    def truth(self, name: str) -> NDArray[np.bool_]:
        return self.masks.read(name)

    def folds(self, count: int) -> pd.DataFrame:
        return grouping.assign_cars(self.make_of_car, count)


def open_masks(folder: pathlib.Path) -> Masks:
    """The run lengths where they are there, else the GIFs; on Kaggle's data they are the same masks."""
    if path := find_table(folder, "train_masks.csv"):
        return CsvMasks(read_table(folder, "train_masks.csv", carvana.SUBMISSION_HEADER), where=str(path))
    return GifMasks(folder)


def read_makes(folder: pathlib.Path) -> dict[str, str]:
    """Make of each car in `metadata.csv`, as spelt there; "" where it is not known."""
    table = read_table(folder, "metadata.csv", ("id", "make"))
    return dict(zip(table["id"], table["make"]))


def check_training_set(pictures: ImageSet, masks: Masks, make_of_car: dict[str, str]) -> list[str]:
    """The training cars, sorted; Problem when a view, a mask or a car's metadata is missing."""
    names = set(pictures.names)
    cars = sorted({carvana.car_of(name) for name in names})
    for car in cars:
        for view in carvana.ANGLE_CODES:
            if carvana.image_name(car, view) not in names:
                raise Problem(
                    f"{pictures.files.archive_path}: car {car} has no view {view}, "
                    f"but a car has {carvana.ANGLES}; download it again."
                )
    if without := sorted(names - set(masks.names)):
        raise Problem(f"{masks.where} lacks {len(without)} masks, the first that of {without[0]}; download it again.")
    if without := [car for car in cars if car not in make_of_car]:
        raise Problem(
            f"metadata.csv lacks {len(without)} cars of {pictures.files.archive_path}, the first is {without[0]}; "
            "download both again."
        )
    return cars


def stored_scale(folder: pathlib.Path) -> int:
    """1, or the scale at which the stage `shrink` copied the pictures."""
    marker = folder / "shrink.json"
    if not marker.is_file():
        return 1
    try:
        scale = read_json(marker)["scale"]
    except (ValueError, KeyError, TypeError, OSError):
        scale = None
    if scale not in (2, 4, 8):
        raise Problem(f"{marker} is damaged; make the copy again with `make shrink`.")
    return scale


def read_table(folder: pathlib.Path, name: str, columns: tuple[str, ...], empty: bool = False) -> pd.DataFrame:
    """A CSV table, all columns as text: the car `331659860e11` is no number.

    Raises Problem when the table is missing, damaged, lacks one of `columns`, or has it twice; or has no row, unless
    `empty` says that it may.
    """
    path = find_table(folder, name)
    if path is None:
        raise Problem(
            f"{folder} holds neither {name} nor {name}.zip; "
            "run `make download`, or name the competition's folder with DATA=."
        )
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                check_member(archive.getinfo(name), LARGEST_TABLE_BYTES)
                data = archive.read(name)
        elif path.stat().st_size > LARGEST_TABLE_BYTES:
            raise Problem(f"{path} has {path.stat().st_size:,} bytes, more than any table of this competition.")
        else:
            data = path.read_bytes()
        rows = rows_of(data, path)
    except KeyError:
        raise Problem(f"{path} has no member {name}; download it again.") from None
    except (*DAMAGE, csv.Error) as error:
        raise Problem(f"{path} cannot be read as a table ({' '.join(str(error).split())[:200]}).") from None
    if twice := [column for column in columns if rows[0].count(column) > 1]:
        raise Problem(f"{path}, line 1: the column {twice[0]} stands there twice; download it again.")
    table = pd.DataFrame(rows[1:], columns=rows[0], dtype=str)
    if missing := [column for column in columns if column not in table.columns]:
        raise Problem(f"{path} has no column {missing[0]}; its first line is {','.join(table.columns)[:80]}.")
    if len(table) == 0 and not empty:
        raise Problem(f"{path} has no row below its first line; download it again.")
    if repeated := table[columns[0]][table[columns[0]].duplicated()].tolist():
        raise Problem(f"{path} has two rows for {columns[0]} {repeated[0][:40]}.")
    return table


def rows_of(data: bytes, path: pathlib.Path) -> list[list[str]]:
    """The fields of a table's lines, blank ones left out. Problem names a line with more or fewer than the first."""
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", newline=""), strict=True)
    rows: list[list[str]] = []
    for row in filter(None, reader):
        if rows and len(row) != len(rows[0]):
            said = f"{len(row)} fields, but the first line has {len(rows[0])}"
            raise Problem(f"{path}, line {reader.line_num}: {said}; download it again.")
        rows.append(row)
    if not rows:
        raise Problem(f"{path} is empty; download it again.")
    return rows
