"""Draw a plain folder of images for tests: a disc and a square, each in its own colour, on a grey ground."""
import csv
import pathlib

import cv2
import numpy as np
from PIL import Image

CLASSES = ("ground", "disc", "square")
COLOURS = np.array([(120, 120, 120), (200, 60, 50), (50, 80, 200)])


def draw(folder: pathlib.Path, images: int = 12, seed: int = 0, binary: bool = False) -> pathlib.Path:
    """Write images/, masks/ and groups.csv into `folder`, three images a group, of slightly different sizes."""
    rng = np.random.default_rng(seed)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    rows = []
    for number in range(images):
        height, width = int(rng.integers(60, 72)), int(rng.integers(90, 104))
        mask = np.zeros((height, width), np.uint8)
        cv2.circle(mask, (int(rng.integers(15, 45)), int(rng.integers(15, 45))), int(rng.integers(8, 14)), 1, -1)
        left, top, side = (int(rng.integers(*limits)) for limits in ((55, 70), (10, 35), (12, 20)))
        mask[top : top + side, left : left + side] = 2
        image = COLOURS[mask] + rng.normal(0, 12, (height, width, 3))
        mask[:2] = 255  # a margin without a label
        if binary:
            mask = np.where(mask == 1, 255, 0).astype(np.uint8)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"p{number:02d}.jpg", quality=95)
        Image.fromarray(mask).save(folder / "masks" / f"p{number:02d}.png")
        rows.append((f"p{number:02d}.jpg", f"group {number // 3}"))
    with open(folder / "groups.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image", "group"), *rows])
    return folder
