"""Pictures in the order in which a network wants them.

The whole of training is one sequence of batches that is a function of the seed alone: which pictures make
up step 1,234, and how each is changed, never depends on the number of workers or on where a run was
interrupted. That is what makes a resumed run end with the same bits.
"""
import contextlib
import mmap
import os
import signal
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from pipeline.data.augment import Augment
from pipeline.data.dataset import SegmentationDataset
from pipeline.data.competition import CsvMasks
from pipeline.data.images import grid_shape
from pipeline.masks.confusion import index_dtype
from pipeline.runtime.problem import Problem

Draw = tuple[int, int]  # (epoch, index of the picture)
# Letters of TMPDIR. Below it multiprocessing puts `/pymp-12345678/listener-12345678`, and Linux allows a socket 107 in
# all: with more the worker's thread that answers dies, and the trainer would wait for ever.
LONGEST_TEMPORARY = 75


class TrainingDataset(Dataset):
    """`[(epoch, index)]` -> image uint8 (H, W, channels) and target (H, W) at 1/scale, augmented.

    relabelled: masks that win over the collection's. With `cache`, each picture is decoded once and kept in memory
    that forked workers share.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        names: list[str],
        scale: int,
        augment: Augment,
        seed: int,
        cache: bool,
        relabelled: CsvMasks | None = None,
    ):
        self.dataset, self.names, self.relabelled = dataset, names, relabelled
        self.scale, self.augment, self.seed = scale, augment, seed
        self.cache = None
        if cache:
            height, width = grid_shape(dataset.height, dataset.width, scale)
            self.cache = (
                shared_zeros((len(names), height, width, dataset.channels)),
                shared_zeros((len(names), height, width), index_dtype(len(dataset.classes))),
                shared_zeros((len(names),)),
            )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, draw: Draw) -> tuple[NDArray[np.uint8], NDArray]:
        epoch, index = draw
        image, target = self.decode(index)
        return self.augment(image, target, seed_of(self.seed, epoch, index))

    def decode(self, index: int) -> tuple[NDArray[np.uint8], NDArray]:
        if self.cache is not None and self.cache[2][index]:
            return self.cache[0][index], self.cache[1][index]
        name = self.names[index]
        image = self.dataset.read(name, self.scale)
        if self.relabelled is not None and name in self.relabelled.text_of:
            target = self.relabelled.coverage(name, self.scale)
        else:
            target = self.dataset.target(name, self.scale)
        if self.cache is not None:
            self.cache[0][index], self.cache[1][index] = image, target
            self.cache[2][index] = 1  # last: a worker that sees it may read the two others
        return image, target


class ImageReader(Protocol):
    """A `SegmentationDataset`, or any other pictures without a truth."""

    def read(self, name: str, scale: int) -> NDArray[np.uint8]:
        """uint8 (rows, columns, channels) at 1/scale."""


class ValidationDataset(Dataset):
    """`[index]` -> image uint8 (H, W, channels) at 1/scale, as it is."""

    def __init__(self, pictures: ImageReader, names: list[str], scale: int):
        self.pictures, self.names, self.scale = pictures, names, scale

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        return self.pictures.read(self.names[index], self.scale)


class BatchSchedule(Sampler[list[Draw]]):
    """The batches of a whole training run, from `first_step` on.

    Each epoch visits the pictures in an order of its own. What does not fill a batch is left out: other
    pictures each time. share: (rank, count) of the processes that train together; each gets its part of
    every batch, and `batch_size`, a multiple of `count`, is that of all of them.
    """

    def __init__(
        self,
        pictures: int,
        batch_size: int,
        epochs: int,
        seed: int,
        first_step: int = 0,
        share: tuple[int, int] = (0, 1),
    ):
        self.pictures, self.batch_size, self.epochs, self.seed = pictures, batch_size, epochs, seed
        self.first_step = first_step
        self.steps_per_epoch = pictures // batch_size
        rank, count = share
        self.part = slice(rank * batch_size // count, (rank + 1) * batch_size // count)

    def __len__(self) -> int:
        return self.steps_per_epoch * self.epochs - self.first_step

    def __iter__(self) -> Iterator[list[Draw]]:
        first_epoch, skip = divmod(self.first_step, self.steps_per_epoch)
        for epoch in range(first_epoch, self.epochs):
            for batch in self.epoch(epoch)[skip:]:
                yield batch[self.part]
            skip = 0

    def epoch(self, epoch: int) -> list[list[Draw]]:
        """The whole batches of an epoch, those of all processes together."""
        order = np.random.default_rng((self.seed, epoch)).permutation(self.pictures).tolist()
        draws = [(epoch, index) for index in order]
        return [draws[i * self.batch_size : (i + 1) * self.batch_size] for i in range(self.steps_per_epoch)]

    def batch(self, step: int) -> list[Draw]:
        """The whole batch of a step, counted from 0."""
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        return self.epoch(epoch)[step_of_epoch]


class Loader(DataLoader):
    """A DataLoader whose workers tell their problems in one sentence, and whose death has a name."""

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
            with contextlib.suppress(RuntimeError, AttributeError):  # which says once more that a worker has died
                batches._shutdown_workers()  # type: ignore[attr-defined]
            raise Problem(dead_worker_message(error)) from error


def dead_worker_message(error: BaseException) -> str:
    return (
        f"A process that reads pictures died ({(str(error) or type(error).__name__).splitlines()[0].strip()}); "
        "if memory or /dev/shm is short, set data.workers lower, or to 0."
    )


def raise_for_dead_workers() -> None:
    """torch raises RuntimeError wherever this process happens to be when a worker dies; let it be a Problem, once."""
    torchs_own = signal.getsignal(signal.SIGCHLD)
    if getattr(torchs_own, "__module__", "") != "torch.utils.data._utils.signal_handling" or not callable(torchs_own):
        return

    def tell(number: int, frame: Any) -> None:
        try:
            torchs_own(number, frame)
        except RuntimeError as error:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            raise Problem(dead_worker_message(error)) from None

    signal.signal(signal.SIGCHLD, tell)


def training_loader(dataset: TrainingDataset, schedule: BatchSchedule, workers: int, pin_memory: bool) -> Loader:
    """Yields images uint8 (N, H, W, channels) and targets (N, H, W), coverage or class indices."""
    options = worker_options(workers, pin_memory)
    return Loader(dataset, batch_sampler=schedule, collate_fn=stack_pairs, **options)


def validation_loader(dataset: ValidationDataset, batch_size: int, workers: int, pin_memory: bool) -> Loader:
    """Yields images uint8 (N, H, W, channels), in order, the last batch as small as it must be."""
    return Loader(dataset, batch_size=batch_size, collate_fn=stack, **worker_options(workers, pin_memory))


def prefetch_to_device(batches: Iterable[tuple[Tensor, ...]], device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    """The batches on the device, the next one crossing the bus while the network works on this one."""
    if device.type != "cuda":
        yield from batches
        return
    bus = torch.cuda.Stream(device)
    ahead: tuple[Tensor, ...] | None = None
    for batch in batches:
        with torch.cuda.stream(bus):
            coming = tuple(tensor.to(device, non_blocking=True) for tensor in batch)
        if ahead is not None:
            yield ahead
        torch.cuda.current_stream(device).wait_stream(bus)
        for tensor in coming:
            tensor.record_stream(torch.cuda.current_stream(device))  # its memory is in use until that one is done
        ahead = coming
    if ahead is not None:
        yield ahead


def worker_options(workers: int, pin_memory: bool) -> dict[str, Any]:
    if workers == 0:
        return {"pin_memory": pin_memory}
    if len(place := tempfile.gettempdir()) > LONGEST_TEMPORARY:
        raise Problem(
            f"TMPDIR is {place}, too long a name for the sockets through which workers hand over pictures; "
            "set it to a shorter one, or data.workers to 0."
        )
    return {
        "num_workers": workers,
        "multiprocessing_context": "fork",  # the cache and the open tables are shared by fork alone
        "worker_init_fn": leave_process_group,
        "prefetch_factor": 4,
        "pin_memory": pin_memory,
    }


def leave_process_group(worker: int) -> None:
    """Ctrl+C and `timeout` signal a whole process group; workers must go on until the trainer has saved.

    They end when the trainer tells them to, or within seconds of its death.
    """
    os.setpgid(0, 0)


def seed_of(*numbers: int) -> int:
    """A seed of 32 bits for each set of numbers, unlike those of its neighbours."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def stack(arrays: list[NDArray]) -> Tensor:
    return to_shareable_tensor(np.stack(arrays))


def to_shareable_tensor(array: NDArray) -> Tensor:
    """As a tensor, in a worker one in shared memory already.

    Left to the thread that sends it, a full /dev/shm is an error that reaches nobody, and the batch is waited for
    without end.
    """
    tensor = torch.from_numpy(array)
    return tensor if get_worker_info() is None else tensor.share_memory_()


def stack_pairs(pairs: list[tuple[NDArray, NDArray]]) -> tuple[Tensor, Tensor]:
    images, targets = zip(*pairs)
    return stack(images), stack(targets)


def shared_zeros(shape: tuple[int, ...], dtype: type[np.unsignedinteger] = np.uint8) -> NDArray:
    """An array that forked processes write to together.

    An anonymous map and not /dev/shm, which containers limit to 64 MB. Pages cost memory once written.
    """
    length_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, length_bytes), dtype).reshape(shape)
