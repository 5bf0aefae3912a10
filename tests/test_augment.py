"""Augmentation: settings are drawn independently, and pixels move as albumentations moves them."""
import albumentations as A
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline import config
from pipeline.data import augment
from pipeline.data.affine import CoverageAffine

NONE = dict.fromkeys(("flip", "shift", "zoom", "rotate_deg", "brightness", "contrast", "hue_deg", "saturation"), 0.0)
MOVES = {"translate_percent": (-0.1, 0.1), "scale": (0.8, 1.2), "rotate": (-20, 20), "p": 1.0}
Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]


@pytest.fixture(scope="module")
def pair() -> Pair:
    random = np.random.default_rng(0)
    return random.integers(0, 256, (60, 90, 3), np.uint8), random.integers(0, 256, (60, 90), np.uint8)


def test_image_and_coverage_move_together_as_each_would_alone(pair: Pair) -> None:
    """To the same pixels with OpenCV 5; another version may round otherwise for four channels than for three."""
    image, coverage = pair
    linear = {"interpolation": cv2.INTER_LINEAR, "mask_interpolation": cv2.INTER_LINEAR}
    for seed in range(5):
        ours, plain = (
            A.Compose([affine(**MOVES, **linear, border_mode=cv2.BORDER_REFLECT_101)], seed=seed)
            for affine in (CoverageAffine, A.Affine)
        )
        original = {"image": image, "mask": coverage}
        moved, expected = ours(**original), plain(**original)
        for key in original:
            assert moved[key].dtype == np.uint8 and moved[key].shape == expected[key].shape
            assert (moved[key] != original[key]).mean() > 0.9
            assert np.abs(moved[key].astype(int) - expected[key]).max() <= 1


def test_the_settings_are_drawn_independently() -> None:
    """Over many seeds, contrast, hue and flip are not correlated."""
    image, coverage = np.full((8, 8, 3), (150, 100, 50), np.uint8), np.zeros((8, 8), np.uint8)
    coverage[:, :4] = 255
    transform = augment.build(**{**NONE, "flip": 0.5, "contrast": 0.3, "hue_deg": 40.0})
    draws = []
    for seed in range(300):
        augmented, moved = transform(image, coverage, seed)
        hue, _, value = cv2.cvtColor(augmented, cv2.COLOR_RGB2HSV)[0, 0].astype(float)
        draws.append(((hue + 90) % 180, value, float(moved[0, -1])))
    spread = np.std(draws, axis=0)
    assert (spread > (5, 10, 100)).all()
    assert np.abs(np.triu(np.corrcoef(np.array(draws).T), 1)).max() < 0.2


def test_the_settings_of_the_config_are_the_parameters_of_the_functions_in_the_table() -> None:
    assert list(config.Settings().augment.model_dump()) == list(NONE)
    named = [name for function in augment.AUGMENTATIONS for name in augment.parameters(function)]
    assert sorted(named) == sorted(NONE)


def test_without_limits_nothing_is_augmented(pair: Pair) -> None:
    image, coverage = augment.build(**NONE)(*pair, 1)
    assert (image == pair[0]).all() and (coverage == pair[1]).all()


def test_an_unknown_setting_is_an_error() -> None:
    with pytest.raises(TypeError, match="blur"):
        augment.build(**NONE, blur=1.0)
