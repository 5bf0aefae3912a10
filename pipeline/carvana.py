"""The facts of Kaggle's Carvana Image Masking Challenge, each of them once.

Source: https://www.kaggle.com/competitions/carvana-image-masking-challenge (data and evaluation pages).
Parts under `model/`, `inference/` and `masks/` never import this file: they do not know what a car is.
For another competition, write a file like this one and add it to `COMPETITIONS` in `pipeline/data/dataset.py`.
"""
import pathlib

from pipeline.data.competition import Competition, ImageSet
from pipeline.data.csv_table import read_table
from pipeline.runtime.problem import Problem

WIDTH_PX, HEIGHT_PX = 1918, 1280
ANGLES = 16  # a car stands on a turntable and is seen from angle 1 to 16, in steps of 22.5 degrees
ANGLE_CODES = tuple(f"{angle:02d}" for angle in range(1, ANGLES + 1))
TRAIN_CARS, TEST_CARS = 318, 6_254
TEST_IMAGES = TEST_CARS * ANGLES
assert TRAIN_CARS * ANGLES == 5_088 and TEST_IMAGES == 100_064  # as counted in Kaggle's archives
MEAN_COVERAGE = 0.21  # of an image's pixels, over the 5,088 training masks


def image_name(car_id: str, angle: str) -> str:
    """`("00087a6bd4dc", "01")` -> `"00087a6bd4dc_01.jpg"`."""
    return f"{car_id}_{angle}.jpg"


def car_of(image_name: str) -> str:
    """`"00087a6bd4dc_01.jpg"` -> `"00087a6bd4dc"`, the car: the key in folds.csv."""
    return image_name[:12]


def angle_of(image_name: str) -> int:
    """`"00087a6bd4dc_01.jpg"` -> 1."""
    return int(image_name[13:15])


def read_makes(folder: pathlib.Path) -> dict[str, str]:
    """Make of each car in `metadata.csv`, as spelt there; "" where it is not known."""
    table = read_table(folder, "metadata.csv", ("id", "make"))
    return dict(zip(table["id"], table["make"]))


def normal_make(make: str) -> str:
    """Normalise spelling: `" Infiniti"` and `"INFINITI"` are one make."""
    return " ".join(make.split()).casefold()


def read_training_makes(folder: pathlib.Path, images: ImageSet) -> dict[str, str]:
    """Make of each training car, spelt alike. Raises Problem when an angle or a car's metadata is missing."""
    make_of_car, names, where = read_makes(folder), set(images.names), images.files.archive_path
    cars = sorted({car_of(name) for name in names})
    for car in cars:
        for angle in ANGLE_CODES:
            if image_name(car, angle) not in names:
                raise Problem(f"{where}: car {car} has no angle {angle}, but a car has {ANGLES}; download it again.")
    if missing := [car for car in cars if car not in make_of_car]:
        raise Problem(f"metadata.csv lacks {len(missing)} cars of {where}, as {missing[0]}; download both again.")
    return {car: normal_make(make_of_car[car]) for car in cars}


CARVANA = Competition(
    slug="carvana-image-masking-challenge",
    width_px=WIDTH_PX, height_px=HEIGHT_PX,
    stem=r"(?P<car>[0-9a-f]{12})_(?P<angle>0[1-9]|1[0-6])",
    mask_suffix="_mask.gif", column_major=False,
    hq_suffix="_hq",  # the same images exist twice, as `train.zip` and, with less JPEG compression, `train_hq.zip`
    extra_tables=("metadata.csv",),
    repaired="29bb3ece3180_11.jpg",  # lies loose beside the archives, in the place of a damaged test image
    train_images=TRAIN_CARS * ANGLES, test_images=TEST_IMAGES,
    rows_if_real=("metadata.csv", TRAIN_CARS + TEST_CARS),
    # Means over hundreds of cars; a network that finds no car, or inverted masks, lies far outside.
    mean_coverage_range=(MEAN_COVERAGE / 2, MEAN_COVERAGE * 2),
    allow_empty_masks=False, angles=ANGLES,
    group_key=car_of, group_columns=("car_id", "make"), read_groups=read_training_makes,
)
assert all(CARVANA.pattern(".jpg").fullmatch(image_name(f"{0:012x}", angle)) for angle in ANGLE_CODES)
