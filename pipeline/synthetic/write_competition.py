"""Stage `demo-data`: write a competition folder in Kaggle's format, with images of drawn cars.

Archives, members and tables are as Kaggle's, and so are the traps: car ids that look like numbers, one make in two
spellings, cars without a make, and makes that occur only in the test set. `solution.csv` holds what Kaggle keeps
secret: the masks of the test images.

The same arguments give the same bytes, whatever the number of workers.
"""
import contextlib
import csv
import io
import itertools
import multiprocessing
import os
import pathlib
import threading
import zipfile
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.process import BaseProcess

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline import carvana
from pipeline.data.zip_reader import ARCHIVE_DATE
from pipeline.masks import rle
from pipeline.runtime.files import replacing
from pipeline.runtime.problem import Problem
from pipeline.runtime.progress import progress
from pipeline.synthetic import cars
from pipeline.synthetic.car_makes import MAKES, make_car
from pipeline.synthetic.drawn import drawing, is_drawn

TRAIN_MAKES, UNSEEN_MAKES = tuple(MAKES)[:8], tuple(MAKES)[8:]
NUMBER_LIKE_IDS = ("331659860e11", "011330127438")  # Kaggle has such ids; one for each set
JPEG_QUALITY = 88  # 104 kB an image on average (24 cars); Kaggle's are 102 kB
PUBLIC_FRACTION = 0.25  # of the test cars; Kaggle scores 1,200 public and 3,664 private images
UNPACKED = ("train", "train_hq", "train_masks", "test", "test_hq")  # folders that are not drawn
ABOUT = "demo.json"  # marks a folder as a demo, and holds the settings that it was drawn with
FILES = (
    "train.zip", "train_masks.zip", "train_masks.csv.zip", "test.zip", "metadata.csv.zip",
    "sample_submission.csv.zip", "solution.csv",
)
Row = tuple[str, ...]


@dataclass(frozen=True)
class DemoCar:
    """A car of the demo: its id, what determines its drawing, and its row in `metadata.csv`."""

    car_id: str
    make: str  # a key of `MAKES`
    car_seed: int
    year: int
    make_in_metadata: str


@dataclass(frozen=True)
class CarImage:
    """One image and its mask, encoded."""

    image_name: str
    jpeg: bytes
    gif: bytes
    rle_mask: str


def main(folder: pathlib.Path, cars: int = 32, test_cars: int = 8, seed: int = 0, workers: int | None = None) -> None:
    """Draw a competition of `cars` training and `test_cars` test cars, 16 images each.

    A folder that holds this demo is left alone; another or an incomplete demo is drawn again. Raise Problem if the
    folder holds a competition that is not a demo. workers: processes; None for one per core.
    """
    if cars < 1 or test_cars < 1:
        raise Problem(f"A demo needs a training and a test car, but has CARS={cars} and TEST_CARS={test_cars}.")
    settings = {"cars": cars, "test_cars": test_cars, "seed": seed}
    summary = f"{cars} training cars, {test_cars} test cars, seed {seed}"
    files, sets = ([folder / name for name in names] for names in (FILES, UNPACKED))
    if is_drawn(folder / ABOUT, settings, files, sets):
        print(f"{folder} is there already ({summary})")
        return

    train, test = invent_cars(cars, test_cars, seed)
    count = (cars + test_cars) * carvana.ANGLES
    with (
        drawing(folder / ABOUT, settings),
        contextlib.closing(draw_images([*train, *test], workers or os.cpu_count() or 1)) as drawn,
    ):
        images = iter(progress(drawn, "demo-data", total=count))
        write_train(folder, images, cars * carvana.ANGLES)
        write_test(folder, images, public_images(test, seed))
        write_metadata(folder, [*train, *test])

    size_mb = sum(path.stat().st_size for path in files) / 1e6
    print(f"wrote {folder} ({summary}): {count} images, {size_mb:.0f} MB")


# --- the cars -------------------------------------------------------------------------------------


def invent_cars(cars: int, test_cars: int, seed: int) -> tuple[list[DemoCar], list[DemoCar]]:
    """Return training and test cars, each sorted by id.

    One in four test cars has a make that occurs in training, and one in four has no make in the metadata. The first
    make has two spellings if training has two of its cars.
    """
    rng = np.random.default_rng(seed)
    ids = [f"{number:012x}" for number in rng.integers(2**48, size=cars + test_cars)]
    ids[0], ids[cars] = NUMBER_LIKE_IDS
    seeds = rng.integers(2**31, size=cars + test_cars).tolist()
    years = rng.integers(2008, 2018, size=cars + test_cars).tolist()

    train, test = [], []
    for i in range(cars):
        make = TRAIN_MAKES[i % len(TRAIN_MAKES)]
        spelling = make.upper() if i == len(TRAIN_MAKES) else make  # as Infiniti and INFINITI
        train.append(DemoCar(ids[i], make, seeds[i], years[i], spelling))
    for i in range(test_cars):
        make = UNSEEN_MAKES[i % 4] if i % 4 < 3 else TRAIN_MAKES[i // 4 % len(TRAIN_MAKES)]
        test.append(DemoCar(ids[cars + i], make, seeds[cars + i], years[cars + i], "" if i % 4 == 2 else make))
    return sorted(train, key=lambda car: car.car_id), sorted(test, key=lambda car: car.car_id)


def public_images(test: list[DemoCar], seed: int) -> set[str]:
    """Return the images of the public leaderboard: whole cars, or 4 angles if there is only one car."""
    if len(test) == 1:
        return {carvana.image_name(test[0].car_id, angle) for angle in carvana.ANGLE_CODES[:4]}
    chosen = np.random.default_rng([seed, 1]).permutation(len(test))[: max(1, round(PUBLIC_FRACTION * len(test)))]
    return {carvana.image_name(test[i].car_id, angle) for i in chosen for angle in carvana.ANGLE_CODES}


# --- drawing --------------------------------------------------------------------------------------


def draw_images(cars: list[DemoCar], workers: int) -> Generator[CarImage, None, None]:
    """Yield all images, car by car in the given order, drawn by several processes."""
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), set_up_worker) as pool:
        try:
            for images in pool.map(draw_car, cars):
                yield from images
        finally:
            pool.shutdown(cancel_futures=True)


