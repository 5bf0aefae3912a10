"""Previews of predictions, and what TensorBoard shows of a training run."""
import numpy as np
import torch
from torch import nn

from pipeline.data.loader import ValidationDataset
from pipeline.masks.colours import ADDED, MISSED
from pipeline.training.previews import preview_images
from tests.test_inference import Red
from tiny_run import EPOCHS, RUN


class OneImage:
    """A dataset of a binary task with a single image."""

    classes = ()

    def __init__(self, image: np.ndarray, coverage: np.ndarray):
        self.read = lambda name, scale: image
        self.target = lambda name, scale: coverage


def preview(network: nn.Module, image: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    dataset = OneImage(image, coverage)
    ((_, shown),) = preview_images(network, ValidationDataset(dataset, ["a"], (1,)), dataset, torch.device("cpu"))
    return shown


def test_tensorboard_has_the_numbers_and_the_same_images_of_each_epoch(trained: None) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(RUN / "fold0/tb"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"train_loss", "val_dice", "images_per_s", "lr"}
    assert len(names := events.Tags()["images"]) == 4
    for name in names:
        images = events.Images(name)
        assert [image.step for image in images] == list(range(1, EPOCHS + 1))
        assert (images[0].height, images[0].width) == (160, 240)


def test_a_preview_shows_what_was_added_and_missed() -> None:
    image = np.zeros((2, 4, 3), np.uint8)
    image[:, :2, 0] = 200  # sure of the object at the left
    image[..., 1] = 100
    coverage = np.zeros((2, 4), np.uint8)
    coverage[0] = 255
    shown = preview(Red(), image, coverage)
    assert shown.dtype == np.uint8 and shown.shape == image.shape
    assert (shown[0, :2] == (200, 100, 0)).all() and (shown[0, 2:] == MISSED).all()
    assert (shown[1, :2] == ADDED).all() and (shown[1, 2:] == (0, 40, 0)).all()


def test_a_preview_does_not_change_the_statistics_of_a_network() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(1)

        def forward(self, image_NHWC: torch.Tensor) -> torch.Tensor:
            return self.norm(image_NHWC[..., :1].permute(0, 3, 1, 2).float())

    network = Normed()
    preview(network, np.full((4, 4, 3), 50, np.uint8), np.zeros((4, 4), np.uint8))
    assert network.norm.running_mean.item() == 0 and not network.training
