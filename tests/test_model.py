"""Networks, the Dice loss, weight averaging and checkpoints."""
import io
import pathlib
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from pipeline import config
from pipeline.model import checkpoint
from pipeline.model.factory import MEAN_RGB, STD_RGB, Segmenter, build, count_parameters, pad_to_multiple, unpad
from pipeline.model.ema import Ema
from pipeline.model.losses import soft_dice_loss
from pipeline.model.unet import UNet
from pipeline.runtime.problem import Problem

CONFIGS = sorted((pathlib.Path(__file__).parent.parent / "configs").glob("*.yaml"))
SMALL = {"width": 2, "depth": 2, "patch": 1, "encoder": "resnet18", "encoder_weights": None}


def network(**options) -> Segmenter:
    return build(**{"arch": "unet", **SMALL, **options}).eval()


def images(height: int, width: int, count: int = 1) -> torch.Tensor:
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=torch.manual_seed(0))


# --- the U-Net ------------------------------------------------------------------------------------


def test_width_64_and_depth_4_are_the_papers_31_million_parameters() -> None:
    assert count_parameters(UNet(width=64, depth=4)) == 31_037_633


@settings(max_examples=15)
@given(st.integers(1, 50), st.integers(1, 50), st.sampled_from([1, 2, 4]), st.integers(1, 3))
def test_logits_have_the_size_of_the_image(height: int, width: int, patch: int, depth: int) -> None:
    with torch.inference_mode():
        logits = network(patch=patch, depth=depth)(images(height, width, count=2))
    assert logits.shape == (2, 1, height, width) and logits.dtype == torch.float32


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_every_pixel_reaches_the_logits_whatever_the_patch(patch: int) -> None:
    torch.manual_seed(0)
    unet, image = network(width=8, patch=patch), images(16, 16)
    changed = image.clone()
    changed[0, 7, 9] = 255 - changed[0, 7, 9]
    with torch.inference_mode():
        assert (unet(image) != unet(changed)).any()


def test_every_convolution_of_3x3_has_batch_norm_and_no_bias() -> None:
    unet = UNet(width=4, depth=3)
    convolutions = [module for module in unet.modules() if getattr(module, "kernel_size", None) == (3, 3)]
    norms = [module for module in unet.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(convolutions) == len(norms) == 2 * (1 + 3 + 3)
    assert all(convolution.bias is None for convolution in convolutions)


def test_weights_are_drawn_with_variance_2_over_fan_out() -> None:
    torch.manual_seed(0)
    weight = UNet(width=32, depth=1).down[0][3].weight  # 64 -> 64 channels of 3x3
    assert weight.var().item() == pytest.approx(2 / (64 * 9), rel=0.05)


def test_the_seed_of_the_generator_determines_the_weights() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return network().network.stem[0].weight

    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))


@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from([1, 2, 8, 32]))
def test_padding_is_inverted_exactly(height: int, width: int, multiple: int) -> None:
    image = torch.rand(1, 2, height, width)
    padded, margins = pad_to_multiple(image, multiple)
    assert padded.shape[-2] % multiple == 0 and padded.shape[-1] % multiple == 0
    assert padded.shape[-2] < height + multiple and padded.shape[-1] < width + multiple
    assert torch.equal(unpad(padded, margins), image)


def test_padding_repeats_the_edge() -> None:
    padded, _ = pad_to_multiple(torch.arange(3.0).view(1, 1, 1, 3), 4)
    assert padded[0, 0, 0].tolist() in ([0, 1, 2, 2], [0, 0, 1, 2])


def test_bytes_are_normalised_as_pretrained_encoders_expect() -> None:
    identity = Segmenter(nn.Identity(), multiple=1)
    mean = torch.tensor(MEAN_RGB).round().to(torch.uint8).expand(1, 4, 4, 3)
    assert identity(mean).shape == (1, 3, 4, 4)
    assert identity(mean).abs().max() < 0.01
    white = identity(torch.full((1, 2, 2, 3), 255, dtype=torch.uint8))
    for channel in range(3):
        assert white[0, channel, 0, 0].item() == pytest.approx((255 - MEAN_RGB[channel]) / STD_RGB[channel])


