"""`make bench-train`: what is compared is the same, and the reference behaves as the original is known to."""
import json
import pathlib
import re
import sys

import numpy as np
import pytest
import torch

from benchmarks import config_speed, train
from benchmarks.reference import ReferenceNetwork, ReferenceImages, dice_loss
from pipeline import config
from pipeline.data.dataset import open_dataset
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
    small, coverage = ours.images.decode(5)
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


# --- a config as it is -----------------------------------------------------------------------------------------------

REFINED = """
data: {scale: 8, workers: 0}
model: {width: 4, depth: 2, patch: 2}
train: {optimizer: muon, batch_size: 4, accumulate: 2}
refine: {scale: 2, tile_px: 32, margin_px: 4, width: 4, depth: 2, patch: 1, tiles_per_image: 3, batch_size: 6}
"""


def test_a_config_is_measured_with_its_own_batch_optimizer_and_refiner(
    demo_folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "refined.yaml").write_text(REFINED)
    arguments = ["--config", str(tmp_path / "refined.yaml"), "--data", str(demo_folder), "--steps", "2"]
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    train.main()
    *printed, last = capsys.readouterr().out.splitlines()
    figures = json.loads(last)
    assert figures["config"] == "refined" and figures["matrix_tflops"] > 0
    assert any(line.startswith("network, eager, batch 4: ") for line in printed)
    assert any(line.startswith("refiner, eager, batch 6: ") for line in printed)
    for network in ("network_eager", "refiner_eager"):
        measured = figures[network]
        assert measured["images_per_s"] > 0 and measured["peak_memory_gb"] > 0 and measured["step_ms"] > 0
        assert measured["ms_of_kind"]["convolution"] > 0 and measured["ms_of_kind"]["optimizer"] > 0
        assert 0 <= measured["waited_fraction"] < 1 and measured["reserved_gb"] is None


def test_what_fails_in_one_way_does_not_lose_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(error: Exception) -> dict:
        def measure(*arguments: object) -> dict:
            raise error
        monkeypatch.setattr(config_speed, "measure", measure)
        return config_speed.try_to_measure(None, torch.device("cpu"), False, 1, 1.0)  # type: ignore[arg-type]

    assert fail(torch.OutOfMemoryError("CUDA out of memory")) == {"error": "the memory is too small"}
    assert fail(ValueError("no such\n kernel")) == {"error": "ValueError: no such kernel"}


def test_the_images_that_are_drawn_are_those_of_the_config(tmp_path: pathlib.Path) -> None:
    settings = config.load(pathlib.Path(__file__).parent.parent / "configs/folder.yaml")
    folder = config_speed.draw("folder", tmp_path / "drawn")
    dataset = open_dataset(settings.data, settings.task, folder)
    assert len(dataset.names) == 48 and (dataset.height, dataset.width) == (480, 640)
    assert set(np.unique(dataset.target(dataset.names[0], 1))) <= {0, 1, 2}


@pytest.mark.parametrize("arguments", [["--config", "a.yaml", "--batch", "2"], ["--data", "data"]])
def test_options_that_would_not_count_are_refused(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    with pytest.raises(SystemExit, match="2"):
        train.main()
