"""`make bench-train CONFIG=configs/x.yaml`: how fast a config trains, as it is.

Its own network, optimizer, batch, micro-batches, loss and size of the images, and its refiner if it has one; on a GPU
both eager and compiled. Reported is the steady state: images/s once what is prepared only once is done and what the
loader had ready is used up. The images are those of DATA, else drawn ones.
"""
import functools
import math
import pathlib
import statistics
import tempfile
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.kernels import time_by_kind
from benchmarks.steady import OurLoop, TrainedNetwork, matrix_tflops, peak_memory_gb, seconds_of
from pipeline import config
from pipeline.config import Refine, Settings, Train
from pipeline.data import augment
from pipeline.data.dataset import SegmentationDataset, open_dataset
from pipeline.data.loader import MOST_AHEAD, TrainingDataset
from pipeline.data.tiles import TileDataset
from pipeline.inference.oof import png
from pipeline.runtime.device import describe, pick_device
from pipeline.runtime.memory import is_out_of_memory, release_memory
from pipeline.runtime.problem import Problem
from pipeline.synthetic import write_competition, write_rooms
from pipeline.training.networks import build_loss, build_network, build_refiner, build_refiner_loss

REFINED_IMAGES = 160  # their coarse predictions are made beforehand
DRAWN_CARS = 10  # of as many makes as a config has folds, and as many images as the largest batch of tiles
BLOCKS, PROFILED_STEPS = 5, 3


def main(
    path: pathlib.Path, data: pathlib.Path | None, steps: int | None, compile_on_cpu: bool, overrides: list[str] = []
) -> dict[str, Any]:
    """Measure a config and print a table; return the figures, by network and by how it is run.

    data: a folder of its `data.kind`; None draws one. steps: timed steps of each network, by default 50, on a CPU 5.
    """
    settings, device = config.load(path, overrides), pick_device()
    on_gpu = device.type == "cuda"
    steps = steps or (50 if on_gpu else 5)
    with tempfile.TemporaryDirectory() as name:
        folder = data or draw(settings.data.kind, pathlib.Path(name) / "drawn")
        peak_tflops = statistics.median(matrix_tflops(device) for _ in range(5))
        where = f"{describe(device)}, torch {torch.__version__}, measured matrix peak {peak_tflops:.3g} TFLOP/s"
        print(f"{path} on {where}, {'drawn images' if data is None else data}, {steps} steps", flush=True)
        figures: dict[str, Any] = {"config": path.stem, "matrix_tflops": round(peak_tflops, 2)}
        for network, trained in networks_of(settings, folder, device):
            for way in ("eager", "compiled") if on_gpu or compile_on_cpu else ("eager",):
                measured = try_to_measure(trained, device, way == "compiled", steps, peak_tflops)
                figures[f"{network}_{way}"] = measured
                print_figures(f"{network}, {way}, batch {trained.hyper.batch_size}", measured)
    return figures


# --- what a config trains --------------------------------------------------------------------------------------------


def networks_of(
    settings: Settings, folder: pathlib.Path, device: torch.device
) -> Iterator[tuple[str, TrainedNetwork]]:
    """Yield "network", and "refiner" if the config has one, with what each is trained with."""
    dataset = open_dataset(settings.data, settings.task, folder)
    transform = augment.build(**settings.augment.model_dump(), of_classes=settings.task.kind == "multiclass")
    scale, workers = settings.data.scale, settings.data.workers
    names = enough(dataset.names, settings.train)
    images = TrainingDataset(dataset, names, scale, transform, settings.train.seed, settings.data.cache)
    build = functools.partial(build_network, settings, pretrained=False)
    yield "network", TrainedNetwork(settings.train, build, build_loss(settings, device), images, workers)
    if (hyper := settings.refine) is not None:
        refined = tiles_of(dataset, settings, hyper, transform)
        refiner = functools.partial(build_refiner, hyper)
        yield "refiner", TrainedNetwork(hyper, refiner, build_refiner_loss(hyper, device), refined, workers)


def enough(names: list[str], hyper: Train) -> list[str]:
    """Return the names, repeated if they do not fill two batches."""
    return names * math.ceil(2 * hyper.batch_size / len(names))


def tiles_of(
    dataset: SegmentationDataset, settings: Settings, hyper: Refine, transform: augment.Augment
) -> TileDataset:
    """Return the tiles of a refiner. For coarse predictions it has the masks, whose edges are unsure cells as well."""
    scale, few = settings.data.scale, dataset.names[:REFINED_IMAGES]
    tiles = TileDataset(
        dataset, enough(few, hyper), scale, hyper.scale, hyper.tile_px, hyper.margin_px, hyper.tiles_per_image,
        transform, hyper.seed,
    )
    tiles.coarse_png_of = {name: png(dataset.target(name, scale)) for name in few}
    return tiles


