"""Datasets, the order of batches, and the workers that load them.

The whole of training is one sequence of batches that is a function of the seed alone: which images make up
step 1,234, and how each is augmented, never depends on the number of workers or on where a run was
interrupted. That is what makes a resumed run end with the same bits.
"""
import abc
import contextlib
import functools
import math
import mmap
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from pipeline.data.augment import Augment
from pipeline.data.competition import CsvMasks
from pipeline.data.dataset import TrainableImages
from pipeline.data.images import grid_shape
from pipeline.masks.confusion import index_dtype
from pipeline.runtime.memory import free_memory, processes_here
from pipeline.runtime.problem import Problem

Draw = tuple[int, int]  # (epoch, index of the image)
# Characters of TMPDIR. Multiprocessing adds `/pymp-12345678/listener-12345678`, and Linux allows 107 in a socket's
# path: with more, the worker's thread that answers dies, and the trainer would wait for ever.
MAX_TMPDIR_LENGTH = 75
MOST_AHEAD = 4  # batches that a worker prepares
MAX_SHARED_BYTES = 4 * 2**30  # of batches that are prepared ahead: 16 workers with four of 157 MB would take 10 GB


class Sampling(NamedTuple):
    """Which images an epoch visits: all of the first `always`, and of the `sometimes` behind them a fraction."""

    always: int
    sometimes: int = 0
    fraction: float = 1.0  # of `sometimes`, drawn again for each epoch

    @property
    def per_epoch(self) -> int:
        return self.always + round(self.fraction * self.sometimes)

    def order(self, rng: np.random.Generator) -> list[int]:
        """Return the indices of the images that an epoch visits, in its order."""
        if not self.sometimes:
            return rng.permutation(self.always).tolist()
        drawn = rng.permutation(self.sometimes)[: self.per_epoch - self.always] + self.always
        return rng.permutation(np.concatenate((np.arange(self.always), drawn))).tolist()


class Kind(NamedTuple):
    """What a training batch is made of, for messages."""

    noun: str  # images or tiles
    section: str  # of the config, which has its batch_size
    size: str  # the setting that fixes the size of each
    smaller: str  # how to set it to make each smaller


class SizedDataset(Dataset, abc.ABC):
    """A dataset that knows how much memory an item takes."""

    @property
    @abc.abstractmethod
    def item_bytes(self) -> int:
        """Return the size of an item."""


class DecodedImages:
    """`[index]` -> image uint8 (H, W, channels) and target (H, W) at 1/scale; the first `keep` are decoded once.

    They are kept in memory that forked workers share, if they fit into half of what is free. relabelled: masks that
    replace the dataset's.
    """

    def __init__(
        self, dataset: TrainableImages, names: list[str], scale: int, relabelled: CsvMasks | None, keep: int
    ):
        self.dataset, self.names, self.scale, self.relabelled = dataset, names, scale, relabelled
        self.shape = (*grid_shape(dataset.height, dataset.width, scale), dataset.channels)
        self.target_type = index_dtype(len(dataset.classes))
        self.cached = None
        if 0 < keep * self.item_bytes <= free_memory() / 2 / processes_here():
            images, targets = (keep, *self.shape), (keep, *self.shape[:2])
            self.cached = shared_zeros(images), shared_zeros(targets, self.target_type), shared_zeros((keep,))

    @property
    def item_bytes(self) -> int:
        """Return the size of an image and its target."""
        rows, columns, channels = self.shape
        return rows * columns * (channels + np.dtype(self.target_type).itemsize)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], NDArray]:
        if self.cached is None or index >= len(self.cached[0]):
            return self.decode(index)
        images, targets, is_cached = self.cached
        if not is_cached[index]:
            images[index], targets[index] = self.decode(index)
            is_cached[index] = 1  # last: a worker that sees it may read the two others
        return images[index], targets[index]

    def decode(self, index: int) -> tuple[NDArray[np.uint8], NDArray]:
        name = self.names[index]
        return self.dataset.read(name, self.scale), read_target(self.dataset, self.relabelled, name, self.scale)


