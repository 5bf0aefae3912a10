"""How many images a training step needs at once, and sizes that a network cannot take: said before it trains."""
import functools
import importlib.metadata
import pathlib
from types import SimpleNamespace
from typing import Any

import plain_folder
import pytest
import segmentation_models_pytorch as smp
import torch

from pipeline import config
from pipeline.__main__ import main
from pipeline.config import Refine, Train
from pipeline.data.loader import Kind
from pipeline.inference.probability import predict_probability
from pipeline.model import factory
from pipeline.runtime.problem import Problem
from pipeline.training import find_batch
from pipeline.training.networks import build_network, build_refiner, check_step, least_batch
from pipeline.training.state import TrainingState

ARCHITECTURES = [f"smp.{network.__name__}" for network in smp.MODEL_ARCHITECTURES_MAPPING.values()]
ENCODERS = {"smp.DPT": "tu-vit_tiny_patch16_224"}  # it takes transformers of timm and nothing else
# Images that a step needs at (rows, columns); None: the network takes no images of this size.
SMALL, MEDIUM, LARGE = (16, 16), (64, 96), (127, 130)
LEAST: dict[str, dict[tuple[int, int], int | None]] = {
    "smp.DeepLabV3": {SMALL: 2, MEDIUM: 2},  # it pools an image to a single cell
    "smp.DeepLabV3Plus": {SMALL: 2, MEDIUM: 2},
    "smp.UPerNet": {SMALL: 2, MEDIUM: 2},
    "smp.PAN": {SMALL: None, MEDIUM: None, LARGE: 2},  # it halves seven times
    "smp.PSPNet": {SMALL: 1, MEDIUM: 1},
}
USUAL: dict[tuple[int, int], int | None] = {SMALL: 2, MEDIUM: 1}


def images(shape: tuple[int, ...], noun: str = "images", section: str = "train") -> Any:
    """What a `TrainingDataset` or a `TileDataset` says of itself."""
    return SimpleNamespace(shape=shape, kind=Kind(noun, section, "data.scale 2", "data.scale higher"))


def builder(arch: str, **options: Any) -> functools.partial:
    model = config.Model(arch=arch, width=4, encoder=ENCODERS.get(arch, "resnet18"), **options)
    return functools.partial(build_network, config.Settings(model=model), pretrained=False)


def takes_a_step(build: functools.partial, count: int, rows: int, columns: int) -> bool:
    network, image_NHWC = build().train(), torch.zeros(count, rows, columns, 3, dtype=torch.uint8)
    try:
        logits_NCHW = network(image_NHWC)
        logits_NCHW.mean().backward()
    except (ValueError, RuntimeError):
        return False
    return logits_NCHW.shape == (count, 1, rows, columns)


@pytest.mark.parametrize(
    "arch, size", [*((arch, size) for arch in ("unet", *ARCHITECTURES) for size in (SMALL, MEDIUM)), ("smp.PAN", LARGE)]
)
def test_every_architecture_takes_a_step_or_says_before_it_why_not(arch: str, size: tuple[int, int]) -> None:
    build, least = builder(arch), LEAST.get(arch, USUAL)[size]
    if least is None:
        with pytest.raises(Problem, match=rf"images of {size[1]}x{size[0]} pixels, data.scale 2 \(.*too small\)"):
            least_batch(build, images((*size, 3)))
    else:
        assert least_batch(build, images((*size, 3))) == least


@pytest.mark.parametrize("arch, size", [("unet", SMALL), ("smp.DeepLabV3Plus", MEDIUM), ("smp.PSPNet", SMALL)])
def test_what_is_said_beforehand_is_what_a_step_does(arch: str, size: tuple[int, int]) -> None:
    build, least = builder(arch), LEAST.get(arch, USUAL)[size]
    assert [takes_a_step(build, count, *size) for count in (1, 2)] == [least == 1, True]


@pytest.mark.parametrize(
    "size, depth, patch, least", [((16, 16), 4, 1, 2), ((16, 17), 4, 1, 1), ((1, 1), 1, 1, 2), ((40, 40), 3, 4, 1)]
)
def test_a_unet_needs_two_images_where_its_coarsest_level_has_one_cell(
    size: tuple[int, int], depth: int, patch: Any, least: int
) -> None:
    assert least_batch(builder("unet", depth=depth, patch=patch), images((*size, 3))) == least


def test_an_encoder_that_cannot_be_tried_by_shapes_alone_is_tried_for_real() -> None:
    build = functools.partial(build_network, config.Settings(model=config.Model(arch="smp.Unet", encoder="mit_b0")))
    with pytest.raises(Problem, match="meta tensors"), torch.device("meta"):
        build(pretrained=False)
    assert least_batch(functools.partial(build, pretrained=False), images((32, 32, 3))) == 1


