"""Stage `demo-data`: nothing -> a competition folder in exactly Kaggle's format, with drawn cars.

Archives, members and tables are Kaggle's, and so are the traps: car ids that a careless reader
takes for numbers, one make in two spellings, cars without a make, makes that only the test set has.
`solution.csv` is what Kaggle keeps to itself: the masks of the test pictures.

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
from pipeline.synthetic import cars
from pipeline.runtime.files import locked, read_json, replacing, write_json
from pipeline.masks import rle
from pipeline.runtime.problem import Problem
from pipeline.runtime.progress import progress

TRAIN_MAKES, UNSEEN_MAKES = tuple(cars.MAKES)[:8], tuple(cars.MAKES)[8:]
NUMBER_LIKE_IDS = ("331659860e11", "011330127438")  # Kaggle has such ids; one for each set
JPEG_QUALITY = 88  # 104 kB a picture on average (24 cars); Kaggle's are 102 kB
PUBLIC_FRACTION = 0.25  # of the test cars; Kaggle scores 1,200 public and 3,664 private pictures
ABOUT = "demo.json"  # marks a folder as a demo, and says what it was drawn from
FILES = (
    "train.zip", "train_masks.zip", "train_masks.csv.zip", "test.zip", "metadata.csv.zip",
    "sample_submission.csv.zip", "solution.csv",
)
Row = tuple[str, ...]


@dataclass(frozen=True)
class DemoCar:
    """A car of the demo: its id, what it is drawn from, and its row in `metadata.csv`."""

    car_id: str
    make: str  # as in `synthetic.MAKES`
    car_seed: int
    year: int
    make_in_metadata: str


@dataclass(frozen=True)
class View:
    """One picture and its mask, encoded."""

    image_name: str
    jpeg: bytes
    gif: bytes
    rle_mask: str


def main(
    folder: pathlib.Path,
    cars: int = 32,
    test_cars: int = 8,
    seed: int = 0,
    workers: int | None = None,
) -> None:
    """Draw a competition of `cars` training and `test_cars` test cars, 16 pictures each.

    A folder that holds this demo is left alone, another or an unfinished one is drawn again. Raises
    Problem when the folder holds a competition that is no demo. Without `workers`, one per core.
    """
    if cars < 1 or test_cars < 1:
        raise Problem(f"{cars} training and {test_cars} test cars, but a demo needs one of each.")
    settings = {"cars": cars, "test_cars": test_cars, "seed": seed}
    what = f"{cars} training cars, {test_cars} test cars, seed {seed}"
    if holds_demo(folder, settings):
        print(f"{folder} is there already ({what})")
        return

    train, test = invent_cars(cars, test_cars, seed)
    pictures = (cars + test_cars) * carvana.ANGLES
    with (
        locked(folder / ".lock", f"{folder} is being drawn by another process; wait until it is done."),
        contextlib.closing(drawn_views([*train, *test], workers or os.cpu_count() or 1)) as drawn,
    ):
        write_json(folder / ABOUT, {**settings, "complete": False})
        views = iter(progress(drawn, "demo-data", total=pictures))
        write_train(folder, views, cars * carvana.ANGLES)
        write_test(folder, views, public_images(test, seed))
        write_metadata(folder, [*train, *test])
        write_json(folder / ABOUT, {**settings, "complete": True})

    size_mb = sum((folder / name).stat().st_size for name in FILES) / 1e6
    print(f"wrote {folder} ({what}): {pictures} pictures, {size_mb:.0f} MB")


def holds_demo(folder: pathlib.Path, settings: dict[str, int]) -> bool:
    """Whether the folder holds this very demo, whole. Problem when it holds anything but a demo."""
    about = folder / ABOUT
    if not about.is_file():
        for name in (*FILES, *carvana.SETS):
            if (folder / name).exists():
                raise Problem(
                    f"{folder} holds {name} but no {ABOUT}: it is no demo, and would be "
                    "overwritten; choose another folder."
                )
        return False
    try:
        found = read_json(about)
    except ValueError:
        return False  # damaged: draw again
    whole = all((folder / name).is_file() for name in FILES)
    return whole and found == {**settings, "complete": True}


# --- who takes part -------------------------------------------------------------------------------


def invent_cars(cars: int, test_cars: int, seed: int) -> tuple[list[DemoCar], list[DemoCar]]:
    """Training and test cars, each sorted by id.

    One in four test cars is of a make that occurs in training, and one in four has no make in the
    metadata. The first make is spelt in two ways as soon as training has two of its cars.
    """
    rng = np.random.default_rng(seed)
    ids = [f"{number:012x}" for number in rng.integers(2**48, size=cars + test_cars)]
    ids[0], ids[cars] = NUMBER_LIKE_IDS
    seeds = rng.integers(2**31, size=cars + test_cars).tolist()
    years = rng.integers(2008, 2018, size=cars + test_cars).tolist()

    train, test = [], []
    for i in range(cars):
        make = TRAIN_MAKES[i % len(TRAIN_MAKES)]
        spelt = make.upper() if i == len(TRAIN_MAKES) else make  # as Infiniti and INFINITI
        train.append(DemoCar(ids[i], make, seeds[i], years[i], spelt))
    for i in range(test_cars):
        make = UNSEEN_MAKES[i % 4] if i % 4 < 3 else TRAIN_MAKES[i // 4 % len(TRAIN_MAKES)]
        spelt = "" if i % 4 == 2 else make
        test.append(DemoCar(ids[cars + i], make, seeds[cars + i], years[cars + i], spelt))
    return sorted(train, key=lambda car: car.car_id), sorted(test, key=lambda car: car.car_id)


def public_images(test: list[DemoCar], seed: int) -> set[str]:
    """The pictures of the public leaderboard: whole cars, or 4 views if there is but one car."""
    if len(test) == 1:
        return {carvana.image_name(test[0].car_id, view) for view in carvana.ANGLE_CODES[:4]}
    count = max(1, round(PUBLIC_FRACTION * len(test)))
    chosen = np.random.default_rng([seed, 1]).permutation(len(test))[:count]
    ids = [test[i].car_id for i in chosen]
    return {carvana.image_name(car_id, view) for car_id in ids for view in carvana.ANGLE_CODES}


# --- drawing --------------------------------------------------------------------------------------


def drawn_views(cars: list[DemoCar], workers: int) -> Generator[View, None, None]:
    """All views, car by car in the order given, drawn by several processes."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, set_up_worker) as pool:
        try:
            for views in pool.map(draw_car, cars):
                yield from views
        finally:
            pool.shutdown(cancel_futures=True)


