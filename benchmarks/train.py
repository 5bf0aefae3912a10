"""`make bench-train`: how fast images are read and a U-Net is trained, against the reference loop.

The same 31.04 M U-Net, the same synthetic images, the same process; on a CPU at 320x480, on a GPU at 640x960
and, ours alone, at full size. Needs no competition data: it draws two cars. On a CPU the loops take turns
after each step, so that other processes disturb all alike, and medians are reported. The last line is one JSON
object of the figures, null where this machine cannot give one.
"""
import argparse
import dataclasses
import functools
import json
import math
import os
import pathlib
import resource
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from itertools import cycle, islice
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.reference import ReferenceImages, ReferenceTrainer
from pipeline import carvana, config
from pipeline.data import augment
from pipeline.data.loader import BatchSchedule, TrainingDataset, prefetch_to_device, training_loader
from pipeline.model import losses
from pipeline.runtime.device import describe, pick_device, precision, set_up
from pipeline.runtime.distributed import ProcessGroup
from pipeline.synthetic import write_competition
from pipeline.training.networks import build_network
from pipeline.training.state import create_state

FULL_SIZE_BATCHES = (8, 4, 2, 1)  # tried in turn, on a GPU
TRAINING_IMAGES = 5088  # of the competition; the reference lists its folders again for each image
QUEUE_STEPS = 40  # more than the loader's workers can have ready beforehand, which would look like no waiting


@dataclasses.dataclass(frozen=True)
class Speed:
    """The figures of one training loop."""

    images_per_s: float
    tflops: float  # a training step costs three forward passes
    waited_fraction: float | None
    peak_memory_gb: float | None


class OurLoop:
    """The step of the stage `train` and its loader, without evaluation and checkpoints."""

    def __init__(self, images: TrainingDataset, batch_size: int, device: torch.device, workers: int, compile: bool):
        set_up(deterministic=False)
        self.device, self.batch_size = device, batch_size
        settings = config.Settings(train=config.Train(batch_size=batch_size))  # defaults: a U-Net of width 64, AdamW
        dist = ProcessGroup(rank=0, world_size=1, device=device)
        self.state = create_state(lambda: build_network(settings, pretrained=False), settings.train, dist)
        self.state.network.train()
        if compile:  # not in place, so that `gflop` counts the plain network
            self.state.forward = cast(nn.Module, torch.compile(self.state.network))
        self.loss_of = losses.build(True, [], settings.loss.model_dump(), device)
        schedule = BatchSchedule(len(images), batch_size, epochs=1_000_000, seed=0)
        loader = training_loader(images, schedule, workers, pin_memory=device.type == "cuda")
        self.batches = iter(prefetch_to_device(self.state.watch.waiting_for(loader), device))

    def step(self) -> None:
        image_NHWC, coverage_NHW = next(self.batches)
        loss, gradient_norm = self.state.take_step(image_NHWC, coverage_NHW, self.loss_of, clip_norm=1.0)
        self.state.ema.update(self.state.step)
        self.state.count_step(loss, gradient_norm)

    def waited_s(self) -> float:
        return self.state.watch.waited_s

    def forward_gflop(self) -> float:
        image_NHWC = torch.zeros(1, *next(self.batches)[0].shape[1:], dtype=torch.uint8, device=self.device)
        return gflop(self.state.network, image_NHWC)


class ReferenceLoop:
    """The reference's step; its images are read beforehand and cost it nothing."""

    def __init__(self, images: ReferenceImages, batch_size: int, device: torch.device, amp: bool):
        torch.backends.cudnn.benchmark = False  # torch's default, which the reference keeps and ours changes
        loader = DataLoader(images, batch_size, drop_last=True, pin_memory=device.type == "cuda")
        self.batches = cycle(list(islice(loader, 4)))
        self.batch_size, self.trainer = batch_size, ReferenceTrainer(device, amp)

    def step(self) -> None:
        self.trainer.step(*next(self.batches))

    def waited_s(self) -> None:
        return None

    def forward_gflop(self) -> float:
        return gflop(self.trainer.network, next(self.batches)[0][:1].to(self.trainer.device))


