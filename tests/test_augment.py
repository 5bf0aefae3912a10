"""Random changes: each is drawn by itself, and what moves is moved as the library would move it."""
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.data import augment
from pipeline.data.augment import A, AffineOfBoth

NONE = dict.fromkeys(("flip", "shift", "zoom", "rotate_deg", "brightness", "contrast", "hue_deg", "saturation"), 0.0)
MOVES = {"translate_percent": (-0.1, 0.1), "scale": (0.8, 1.2), "rotate": (-20, 20), "p": 1.0}
Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]


@pytest.fixture(scope="module")
def pair() -> Pair:
    random = np.random.default_rng(0)
    return random.integers(0, 256, (60, 90, 3), np.uint8), random.integers(0, 256, (60, 90), np.uint8)


def test_picture_and_coverage_move_together_as_each_would_by_itself(pair: Pair) -> None:
    """To the same pixels with OpenCV 5; another version may round otherwise for four channels than for three."""
    image, coverage = pair
    linear = {"interpolation": cv2.INTER_LINEAR, "mask_interpolation": cv2.INTER_LINEAR}
    for seed in range(5):
        ours, plain = (
            A.Compose([affine(**MOVES, **linear, border_mode=cv2.BORDER_REFLECT_101)], seed=seed)
            for affine in (AffineOfBoth, A.Affine)
        )
        given = {"image": image, "mask": coverage}
        found, expected = ours(**given), plain(**given)
        for key in given:
            assert found[key].dtype == np.uint8 and found[key].shape == expected[key].shape
            assert (found[key] != given[key]).mean() > 0.9
            assert np.abs(found[key].astype(int) - expected[key]).max() <= 1


def test_each_change_is_drawn_by_itself() -> None:
    """Over many seeds, neither contrast nor hue nor mirror says anything of the others."""
    image, coverage = np.full((8, 8, 3), (150, 100, 50), np.uint8), np.zeros((8, 8), np.uint8)
    coverage[:, :4] = 255
    change = augment.build(**{**NONE, "flip": 0.5, "contrast": 0.3, "hue_deg": 40.0})
    draws = []
    for seed in range(300):
        changed, moved = change(image, coverage, seed)
        hue, _, value = cv2.cvtColor(changed, cv2.COLOR_RGB2HSV)[0, 0].astype(float)
        draws.append(((hue + 90) % 180, value, float(moved[0, -1])))
    spread = np.std(draws, axis=0)
    assert (spread > (5, 10, 100)).all()
    assert np.abs(np.triu(np.corrcoef(np.array(draws).T), 1)).max() < 0.2
