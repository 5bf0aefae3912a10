"""Random changes of a training picture; what moves the picture moves its coverage alike."""
import os
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # or it asks the network for its newest version on import

import albumentations as A  # noqa: E402

Augment = Callable[..., tuple[NDArray[np.uint8], NDArray[np.uint8]]]


def build(
    *,
    flip: float,
    shift: float,
    zoom: float,
    rotate_deg: float,
    brightness: float,
    contrast: float,
    hue_deg: float,
    saturation: float,
) -> Augment:
    """A function `(image, coverage, seed) -> (image, coverage)`; the limits are those of `config.Augment`.

    image: RGB uint8 (H, W, 3); coverage: uint8 (H, W). The same seed gives the same change.
    """
    transforms: list[A.BasicTransform] = []
    if flip:
        transforms.append(A.HorizontalFlip(p=flip))
    if shift or zoom or rotate_deg:
        transforms.append(
            A.Affine(
                translate_percent=(-shift, shift),
                scale=(1 - zoom, 1 + zoom),
                keep_ratio=True,
                rotate=(-rotate_deg, rotate_deg),
                interpolation=cv2.INTER_LINEAR,
                mask_interpolation=cv2.INTER_LINEAR,  # coverage is a share, not a label
                border_mode=cv2.BORDER_REFLECT_101,
                p=1.0,
            )
        )
    if brightness or contrast:
        transforms.append(
            A.RandomBrightnessContrast(brightness_limit=brightness, contrast_limit=contrast, p=1.0)
        )
    if hue_deg or saturation:
        # OpenCV's 8-bit hue counts half degrees, its saturation 0 to 255
        transforms.append(
            A.HueSaturationValue(
                hue_shift_limit=hue_deg / 2, sat_shift_limit=saturation * 255, val_shift_limit=0, p=1.0
            )
        )
    compose = A.Compose(transforms)

    def augment(image, coverage, seed):
        compose.set_random_seed(seed)
        changed = compose(image=image, mask=coverage)
        return changed["image"], changed["mask"]

    return augment