def test_a_network_that_cannot_be_built_keeps_its_own_sentence() -> None:
    with pytest.raises(Problem, match="^model.arch is smp.Wnet"):
        least_batch(builder("smp.Wnet"), images((64, 96, 3)))


@pytest.mark.parametrize(
    "batch_size, accumulate, advice",
    [(1, 1, "train.batch_size=2 or more"), (4, 4, "train.batch_size=8 or more"), (2, 1, "")],
)
def test_a_step_of_one_image_is_a_problem_where_batch_norm_needs_two(
    batch_size: int, accumulate: int, advice: str
) -> None:
    hyper = Train(batch_size=batch_size, accumulate=accumulate)
    check = functools.partial(check_step, builder("smp.DeepLabV3Plus"), images((64, 96, 3)), hyper)
    if not advice:
        assert check() == 2
        return
    with pytest.raises(Problem, match=rf"needs 2 images at once .* set {advice}\.$"):
        check()


def test_a_refiner_whose_tiles_shrink_to_a_cell_needs_two_of_them() -> None:
    hyper = Refine(tile_px=32, margin_px=4, depth=5, patch=1, width=2, batch_size=1)
    with pytest.raises(Problem, match=r"needs 2 tiles at once .* set refine.batch_size=2 or more\.$"):
        check_step(lambda: build_refiner(hyper), images((32, 32, 4), "tiles", "refine"), hyper)
    deep = Refine(tile_px=32, margin_px=4, depth=7, patch=4, width=1)  # it is padded to 512 pixels, one cell
    assert check_step(lambda: build_refiner(deep), images((32, 32, 4), "tiles", "refine"), deep) == 2


OLD_TIMM = tuple(map(int, importlib.metadata.version("timm").split(".")[:3])) < (1, 0, 31)
SWIN = pytest.param(
    "smp.Unet", "tu-swin_tiny_patch4_window7_224",
    marks=pytest.mark.skipif(OLD_TIMM, reason="timm 1.0.26 takes images of one size only, which `explain_size` says"),
)  # fmt: skip


@pytest.mark.parametrize("arch, encoder", [("smp.DPT", "tu-vit_tiny_patch16_224"), SWIN])
def test_a_transformer_of_timm_takes_images_of_any_size(arch: str, encoder: str) -> None:
    with torch.device("meta"):
        network = factory.build(arch=arch, encoder=encoder, encoder_weights=None)
        assert network(torch.zeros(2, 50, 99, 3, dtype=torch.uint8)).shape == (2, 1, 50, 99)


def test_a_transformer_that_the_decoder_cannot_use_is_a_problem() -> None:
    model = config.Model(arch="smp.DPT", encoder="tu-vit_small_patch14_dinov2")  # patches of 14 pixels, not of 2**n
    with pytest.raises(Problem, match="cannot be trained on images of 96x64 pixels.*another network"):
        least_batch(functools.partial(build_network, config.Settings(model=model), False), images((64, 96, 3)))


def test_a_prediction_of_a_size_that_the_network_cannot_take_is_a_problem() -> None:
    network = builder("smp.PAN")().eval()
    with torch.inference_mode(), pytest.raises(Problem, match="cannot take an image of 90x50 pixels"):
        predict_probability(network, torch.zeros(1, 50, 90, 3, dtype=torch.uint8))


def test_find_batch_begins_where_the_network_can(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(find_batch.MAX_BATCH_TRIED, "cpu", 3)
    plain_folder.draw(tmp_path / "images", binary=True)
    pathlib.Path("small.yaml").write_text(
        "data: {kind: folder, folder: images, scale: 1, height: 16, width: 16, folds: 2, workers: 0}\n"
        "model: {width: 2, depth: 4}\ntrain: {batch_size: 6}\n"
    )
    arguments = ["--config", "small.yaml"]
    assert main(["folds", *arguments]) == 0
    capsys.readouterr()
    assert main(["find-batch", *arguments]) == 0
    assert capsys.readouterr().out.startswith("3 images at once or more fit on CPU")
    assert main(["train", *arguments, "--set", "train.accumulate=6"]) == 1
    assert "set train.batch_size=12 or more" in capsys.readouterr().err
    assert not list(pathlib.Path("runs/small/fold0").glob("*.pt"))
    monkeypatch.setattr("pipeline.training.state.TrainingState.take_step", step_of_at_most(2, TrainingState.take_step))
    assert main(["train", *arguments]) == 1
    assert "2 images at once fit on CPU" in (line := capsys.readouterr().err) and "train.accumulate=3," in line


def step_of_at_most(limit: int, take_step: Any) -> Any:
    """Return `TrainingState.take_step` on a machine whose memory holds so many images at once."""
    def step(state: TrainingState, image_NHWC: torch.Tensor, *others: Any) -> Any:
        if len(image_NHWC) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return take_step(state, image_NHWC, *others)

    return step
