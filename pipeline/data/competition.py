"""A Kaggle competition with one binary mask for each image: its facts, and the readers of its files.

What can be checked without decoding an image is checked when a folder is opened, before hours of training: each
training image has its mask, no row of a table of masks seems to be cut off, and what `Competition.read_groups` checks,
such as the 16 angles of a car.
"""
import pathlib
import re
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.data.csv_table import find_table, read_table
from pipeline.data.cut_off import are_cut_off
from pipeline.data.images import check_jpeg, coverage, coverage_of_runs, decode_image, decode_mask, grid_shape
from pipeline.data.zip_reader import FileSet
from pipeline.masks import rle
from pipeline.runtime.files import digest_arrays, read_json
from pipeline.runtime.problem import Problem


@dataclass(frozen=True)
class Competition:
    """What differs between competitions. `pipeline.carvana.CARVANA` is an example.

    An image is known everywhere by the name that the tables give it: its file name, or that without `image_suffix`.
    """

    slug: str  # in the address of the competition's page
    width_px: int
    height_px: int
    stem: str  # regular expression of an image's file name without its suffix
    submission_header: tuple[str, str] = ("img", "rle_mask")  # columns of the image and of its run lengths
    column_major: bool = True  # run lengths count down the columns; False: along the rows
    image_suffix: str = ".jpg"  # or .png
    mask_suffix: str = ".png"  # of mask files, behind the same stem; its end is .png or .gif
    suffix_in_tables: bool = True  # whether tables name an image with image_suffix
    train_set: str = "train"  # train.zip or the folder train/
    test_set: str = "test"
    mask_set: str = "train_masks"  # "": there are no mask files
    mask_table: str = "train_masks.csv"  # or .csv.zip; read instead of mask files where it is there; "": none
    sample_table: str = "sample_submission.csv"
    extra_tables: tuple[str, ...] = ()  # what `read_groups` reads
    hq_suffix: str = ""  # of image sets that exist with less compression too; "": there are none
    repaired: str = ""  # an image that Kaggle serves loose beside the archives; "": none
    train_images: int | None = None  # how many Kaggle serves; None: not checked
    test_images: int | None = None
    rows_if_real: tuple[str, int] | None = None  # the table, and its rows, that tell Kaggle's data from a drawn copy
    mean_coverage_range: tuple[float, float] = (0.0, 1.0)  # plausible mean coverage of a submission's masks
    allow_empty_masks: bool = True  # in a submission
    angles: int = 1  # images of each key (car), one from each angle; 1: no angles
    group_key: Callable[[str], str] = str  # the name of an image -> what folds.csv lists: its car, or the image itself
    group_columns: tuple[str, str] = ("image", "group")  # of folds.csv: what `group_key` gives, and its group
    # (folder, training images) -> the group of each key, "" if unknown; None: each image is a group of its own.
    read_groups: "Callable[[pathlib.Path, ImageSet], dict[str, str]] | None" = None

    @property
    def rules_page(self) -> str:
        """Where to accept the rules, without which Kaggle serves nothing."""
        return f"https://www.kaggle.com/competitions/{self.slug}/rules"

    @property
    def solution_header(self) -> tuple[str, str, str]:
        """Columns of a solution.csv; Usage is Public, Private or Ignored."""
        return (*self.submission_header, "Usage")

    @property
    def pixels(self) -> int:
        return self.width_px * self.height_px

    @property
    def tables(self) -> tuple[str, ...]:
        """In the order in which they are downloaded."""
        return tuple(filter(None, (*self.extra_tables, self.sample_table, self.mask_table)))

    @property
    def table_of_set(self) -> dict[str, str]:
        """The table that lists the images of each set."""
        train, test = (self.train_set, self.mask_set), (self.test_set,)
        sets = {self.mask_table: train, self.sample_table: test}
        return {name + hq: table for table, names in sets.items() for name in names for hq in ("", self.hq_suffix)}

    def pattern(self, suffix: str) -> re.Pattern[str]:
        """Return what matches the file names of images or masks: those with `image_suffix` or `mask_suffix`."""
        return re.compile(f"(?:{self.stem}){re.escape(suffix)}")

    def image_file(self, name: str) -> str:
        """The file name of an image."""
        return name if self.suffix_in_tables else name + self.image_suffix

    def mask_file(self, name: str) -> str:
        """The file name of an image's mask: `"00087a6bd4dc_01.jpg"` -> `"00087a6bd4dc_01_mask.gif"`."""
        return self.image_file(name).removesuffix(self.image_suffix) + self.mask_suffix

    def name_of_file(self, file_name: str, suffix: str) -> str:
        """The name of the image whose image or mask file, with this suffix, has that name."""
        return file_name.removesuffix(suffix) + (self.image_suffix if self.suffix_in_tables else "")

    def parse(self, text: str) -> NDArray[np.int64]:
        """Bounds of the row-major runs of a mask, int64 (runs, 2), from its run lengths in the competition's order.

        Raises ValueError as `rle.parse`.
        """
        bounds = rle.parse(text, self.pixels)
        if not self.column_major:
            return bounds
        return rle.bounds(rle.fill(bounds, self.width_px, self.height_px).T)

    def encode(self, mask: NDArray[np.bool_]) -> str:
        """Run lengths, in the competition's order, of a mask bool (height, width)."""
        return rle.encode(mask.T if self.column_major else mask)

    def read_sample(self, folder: pathlib.Path) -> list[str]:
        """The names of the test images, in the order of the sample submission."""
        return read_table(folder, self.sample_table, self.submission_header)[self.submission_header[0]].tolist()

    def open_images(self, folder: pathlib.Path, set_name: str, hq: bool = False) -> "ImageSet":
        return ImageSet(folder, set_name + (self.hq_suffix if hq else ""), self)

    def open_masks(self, folder: pathlib.Path) -> "Masks":
        """The run lengths if the table is there, else the files; in Kaggle's Carvana data they are the same masks."""
        if self.mask_table and (path := find_table(folder, self.mask_table)):
            return CsvMasks(read_table(folder, self.mask_table, self.submission_header), str(path), self)
        return FileMasks(folder, self)

    def open_dataset(self, folder: pathlib.Path, hq: bool = False) -> "CompetitionDataset":
        return CompetitionDataset(self, folder, hq)


