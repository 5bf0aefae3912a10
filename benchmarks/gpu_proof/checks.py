"""What a GPU machine must have, looked at in a minute before hours of measuring.

It imports nothing but Python's own library before the packages are known to be there.
"""
import configparser
import importlib.metadata
import os
import pathlib
import platform
import shutil
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pipeline.config import Settings

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHM = pathlib.Path("/dev/shm")
# Other names under which the same modules come.
SAME_MODULES = {"opencv-python-headless": ("opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python")}
NEEDED_BY = {  # packages without which only a part is lost
    "segmentation-models-pytorch": "configs/smp_*.yaml and ternausnet.yaml", "timm": "configs/smp_*.yaml",
    "torchvision": "configs/smp_*.yaml", "pytest": "the tests", "hypothesis": "the tests", "triton": "torch.compile",
}  # fmt: skip


class Check(NamedTuple):
    """What was looked at."""

    name: str
    text: str  # what there is, or, where it is not enough, a sentence
    is_good: bool = True
    is_needed: bool = False  # nothing useful can follow without it


def packages() -> Check:
    """The packages of setup.cfg and those that only a part needs, with their versions."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = (line.strip() for line in setup["options"]["install_requires"].splitlines())
    needed = [line.split()[0] for line in lines if line and not line.startswith("#")]
    version_of = {name: version(name) for name in (*needed, *NEEDED_BY)}
    there = ", ".join(f"{name} {version}" for name, version in version_of.items() if version)
    if missing := [name for name in needed if not version_of[name]]:
        return Check("packages", f"Packages are missing: install {', '.join(missing)}.", False, is_needed=True)
    if absent := [f"{name} (for {NEEDED_BY[name]})" for name in NEEDED_BY if not version_of[name]]:
        return Check("packages", f"{there}; packages that a part needs are missing: {', '.join(absent)}.", False)
    return Check("packages", there)


def version(name: str) -> str:
    """Return the version of an installed package, "" if it is not there."""
    for each in (name, *SAME_MODULES.get(name, ())):
        try:
            return importlib.metadata.version(each)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def gpu(rehearsal: bool) -> Check:
    """The card, its compute capability against the kernels of this torch, and its memory."""
    import torch

    from pipeline.runtime.device import has_bf16, pick_device
    from pipeline.runtime.problem import Problem
    try:
        device = pick_device()
    except Problem as problem:
        return Check("GPU", str(problem), False, is_needed=True)
    if device.type != "cuda" and rehearsal:
        return Check("GPU", "none: this is a rehearsal")
    if device.type != "cuda":
        built_for = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
        what = f"torch {torch.__version__} sees no GPU and {built_for}"
        return Check("GPU", f"{what}; look at nvidia-smi, or rehearse with REHEARSE=1.", False, is_needed=True)
    card, (major, minor) = torch.cuda.get_device_properties(device), torch.cuda.get_device_capability(device)
    precision = "bf16" if has_bf16(device) else "float16"
    memory = f"{card.total_memory / 1e9:.1f} GB"
    return Check("GPU", f"{card.name}, {memory}, compute capability {major}.{minor}, {precision}")


def compiler() -> Check:
    """What torch.compile needs."""
    from pipeline.runtime.device import check_compiler, pick_device
    from pipeline.runtime.problem import Problem
    try:
        check_compiler(pick_device(), "train.compile")
    except Problem as problem:
        return Check("compiler", str(problem), False)
    return Check("compiler", "a compiler and Python.h")


def shared_memory(configs: "dict[str, Settings]", free_bytes: int | None = None) -> Check:
    """Free /dev/shm against what the workers of these configs put there. free_bytes: None asks the system."""
    if free_bytes is None:
        free_bytes = shutil.disk_usage(SHM).free if SHM.is_dir() else 0
    needed = {name: shared_memory_bytes(settings, settings.data.workers) for name, settings in configs.items()}
    free = f"{free_bytes / 1e9:.1f} GB of {SHM} are free"
    if short := [f"{name} {count / 1e9:.1f} GB" for name, count in needed.items() if count > free_bytes]:
        advice = "fewer workers will read images, so mount a larger one (docker run --shm-size)"
        return Check("/dev/shm", f"{free}, but loaders need: {', '.join(short)}; {advice}.", False)
    return Check("/dev/shm", f"{free}; the most that a config needs is {max(needed.values()) / 1e9:.1f} GB")


def shared_memory_bytes(settings: "Settings", workers: int) -> int:
    """Return the least of /dev/shm that so many workers of a training and of its validation need.

    That is a batch of each, and the training may fill only half (`data.loader`).
    """
    from benchmarks.memory import full_size
    from pipeline.data.images import grid_shape

    data, refine = settings.data, settings.refine
    height, width = full_size(settings)

    def image_bytes(scale: int, channels: int) -> int:
        rows, columns = grid_shape(height, width, scale)
        return rows * columns * channels

    batches = [settings.train.batch_size * image_bytes(data.scale, data.channels + 1)]  # with the target
    held_out = image_bytes(data.scale, data.channels)
    if refine is not None:
        tile_bytes = refine.tile_px**2 * 5  # four channels and the target
        batches.append(refine.batch_size * refine.tiles_per_image * tile_bytes)
        held_out += image_bytes(refine.scale, data.channels)
    return 2 * workers * max(*batches, settings.predict.batch_size * held_out)


def fitting_workers(settings: "Settings") -> int:
    """Return how many workers /dev/shm and the processor have room for, at most those of the config."""
    free_bytes = shutil.disk_usage(SHM).free if SHM.is_dir() else sys.maxsize
    most = min(settings.data.workers, os.cpu_count() or 1)
    return max(count for count in range(most + 1) if shared_memory_bytes(settings, count) <= free_bytes)


def machine(work: pathlib.Path) -> Check:
    """Python, cores, memory and disk."""
    disk = work
    while not disk.exists():
        disk = disk.parent
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    free_gb = shutil.disk_usage(disk).free / 1e9
    text = f"Python {platform.python_version()}, {os.cpu_count()} cores, {memory_gb:.0f} GB, disk {free_gb:.0f} GB free"
    if sys.version_info < (3, 11):
        too_old = f"Python is {platform.python_version()}, but 3.11 or newer is needed."
        return Check("machine", too_old, False, is_needed=True)
    if free_gb < 10:
        return Check("machine", f"{text}: the images to predict and the checkpoints take up to 10 GB.", False)
    return Check("machine", text)


def list_all(work: pathlib.Path, config_paths: list[pathlib.Path], rehearsal: bool) -> list[Check]:
    """Return each check; the last one is the first without which nothing useful can follow, if there is one."""
    looks: list[Callable[[], Check]] = [
        lambda: machine(work), packages, lambda: gpu(rehearsal), compiler, lambda: shared_memory(load(config_paths)),
    ]
    done: list[Check] = []
    for look in looks:
        done.append(look())
        if done[-1].is_needed and not done[-1].is_good:
            break
    return done


def load(config_paths: list[pathlib.Path]) -> "dict[str, Settings]":
    from pipeline import config

    return {path.stem: config.load(path) for path in config_paths}
