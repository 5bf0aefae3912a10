"""The memory of a training step of the configs for Kaggle, counted with fake tensors: a T4 has 15 GB."""
import pathlib
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from pipeline import config
from pipeline.config import Train
from pipeline.data.images import grid_shape
from pipeline.model import optim
from pipeline.model.ema import Ema
from pipeline.model.losses import LossOf
from pipeline.training.networks import build_loss, build_network, build_refiner, build_refiner_loss

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
T4_GB, RESERVE_GB = 15.0, 1.0  # the reserve is for what CUDA and cuDNN need themselves


def peak_gb(
    build: Callable[[], nn.Module], loss_of: LossOf, hyper: Train, shape_NHWC: tuple[int, int, int, int]
) -> float:
    """Return the peak of two steps on one micro-batch, in float16, in GiB."""
    mode, tracker, network = FakeTensorMode(allow_non_fake_inputs=True), MemTracker(), build()
    for module in network.modules():
        for values in (module._parameters, module._buffers):
            for name, value in list(values.items()):
                if value is not None:
                    fake = mode.from_tensor(value.detach())
                    values[name] = nn.Parameter(fake) if isinstance(value, nn.Parameter) else fake
    with mode:
        ema = Ema(network, hyper.ema_decay)
        optimizer = optim.build(hyper.optimizer, network, hyper.learning_rate, hyper.weight_decay, hyper.momentum)
        tracker.track_external(network, optimizer, ema.average)
        with tracker:
            for _ in range(2):
                tracker.reset_mod_stats()
                image_NHWC = torch.zeros(shape_NHWC, dtype=torch.uint8)
                with torch.autocast("cpu", torch.float16):
                    logits_NCHW = network(image_NHWC)
                loss_of(logits_NCHW, torch.zeros(shape_NHWC[:3], dtype=torch.uint8)).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
    return max(kinds["Total"] for kinds in tracker.get_tracker_snapshot("peak").values()) / 2**30


@pytest.mark.parametrize("name", ["kaggle.yaml", "kaggle_refined.yaml"])
def test_the_configs_for_kaggle_fit_on_a_t4(name: str) -> None:
    settings, cpu = config.load(CONFIGS / name), torch.device("cpu")
    height, width = grid_shape(1280, 1918, settings.data.scale)
    images = settings.train.batch_size // settings.train.accumulate  # of a fold that has one GPU for itself
    network_gb = peak_gb(
        lambda: build_network(settings, pretrained=False), build_loss(settings, cpu), settings.train,
        (images, height, width, 3),
    )  # fmt: skip
    assert 1 < network_gb < T4_GB - RESERVE_GB
    if (hyper := settings.refine) is not None:
        shape = (hyper.batch_size, hyper.tile_px, hyper.tile_px, 4)
        assert 0.1 < peak_gb(lambda: build_refiner(hyper), build_refiner_loss(hyper, cpu), hyper, shape) < 4
        assert hyper.optimizer == "adamw"
    assert settings.train.optimizer == "adamw"  # muon multiplies matrices in bf16, which a T4 does not have