class ImageSet:
    """The images of a set such as `train` or `test_hq`."""

    def __init__(self, folder: pathlib.Path, set_name: str, competition: Competition):
        self.competition = competition
        self.files = FileSet(folder, set_name, competition.pattern(competition.image_suffix))
        self.names = [competition.name_of_file(file, competition.image_suffix) for file in self.files.names]
        self.stored_scale = read_stored_scale(folder)
        self.stored_shape = grid_shape(competition.height_px, competition.width_px, self.stored_scale)

    def read(self, name: str, scale: int) -> NDArray[np.uint8]:
        """RGB uint8 array (rows, columns, 3) at 1/scale of the competition's size."""
        if scale % self.stored_scale:
            folder, stored = self.files.archive_path.parent, self.stored_scale
            what = f"{folder} is a copy at 1/{stored}, but images at 1/{scale} are needed"
            advice = f"set data.scale (and refine.scale) to {stored} or a multiple, or name the full-size images"
            raise Problem(f"{what}; {advice} with DATA=.")
        file_name = self.competition.image_file(name)
        data, where = self.files.read(file_name), self.files.where(file_name)
        return decode_image(data, self.competition.image_suffix, scale // self.stored_scale, *self.stored_shape, where)

    def inspect(self, name: str) -> str:
        """Check header, last bytes and checksum of a JPEG, and hash its bytes; decode a PNG, and hash its pixels."""
        if self.competition.image_suffix != ".jpg":
            return digest_arrays(self.read(name, self.stored_scale))
        file_name = self.competition.image_file(name)
        data = self.files.read(file_name)
        check_jpeg(data, *self.stored_shape, self.files.where(file_name))
        return f"{zlib.crc32(data):08x}"  # an archive's reader has computed and compared the same

    def stamp(self, name: str) -> str:
        return self.files.stamp(self.competition.image_file(name))


class CsvMasks:
    """Masks from a table of run lengths: three times as fast to decode as Carvana's GIFs."""

    def __init__(self, table: pd.DataFrame, where: str, competition: Competition):
        self.where, self.competition = where, competition
        image_column, rle_column = competition.submission_header
        self.text_of = dict(zip(table[image_column], table[rle_column]))
        self.names = sorted(self.text_of)

    def read(self, name: str) -> NDArray[np.bool_]:
        """The mask of an image, bool array (height, width)."""
        return rle.fill(self.runs(name), self.competition.height_px, self.competition.width_px)

    def coverage(self, name: str, scale: int) -> NDArray[np.uint8]:
        """`images.coverage` of the mask of an image, uint8 array (rows, columns) at 1/scale."""
        if scale == 1:  # nothing to average
            return coverage(self.read(name), scale)
        return coverage_of_runs(self.runs(name), self.competition.height_px, self.competition.width_px, scale)

    def stamp(self, name: str) -> str:
        return f"{zlib.crc32(self.text_of[name].encode()):08x}"

    def runs(self, name: str) -> NDArray[np.int64]:
        """Bounds of the row-major runs, int64 array (runs, 2), as `rle.bounds` gives them."""
        try:
            return self.competition.parse(self.text_of[name])
        except ValueError as error:
            raise Problem(f"{self.where}, row {name}: {error}.") from None


class FileMasks:
    """Masks from image files, out of `train_masks.zip` or `train_masks/`.

    They may be PNGs, into which some convert the GIFs of a competition.
    """

    def __init__(self, folder: pathlib.Path, competition: Competition):
        self.competition, self.suffix = competition, competition.mask_suffix
        as_png = self.suffix.rpartition(".")[0] + ".png"
        either = re.compile(f"(?:{competition.stem})(?:{re.escape(self.suffix)}|{re.escape(as_png)})")
        self.files = FileSet(folder, competition.mask_set, either)
        if not any(name.endswith(self.suffix) for name in self.files.names):
            self.suffix = as_png
        self.where = str(self.files.archive_path)
        file_names = [name for name in self.files.names if name.endswith(self.suffix)]
        self.names = [competition.name_of_file(name, self.suffix) for name in file_names]

    def file_name(self, name: str) -> str:
        """The name of the file with the mask of an image."""
        return self.competition.image_file(name).removesuffix(self.competition.image_suffix) + self.suffix

    def read(self, name: str) -> NDArray[np.bool_]:
        """The mask of an image, bool array (height, width)."""
        file_name = self.file_name(name)
        data, where = self.files.read(file_name), self.files.where(file_name)
        suffix = pathlib.PurePath(file_name).suffix
        return decode_mask(data, suffix, self.competition.height_px, self.competition.width_px, where)

    def coverage(self, name: str, scale: int) -> NDArray[np.uint8]:
        """`images.coverage` of the mask of an image, uint8 array (rows, columns) at 1/scale."""
        return coverage(self.read(name), scale)

    def stamp(self, name: str) -> str:
        return self.files.stamp(self.file_name(name))

    def runs(self, name: str) -> NDArray[np.int64]:
        """Bounds of the row-major runs, as those of `CsvMasks`."""
        return rle.bounds(self.read(name))


Masks = CsvMasks | FileMasks
COMPARED_MASKS = 16  # of a table, with the files of the same masks: as many suspects, and others
NAMED_MASKS = 8  # in a message


class CompetitionDataset:
    """A competition's training set as a `data.dataset.SegmentationDataset`, checked when it is opened."""

    channels = 3
    classes: tuple[str, ...] = ()
    fingerprint = ""  # the facts of a competition decide all that is read

    def __init__(self, competition: Competition, folder: pathlib.Path, hq: bool):
        """hq: read the images with less compression."""
        self.competition, self.where = competition, str(folder)
        self.height, self.width = competition.height_px, competition.width_px
        self.has_angles = competition.angles > 1
        self.images = competition.open_images(folder, competition.train_set, hq)
        self.masks = competition.open_masks(folder)
        self.names, self.stored_scale = self.images.names, self.images.stored_scale
        self.group_of_key = dict.fromkeys(map(self.group_key, self.names), "")
        if competition.read_groups is not None:
            self.group_of_key = competition.read_groups(folder, self.images)
        if missing := sorted(set(self.names) - set(self.masks.names)):
            raise Problem(f"{self.masks.where} lacks {len(missing)} masks, as that of {missing[0]}; download it again.")
        self.warning = check_table(self.masks, self.names, folder) if isinstance(self.masks, CsvMasks) else ""

    def read(self, name: str, scale: int) -> NDArray[np.uint8]:
        return self.images.read(name, scale)

    def target(self, name: str, scale: int) -> NDArray[np.uint8]:
        return self.masks.coverage(name, scale)

    def truth(self, name: str) -> NDArray[np.bool_]:
        return self.masks.read(name)

    def inspect(self, name: str) -> str:
        return f"{self.images.inspect(name)} {digest_arrays(self.masks.runs(name))}"

    def stamp(self, name: str) -> str:
        return f"{self.images.stamp(name)} {self.masks.stamp(name)}"

    def notes(self, names: list[str]) -> list[str]:
        return [self.warning] if self.warning else []

    def folds(self, count: int) -> pd.DataFrame:
        from pipeline.data import grouping  # which imports scikit-learn

        return grouping.assign_folds(self.group_of_key, count, self.competition.group_columns)

    def group_key(self, name: str) -> str:
        return self.competition.group_key(name)


def area_px(bounds: NDArray[np.int64]) -> int:
    return int((bounds[:, 1] - bounds[:, 0]).sum())


def check_table(masks: CsvMasks, names: list[str], folder: pathlib.Path) -> str:
    """Return a sentence on masks of these images that seem to be cut off; "" if there are none.

    Where the masks' files are there too, these rows and some others are compared with them, and a row that differs is a
    Problem. A row that cannot be read is left to `inspection`, which names all of them.
    """
    competition = masks.competition
    try:
        bounds_of = {name: masks.runs(name) for name in names}
    except Problem:
        return ""
    suspects = list[str]()
    if competition.angles > 1 and set(Counter(map(competition.group_key, names)).values()) == {competition.angles}:
        is_cut_off = are_cut_off(list(bounds_of.values()), competition.width_px, competition.angles)
        suspects = [name for name, is_suspect in zip(names, is_cut_off) if is_suspect]
    chosen = [*suspects[:COMPARED_MASKS], *names[:: -(-len(names) // COMPARED_MASKS)]]
    try:
        files = FileMasks(folder, competition)
        runs_of_file = {name: files.runs(name) for name in set(chosen) & set(files.names)}
    except Problem:
        runs_of_file = {}  # there are none, or damaged ones, which nothing else reads
    px_of = {name: (area_px(bounds_of[name]), area_px(bounds)) for name, bounds in runs_of_file.items()}
    if differing := sorted(name for name, (px, file_px) in px_of.items() if px != file_px):
        px, file_px = px_of[differing[0]]
        what = f"{masks.where}, row {differing[0]}: the run lengths cover {px:,} pixels, but the mask in {files.where}"
        others = f" (of {len(px_of)} compared rows {len(differing)} differ)"
        raise Problem(f"{what} {file_px:,}{others}; download the table again, or move away the one that is wrong.")
    rest = [name for name in suspects if name not in runs_of_file]
    if not rest:
        return ""
    shown = ", ".join(rest[:NAMED_MASKS]) + (", ..." if len(rest) > NAMED_MASKS else "")
    advice = "look at them, and download the table again if they are cut off"
    return f"{masks.where}: the run lengths of {len(rest)} masks seem to end too early ({shown}); {advice}."


def read_stored_scale(folder: pathlib.Path) -> int:
    """1, or the scale at which the stage `shrink` copied the images."""
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
