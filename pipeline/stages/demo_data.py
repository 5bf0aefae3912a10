"""Stage `demo-data`: nothing -> a competition folder in Kaggle's format, with drawn cars.

The archives, members, tables and spellings are Kaggle's, and so are the traps: car ids that a careless
reader takes for numbers, one make in two spellings, a car without a make, and makes that occur in the
test set alone. `solution.csv` is what Kaggle keeps to itself: masks of the test pictures.

The same arguments give the same bytes, whatever the number of workers.
"""
import contextlib
import csv
import io
import json
import multiprocessing
import os
import pathlib
import zipfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from pipeline import carvana
from pipeline.data import synthetic
from pipeline.files import replacing, write_json
from pipeline.masks import rle
from pipeline.problem import Problem

# The last four makes of the table never occur in training: scores on them are about new shapes.
TRAIN_MAKES, UNSEEN_MAKES = tuple(synthetic.MAKES)[:-4], tuple(synthetic.MAKES)[-4:]
NUMBER_LIKE_IDS = ("331659860e11", "011330127438")  # both occur in Kaggle's files
MEMBER_DATE = (2017, 7, 24, 0, 0, 0)
JPEG_QUALITY = 88  # gives some 100 kB a picture, as in Kaggle's train.zip
PUBLIC_SHARE = 0.25  # of the test cars; Kaggle: 1,200 of 4,864 scored pictures
ABOUT = "demo.json"  # the mark of a demo folder, and what it was made from
FILES = (
    "train.zip", "train_masks.zip", "train_masks.csv.zip", "test.zip",
    "metadata.csv.zip", "sample_submission.csv.zip", "solution.csv",
)


@dataclass(frozen=True)
class DemoCar:
    """A car of the demo: its row in `metadata.csv` and what it is drawn from."""

    car_id: str
    make: str  # in the drawing's table
    spelt_make: str  # in `metadata.csv`
    year: int
    car_seed: int


@dataclass(frozen=True)
class View:
    """One encoded picture and its mask."""

    image_name: str
    jpeg: bytes
    gif: bytes
    rle_mask: str


def run(
    folder: pathlib.Path, cars: int = 20, test_cars: int = 4, seed: int = 0, workers: int | None = None,
) -> None:
    """Draw a competition of `cars` training and `test_cars` test cars into a folder.

    A folder with the same demo is left alone, another demo is drawn over. Raises Problem when the
    folder holds a competition that is no demo.
    """
    if cars < 1 or test_cars < 1:
        raise Problem(f"cars ({cars}) and test cars ({test_cars}) must both be at least 1.")
    settings = {"cars": cars, "test_cars": test_cars, "seed": seed}
    if is_there(folder, settings):
        print(f"{folder} is there already ({cars} training cars, {test_cars} test cars, seed {seed})")
        return

    write_json(folder / ABOUT, {**settings, "complete": False})
    train, test = invent_cars(cars, test_cars, seed)
    with workers_pool(workers or os.cpu_count() or 1) as map_in_order:
        progress = tqdm(total=(cars + test_cars) * carvana.VIEWS, unit="picture", desc="demo-data")
        with progress:
            write_train(folder, train, map_in_order, progress)
            write_test(folder, test, map_in_order, progress, seed)
    write_metadata(folder, train + test)
    write_json(folder / ABOUT, {**settings, "complete": True})
    megabytes = sum((folder / name).stat().st_size for name in FILES) / 1e6
    print(
        f"{folder}: {cars} training cars of {len({car.make for car in train})} makes, {test_cars} test cars, "
        f"{(cars + test_cars) * carvana.VIEWS} pictures, {megabytes:.0f} MB"
    )


def is_there(folder: pathlib.Path, settings: dict[str, int]) -> bool:
    """Whether the folder holds this very demo, whole. Problem when it holds something else."""
    about = folder / ABOUT
    if not about.is_file():
        if found := [name for name in (*FILES, "train", "test") if (folder / name).exists()]:
            raise Problem(
                f"{folder} holds {found[0]} but no {ABOUT}: this is no demo, and the demo would write "
                "over it; choose another folder."
            )
        return False
    try:
        found_settings = json.loads(about.read_text())
    except ValueError:
        return False  # cut off while it was written: draw again
    return found_settings == {**settings, "complete": True} and all((folder / name).is_file() for name in FILES)


# --- who is in it -----------------------------------------------------------------------------------


def invent_cars(cars: int, test_cars: int, seed: int) -> tuple[list[DemoCar], list[DemoCar]]:
    """Training and test cars, each list sorted by id."""
    rng = np.random.default_rng(seed)
    ids = [f"{number:012x}" for number in rng.integers(2**48, size=cars + test_cars)]
    ids[0], ids[cars] = NUMBER_LIKE_IDS
    drawn = []
    for index in range(cars + test_cars):
        position = index if index < cars else index - cars
        make = TRAIN_MAKES[position % len(TRAIN_MAKES)]
        spelt_make = make
        if index < cars and make == TRAIN_MAKES[0] and position >= len(TRAIN_MAKES):
            spelt_make = make.upper()  # as Kaggle's Infiniti and INFINITI
        if index >= cars and position % 4 != 3:  # three of four test cars are of makes never seen
            make = spelt_make = UNSEEN_MAKES[position % len(UNSEEN_MAKES)]
        if index >= cars and position % 8 == 2:
            spelt_make = ""
        year, car_seed = int(rng.integers(2008, 2018)), int(rng.integers(2**31))
        drawn.append(DemoCar(ids[index], make, spelt_make, year, car_seed))
    by_id = [sorted(part, key=lambda car: car.car_id) for part in (drawn[:cars], drawn[cars:])]
    return by_id[0], by_id[1]


