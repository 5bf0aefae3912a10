"""Random augmentation of a training image; geometry moves its coverage, or its class map, in the same way.

`AUGMENTATIONS` is the table: a new augmentation is one function and its line there. The function's parameters are keys
of the config's `augment` section, and their annotations are the defaults and ranges that the config is validated by.
Albumentations takes 2 s to import, so the functions import it when they are called, and the table itself costs nothing.
"""
import inspect
import os
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

if TYPE_CHECKING:
    import albumentations as A

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # or it asks the network for its newest version on import

Augment = Callable[..., tuple[NDArray[np.uint8], NDArray[np.uint8]]]
Fraction = Annotated[float, Field(ge=0, le=1)]
Degrees = Annotated[float, Field(ge=0, le=180)]


def flip(of_classes: bool, *, flip: Fraction = 0.5) -> "A.BasicTransform":
    """Mirror left and right. flip: the probability."""
    import albumentations as A

    return A.HorizontalFlip(p=flip)


def affine(
    of_classes: bool, *,
    shift: Fraction = 0.05, zoom: Annotated[float, Field(ge=0, lt=1)] = 0.1, rotate_deg: Degrees = 5.0,
) -> "A.BasicTransform":
    """Move, resize and rotate at once. shift: of the image's side; zoom: 0.1 is 0.9 to 1.1 times the size."""
    from pipeline.data.affine import ClassAffine, CoverageAffine

    return (ClassAffine if of_classes else CoverageAffine)(
        translate_percent=(-shift, shift), scale=(1 - zoom, 1 + zoom), rotate=(-rotate_deg, rotate_deg),
        keep_ratio=True, interpolation=cv2.INTER_LINEAR, border_mode=cv2.BORDER_REFLECT_101, p=1.0,
    )


def brightness_contrast(
    of_classes: bool, *, brightness: Fraction = 0.15, contrast: Fraction = 0.15
) -> "A.BasicTransform":
    """Change both. brightness: a fraction of the full range; contrast: 0.15 is 0.85 to 1.15 times the contrast."""
    import albumentations as A

    return A.RandomBrightnessContrast(brightness_limit=brightness, contrast_limit=contrast, p=1.0)


def hue_saturation(of_classes: bool, *, hue_deg: Degrees = 10.0, saturation: Fraction = 0.15) -> "A.BasicTransform":
    """Change both. OpenCV's 8-bit hue counts half degrees, its saturation 0 to 255."""
    import albumentations as A

    return A.HueSaturationValue(hue_shift_limit=hue_deg / 2, sat_shift_limit=saturation * 255, val_shift_limit=0, p=1.0)


# Applied in this order. An augmentation whose settings are all 0 is left out; others draw a new value for each image
# and epoch, evenly from -limit to +limit.
AUGMENTATIONS: tuple[Callable[..., "A.BasicTransform"], ...] = (flip, affine, brightness_contrast, hue_saturation)


def parameters(augmentation: Callable) -> dict[str, tuple[Any, float]]:
    """Return name -> (annotation, default) of the settings that an augmentation takes."""
    signature = inspect.signature(augmentation).parameters.values()
    return {one.name: (one.annotation, one.default) for one in signature if one.kind is one.KEYWORD_ONLY}


def build(*, of_classes: bool = False, **settings: float) -> Augment:
    """Return a function `(image, target, seed) -> (image, target)`. settings: those of the config's `augment` section.

    image: RGB uint8 (H, W, 3), or (H, W, 4) with depth or a coarse probability, which is moved too and keeps its
    values; target: coverage uint8 (H, W), or with `of_classes` class indices, which are never mixed. The same seed
    draws the same transform.
    """
    import albumentations as A

    transforms: list[A.BasicTransform] = []
    for augmentation in AUGMENTATIONS:
        limits = {name: settings.pop(name) for name in parameters(augmentation)}
        if any(limits.values()):
            transforms.append(augmentation(of_classes, **limits))
    if settings:
        raise TypeError(f"No augmentation takes {', '.join(settings)}.")
    compose = A.Compose(transforms, additional_targets={"depth": "mask"})

    def augment(image, target, seed):
        # One random stream for all: `set_random_seed` would give each transform a stream of its own from the same
        # seed, and the hue would always follow the contrast.
        compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        if image.shape[2] == 3:
            augmented = compose(image=image, mask=target)
            return augmented["image"], augmented["mask"]
        augmented = compose(image=np.ascontiguousarray(image[..., :3]), mask=target, depth=image[..., 3].copy())
        four = cv2.cvtColor(augmented["image"], cv2.COLOR_RGB2RGBA)
        return cv2.insertChannel(augmented["depth"], four, 3), augmented["mask"]

    return augment