Loop = OurLoop | ReferenceLoop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, help="timed steps of each loop")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--workers", type=int, default=8, help="processes of the loader while a GPU trains")
    parser.add_argument("--compile", action="store_true", help="torch.compile for our loop on a CPU, as on a GPU")
    args = parser.parse_args()
    device = pick_device()
    on_gpu = device.type == "cuda"
    scale = 2 if on_gpu else 4
    batch_size = args.batch_size or (8 if on_gpu else 2)
    steps = args.steps or (100 if on_gpu else 5)
    compiled = on_gpu or args.compile
    print(
        f"{describe(device)}, torch {torch.__version__}, batch {batch_size}, images at 1/{scale}, {steps} steps, "
        f"ours {'with' if compiled else 'without'} torch.compile"
    )

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_competition.main(folder, cars=2, test_cars=1, seed=0)
        unpack(folder)
        ours_read, reference_read = loader_speeds(folder, scale)
        workers = args.workers if on_gpu else 0
        makers: list[Callable[[], Loop]] = [
            lambda: OurLoop(our_images(folder, scale), batch_size, device, workers, compiled),
            lambda: ReferenceLoop(reference_images(folder, scale), batch_size, device, amp=True),
            lambda: ReferenceLoop(reference_images(folder, scale), batch_size, device, amp=False),
        ]
        if on_gpu:  # one after the other, each with all of the memory
            peak_tflops = float(np.median([matrix_tflops(device) for _ in range(5)]))
            ours, amp, float32 = (training_speeds([maker], device, 1, steps)[0][0] for maker in makers)
            full_batch_size, full = full_size_speed(folder, device, workers)
        else:
            (ours, amp, float32), peak_tflops = training_speeds(makers, device, steps, 1)
            full_batch_size, full = None, None

    figures = {
        "train_ratio": ours.images_per_s / amp.images_per_s,
        "train_ratio_float32": ours.images_per_s / float32.images_per_s,
        "loader_ratio": ours_read / reference_read,
        "images_per_s": ours.images_per_s,
        "reference_images_per_s": amp.images_per_s,
        "reference_float32_images_per_s": float32.images_per_s,
        "loader_images_per_s": ours_read,
        "reference_loader_images_per_s": reference_read,
        "tflops": ours.tflops,
        "matrix_tflops": peak_tflops,
        "peak_fraction": ours.tflops / peak_tflops,
        "waited_fraction": ours.waited_fraction,
        "peak_memory_gb": ours.peak_memory_gb,
        "reference_peak_memory_gb": amp.peak_memory_gb if on_gpu else None,
        "full_size_images_per_s": full.images_per_s if full else None,
        "full_size_batch": full_batch_size,
        "full_size_peak_memory_gb": full.peak_memory_gb if full else None,
    }
    print_table(figures, amp, on_gpu)
    print(json.dumps({key: value if value is None else round(value, 4) for key, value in figures.items()}))


def print_table(figures: dict[str, float | None], amp: Speed, on_gpu: bool) -> None:
    images_per_s, tflops, peak_tflops = figures["images_per_s"], figures["tflops"], figures["matrix_tflops"] or math.nan
    print(f"\n{'':60}{'ours':>9}{'reference':>11}{'ratio':>7}")
    print_row("training, images/s; reference as its README runs it, --amp", images_per_s, amp.images_per_s)
    float32_images_per_s = figures["reference_float32_images_per_s"]
    print_row("training, images/s; reference without --amp, in float32", images_per_s, float32_images_per_s)
    reading = figures["loader_images_per_s"], figures["reference_loader_images_per_s"]
    print_row("reading in one process, images/s; ours augments, too", *reading)
    print_row("achieved TFLOP/s", tflops, amp.tflops, digits=3)
    label = f"fraction of the measured matrix peak, {peak_tflops:.3g} TFLOP/s"
    print_row(label, figures["peak_fraction"], amp.tflops / peak_tflops)
    print_row("fraction of the time waited for images", figures["waited_fraction"], amp.waited_fraction, digits=4)
    memory = "GPU memory" if on_gpu else "memory of the process, before the reference runs"
    print_row(f"peak {memory}, GB", figures["peak_memory_gb"], figures["reference_peak_memory_gb"])
    batch_size = figures["full_size_batch"] or "-"
    print_row(f"full size, batch {batch_size}, images/s", figures["full_size_images_per_s"], None)


