"""Command `find-batch`: measure how many images a training step can take at once. `train` advises by it, too."""
import functools
import pathlib

import torch

from pipeline.config import Settings, Train
from pipeline.data.loader import Kind, TrainingDataset
from pipeline.data.tiles import TileDataset
from pipeline.model.losses import LossOf
from pipeline.paths import Run
from pipeline.runtime.device import describe, explain_missing_kernel, set_up
from pipeline.runtime.distributed import ProcessGroup, process_group
from pipeline.runtime.memory import MAX_BATCH_TRIED, largest_that_fits, limited_to_free_memory
from pipeline.training.fold_data import open_fold, open_tiles
from pipeline.training.networks import build_loss, build_network, build_refiner, build_refiner_loss, least_batch
from pipeline.training.state import TrainingState, create_state

EAGER = {"compile": False}  # compiled steps need less memory, and each size tried would be compiled first


def main(settings: Settings, run: Run, fold_numbers: list[int], folder: pathlib.Path) -> None:
    """Print the largest batch that fits, for each fold and its refiner; train nothing and write nothing."""
    set_up(deterministic=False)
    with process_group() as dist, explain_missing_kernel():
        if dist.world_size > 1:
            raise dist.problem("find-batch measures one process; start it without torchrun.")
        for number in fold_numbers:
            build = functools.partial(build_network, settings, pretrained=False)
            images = open_fold(settings, run, number, folder, dist.world_size).training
            least = least_batch(build, images)
            state = create_state(build, settings.train.model_copy(update=EAGER), dist)
            print_largest(state, images, build_loss(settings, dist.device), settings.train, dist.device, least)
            del state  # before the next one is built: both would be in memory
            if (hyper := settings.refine) is not None:
                tiles = open_tiles(settings, hyper, run, number, folder, dist.world_size, coarse_sha256s=[""]).training
                least = least_batch(functools.partial(build_refiner, hyper), tiles)
                state = create_state(functools.partial(build_refiner, hyper), hyper.model_copy(update=EAGER), dist)
                print_largest(state, tiles, build_refiner_loss(hyper, dist.device), hyper, dist.device, least)
                del state


def print_largest(
    state: TrainingState, images: TrainingDataset | TileDataset, loss_of: LossOf, hyper: Train, device: torch.device,
    least: int,
) -> None:
    largest = find_largest_batch(state, images, loss_of, hyper.clip_norm, device, least)
    needs = f"; its batch norm needs at least {least}" if least > 1 else ""
    print(f"{describe_fit(largest, images.kind, device)}{needs}.")


def find_largest_batch(
    state: TrainingState, images: TrainingDataset | TileDataset, loss_of: LossOf, clip_norm: float,
    device: torch.device, least: int,
) -> int:
    """Return how many images fit at once, by steps on one image repeated. The network is useless afterwards.

    least: images that a step needs, as `networks.least_batch` returns it.
    """
    image, target = map(torch.from_numpy, images.example())
    image_NHWC, target_NHW = image.to(device)[None], target.to(device)[None]

    def step_on(count: int) -> None:
        state.take_step(image_NHWC.repeat(count, 1, 1, 1), target_NHW.repeat(count, 1, 1), loss_of, clip_norm)

    state.network.train()
    with limited_to_free_memory(device):
        return largest_that_fits(step_on, at_most=MAX_BATCH_TRIED[device.type], at_least=least)


def out_of_memory_advice(
    hyper: Train, state: TrainingState, images: TrainingDataset | TileDataset, loss_of: LossOf, dist: ProcessGroup,
    least: int,
) -> str:
    """Return what to do when training ran out of memory, by a measurement where one process trains alone."""
    largest = None
    if dist.world_size == 1:
        largest = find_largest_batch(state, images, loss_of, hyper.clip_norm, dist.device, least)
    sizes = hyper.batch_size, hyper.accumulate, dist.world_size
    return smaller_batch_advice(*sizes, images.kind, largest, dist.device, least)


def smaller_batch_advice(
    batch_size: int, accumulate: int, world_size: int, kind: Kind, largest: int | None, device: torch.device,
    least: int = 1,
) -> str:
    """Return one sentence on what to lower. largest: images at once that were measured to fit; None: not measured.

    least: images that a step needs at once.
    """
    section = kind.section
    too_large = f"The memory is too small for {section}.batch_size {batch_size} at {kind.size}"
    if largest is None:
        return f"{too_large}; set {section}.accumulate higher or {section}.checkpoint_activations=true."
    measured = f"{too_large}; measured: {describe_fit(largest, kind, device)}"
    failed = batch_size // (accumulate * world_size)
    fits = min(largest, failed - 1)  # another process may have held the memory when it ran out
    possible = (n for n in range(1, batch_size + 1) if batch_size % (n * world_size) == 0)
    micro_batches = min((n for n in possible if least <= batch_size // n <= fits), default=0)
    if not micro_batches:
        smaller = f"{section}.batch_size={fits * accumulate}, " if fits >= least else ""
        return f"{measured}; set {smaller}{kind.smaller} or {section}.checkpoint_activations=true."
    others = f"or {section}.checkpoint_activations=true, or a smaller {section}.batch_size"
    setting = f"set {section}.accumulate={micro_batches}"
    return f"{measured}; {setting}, which trains nearly the same in micro-batches, {others}."


def describe_fit(count: int, kind: Kind, device: torch.device) -> str:
    or_more = "or more " if count == MAX_BATCH_TRIED[device.type] else ""
    return f"{count} {kind.noun} at once {or_more}fit on {describe(device)}, at {kind.size}"
