"""A few held-out pictures with what a network makes of them, for TensorBoard: to see it learn."""
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.data.dataset import HeldOutPictures
from pipeline.inference.predictor import share

PICTURES_SHOWN = 4

# Okabe and Ito's blue and vermilion, which every kind of colour vision tells apart; as in the report.
ADDED, MISSED = (0, 114, 178), (213, 94, 0)
BACKGROUND_LIGHT = 0.4  # of the picture, where the network sees background


def show_pictures(
    tensorboard,
    epoch: int,
    network: nn.Module,
    held_out: HeldOutPictures,
    coverage: Callable[[str, int], NDArray[np.uint8]],
    device: torch.device,
) -> None:
    """The same held-out pictures after each epoch, from first to last; one at a time, which no memory is too small for.

    tensorboard: a SummaryWriter; coverage: (name, scale) -> that of the mask, uint8 (rows, columns).
    """
    for index in range(0, len(held_out), -(-len(held_out) // PICTURES_SHOWN)):
        name = held_out.names[index]
        picture = preview(network, held_out[index], coverage(name, held_out.scale), device)
        tensorboard.add_image(name, picture, epoch, dataformats="HWC")


@torch.inference_mode()
def preview(network: nn.Module, image: NDArray[np.uint8], coverage: NDArray[np.uint8], device: torch.device) -> Tensor:
    """RGB uint8 (rows, columns, 3): the picture, darker where the network sees background, its errors in colour.

    image: uint8 (rows, columns, 3); coverage: of its mask, uint8 (rows, columns). Blue was added to the object,
    vermilion was missed. The network is left in evaluation mode.
    """
    network.eval()
    predicted = share(network, torch.from_numpy(image)[None].to(device))[0].cpu().numpy() >= 0.5
    truth = coverage >= 128
    shown = np.where(predicted[..., None], image, (image * BACKGROUND_LIGHT).astype(np.uint8))
    shown[predicted & ~truth] = ADDED
    shown[truth & ~predicted] = MISSED
    return torch.from_numpy(shown)