def print_row(label: str, ours: float | None, reference: float | None, digits: int = 2) -> None:
    """Print a row of the table, with a dash for what was not measured."""
    mine, theirs = (f"{value:.{digits}f}" if value is not None else "-" for value in (ours, reference))
    ratio = f"{ours / reference:.2f}" if ours and reference and "images/s" in label else ""
    print(f"{label:60}{mine:>9}{theirs:>11}{ratio:>7}")


def training_speeds(
    makers: list[Callable[[], Loop]], device: torch.device, rounds: int, block_steps: int
) -> tuple[list[Speed], float]:
    """Measure loops that take turns, `rounds` times `block_steps` steps each, and the TFLOP/s of matrix products.

    Medians over the rounds. The peak memory of a loop is read after its first steps, before the next is made.
    """
    on_gpu = device.type == "cuda"
    loops, memory_gb = [], []
    for maker in makers:
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        loops.append(maker())
        for _ in range(QUEUE_STEPS if on_gpu else 1):
            loops[-1].step()
        memory_gb.append(peak_memory_gb(device))
    waited_before = [loop.waited_s() for loop in loops]
    seconds = np.zeros((rounds, len(loops)))
    matrix_rates = []
    for turn in range(rounds):
        matrix_rates.append(matrix_tflops(device))
        for number, loop in enumerate(loops):
            seconds[turn, number] = seconds_of(loop.step, device, block_steps)
    speeds = []
    for loop, before, took_s, peak_gb in zip(loops, waited_before, seconds.T, memory_gb):
        after = loop.waited_s()
        waited_fraction = None if before is None or after is None else (after - before) / took_s.sum()
        images_per_s = loop.batch_size * block_steps / float(np.median(took_s))
        speeds.append(Speed(images_per_s, 3 * loop.forward_gflop() * images_per_s / 1e3, waited_fraction, peak_gb))
    return speeds, float(np.median(matrix_rates))


def full_size_speed(folder: pathlib.Path, device: torch.device, workers: int) -> tuple[int | None, Speed | None]:
    """Measure our loop at 1280x1918, with the largest batch that fits."""
    for batch_size in FULL_SIZE_BATCHES:
        torch.compiler.reset()  # otherwise it would compile for batches of any size
        torch.cuda.empty_cache()
        try:
            maker = functools.partial(OurLoop, our_images(folder, 1), batch_size, device, workers, True)
            return batch_size, training_speeds([maker], device, 1, block_steps=20)[0][0]
        except torch.OutOfMemoryError:
            continue
    return None, None


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


def our_images(folder: pathlib.Path, scale: int) -> TrainingDataset:
    cars = carvana.CARVANA.open_dataset(folder)
    return TrainingDataset(cars, cars.names, scale, augment.build(**config.Augment().model_dump()), 0, False)


def reference_images(folder: pathlib.Path, scale: int) -> ReferenceImages:
    return ReferenceImages(folder / "unpacked/train", folder / "unpacked/train_masks", 1 / scale)


def loader_speeds(folder: pathlib.Path, scale: int) -> tuple[float, float]:
    """Images a second in one process: ours, augmentation included, and the reference's, which has none."""
    ours, reference = our_images(folder, scale), reference_images(folder, scale)
    seconds: dict[str, list[float]] = {"ours": [], "reference": []}
    for index in [0, *range(len(ours))]:  # in turn, so that other processes disturb both alike
        for label, read in (("ours", lambda: ours[0, index]), ("reference", lambda: reference[index])):
            begun = time.perf_counter()
            read()
            seconds[label].append(time.perf_counter() - begun)
    return 1 / float(np.median(seconds["ours"][1:])), 1 / float(np.median(seconds["reference"][1:]))


def unpack(folder: pathlib.Path) -> None:
    """Extract the archives for the reference, and link as many names to the files as the competition has images."""
    for set_name, ending in (("train", ".jpg"), ("train_masks", "_mask.gif")):
        with zipfile.ZipFile(folder / f"{set_name}.zip") as archive:
            archive.extractall(folder / "unpacked")
        files = sorted((folder / "unpacked" / set_name).iterdir())
        for number in range(len(files), TRAINING_IMAGES):
            car, angle = divmod(number, carvana.ANGLES)
            os.link(files[number % len(files)], files[0].with_name(f"{car:012x}_{angle + 1:02}{ending}"))


if __name__ == "__main__":
    main()
