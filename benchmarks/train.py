"""`make bench-train`: how fast images are read and a U-Net is trained, against the reference loop.

The same 31.04 M U-Net, the same synthetic images, the same process; on a CPU at 320x480, on a GPU at 640x960
and, ours alone, at full size. Needs no competition data: it draws two cars. On a CPU the loops take turns
after each step, so that other processes disturb all alike, and medians are reported. With CONFIG it measures how fast
that config trains instead, as it is, and compares with nothing (benchmarks/config_speed.py). The last line is one JSON
object of the figures, null where this machine cannot give one.
"""
import argparse
import functools
import json
import math
import os
import pathlib
import tempfile
import time
import zipfile
from collections.abc import Callable
from itertools import cycle, islice

import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks import config_speed
from benchmarks.reference import ReferenceImages, ReferenceTrainer
from benchmarks.steady import (
    QUEUE_STEPS, OurLoop, Speed, default_network, gflop, matrix_tflops, peak_memory_gb, seconds_of,
)  # fmt: skip
from pipeline import carvana, config
from pipeline.data import augment
from pipeline.data.loader import TrainingDataset
from pipeline.runtime.device import describe, pick_device
from pipeline.synthetic import write_competition

FULL_SIZE_BATCHES = (8, 4, 2, 1)  # tried in turn, on a GPU
TRAINING_IMAGES = 5088  # of the competition; the reference lists its folders again for each image


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
    parser.add_argument("--config", help="measure this config, as it is, instead of the loops")
    parser.add_argument("--data", help="of the config: its images; default: drawn ones")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=1", help="override settings of the config")
    parser.add_argument("--steps", type=int, help="timed steps of each loop")
    parser.add_argument("--batch", type=int, help="images a step; not with --config")
    parser.add_argument("--workers", type=int, default=8, help="processes of the loader while a GPU trains")
    parser.add_argument("--compile", action="store_true", help="torch.compile for our loop on a CPU, as on a GPU")
    args = parser.parse_args()
    if args.config and args.batch:
        parser.error("a config has its own batch: leave out --config, or --batch")
    if args.data and not args.config:
        parser.error("--data is for --config; the loops are measured on drawn cars")
    if args.config:
        data = pathlib.Path(args.data) if args.data else None
        print(json.dumps(config_speed.main(pathlib.Path(args.config), data, args.steps, args.compile, args.set)))
        return
    compare_loops(args)


def compare_loops(args: argparse.Namespace) -> None:
    """Measure reading and training, ours and the reference's, and print the table."""
    device = pick_device()
    on_gpu = device.type == "cuda"
    scale = 2 if on_gpu else 4
    batch_size = args.batch or (8 if on_gpu else 2)
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
            lambda: our_loop(folder, scale, batch_size, device, workers, compiled),
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
            maker = functools.partial(our_loop, folder, 1, batch_size, device, workers, compile=True)
            return batch_size, training_speeds([maker], device, 1, block_steps=20)[0][0]
        except torch.OutOfMemoryError:
            continue
    return None, None


def our_loop(
    folder: pathlib.Path, scale: int, batch_size: int, device: torch.device, workers: int, compile: bool
) -> OurLoop:
    return OurLoop(default_network(our_images(folder, scale), batch_size, workers, device), device, compile)


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
