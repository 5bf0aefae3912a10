"""A few held-out images with what the network predicts for them, for TensorBoard: to see it learn."""
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.data.dataset import SegmentationDataset
from pipeline.data.loader import ValidationDataset
from pipeline.inference.class_maps import predict_class_probabilities
from pipeline.inference.ensemble import predict_probability
from pipeline.masks.colours import ADDED, IGNORED_COLOUR, MISSED, palette
from pipeline.masks.confusion import ignored

PREVIEW_IMAGES = 4
BACKGROUND_BRIGHTNESS = 0.4  # of the image, where the network sees background
CLASS_OPACITY = 0.6  # of a class's colour over the image


def preview_images(
    network: nn.Module, held_out: ValidationDataset, dataset: SegmentationDataset, device: torch.device
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yield names and previews of the same images in each epoch; one by one, which fits any memory."""
    for index in range(0, len(held_out), -(-len(held_out) // PREVIEW_IMAGES)):
        name = held_out.names[index]
        image, target = held_out[index], dataset.target(name, held_out.scale)
        if dataset.classes:
            yield name, preview_of_classes(network, image, target, len(dataset.classes), device)
        else:
            yield name, preview(network, image, target, device)


@torch.inference_mode()
def preview(
    network: nn.Module, image: NDArray[np.uint8], coverage: NDArray[np.uint8], device: torch.device
) -> NDArray[np.uint8]:
    """Return RGB uint8 (rows, columns, 3): the image, darker where the network sees background, its errors in colour.

    image: uint8 (rows, columns, channels); coverage: of its mask, uint8 (rows, columns). Blue was added to the object,
    vermilion was missed. Leaves the network in evaluation mode.
    """
    network.eval()
    predicted = predict_probability(network, torch.from_numpy(image.copy())[None].to(device))[0].cpu().numpy() >= 0.5
    truth, colours = coverage >= 128, image[..., :3]
    shown = np.where(predicted[..., None], colours, (colours * BACKGROUND_BRIGHTNESS).astype(np.uint8))
    shown[predicted & ~truth] = ADDED
    shown[truth & ~predicted] = MISSED
    return shown


@torch.inference_mode()
def preview_of_classes(
    network: nn.Module, image: NDArray[np.uint8], truth: NDArray, classes: int, device: torch.device
) -> NDArray[np.uint8]:
    """Return RGB uint8 (rows, 2 columns, 3): the classes in truth and, to the right, as predicted, over the image.

    image: uint8 (rows, columns, channels); truth: class indices. Black pixels are not evaluated.
    Leaves the network in evaluation mode.
    """
    network.eval()
    prob_CHW = predict_class_probabilities(network, torch.from_numpy(image.copy())[None].to(device))[0]
    predicted = prob_CHW.argmax(dim=0).cpu().numpy()
    colours = np.vstack((palette(classes), IGNORED_COLOUR))
    maps = np.hstack((np.where(truth == ignored(truth.dtype), classes, truth), predicted))
    pair = np.hstack((image[..., :3], image[..., :3]))
    return (CLASS_OPACITY * colours[maps] + (1 - CLASS_OPACITY) * pair).astype(np.uint8)