def public_images(test: list[DemoCar], seed: int) -> set[str]:
    """The pictures of the public leaderboard: whole cars, or 4 views if there is one test car alone."""
    if len(test) == 1:
        return {carvana.image_name(test[0].car_id, view) for view in carvana.VIEW_NUMBERS[:4]}
    count = max(1, round(PUBLIC_SHARE * len(test)))
    chosen = np.random.default_rng([seed, 1]).permutation(len(test))[:count]
    return {carvana.image_name(test[i].car_id, view) for i in chosen for view in carvana.VIEW_NUMBERS}


# --- drawing, in several processes --------------------------------------------------------------------


def draw_car(car: DemoCar) -> list[View]:
    """The 16 views of a car, encoded."""
    cv2.setNumThreads(1)  # the processes are enough for all cores
    views = []
    drawn = synthetic.draw_car(synthetic.make_car(car.make, car.car_seed))
    for view, (image, mask) in zip(carvana.VIEW_NUMBERS, drawn):
        name = carvana.image_name(car.car_id, view)
        views.append(View(name, jpeg_of(image), gif_of(mask), rle.encode(mask)))
    return views


def jpeg_of(image: NDArray[np.uint8]) -> bytes:
    """RGB uint8 (height, width, 3) -> JPEG."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()


def gif_of(mask: NDArray[np.bool_]) -> bytes:
    """bool (height, width) -> palette GIF with the values 0 and 1, as Kaggle's masks."""
    picture = Image.fromarray(mask.astype(np.uint8), mode="P")
    picture.putpalette((0, 0, 0, 255, 255, 255))
    file = io.BytesIO()
    picture.save(file, format="GIF", optimize=False)
    return file.getvalue()


@contextlib.contextmanager
def workers_pool(workers: int):
    """Hand out a `map` that keeps the order, over this process alone or over several."""
    if workers == 1:
        yield map
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool.map


# --- what is written --------------------------------------------------------------------------------


@contextlib.contextmanager
def archive(path: pathlib.Path) -> Iterator[zipfile.ZipFile]:
    """A zip file to be filled; it is there under its name when it is whole."""
    with replacing(path) as draft, zipfile.ZipFile(draft, "w") as file:
        yield file


def add(file: zipfile.ZipFile, member: str, data: bytes, compression: int = zipfile.ZIP_STORED) -> None:
    """Add a member with a fixed date, so that equal contents are equal bytes."""
    info = zipfile.ZipInfo(member, MEMBER_DATE)
    info.compress_type = compression
    file.writestr(info, data)


def write_table(folder: pathlib.Path, name: str, rows: list[tuple]) -> None:
    """A table, header first, as `name`.zip."""
    with archive(folder / f"{name}.zip") as file:
        add(file, name, csv_bytes(rows), zipfile.ZIP_DEFLATED)


def csv_bytes(rows: list[tuple]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def write_train(folder: pathlib.Path, cars: list[DemoCar], map_in_order, progress: tqdm) -> None:
    """`train.zip`, `train_masks.zip` and `train_masks.csv.zip`."""
    rows: list[tuple] = [carvana.SUBMISSION_HEADER]
    with archive(folder / "train.zip") as images, archive(folder / "train_masks.zip") as masks:
        for views in map_in_order(draw_car, cars):
            for view in views:
                add(images, f"train/{view.image_name}", view.jpeg)
                add(masks, f"train_masks/{carvana.mask_name(view.image_name)}", view.gif)
                rows.append((view.image_name, view.rle_mask))
                progress.update()
    write_table(folder, "train_masks.csv", rows)


def write_test(folder: pathlib.Path, cars: list[DemoCar], map_in_order, progress: tqdm, seed: int) -> None:
    """`test.zip`, `sample_submission.csv.zip` and `solution.csv`."""
    public = public_images(cars, seed)
    sample: list[tuple] = [carvana.SUBMISSION_HEADER]
    solution: list[tuple] = [carvana.SOLUTION_HEADER]
    with archive(folder / "test.zip") as images:
        for views in map_in_order(draw_car, cars):
            for view in views:
                add(images, f"test/{view.image_name}", view.jpeg)
                sample.append((view.image_name, "1 1"))
                usage = "Public" if view.image_name in public else "Private"
                solution.append((view.image_name, view.rle_mask, usage))
                progress.update()
    write_table(folder, "sample_submission.csv", sample)
    with replacing(folder / "solution.csv") as draft:
        draft.write_bytes(csv_bytes(solution))


def write_metadata(folder: pathlib.Path, cars: list[DemoCar]) -> None:
    """`metadata.csv.zip`: one row a car, in the order of the ids."""
    rows: list[tuple] = [("id", "year", "make", "model", "trim1", "trim2")]
    for car in sorted(cars, key=lambda car: car.car_id):
        known = bool(car.spelt_make)
        rows.append((
            car.car_id, *((car.year, car.spelt_make, f"{car.make} One", "Base", "4dr") if known else [""] * 5),
        ))
    write_table(folder, "metadata.csv", rows)