# --- segmentation-models-pytorch ------------------------------------------------------------------


def test_a_network_of_smp_is_one_key_of_the_config_and_takes_any_size() -> None:
    with torch.inference_mode():
        assert network(arch="smp.Unet")(images(33, 50)).shape == (1, 1, 33, 50)
        assert network(arch="smp.FPN")(images(64, 31)).shape == (1, 1, 64, 31)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_network_of_every_config_can_be_built(path: pathlib.Path) -> None:
    settings = config.load(path)
    model = settings.model.model_copy(update={"encoder_weights": None})
    channels, outputs = settings.data.channels, settings.task.outputs
    with torch.device("meta"):  # shapes without numbers
        network = build(**model.model_dump(), channels=channels, classes=outputs)
        assert network(torch.zeros(1, 320, 480, channels, dtype=torch.uint8)).shape == (1, outputs, 320, 480)


@pytest.mark.parametrize("arch, patch", [("unet", 1), ("unet", 2), ("smp.Unet", 1)])
def test_any_network_takes_depth_and_has_an_output_for_each_class(arch: str, patch: int) -> None:
    image = torch.cat([images(33, 50), images(33, 50)[..., :1]], dim=3)
    with torch.inference_mode():
        deep = network(arch=arch, patch=patch, channels=4, classes=5)
        logits, shallow = deep(image), deep(image // torch.tensor([1, 1, 1, 2], dtype=torch.uint8))
    assert logits.shape == (1, 5, 33, 50) and (logits != shallow).any()


@pytest.mark.parametrize(
    "options, named",
    [
        ({"arch": "smp.Wnet"}, "smp.Wnet"),
        ({"arch": "smp.losses"}, "smp.losses"),
        ({"arch": "smp."}, "smp."),
        ({"arch": "smp.Unet", "encoder": "resnet19"}, "resnet19"),
        ({"arch": "smp.Unet", "encoder": "tu-nothing"}, "tu-nothing"),
        ({"arch": "smp.Unet", "encoder_weights": "imagenett"}, "imagenett"),
        ({"arch": "smp.DPT", "encoder": "resnet18"}, "smp.DPT"),  # which needs a transformer
        ({"arch": "smp.UnetPlusPlus", "encoder": "mit_b0"}, "mit_b0"),  # which this one cannot use
        ({"arch": "smp.Unet", "encoder_weights": "weights/none.pt"}, "weights/none.pt.*no such file"),
        ({"arch": "smp.Unet", "encoder_weights": "none.pth"}, "none.pth.*no such file"),
    ],
)
def test_a_network_that_cannot_be_built_is_a_problem_that_names_the_option(options: dict, named: str) -> None:
    with pytest.raises(Problem, match=named):
        network(**options)


def test_weights_that_cannot_be_downloaded_are_a_problem_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import segmentation_models_pytorch as smp

    def offline(self, *args, **options) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(smp.Unet, "__init__", offline)
    with pytest.raises(Problem, match="imagenet weights of resnet18 could not be downloaded.*torch.save"):
        network(arch="smp.Unet", encoder_weights="imagenet")


def test_an_encoders_weights_are_loaded_from_a_file(tmp_path: pathlib.Path) -> None:
    saved = network(arch="smp.Unet").network.encoder.state_dict()
    torch.save(saved, tmp_path / "encoder.pt")
    loaded = network(arch="smp.Unet", encoder_weights=str(tmp_path / "encoder.pt")).network.encoder.state_dict()
    assert all(torch.equal(loaded[key], saved[key]) for key in saved)


def prefixed(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in weights.items()}


@pytest.mark.parametrize("wrap", [
    lambda weights: {"state_dict": weights, "epoch": 3},
    lambda weights: prefixed(weights, "module."),
    lambda weights: {"model": prefixed(weights, "module.encoder."), "optimizer": {"step": 7}},
    lambda weights: {"state_dict_ema": weights, "state_dict": {name: 0 * each for name, each in weights.items()}},
    lambda weights: {**weights, "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)},
    lambda weights: {name: tensor for name, tensor in weights.items() if not name.endswith("num_batches_tracked")},
])  # fmt: skip
def test_an_encoders_weights_are_taken_out_of_what_is_around_them(
    tmp_path: pathlib.Path, wrap: Callable[[dict[str, torch.Tensor]], dict[str, Any]]
) -> None:
    saved = network(arch="smp.Unet").network.encoder.state_dict()
    torch.save(wrap(saved), tmp_path / "encoder.pt")
    loaded = network(arch="smp.Unet", encoder_weights=str(tmp_path / "encoder.pt")).network.encoder.state_dict()
    assert all(torch.equal(loaded[key], saved[key]) for key in saved)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "efficientnet_b0"])
