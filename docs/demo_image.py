"""Make docs/demo.png for the README from the files of `make demo`: `python docs/demo_image.py`.

It shows three test cars, most of makes that were never trained on: image, prediction, and errors in colour. Blue and
orange are distinct for every kind of colour vision.
"""
import pathlib
import sys

import cv2
import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from pipeline import carvana  # noqa: E402
from pipeline.masks import rle  # noqa: E402
from pipeline.submission.reader import read_rows  # noqa: E402

MISSED, ADDED = (230, 120, 20), (30, 90, 255)  # RGB
ANGLE_CODES = ("03", "06", "16")  # one a car
WIDTH_PX = 480


def main() -> None:
    size = (carvana.HEIGHT_PX, carvana.WIDTH_PX)
    rows = read_rows(ROOT / "data/demo/solution.csv", carvana.CARVANA.solution_header)
    truth = {name: text for _, (name, text, _) in rows}
    predicted = {
        name: text for _, (name, text) in read_rows(ROOT / "submissions/demo.csv.gz", carvana.CARVANA.submission_header)
    }
    images = carvana.CARVANA.open_images(ROOT / "data/demo", "test")
    cars = sorted({carvana.car_of(name) for name in images.names})
    rows = []
    for car, code in zip(cars, ANGLE_CODES):
        name = carvana.image_name(car, code)
        image = images.read(name, 1)
        true_mask, mask = rle.decode(truth[name], *size), rle.decode(predicted[name], *size)
        cutout = np.where(mask[..., None], image, 255).astype(np.uint8)
        errors = (image // 3 + 170).astype(np.uint8)
        for wrong, colour in ((true_mask & ~mask, MISSED), (mask & ~true_mask, ADDED)):
            errors[cv2.dilate(wrong.view(np.uint8), np.ones((3, 3))) > 0] = colour  # a single pixel is hard to see
        rows.append(np.hstack([shrink(each) for each in (image, cutout, errors)]))
    path = ROOT / "docs/demo.png"
    cv2.imwrite(str(path), cv2.cvtColor(np.vstack(rows), cv2.COLOR_RGB2BGR))
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e3:.0f} kB")


def shrink(image: np.ndarray) -> np.ndarray:
    height_px = round(WIDTH_PX * image.shape[0] / image.shape[1])
    return cv2.resize(image, (WIDTH_PX, height_px), interpolation=cv2.INTER_AREA)


if __name__ == "__main__":
    main()
