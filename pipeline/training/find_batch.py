"""Command `find-batch`: measure how many images a training step can take at once. `train` advises by it, too."""
import pathlib

import torch

from pipeline.config import Settings
from pipeline.data.loader import TrainingDataset
from pipeline.model import losses
from pipeline.model.losses import LossOf
from pipeline.paths import Run
from pipeline.runtime.device import describe, explain_missing_kernel, set_up
from pipeline.runtime.distributed import ProcessGroup, process_group
from pipeline.runtime.memory import MAX_BATCH_TRIED, largest_that_fits, limited_to_free_memory
from pipeline.training.fold_data import open_fold
from pipeline.training.state import TrainingState, create_state


def main(settings: Settings, run: Run, fold_numbers: list[int], folder: pathlib.Path) -> None:
    """Print the largest batch that fits, for each fold; train nothing and write nothing."""
    set_up(deterministic=False)
    with process_group() as dist, explain_missing_kernel():
        if dist.world_size > 1:
            raise dist.problem("find-batch measures one process; start it without torchrun.")
        task, device = settings.task, dist.device
        loss_of = losses.build(task.kind == "binary", task.class_weights, settings.loss.model_dump(), device)
        for number in fold_numbers:
            data = open_fold(settings, run, number, folder, dist.world_size)
            state = create_state(settings, dist, pretrained=False)
            largest = find_largest_batch(state, data.training, loss_of, settings.train.clip_norm, device)
            print(f"{describe_fit(largest, settings.data.scale, device)}.")
            del state  # before the next one is built: both would be in memory


def find_largest_batch(
    state: TrainingState, images: TrainingDataset, loss_of: LossOf, clip_norm: float, device: torch.device
) -> int:
    """Return how many images fit at once, by steps on one image repeated. The network is useless afterwards."""
    image, target = map(torch.from_numpy, images[0, 0])
    image_NHWC, target_NHW = image.to(device)[None], target.to(device)[None]

    def step_on(count: int) -> None:
        state.take_step(image_NHWC.repeat(count, 1, 1, 1), target_NHW.repeat(count, 1, 1), loss_of, clip_norm)

    state.network.train()
    with limited_to_free_memory(device):
        return largest_that_fits(step_on, at_most=MAX_BATCH_TRIED[device.type])


def out_of_memory_advice(
    settings: Settings, state: TrainingState, images: TrainingDataset, loss_of: LossOf, dist: ProcessGroup
) -> str:
    """Return what to do when training ran out of memory, by a measurement where one process trains alone."""
    hyper, scale, device, largest = settings.train, settings.data.scale, dist.device, None
    if dist.world_size == 1:
        largest = find_largest_batch(state, images, loss_of, hyper.clip_norm, device)
    return smaller_batch_advice(hyper.batch_size, hyper.accumulate, dist.world_size, scale, largest, device)


def smaller_batch_advice(
    batch_size: int, accumulate: int, world_size: int, scale: int, largest: int | None, device: torch.device
) -> str:
    """Return one sentence on what to lower. largest: images at once that were measured to fit; None: not measured."""
    too_large = f"The memory is too small for train.batch_size {batch_size} at data.scale {scale}"
    if largest is None:
        return f"{too_large}; set train.accumulate higher or train.checkpoint_activations=true."
    measured = f"{too_large}; measured: {describe_fit(largest, scale, device)}"
    failed = batch_size // (accumulate * world_size)
    fits = min(largest, failed - 1)  # another process may have held the memory when it ran out
    if fits < 1:
        return f"{measured}; set data.scale higher or train.checkpoint_activations=true."
    possible = (n for n in range(1, batch_size + 1) if batch_size % (n * world_size) == 0)
    micro_batches = min(n for n in possible if batch_size // n <= fits)
    others = "or train.checkpoint_activations=true, or a smaller train.batch_size"
    return f"{measured}; set train.accumulate={micro_batches}, which trains nearly the same in micro-batches, {others}."


def describe_fit(images: int, scale: int, device: torch.device) -> str:
    or_more = "or more " if images == MAX_BATCH_TRIED[device.type] else ""
    return f"{images} images at once {or_more}fit on {describe(device)}, at data.scale {scale}"