def set_up_worker() -> None:
    """Use one thread, and exit with the parent: a pool whose owner is killed would wait for work for ever."""
    cv2.setNumThreads(1)
    threading.Thread(target=exit_after, args=(multiprocessing.parent_process(),), daemon=True).start()


def exit_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def draw_car(car: DemoCar) -> list[CarImage]:
    """Return the 16 images of a car."""
    drawn = cars.draw_car(make_car(car.make, car.car_seed))
    return [
        CarImage(carvana.image_name(car.car_id, angle), encode_jpeg(image), encode_gif(mask), rle.encode(mask))
        for angle, (image, mask) in zip(carvana.ANGLE_CODES, drawn, strict=True)
    ]


def encode_jpeg(image: NDArray[np.uint8]) -> bytes:
    """Encode RGB uint8 (height, width, 3) as JPEG."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))[1].tobytes()


def encode_gif(mask: NDArray[np.bool_]) -> bytes:
    """Encode bool (height, width) as a palette GIF with values 0 and 1, like Kaggle's masks."""
    palette_image = Image.fromarray(mask.astype(np.uint8)).convert("P")
    palette_image.putpalette((0, 0, 0, 255, 255, 255))
    file = io.BytesIO()
    palette_image.save(file, format="GIF", optimize=False)
    return file.getvalue()


# --- writing --------------------------------------------------------------------------------------


def write_train(folder: pathlib.Path, images: Iterator[CarImage], count: int) -> None:
    """Write the first `count` images to `train.zip`, `train_masks.zip` and `train_masks.csv.zip`."""
    rows: list[Row] = [carvana.CARVANA.submission_header]
    with archive(folder / "train.zip") as jpegs, archive(folder / "train_masks.zip") as gifs:
        for image in itertools.islice(images, count):
            add_member(jpegs, f"train/{image.image_name}", image.jpeg)
            add_member(gifs, f"train_masks/{carvana.CARVANA.mask_file(image.image_name)}", image.gif)
            rows.append((image.image_name, image.rle_mask))
    write_table(folder / "train_masks.csv.zip", rows)


def write_test(folder: pathlib.Path, images: Iterable[CarImage], public: set[str]) -> None:
    """Write all further images to `test.zip`, `sample_submission.csv.zip` and `solution.csv`."""
    sample: list[Row] = [carvana.CARVANA.submission_header]
    solution: list[Row] = [carvana.CARVANA.solution_header]
    with archive(folder / "test.zip") as jpegs:
        for image in images:
            add_member(jpegs, f"test/{image.image_name}", image.jpeg)
            sample.append((image.image_name, "1 1"))
            solution.append((image.image_name, image.rle_mask, "Public" if image.image_name in public else "Private"))
    write_table(folder / "sample_submission.csv.zip", sample)
    with replacing(folder / "solution.csv") as draft:
        draft.write_bytes(csv_bytes(solution))


def write_metadata(folder: pathlib.Path, cars: list[DemoCar]) -> None:
    """Write `metadata.csv.zip`: one row per car, sorted by id; some rows have nothing but the id."""
    rows: list[Row] = [("id", "year", "make", "model", "trim1", "trim2")]
    for car in sorted(cars, key=lambda car: car.car_id):
        known = (str(car.year), car.make_in_metadata, "One", "Base", "FWD")
        rows.append((car.car_id, *(known if car.make_in_metadata else [""] * 5)))
    write_table(folder / "metadata.csv.zip", rows)


@contextlib.contextmanager
def archive(path: pathlib.Path) -> Iterator[zipfile.ZipFile]:
    """Open a new zip archive, which gets its name when it is complete."""
    with replacing(path) as draft, zipfile.ZipFile(draft, "w") as file:
        yield file


def add_member(file: zipfile.ZipFile, member: str, data: bytes, method: int = zipfile.ZIP_STORED) -> None:
    """Add a member with a fixed date, so that equal contents give equal bytes."""
    info = zipfile.ZipInfo(member, ARCHIVE_DATE)
    info.compress_type = method
    file.writestr(info, data)


def write_table(path: pathlib.Path, rows: list[Row]) -> None:
    """Write a table with its header to `name.csv.zip`, which holds `name.csv`."""
    with archive(path) as file:
        add_member(file, path.name.removesuffix(".zip"), csv_bytes(rows), zipfile.ZIP_DEFLATED)


def csv_bytes(rows: list[Row]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
