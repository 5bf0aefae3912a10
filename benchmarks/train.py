"""`make bench-train`: how fast pictures are read and a U-Net is trained, against the reference loop.

The same 31.04 M U-Net, the same pictures, the same process; on a CPU at 320x480, on a GPU at 640x960.
Needs no competition data: it draws two cars. The last line is one JSON object of the figures.
"""
import argparse
import json
import pathlib
import tempfile
import time
import zipfile
from collections.abc import Callable

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.reference import ReferencePictures, ReferenceTrainer
from pipeline import carvana, config
from pipeline.data import augment, competition
from pipeline.data.dataset import Schedule, TrainingPictures, training_loader
from pipeline.inference.device import autocast, describe, has_bf16, pick_device
from pipeline.model.build import build
from pipeline.model.ema import Ema
from pipeline.model.losses import segmentation_loss
from pipeline.progress import Stopwatch
from pipeline.stages import demo_data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, help="timed steps of each loop")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--workers", type=int, default=8, help="of the loader while a GPU trains")
    args = parser.parse_args()

    device = pick_device()
    on_gpu = device.type == "cuda"
    scale = 2 if on_gpu else 4
    batch_size = args.batch_size or (8 if on_gpu else 2)
    steps = args.steps or (40 if on_gpu else 5)
    print(f"{describe(device)}, torch {torch.__version__}, batch {batch_size}, pictures at 1/{scale}, {steps} steps")

    peak_tflops = matrix_peak_tflops(device)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        demo_data.run(folder, cars=2, test_cars=1, seed=0)
        unpack(folder)
        ours_read, reference_read = loader_speeds(folder, scale)
        dataset = our_pictures(folder, scale, copies=max(1, batch_size * (steps + 5) // 32 + 1))
        ours, waited, forward_gflop = our_speed(dataset, batch_size, steps, device, args.workers if on_gpu else 0)
        reference = reference_speed(folder, scale, batch_size, steps, device)

    tflops = 3 * forward_gflop * ours / 1e3  # a training step costs three forward passes
    rows = [
        ("training, images/s", ours, reference, ours / reference),
        ("reading in one process, images/s", ours_read, reference_read, ours_read / reference_read),
    ]
    print(f"{'':36}{'ours':>10}{'reference':>12}{'ratio':>8}")
    for label, mine, theirs, ratio in rows:
        print(f"{label:36}{mine:>10.1f}{theirs:>12.1f}{ratio:>8.2f}")
    peak_memory_gb = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None
    print(
        f"{forward_gflop:.0f} GFLOP a forward pass; {tflops:.2f} TFLOP/s are {tflops / peak_tflops:.1%} of the "
        f"measured matrix peak of {peak_tflops:.1f}; waited {waited:.1%} of the time for pictures"
        + (f"; at most {peak_memory_gb:.1f} GB of GPU memory" if on_gpu else "")
    )
    figures = {
        "train_ratio": ours / reference,
        "loader_ratio": ours_read / reference_read,
        "images_per_s": ours,
        "tflops": tflops,
        "peak_share": tflops / peak_tflops,
        "wait_share": waited,
    }
    print(json.dumps({key: round(value, 4) for key, value in figures.items()}))


def matrix_peak_tflops(device: torch.device) -> float:
    """The rate of a large matrix product of random numbers in the precision of training."""
    size = 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if has_bf16(device) else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = seconds_per_call(lambda: a @ b, device, calls=20)
    return 2 * size**3 / seconds / 1e12


def our_pictures(folder: pathlib.Path, scale: int, copies: int = 1) -> TrainingPictures:
    pictures = competition.Pictures(folder, "train")
    names = pictures.names * copies
    change = augment.build(**config.Augment().model_dump())
    full_size = (carvana.HEIGHT_PX, carvana.WIDTH_PX)
    return TrainingPictures(pictures, competition.open_masks(folder), names, scale, change, 0, False, full_size)


def reference_pictures(folder: pathlib.Path, scale: int) -> ReferencePictures:
    return ReferencePictures(sorted((folder / "unpacked/train").iterdir()), folder / "unpacked/train_masks", 1 / scale)


def loader_speeds(folder: pathlib.Path, scale: int) -> tuple[float, float]:
    """Pictures a second of one process: ours, augmentation included, and the reference's, which has none."""
    ours, reference = our_pictures(folder, scale), reference_pictures(folder, scale)
    seconds: dict[str, list[float]] = {"ours": [], "reference": []}
    for index in range(len(reference)):  # in turn, so that a noisy neighbour disturbs both alike
        for label, read in (("ours", lambda: ours[0, index]), ("reference", lambda: reference[index])):
            begun = time.perf_counter()
            read()
            seconds[label].append(time.perf_counter() - begun)
    return 1 / float(np.median(seconds["ours"])), 1 / float(np.median(seconds["reference"]))


def our_speed(
    dataset: TrainingPictures, batch_size: int, steps: int, device: torch.device, workers: int
) -> tuple[float, float, float]:
    """Images a second, share of the time waited for pictures, and GFLOP of one image's forward pass."""
    on_gpu = device.type == "cuda"
    network = build(arch="unet", width=64, depth=4, patch=1, encoder="", encoder_weights=None).to(device)
    ema = Ema(network, 0.998)
    optimiser = torch.optim.AdamW(network.parameters(), fused=True)
    forward = torch.compile(network) if on_gpu else network
    schedule = Schedule(len(dataset), batch_size, epochs=1, seed=0)
    warmup_steps = 5 if on_gpu else 1
    watch = Stopwatch(batch_size)
    network.train()
    for step, (image_NHWC, coverage_NHW) in enumerate(
        watch.waiting_for(training_loader(dataset, schedule, workers, pin_memory=on_gpu))
    ):
        image_NHWC = image_NHWC.to(device, non_blocking=True)
        share_NHW = coverage_NHW.to(device, non_blocking=True).float() / 255
        with autocast(device):
            logits_NCHW = forward(image_NHWC)
        loss = segmentation_loss(logits_NCHW[:, 0].float(), share_NHW, 1.0, 1.0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        ema.update(step)
        if step == warmup_steps - 1:
            loss.item()
            watch.restart()
        if step == warmup_steps + steps - 1:
            break
    loss.item()  # waits until the device is done
    speed, waited = watch.images_per_s(), watch.waited_share()
    with FlopCounterMode(display=False) as counter, torch.no_grad(), autocast(device):
        network(image_NHWC[:1])
    return speed, waited, counter.get_total_flops() / 1e9


def reference_speed(folder: pathlib.Path, scale: int, batch_size: int, steps: int, device: torch.device) -> float:
    """Images a second of the reference's step; its pictures are read beforehand and cost it nothing."""
    batches = list(DataLoader(reference_pictures(folder, scale), batch_size, drop_last=True))
    trainer = ReferenceTrainer(device)
    trainer.step(*batches[0])
    begun = time.perf_counter()
    for step in range(steps):
        trainer.step(*batches[step % len(batches)])
    return steps * batch_size / (time.perf_counter() - begun)


def seconds_per_call(call: Callable[[], object], device: torch.device, calls: int) -> float:
    call()
    synchronise(device)
    begun = time.perf_counter()
    for _ in range(calls):
        call()
    synchronise(device)
    return (time.perf_counter() - begun) / calls


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def unpack(folder: pathlib.Path) -> None:
    """The reference reads loose files."""
    for name in ("train", "train_masks"):
        with zipfile.ZipFile(folder / f"{name}.zip") as archive:
            archive.extractall(folder / "unpacked")


if __name__ == "__main__":
    main()