class TrainingDataset(SizedDataset):
    """`[(epoch, index)]` -> image uint8 (H, W, channels) and target (H, W) at 1/scale, augmented.

    relabelled: masks that replace the dataset's. cache: keep decoded each image that every epoch visits. Of 80,000
    pseudo-labelled ones it would take 50 GB at 1/4; they are decoded each time. sampling: of the last ones of `names`,
    how many each epoch visits.
    """

    steps_per_batch = 1

    def __init__(
        self, dataset: TrainableImages, names: list[str], scale: int, augment: Augment, seed: int, cache: bool,
        relabelled: CsvMasks | None = None, sampling: Sampling | None = None,
    ):
        self.dataset, self.names, self.relabelled = dataset, names, relabelled
        self.sampling = sampling or Sampling(len(names))
        self.scale, self.augment, self.seed = scale, augment, seed
        self.images = DecodedImages(dataset, names, scale, relabelled, self.sampling.always if cache else 0)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def kind(self) -> Kind:
        return Kind("images", "train", f"data.scale {self.scale}", "data.scale higher")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return rows, columns and channels of an image."""
        return self.images.shape

    @property
    def item_bytes(self) -> int:
        """Return the size of an image and its target."""
        return self.images.item_bytes

    def example(self) -> tuple[NDArray[np.uint8], NDArray]:
        """Return an image and its target, to measure how many of them fit into memory."""
        return self[0, 0]

    def __getitem__(self, draw: Draw) -> tuple[NDArray[np.uint8], NDArray]:
        epoch, index = draw
        return self.augment(*self.images[index], seed_of(self.seed, epoch, index))


def read_target(dataset: TrainableImages, relabelled: CsvMasks | None, name: str, scale: int) -> NDArray:
    """Return the target of an image at 1/scale, from the masks that replace the dataset's if they have it."""
    if relabelled is not None and name in relabelled.text_of:
        return relabelled.coverage(name, scale)
    return dataset.target(name, scale)


class ValidationDataset(SizedDataset):
    """`[index]` -> {scale: image uint8 (H, W, channels) at 1/scale}, without augmentation."""

    def __init__(self, dataset: TrainableImages, names: list[str], scales: tuple[int, ...]):
        self.dataset, self.names, self.scales = dataset, names, scales

    def __len__(self) -> int:
        return len(self.names)

    @property
    def item_bytes(self) -> int:
        """Return the size of an image at all scales."""
        return bytes_at_scales(self.scales, self.dataset.height, self.dataset.width, self.dataset.channels)

    def __getitem__(self, index: int) -> dict[int, NDArray[np.uint8]]:
        return {scale: self.dataset.read(self.names[index], scale) for scale in self.scales}


