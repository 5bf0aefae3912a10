"""The facts of Kaggle's Carvana Image Masking Challenge, each of them once.

Source: https://www.kaggle.com/competitions/carvana-image-masking-challenge (data and evaluation pages).
Parts under `model/`, `inference/` and `masks/` never import this file: they do not know what a car is.
"""
import re

SLUG = "carvana-image-masking-challenge"
RULES_PAGE = f"https://www.kaggle.com/competitions/{SLUG}/rules"  # without whose acceptance Kaggle serves nothing
ARCHIVE_DATE = (2017, 7, 24, 0, 0, 0)  # of members that we pack: the same contents give the same bytes

WIDTH_PX, HEIGHT_PX = 1918, 1280
ANGLES = 16  # a car stands on a turntable; view 1 to 16 in steps of 22.5 degrees
ANGLE_CODES = tuple(f"{view:02d}" for view in range(1, ANGLES + 1))

TRAIN_CARS, TEST_CARS = 318, 6_254
TEST_IMAGES = TEST_CARS * ANGLES
assert TRAIN_CARS * ANGLES == 5_088 and TEST_IMAGES == 100_064  # as counted in Kaggle's archives

# The same pictures exist twice, as `train.zip` and, with less JPEG compression, as `train_hq.zip`.
SETS = ("train", "train_hq", "train_masks", "test", "test_hq")
REPAIRED = "29bb3ece3180_11.jpg"  # lies loose beside the archives, in the place of a damaged test picture

SUBMISSION_HEADER = ("img", "rle_mask")
SOLUTION_HEADER = (*SUBMISSION_HEADER, "Usage")  # Usage: Public, Private or Ignored
MEAN_COVERAGE = 0.21  # of a picture's pixels, over the 5,088 training masks

IMAGE_NAME = re.compile(r"(?P<car>[0-9a-f]{12})_(?P<view>0[1-9]|1[0-6])\.jpg")
MASK_NAME = re.compile(IMAGE_NAME.pattern.replace(r"\.jpg", r"_mask\.gif"))
assert all(IMAGE_NAME.fullmatch(f"{0:012x}_{view}.jpg") for view in ANGLE_CODES)


def image_name(car_id: str, view: str) -> str:
    """`("00087a6bd4dc", "01")` -> `"00087a6bd4dc_01.jpg"`."""
    return f"{car_id}_{view}.jpg"


def mask_name(image_name: str) -> str:
    """`"00087a6bd4dc_01.jpg"` -> `"00087a6bd4dc_01_mask.gif"`."""
    return image_name.removesuffix(".jpg") + "_mask.gif"


def car_of(image_name: str) -> str:
    """`"00087a6bd4dc_01.jpg"` -> `"00087a6bd4dc"`: the group that no split may cut."""
    return image_name[:12]


def angle_of(image_name: str) -> int:
    """`"00087a6bd4dc_01.jpg"` -> 1."""
    return int(image_name[13:15])