def set_up_worker() -> None:
    """One thread for each, and none that outlives us: a pool whose owner is killed would wait for work for ever."""
    cv2.setNumThreads(1)
    threading.Thread(target=end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def draw_car(car: DemoCar) -> list[View]:
    """The 16 views of a car."""
    views = []
    drawn = cars.draw_car(cars.make_car(car.make, car.car_seed))
    for view, (image, mask) in zip(carvana.ANGLE_CODES, drawn, strict=True):
        name = carvana.image_name(car.car_id, view)
        views.append(View(name, jpeg_of(image), gif_of(mask), rle.encode(mask)))
    return views


def jpeg_of(image: NDArray[np.uint8]) -> bytes:
    """RGB uint8 (height, width, 3) -> JPEG."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))[1].tobytes()


def gif_of(mask: NDArray[np.bool_]) -> bytes:
    """bool (height, width) -> palette GIF with values 0 and 1, like Kaggle's masks."""
    picture = Image.fromarray(mask.astype(np.uint8)).convert("P")
    picture.putpalette((0, 0, 0, 255, 255, 255))
    file = io.BytesIO()
    picture.save(file, format="GIF", optimize=False)
    return file.getvalue()


# --- writing --------------------------------------------------------------------------------------


def write_train(folder: pathlib.Path, views: Iterator[View], count: int) -> None:
    """The first `count` views -> `train.zip`, `train_masks.zip` and `train_masks.csv.zip`."""
    rows: list[Row] = [carvana.SUBMISSION_HEADER]
    with archive(folder / "train.zip") as images, archive(folder / "train_masks.zip") as masks:
        for view in itertools.islice(views, count):
            add(images, f"train/{view.image_name}", view.jpeg)
            add(masks, f"train_masks/{carvana.mask_name(view.image_name)}", view.gif)
            rows.append((view.image_name, view.rle_mask))
    write_table(folder / "train_masks.csv.zip", rows)


def write_test(folder: pathlib.Path, views: Iterable[View], public: set[str]) -> None:
    """All other views -> `test.zip`, `sample_submission.csv.zip` and `solution.csv`."""
    sample: list[Row] = [carvana.SUBMISSION_HEADER]
    solution: list[Row] = [carvana.SOLUTION_HEADER]
    with archive(folder / "test.zip") as images:
        for view in views:
            add(images, f"test/{view.image_name}", view.jpeg)
            sample.append((view.image_name, "1 1"))
            usage = "Public" if view.image_name in public else "Private"
            solution.append((view.image_name, view.rle_mask, usage))
    write_table(folder / "sample_submission.csv.zip", sample)
    with replacing(folder / "solution.csv") as draft:
        draft.write_bytes(csv_bytes(solution))


def write_metadata(folder: pathlib.Path, cars: list[DemoCar]) -> None:
    """`metadata.csv.zip`: one row a car, sorted by id; of some cars nothing is known but the id."""
    rows: list[Row] = [("id", "year", "make", "model", "trim1", "trim2")]
    for car in sorted(cars, key=lambda car: car.car_id):
        if car.make_in_metadata:
            rows.append((car.car_id, str(car.year), car.make_in_metadata, "One", "Base", "FWD"))
        else:
            rows.append((car.car_id, "", "", "", "", ""))
    write_table(folder / "metadata.csv.zip", rows)


@contextlib.contextmanager
def archive(path: pathlib.Path) -> Iterator[zipfile.ZipFile]:
    """A zip to be filled, which has its name only when it is whole."""
    with replacing(path) as draft, zipfile.ZipFile(draft, "w") as file:
        yield file


def add(file: zipfile.ZipFile, member: str, data: bytes, method: int = zipfile.ZIP_STORED) -> None:
    """Add a member under a fixed date, so that equal contents are equal bytes."""
    info = zipfile.ZipInfo(member, carvana.ARCHIVE_DATE)
    info.compress_type = method
    file.writestr(info, data)


def write_table(path: pathlib.Path, rows: list[Row]) -> None:
    """A table with its header as `name.csv.zip`, which holds `name.csv`."""
    with archive(path) as file:
        add(file, path.name.removesuffix(".zip"), csv_bytes(rows), zipfile.ZIP_DEFLATED)


def csv_bytes(rows: list[Row]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
