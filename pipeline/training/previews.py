"""A few held-out images with what the network predicts for them, for TensorBoard: to see it learn."""
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.data.dataset import SegmentationDataset
from pipeline.data.loader import ValidationDataset
from pipeline.inference.ensemble import predict_probability
from pipeline.masks.colours import ADDED, IGNORED_COLOUR, MISSED, palette
from pipeline.masks.confusion import ignored

PREVIEW_IMAGES = 4
BACKGROUND_BRIGHTNESS = 0.4  # of the image, where the network sees background
CLASS_OPACITY = 0.6  # of a class's colour over the image


@torch.inference_mode()
def preview_images(
    network: nn.Module, held_out: ValidationDataset, dataset: SegmentationDataset, device: torch.device
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yield names and previews of the same images in each epoch; one by one, which fits any memory.

    Leaves the network in evaluation mode.
    """
    network.eval()
    for index in range(0, len(held_out), -(-len(held_out) // PREVIEW_IMAGES)):
        name, image = held_out.names[index], held_out[index]
        prob_NCHW = predict_probability(network, torch.from_numpy(image.copy())[None].to(device))
        prob_CHW, target = prob_NCHW[0].cpu().numpy(), dataset.target(name, held_out.scale)
        if dataset.classes:
            yield name, draw_classes(image, target, prob_CHW.argmax(axis=0), len(dataset.classes))
        else:
            yield name, draw_errors(image, target >= 128, prob_CHW[0] >= 0.5)


def draw_errors(image: NDArray[np.uint8], truth: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return RGB uint8 (rows, columns, 3): the image, darker where the network sees background, its errors in colour.

    image: uint8 (rows, columns, channels). Blue was added to the object, vermilion was missed.
    """
    colours = image[..., :3]
    shown = np.where(predicted[..., None], colours, (colours * BACKGROUND_BRIGHTNESS).astype(np.uint8))
    shown[predicted & ~truth] = ADDED
    shown[truth & ~predicted] = MISSED
    return shown


def draw_classes(image: NDArray[np.uint8], truth: NDArray, predicted: NDArray, classes: int) -> NDArray[np.uint8]:
    """Return RGB uint8 (rows, 2 columns, 3): the classes in truth and, to the right, as predicted, over the image.

    image: uint8 (rows, columns, channels); truth, predicted: class indices. Black pixels are not evaluated.
    """
    colours = np.vstack((palette(classes), IGNORED_COLOUR))
    maps = np.hstack((np.where(truth == ignored(truth.dtype), classes, truth), predicted))
    pair = np.hstack((image[..., :3], image[..., :3]))
    return (CLASS_OPACITY * colours[maps] + (1 - CLASS_OPACITY) * pair).astype(np.uint8)