def test_timms_own_file_is_loaded_into_an_encoder_of_that_name(tmp_path: pathlib.Path, name: str) -> None:
    import timm

    weights = {key: torch.full_like(tensor, 7) for key, tensor in timm.create_model(name).state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors")
    loaded = network(arch="smp.Unet", encoder=f"tu-{name}", encoder_weights=str(tmp_path / "model.safetensors"))
    assert all((tensor == 7).all() for tensor in loaded.network.encoder.state_dict().values())


def test_the_encoder_of_a_best_pt_is_loaded_into_another_decoder(tmp_path: pathlib.Path) -> None:
    saved = network(arch="smp.Unet").state_dict()
    checkpoint.save(tmp_path / "best.pt", {"settings": {}, "network": saved, "folds": ""})
    loaded = network(arch="smp.FPN", encoder_weights=str(tmp_path / "best.pt")).state_dict()
    names = [name for name in saved if name.startswith("network.encoder.")]
    assert names and all(torch.equal(loaded[name], saved[name]) for name in names)


@pytest.mark.parametrize(
    "weights, reason",
    [
        (nn.Linear(2, 2).state_dict(), "it has no conv1.weight"),
        (UNet(width=2, depth=2).state_dict(), "it has no conv1.weight"),
        ({"layer1.0.conv1.weight": torch.zeros(64, 64, 3, 3)}, "it has no bn1.weight"),
        ({}, "it has no tensors by name"),
        ({"epoch": 3}, "it has no tensors by name"),
        ([torch.zeros(2)], "it has no tensors by name"),
        (torch.zeros(2), "it has no tensors by name"),
    ],
)
def test_weights_of_another_encoder_are_a_problem(tmp_path: pathlib.Path, weights: object, reason: str) -> None:
    torch.save(weights, tmp_path / "encoder.pt")
    with pytest.raises(Problem, match=rf"encoder.pt does not hold the weights of this encoder \({reason}"):
        network(arch="smp.Unet", encoder_weights=str(tmp_path / "encoder.pt"))


def test_weights_of_a_larger_encoder_or_of_other_shapes_are_a_problem(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "encoder.pt"
    torch.save(network(arch="smp.Unet", encoder="resnet34").network.encoder.state_dict(), path)
    with pytest.raises(Problem, match="it has also layer1_2_conv1_weight, the first of 96"):
        network(arch="smp.Unet", encoder_weights=str(path))
    torch.save(network(arch="smp.Unet").network.encoder.state_dict(), path)
    with pytest.raises(Problem, match="another shape of conv1.weight"):
        network(arch="smp.Unet", channels=4, encoder_weights=str(path))


def test_an_encoders_file_for_our_own_unet_is_a_problem() -> None:
    with pytest.raises(Problem, match="model.encoder_weights is for networks of smp, .* train.init_from"):
        network(encoder_weights="imagenet")


def test_code_in_an_encoders_file_is_a_problem_and_never_runs(tmp_path: pathlib.Path) -> None:
    torch.save({"state_dict": {}, "args": Code(tmp_path / "trace")}, tmp_path / "encoder.pt")
    with pytest.raises(Problem, match="does not hold the weights of this encoder .*save its state_dict alone"):
        network(arch="smp.Unet", encoder_weights=str(tmp_path / "encoder.pt"))
    assert not (tmp_path / "trace").exists()


# --- losses ---------------------------------------------------------------------------------------


def test_soft_dice_loss_has_known_values() -> None:
    target = torch.tensor([[[1.0, 1.0, 0.0, 0.0]]])
    assert soft_dice_loss(target, target).item() == 0
    assert soft_dice_loss(1 - target, target).item() == pytest.approx(1 - 1 / 5)  # (2 * 0 + 1) / (2 + 2 + 1)
    assert soft_dice_loss(target / 2, target).item() == pytest.approx(1 - 3 / 3.5)  # (2 * 1 + 1) / (0.5 + 2 + 1)
    empty = torch.zeros(1, 1, 4)
    assert soft_dice_loss(empty, empty).item() == 0


@given(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=8), st.lists(st.floats(0, 1, width=32), min_size=8))
def test_soft_dice_is_smallest_where_the_probability_is_the_coverage(coverage: list[float], other: list[float]) -> None:
    """For fractions too, where the minimum of the usual loss with plain sums is at 0 or 1."""
    t = torch.tensor([[coverage]])
    p = torch.tensor([[other[: len(coverage)]]])
    assert soft_dice_loss(t, t).item() == pytest.approx(0, abs=1e-6)
    assert soft_dice_loss(p, t).item() >= -1e-6
    assert (soft_dice_loss(p, t) - soft_dice_loss(t, t)).item() >= -1e-6


def test_dice_loss_is_the_mean_over_images_and_not_of_one_pool() -> None:
    target = torch.zeros(2, 10, 10)
    target[0] = 1.0
    target[1, 0, 0] = 1.0
    prob = target.clone()
    prob[1] = 0
    assert soft_dice_loss(prob, target).item() == pytest.approx((0 + 1 - 1 / 2) / 2)


# --- the average of the weights -------------------------------------------------------------------


def linear(value: float) -> nn.Linear:
    layer = nn.Linear(1, 1)
    nn.init.constant_(layer.weight, value)
    nn.init.constant_(layer.bias, value)
    return layer


def test_the_average_moves_toward_the_weights_by_1_minus_decay() -> None:
    layer = linear(0.0)
    ema = Ema(layer, decay=0.9)
    nn.init.constant_(layer.weight, 1.0)
    ema.update(step=1_000_000)
    assert ema.average.weight.item() == pytest.approx(0.1)
    ema.update(step=1_000_001)
    assert ema.average.weight.item() == pytest.approx(0.19)
    assert layer.weight.item() == 1.0


def test_the_first_steps_forget_the_random_initial_weights_fast() -> None:
    layer = linear(0.0)
    ema = Ema(layer, decay=0.998)
    nn.init.constant_(layer.weight, 1.0)
    ema.update(step=0)
    assert ema.average.weight.item() == pytest.approx(0.9)  # (1 + 0) / (10 + 0) of the start is left


def test_a_decay_of_0_takes_the_plain_weights_and_batch_norm_is_averaged_too() -> None:
    layer = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    ema = Ema(layer, decay=0.0)
    layer(torch.randn(4, 1, 3, 3, generator=torch.manual_seed(0)) + 5)
    nn.init.constant_(layer[0].weight, 3.0)
    ema.update(step=0)
    for mine, theirs in zip(ema.average.state_dict().values(), layer.state_dict().values()):
        if mine.is_floating_point():
            assert torch.equal(mine, theirs)


def test_the_average_is_never_trained_and_never_in_training_mode() -> None:
    average = Ema(network().train(), decay=0.9).average
    assert not any(module.training for module in average.modules())
    assert not any(parameter.requires_grad for parameter in average.parameters())


# --- checkpoints ----------------------------------------------------------------------------------


def test_a_checkpoint_is_loaded_as_it_was_saved(tmp_path: pathlib.Path) -> None:
    unet = network()
    state = {"network": unet.state_dict(), "step": 7, "log": [{"epoch": 1, "dice": None}], "name": "a"}
    checkpoint.save(tmp_path / "new" / "last.pt", state)
    loaded = checkpoint.load(tmp_path / "new" / "last.pt", keys=("network", "step"))
    assert loaded["step"] == 7 and loaded["log"] == state["log"] and loaded["name"] == "a"
    assert all(torch.equal(loaded["network"][key], value) for key, value in unet.state_dict().items())


def test_a_checkpoint_is_complete_or_absent(tmp_path: pathlib.Path) -> None:
    checkpoint.save(tmp_path / "last.pt", {"step": 1})
    with pytest.raises(Exception, match="pickle"):
        checkpoint.save(tmp_path / "last.pt", {"step": 2, "bad": lambda: None})
    assert checkpoint.load(tmp_path / "last.pt", keys=("step",)) == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_a_missing_checkpoint_is_a_problem(tmp_path: pathlib.Path) -> None:
    with pytest.raises(Problem, match=r"no checkpoint .*best\.pt; train"):
        checkpoint.load(tmp_path / "best.pt", keys=())


@pytest.mark.parametrize("tenths", range(10))
def test_a_checkpoint_that_is_cut_short_is_a_problem(tmp_path: pathlib.Path, tenths: int) -> None:
    path = tmp_path / "best.pt"
    checkpoint.save(path, {"network": network().state_dict()})
    path.write_bytes(path.read_bytes()[: path.stat().st_size * tenths // 10])
    with pytest.raises(Problem, match=r"best\.pt is damaged"):
        checkpoint.load(path, keys=("network",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("data", [b"hello", b"\x80\x04.", b"\x80\x02}q\0.", b"PK\5\6" + b"\0" * 18, b"\0" * 500])
def test_a_file_that_is_not_a_checkpoint_is_a_problem(tmp_path: pathlib.Path, data: bytes) -> None:
    (tmp_path / "best.pt").write_bytes(data)
    with pytest.raises(Problem, match=r"best\.pt"):
        checkpoint.load(tmp_path / "best.pt", keys=("network",))


@pytest.mark.parametrize("state", [{"step": 1}, [1, 2], torch.zeros(3), None])
def test_a_checkpoint_without_a_key_is_a_problem_that_names_it(tmp_path: pathlib.Path, state: object) -> None:
    torch.save(state, tmp_path / "best.pt")
    with pytest.raises(Problem, match=r"best\.pt has no (network|state)"):
        checkpoint.load(tmp_path / "best.pt", keys=("network",))


class Code:
    """Unpickling this creates a file."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", ["torch.save", "pickle"])
def test_code_in_a_checkpoint_is_a_problem_and_never_runs(tmp_path: pathlib.Path, kind: str) -> None:
    trace = tmp_path / "trace"
    state = {"network": {}, "settings": Code(trace)}
    file = io.BytesIO()
    torch.save(state, file)
    data = file.getvalue() if kind == "torch.save" else pickle.dumps(state)
    (tmp_path / "best.pt").write_bytes(data)
    with pytest.raises(Problem, match=r"best\.pt is damaged or not one of ours"):
        checkpoint.load(tmp_path / "best.pt", keys=("network",))
    assert not trace.exists()
    torch.load(tmp_path / "best.pt", weights_only=False) if kind == "torch.save" else pickle.loads(data)
    assert trace.exists()  # so the test would have noticed
