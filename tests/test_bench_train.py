"""`make bench-train`: what is compared is the same, and the reference behaves as the original is known to."""
import pathlib
import re

import numpy as np
import pytest
import torch

from benchmarks import train
from benchmarks.reference import ReferenceNetwork, ReferenceImages, dice_loss
from pipeline.model.unet import UNet


@pytest.fixture(scope="module")
def unpacked(demo_folder: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The files as `make bench-train` extracts them, with hardly more names than images."""
    folder = tmp_path_factory.mktemp("bench")
    for name in ("train.zip", "train_masks.zip", "train_masks.csv.zip", "metadata.csv.zip"):
        (folder / name).symlink_to(demo_folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "TRAINING_IMAGES", 70)
        train.unpack(folder)
    return folder


def test_both_networks_compute_the_same_on_sizes_that_can_be_halved() -> None:
    theirs, ours = ReferenceNetwork(classes=2, width=4, depth=3), UNet(classes=2, width=4, depth=3)
    ours.load_state_dict(theirs.state_dict())
    image = torch.rand(2, 3, 16, 24)
    torch.testing.assert_close(theirs(image), ours(image))


def test_the_reference_takes_any_size() -> None:
    assert ReferenceNetwork(classes=2, width=4, depth=3)(torch.rand(1, 3, 23, 17)).shape == (1, 2, 23, 17)


def test_the_reference_has_the_parameters_that_it_is_known_for() -> None:
    with torch.device("meta"):
        network = ReferenceNetwork(classes=2, width=64, depth=4)
    assert sum(parameter.numel() for parameter in network.parameters()) == 31_037_698


def test_a_forward_pass_at_half_size_costs_903_gflop() -> None:
    with torch.device("meta"):
        network, image = UNet(width=64, depth=4), torch.zeros(1, 3, 640, 960)
    assert train.gflop(network, image) == pytest.approx(903, abs=1)


@pytest.mark.parametrize("truth, loss", [((1.0, 1.0), 0.0), ((0.0, 0.0), 1.0), ((1.0, 0.0), 1 / 3)])
def test_dice_loss_of_the_reference_has_known_answers(truth: tuple[float, float], loss: float) -> None:
    result = dice_loss(torch.ones(1, 1, 1, 2), torch.tensor(truth).view(1, 1, 1, 2))
    assert result.item() == pytest.approx(loss, abs=1e-5)


def test_both_read_the_same_images(unpacked: pathlib.Path) -> None:
    ours, theirs = train.our_images(unpacked, 4), train.reference_images(unpacked, 4)
    name = ours.names[5]
    image, mask = theirs[theirs.stems.index(name.removesuffix(".jpg"))]
    assert image.shape == (3, 320, 479) and image.dtype == torch.float32 and 0 <= image.min() < image.max() <= 1
    assert mask.shape == (320, 479) and mask.dtype == torch.int64 and set(mask.unique().tolist()) == {0, 1}
    small, coverage = ours.decode(5)
    assert np.abs(small[:, :479] / 255 - image.permute(1, 2, 0).numpy()).mean() < 0.02
    assert ((coverage[:, :479] > 127) == mask.numpy()).mean() > 0.99


def test_there_are_as_many_names_as_asked_for_and_each_image_has_its_mask(unpacked: pathlib.Path) -> None:
    images = ReferenceImages(unpacked / "unpacked/train", unpacked / "unpacked/train_masks", 1 / 32)
    assert len(images) == 70
    for index in range(60, 70):
        assert images[index][1].shape == (40, 59)


def test_what_was_not_measured_is_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    train.print_row("images/s", 6.0, 2.0)
    train.print_row("images/s", 6.0, None)
    with_ratio, without = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"images/s +6\.00 +2\.00 +3\.00", with_ratio)
    assert re.fullmatch(r"images/s +6\.00 +-", without.rstrip())