class BatchSchedule(Sampler[list[Draw]]):
    """The batches of a whole training run, from `first_step` on.

    Each epoch visits the images in an order of its own. What does not fill a batch is left out: other images each
    time. rank, world_size: of the processes that train together. Each gets its part of every batch; `batch_size`,
    a multiple of `world_size`, is that of all of them. steps_per_batch: steps that are taken on each batch of images,
    as on that of a refiner, which takes its first tiles, then its second ones and so on.
    """

    def __init__(
        self, images: int | Sampling, batch_size: int, epochs: int, seed: int,
        first_step: int = 0, rank: int = 0, world_size: int = 1, steps_per_batch: int = 1,
    ):
        self.sampling = Sampling(images) if isinstance(images, int) else images
        self.batch_size, self.epochs, self.seed = batch_size, epochs, seed
        self.first_step, self.steps_per_batch = first_step, steps_per_batch
        self.batches_per_epoch = self.sampling.per_epoch // batch_size
        self.steps_per_epoch = self.batches_per_epoch * steps_per_batch
        self.total_steps = self.steps_per_epoch * epochs
        self.images_per_process = batch_size // world_size
        self.rank_slice = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)

    def __len__(self) -> int:
        return self.batches_per_epoch * self.epochs - self.first_step // self.steps_per_batch

    def __iter__(self) -> Iterator[list[Draw]]:
        first_epoch, skip = divmod(self.first_step // self.steps_per_batch, self.batches_per_epoch)
        for epoch in range(first_epoch, self.epochs):
            for batch in self.epoch(epoch)[skip:]:
                yield batch[self.rank_slice]
            skip = 0

    def epoch(self, epoch: int) -> list[list[Draw]]:
        """Return the batches of an epoch, each as all processes together get it."""
        order = self.sampling.order(np.random.default_rng((self.seed, epoch)))
        draws = [(epoch, index) for index in order]
        return [draws[i * self.batch_size : (i + 1) * self.batch_size] for i in range(self.batches_per_epoch)]

    def batch(self, step: int) -> list[Draw]:
        """Return the batch of a step, counted from 0, as all processes together get it."""
        epoch, batch_of_epoch = divmod(step // self.steps_per_batch, self.batches_per_epoch)
        return self.epoch(epoch)[batch_of_epoch]


class Loader(DataLoader):
    """A DataLoader that raises Problem, in one sentence, for a worker's Problem and for a worker that died."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches = super().__iter__()
        raise_for_dead_workers()
        try:
            yield from batches
        except Problem as problem:  # from a worker it comes wrapped in the worker's traceback
            raise Problem(str(problem).rpartition("Problem: ")[2].strip()) from problem
        except (RuntimeError, MemoryError, ConnectionError, EOFError) as error:
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            with contextlib.suppress(RuntimeError, AttributeError):  # it reports the dead worker once more
                batches._shutdown_workers()  # type: ignore[attr-defined]
            raise Problem(dead_worker_message(error)) from error


def dead_worker_message(error: BaseException) -> str:
    reason = (str(error) or type(error).__name__).splitlines()[0].strip()
    advice = "if memory or /dev/shm is short, set data.workers lower, or to 0"
    return f"A process that reads images died ({reason}); {advice}."


def raise_for_dead_workers() -> None:
    """Replace torch's SIGCHLD handler, which raises RuntimeError anywhere when a worker dies, by one for a Problem."""
    torch_handler = signal.getsignal(signal.SIGCHLD)
    of_torch = getattr(torch_handler, "__module__", "") == "torch.utils.data._utils.signal_handling"
    if not of_torch or not callable(torch_handler):
        return

    def raise_problem(number: int, frame: Any) -> None:
        try:
            torch_handler(number, frame)
        except RuntimeError as error:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            raise Problem(dead_worker_message(error)) from None

    signal.signal(signal.SIGCHLD, raise_problem)


def training_loader(
    dataset: SizedDataset, schedule: BatchSchedule, workers: int, pin_memory: bool, collate: Callable | None = None
) -> Loader:
    """Yield images uint8 (N, H, W, channels) and targets (N, H, W), coverage or class indices.

    collate: makes something else of N items.
    """
    # Half of /dev/shm is left for the workers of the validation, which work beside these.
    options = worker_options(workers, pin_memory, schedule.images_per_process * dataset.item_bytes, fraction=0.5)
    return Loader(dataset, batch_sampler=schedule, collate_fn=collate or stack_pairs, **options)


def validation_loader(dataset: ValidationDataset, batch_size: int, workers: int, pin_memory: bool) -> Loader:
    """Yield {scale: images uint8 (N, H, W, channels)}, in order; the last batch is filled up with black images.

    What is compiled or tuned for one batch size meets no other.
    """
    batch_size = max(1, min(batch_size, len(dataset)))
    options = worker_options(workers, pin_memory, batch_size * dataset.item_bytes)
    collate = functools.partial(stack_scales, batch_size=batch_size)
    return Loader(dataset, batch_size=batch_size, collate_fn=collate, **options)


def prefetch_to_device(batches: Iterable[tuple[Tensor, ...]], device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    """Yield the batches on the device, copying the next one while the network works on this one."""
    if device.type != "cuda":
        yield from batches
        return
    copy_stream = torch.cuda.Stream(device)
    ready: tuple[Tensor, ...] | None = None
    for batch in batches:
        with torch.cuda.stream(copy_stream):
            copied = tuple(tensor.to(device, non_blocking=True) for tensor in batch)
        if ready is not None:
            yield ready
        torch.cuda.current_stream(device).wait_stream(copy_stream)
        for tensor in copied:
            tensor.record_stream(torch.cuda.current_stream(device))  # keep its memory until this stream is done with it
        ready = copied
    if ready is not None:
        yield ready


def worker_options(workers: int, pin_memory: bool, batch_bytes: int, fraction: float = 0.9) -> dict[str, Any]:
    """Return the options of a `Loader` whose batches have this size; Problem if /dev/shm is too small for them.

    fraction: of the free part of /dev/shm that they may fill.
    """
    if workers == 0:
        return {"pin_memory": pin_memory}
    if len(folder := tempfile.gettempdir()) > MAX_TMPDIR_LENGTH:
        why = "too long a path for the sockets through which workers send images"
        raise Problem(f"TMPDIR is {folder}, {why}; set it to a shorter one, or data.workers to 0.")
    # Only fork shares the cache and the tables that are open.
    options = {"num_workers": workers, "multiprocessing_context": "fork"}
    usable_bytes = int(fraction * free_shared_memory() / processes_here())
    options |= {"prefetch_factor": batches_ahead(workers, batch_bytes, usable_bytes)}
    return options | {"worker_init_fn": leave_process_group, "pin_memory": pin_memory}


def free_shared_memory() -> int:
    """Return the free bytes of /dev/shm, through which workers send batches; containers often have 64 MB."""
    try:
        status = os.statvfs("/dev/shm")
    except FileNotFoundError:  # not Linux
        return sys.maxsize
    return status.f_bavail * status.f_frsize


def batches_ahead(workers: int, batch_bytes: int, usable_bytes: int) -> int:
    """Return how many batches each worker prepares: 4, but 2 or 1 where they would take too much of /dev/shm.

    usable_bytes: of /dev/shm. Raises Problem if they do not hold a batch of each worker.
    """
    for ahead in (MOST_AHEAD, 2):
        if workers * ahead * batch_bytes <= min(usable_bytes, MAX_SHARED_BYTES):
            return ahead
    if workers * batch_bytes > usable_bytes:
        needed = f"a batch of each takes {workers * batch_bytes / 1e6:.0f} MB of /dev/shm"
        larger = "or make it larger (docker run --shm-size=8g)"
        what = f"data.workers is {workers}, and {needed}, of which {usable_bytes / 1e6:.0f} MB are free for them"
        raise Problem(f"{what}; set data.workers={usable_bytes // batch_bytes}, {larger}.")
    return 1


def leave_process_group(worker: int) -> None:
    """Ctrl+C and `timeout` signal a whole process group; workers must go on until the trainer has saved.

    They end when the trainer asks them to, or within seconds of its death.
    """
    os.setpgid(0, 0)


def seed_of(*numbers: int) -> int:
    """Return a seed of 32 bits for these numbers; neighbouring numbers give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def stack(arrays: list[NDArray]) -> Tensor:
    return to_shareable_tensor(np.stack(arrays))


def to_shareable_tensor(array: NDArray) -> Tensor:
    """Return the array as a tensor, in a worker one that is in shared memory already.

    If the thread that sends it had to move it there, its error on a full /dev/shm would be lost, and the trainer would
    wait for the batch for ever.
    """
    tensor = torch.from_numpy(array)
    return tensor if get_worker_info() is None else tensor.share_memory_()


def stack_pairs(pairs: list[tuple[NDArray, NDArray]]) -> tuple[Tensor, Tensor]:
    images, targets = zip(*pairs)
    return stack(images), stack(targets)


def stack_scales(images: list[dict[int, NDArray]], batch_size: int) -> dict[int, Tensor]:
    """Stack images at each scale, and black ones after them, to a batch of `batch_size`."""
    missing = batch_size - len(images)
    return {
        scale: stack([*(image[scale] for image in images), *[np.zeros_like(first)] * missing])
        for scale, first in images[0].items()
    }


def bytes_at_scales(scales: Iterable[int], height: int, width: int, channels: int) -> int:
    """Return the size of an image, uint8 at all of these scales."""
    return sum(channels * math.prod(grid_shape(height, width, scale)) for scale in scales)


def shared_zeros(shape: tuple[int, ...], dtype: type[np.unsignedinteger] = np.uint8) -> NDArray:
    """Return an array of zeros that forked processes share.

    An anonymous map and not /dev/shm, which containers limit to 64 MB. Pages cost memory once they are written.
    """
    length_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, length_bytes), dtype).reshape(shape)
