"""`python -m benchmarks.memory`: the peak GPU memory of a training step of every config, counted without a GPU.

The step runs on fake tensors, which have shapes and no numbers: https://docs.pytorch.org/docs/stable/
torch.compiler_fake_tensor.html. They are fake tensors of a CPU, since a backward pass on a fake GPU asks for a real
one; both allocate the same. The context of CUDA (about 0.5 GB), workspaces of cuDNN and fragmentation come on top, and
torch.compile needs less. The last line is one JSON object.
"""
import argparse
import functools
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from pipeline import carvana, config
from pipeline.config import Settings, Train
from pipeline.data.images import grid_shape
from pipeline.model import optim
from pipeline.model.ema import Ema
from pipeline.model.losses import LossOf
from pipeline.training.networks import build_loss, build_network, build_refiner, build_refiner_loss

CPU = torch.device("cpu")
FULL_SIZE = carvana.HEIGHT_PX, carvana.WIDTH_PX  # other data needs a size in its config
NYUV2_SIZE = 480, 640


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", nargs="*", type=pathlib.Path, help="default: those in configs/ that have gpu_gib")
    paths = parser.parse_args().configs or sorted(pathlib.Path("configs").glob("*.yaml"))
    figures = {}
    for path in paths:
        settings = config.load(path)
        for section, accumulate, stated_gib in stated(settings):
            counted_gib = peak_gib(settings, section, accumulate)
            figures[f"{path.stem} {section} {accumulate}"] = round(counted_gib, 2)
            what = f"{path.name}, {section}.accumulate={accumulate}"
            print(f"{what:60}{counted_gib:6.1f} GiB; gpu_gib says {stated_gib:g}", flush=True)
    print(json.dumps(figures))


def stated(settings: Settings) -> Iterator[tuple[str, int, float]]:
    """Yield section, accumulate and memory in GiB of what `gpu_gib` states."""
    for section in ("train", "refine"):
        hyper = getattr(settings, section)
        for number, gib in enumerate(hyper.gpu_gib if hyper else []):
            yield section, 2**number, gib


def peak_gib(settings: Settings, section: str, accumulate: int, dtype: torch.dtype = torch.bfloat16) -> float:
    """Return the peak memory of a training step, in GiB.

    section: train, or refine for the refiner; accumulate: micro-batches of its batch; dtype: of convolutions.
    """
    if section == "train":
        hyper, channels = settings.train, settings.data.channels
        height, width = grid_shape(*full_size(settings), settings.data.scale)
        return peak_of_step(
            functools.partial(build_network, settings, pretrained=False), build_loss(settings, CPU),
            hyper, (hyper.batch_size // accumulate, height, width, channels), min(accumulate, 2), dtype,
        )  # fmt: skip
    assert settings.refine is not None
    hyper = settings.refine
    tiles = hyper.batch_size // accumulate
    shape = (tiles, hyper.tile_px, hyper.tile_px, 4)
    loss_of = build_refiner_loss(hyper, CPU)
    return peak_of_step(functools.partial(build_refiner, hyper), loss_of, hyper, shape, min(accumulate, 2), dtype)


def full_size(settings: Settings) -> tuple[int, int]:
    """Return rows and columns of the images of a config."""
    if settings.data.height and settings.data.width:
        return settings.data.height, settings.data.width
    return NYUV2_SIZE if settings.data.kind == "nyuv2" else FULL_SIZE


def peak_of_step(
    build: Callable[[], nn.Module], loss_of: LossOf, hyper: Train, shape_NHWC: tuple[int, int, int, int],
    micro_batches: int, dtype: torch.dtype,
) -> float:  # fmt: skip
    """Return the peak memory of a step in micro-batches, in GiB.

    micro_batches: 1, or 2 for any larger number: from the second one on, the gradients of those before are there.
    """
    tracker, mode = MemTracker(), FakeTensorMode(allow_non_fake_inputs=True)
    network = fake_copy(build(), mode, CPU).train()
    with mode:
        ema = Ema(network, hyper.ema_decay)
        optimizer = optim.build(hyper.optimizer, network, hyper.learning_rate, hyper.weight_decay, hyper.momentum)
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()  # makes its state
        optimizer.zero_grad(set_to_none=True)
        tracker.track_external(network, optimizer, ema.average)
        with tracker:
            for _ in range(micro_batches):
                tracker.reset_mod_stats()
                image_NHWC = torch.zeros(shape_NHWC, dtype=torch.uint8)
                target_NHW = torch.zeros(shape_NHWC[:3], dtype=torch.uint8)
                with torch.autocast("cpu", dtype):
                    logits_NCHW = network(image_NHWC)
                loss_of(logits_NCHW, target_NHW).backward()
            nn.utils.clip_grad_norm_(network.parameters(), hyper.clip_norm)
            optimizer.step()
    return max(kinds["Total"] for kinds in tracker.get_tracker_snapshot("peak").values()) / 2**30


def fake_copy(network: nn.Module, mode: FakeTensorMode, device: torch.device) -> nn.Module:
    """Replace parameters and buffers by fake ones on a device, which `network.to` cannot do."""
    for module in network.modules():
        tables: tuple[dict[str, Any], ...] = module._parameters, module._buffers
        for table in tables:
            for name, value in table.items():
                if value is not None:
                    with mode:
                        fake = mode.from_tensor(value.detach()).to(device)
                        table[name] = nn.Parameter(fake) if isinstance(value, nn.Parameter) else fake
    return network


if __name__ == "__main__":
    main()