def draw(kind: str, folder: pathlib.Path, cars: int = DRAWN_CARS) -> pathlib.Path:
    """Draw images for a `data.kind` into a folder, unless they are there; return it."""
    if kind == "carvana":
        write_competition.main(folder, cars, test_cars=1)
    elif kind == "nyuv2":
        write_rooms.main(folder, scenes=12, height=480, width=640, seed=0, splits=False)
    elif kind == "folder":
        draw_plain_folder(folder)
    else:
        raise Problem(f"Images of data.kind {kind} cannot be drawn; name a folder of them with DATA=.")
    return folder


def draw_plain_folder(folder: pathlib.Path, images: int = 48) -> None:
    """Write images of coloured discs and their masks of three classes, as configs/folder.yaml wants them."""
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number in range(images):
        image, mask = np.full((480, 640, 3), 120, np.uint8), np.zeros((480, 640), np.uint8)
        for label in (1, 2):
            centre, radius = rng.integers(100, 380, 2).tolist(), int(rng.integers(40, 90))
            cv2.circle(image, centre, radius, rng.integers(256, size=3).tolist(), -1)
            cv2.circle(mask, centre, radius, label, -1)
        cv2.imwrite(str(folder / f"images/{number:03d}.jpg"), image)
        cv2.imwrite(str(folder / f"masks/{number:03d}.png"), mask)


# --- measuring -------------------------------------------------------------------------------------------------------


def try_to_measure(
    trained: TrainedNetwork, device: torch.device, compile: bool, steps: int, peak_tflops: float
) -> dict[str, Any]:
    """Return the figures, or one, `error`: what fails in one way must not lose the others."""
    try:
        return measure(trained, device, compile, steps, peak_tflops)
    except Exception as error:  # those of a compiler have no common one
        if is_out_of_memory(error):
            return {"error": "the memory is too small"}
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    finally:
        torch.compiler.reset()  # otherwise the next would be compiled for batches of any size
        release_memory()


def measure(
    trained: TrainedNetwork, device: torch.device, compile: bool, steps: int, peak_tflops: float
) -> dict[str, Any]:
    """Return the figures of the steady state; images are the tiles of a refiner."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    loop = OurLoop(trained, device, compile)
    first_step_s = seconds_of(loop.step, device, 1)
    seconds_of(loop.step, device, queue_steps(trained, device))
    reserved_gb = None
    if device.type == "cuda":  # without what cuDNN tries out at the start
        reserved_gb = torch.cuda.max_memory_reserved() / 1e9
        torch.cuda.reset_peak_memory_stats()
    waited_before = loop.waited_s()
    seconds = [seconds_of(loop.step, device, max(1, steps // BLOCKS)) for _ in range(BLOCKS)]
    waited_fraction = (loop.waited_s() - waited_before) / sum(seconds)
    step_s = statistics.median(seconds) / max(1, steps // BLOCKS)
    images_per_s = loop.batch_size / step_s
    tflops = 3 * loop.forward_gflop() * images_per_s / 1e3  # a training step costs three forward passes
    peak_gb = peak_memory_gb(device)
    ms_of_kind = time_by_kind(loop.step, device, PROFILED_STEPS)
    return rounded({
        "images_per_s": images_per_s, "step_ms": 1e3 * step_s, "tflops": tflops, "peak_fraction": tflops / peak_tflops,
        "peak_memory_gb": peak_gb, "reserved_gb": reserved_gb, "waited_fraction": waited_fraction,
        "first_step_s": first_step_s, "ms_of_kind": rounded(ms_of_kind),
    })  # fmt: skip


def queue_steps(trained: TrainedNetwork, device: torch.device) -> int:
    """Return the steps that use up what the workers had ready while the first step was prepared."""
    if device.type != "cuda":
        return 1
    ready = MOST_AHEAD * trained.workers * trained.images.steps_per_batch
    return min(ready + 5, 500)


def rounded(figures: dict[str, Any]) -> dict[str, Any]:
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in figures.items()}


def print_figures(label: str, figures: dict[str, Any]) -> None:
    if "error" in figures:
        print(f"{label}: {figures['error']}", flush=True)
        return
    print(f"{label}: {figures['images_per_s']:.4g}/s, {figures['peak_memory_gb']:.3g} GB, "
          f"{figures['peak_fraction']:.0%} of the matrix peak, waited {figures['waited_fraction']:.1%}")
    ms_of_kind = {kind: ms for kind, ms in figures["ms_of_kind"].items() if ms}
    total = sum(ms_of_kind.values()) or math.nan
    print("  " + ", ".join(f"{kind} {ms:.3g} ms ({ms / total:.0%})" for kind, ms in ms_of_kind.items()), flush=True)
