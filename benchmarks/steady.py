"""The steady state of training: the steps of `pipeline/training/loop.py`, without evaluation and checkpoints."""
import dataclasses
import functools
import resource
import sys
import time
from collections.abc import Callable, Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config import Settings, Train
from pipeline.data import tiles
from pipeline.data.loader import BatchSchedule, TrainingDataset, prefetch_to_device, training_loader
from pipeline.data.tiles import TileDataset
from pipeline.model.losses import LossOf
from pipeline.runtime.device import check_compiler, precision, set_up
from pipeline.runtime.distributed import ProcessGroup
from pipeline.training.networks import build_loss, build_network
from pipeline.training.state import create_state

QUEUE_STEPS = 40  # more than the loader's workers can have ready beforehand, which would look like no waiting
ENDLESS_EPOCHS = 1_000_000


@dataclasses.dataclass(frozen=True)
class Speed:
    """The figures of one training loop."""

    images_per_s: float  # tiles of a refiner
    tflops: float  # a training step costs three forward passes
    waited_fraction: float | None
    peak_memory_gb: float | None


@dataclasses.dataclass(frozen=True)
class TrainedNetwork:
    """A network and what it is trained with, as a config says."""

    hyper: Train
    build: Callable[[], nn.Module]  # with random weights
    loss_of: LossOf
    images: TrainingDataset | TileDataset
    workers: int


class OurLoop:
    """The step of the stage `train` or `refine` and its loader.

    The network is compiled if `compile` says so, whatever the config says.
    """

    def __init__(self, trained: TrainedNetwork, device: torch.device, compile: bool):
        set_up(deterministic=False)
        self.device, self.hyper, self.loss_of = device, trained.hyper, trained.loss_of
        self.batch_size = trained.hyper.batch_size
        dist = ProcessGroup(rank=0, world_size=1, device=device)
        self.state = create_state(trained.build, trained.hyper.model_copy(update={"compile": False}), dist)
        self.state.network.train()
        if compile:  # not in place, so that `gflop` counts the plain network
            check_compiler(device, "train.compile")
            self.state.forward = cast(nn.Module, torch.compile(self.state.network))
        self.batches = iter(prefetch_to_device(self.load(trained), device))

    def load(self, trained: TrainedNetwork) -> Iterable[tuple[Tensor, Tensor]]:
        """Return endless batches of images, or of a refiner's tiles; the wait for them is measured."""
        images, pin_memory = trained.images, self.device.type == "cuda"
        sizes = images.sampling, self.batch_size, ENDLESS_EPOCHS
        schedule = BatchSchedule(*sizes, trained.hyper.seed, steps_per_batch=images.steps_per_batch)
        if isinstance(images, TileDataset):
            loader = training_loader(images, schedule, trained.workers, pin_memory, tiles.stack_tiles)
            return self.state.watch.waiting_for(tiles.batches_of_tiles(loader, skip=0))
        return self.state.watch.waiting_for(training_loader(images, schedule, trained.workers, pin_memory))

    def step(self) -> None:
        image_NHWC, target_NHW = next(self.batches)
        hyper = self.hyper
        loss, norm = self.state.take_step(image_NHWC, target_NHW, self.loss_of, hyper.clip_norm, hyper.accumulate)
        self.state.ema.update(self.state.step)
        self.state.count_step(loss, norm)

    def waited_s(self) -> float:
        return self.state.watch.waited_s

    def forward_gflop(self) -> float:
        image_NHWC = torch.zeros(1, *next(self.batches)[0].shape[1:], dtype=torch.uint8, device=self.device)
        self.state.network.eval()  # whose batch norm takes a single image, however small
        count = gflop(self.state.network, image_NHWC)
        self.state.network.train()
        return count


def default_network(images: TrainingDataset, batch_size: int, workers: int, device: torch.device) -> TrainedNetwork:
    """Return the network of the default settings: a U-Net of width 64, with AdamW."""
    settings = Settings(train=Train(batch_size=batch_size))
    build = functools.partial(build_network, settings, pretrained=False)
    return TrainedNetwork(settings.train, build, build_loss(settings, device), images, workers)


# --- what is measured ------------------------------------------------------------------------------------------------


def gflop(network: nn.Module, image: Tensor) -> float:
    """GFLOP of one image's forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(image)
    return counter.get_total_flops() / 1e9


def peak_memory_gb(device: torch.device) -> float:
    """The largest so far: GPU memory, or the resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    maxrss_unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * maxrss_unit_bytes / 1e9


def matrix_tflops(device: torch.device) -> float:
    """TFLOP/s of a large matrix product of random numbers in the precision of training."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=precision(device)) for _ in range(2))
    a @ b
    return 2 * size**3 * 5 / seconds_of(lambda: a @ b, device, 5) / 1e12


def seconds_of(call: Callable[[], object], device: torch.device, times: int) -> float:
    synchronise(device)
    begun = time.perf_counter()
    for _ in range(times):
        call()
    synchronise(device)
    return time.perf_counter() - begun


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
