"""The training loop: take steps, update the EMA, save last.pt now and then; at the end of an epoch evaluate and save.

Start at `train`, which resumes what an earlier start has left. The stages `train` and `refine` differ in what they
train, on what, and how that is evaluated; a `Training` holds these, and the loop treats both alike.

A run is a function of its settings and the images: each batch, each augmentation and each learning rate follows from
the seed and the step, so that a run that was stopped and resumed ends with the same weights, on a CPU to the last bit.
"""
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline import config
from pipeline.config import Settings, Train
from pipeline.data.loader import BatchSchedule, prefetch_to_device, seed_of
from pipeline.model import optim
from pipeline.model.losses import LossOf
from pipeline.runtime.device import describe
from pipeline.runtime.distributed import ProcessGroup
from pipeline.runtime.files import write_text
from pipeline.runtime.memory import explain_out_of_memory
from pipeline.runtime.progress import Timer, print_above_bars, progress
from pipeline.runtime.signals import StopSignals
from pipeline.training import messages, resume
from pipeline.training.find_batch import out_of_memory_advice
from pipeline.training.fold_data import FoldData
from pipeline.training.monitor import TensorBoardLog
from pipeline.training.state import TrainingState

LOSS_INTERVAL_S = 0.5  # between readings of the loss; each makes the CPU wait for the GPU

Batches = Iterable[tuple[Tensor, Tensor]]  # uint8 images (N, H, W, channels) and their targets (N, H, W)


@dataclass(frozen=True)
class Training:
    """What one network is trained with."""

    settings: Settings
    hyper: Train  # the section of the settings that this network is trained by
    data: FoldData
    state: TrainingState
    loss_of: LossOf
    load: Callable[[BatchSchedule], Batches]  # the batches of the steps that a schedule has left
    evaluate: Callable[[nn.Module], dict[str, float]]  # the averaged network -> scores of the held-out images
    previews: Callable[[nn.Module], Iterator[tuple[str, NDArray[np.uint8]]]]  # -> names and images for TensorBoard
    dist: ProcessGroup
    least_batch: int  # images that a step needs at once, 1 or 2


def train(training: Training, last: dict[str, Any]) -> None:
    """Train what is left. last: the contents of the `last.pt` that an earlier start saved, or {}."""
    settings, hyper, data, state = training.settings, training.hyper, training.data, training.state
    dist = training.dist
    if last:
        state.restore(last, data.files.last)
    sizes = data.training.sampling, hyper.batch_size, hyper.epochs
    schedule = BatchSchedule(*sizes, hyper.seed, state.step, dist.rank, dist.world_size, data.training.steps_per_batch)
    if dist.is_main:
        resume.restore_files(settings, data, schedule, state)
    was_trained = is_trained(hyper, data, last)
    if not was_trained:
        if dist.is_main:
            message = messages.start(settings, data, schedule, state, dist)  # a Problem of a mask leaves no file behind
            write_text(data.files.config, config.dump(settings))
            print(message)
        take_steps(training, schedule)
    if dist.is_main:
        resume.check_best_exists(data, state)
        print(messages.trained_already(data, state) if was_trained else messages.end(data, state))


def is_trained(hyper: Train, data: FoldData, last: dict[str, Any]) -> bool:
    """Whether nothing is left to train. last: as for `train`."""
    sampling, tiles_per_image = data.training.sampling, data.training.steps_per_batch
    schedule = BatchSchedule(sampling, hyper.batch_size, hyper.epochs, hyper.seed, steps_per_batch=tiles_per_image)
    return last.get("step") == schedule.total_steps


def take_steps(training: Training, schedule: BatchSchedule) -> None:
    """Take one step a batch until all epochs are over, or until a signal asks to stop."""
    hyper, data, state, dist = training.hyper, training.data, training.state, training.dist
    save_timer, loss_timer = Timer(60 * hyper.checkpoint_minutes, hyper.checkpoint_steps), Timer(LOSS_INTERVAL_S)
    state.network.train()
    with (
        StopSignals() as stop,
        explain_out_of_memory(
            lambda: out_of_memory_advice(hyper, state, data.training, training.loss_of, dist, training.least_batch)
        ),
        TensorBoardLog(data.files.tensorboard, len(state.log) + 1) if dist.is_main else nullcontext() as curves,
        progress(total=schedule.total_steps, initial=state.step, unit="step", wanted=dist.is_main) as bar,
    ):
        for image_NHWC, target_NHW in prefetch_to_device(state.watch.waiting_for(training.load(schedule)), dist.device):
            peak, warmup = hyper.learning_rate, hyper.warmup_fraction
            learning_rate = optim.learning_rate_at(state.step, schedule.total_steps, peak, warmup, hyper.schedule)
            optim.set_learning_rate(state.optimizer, learning_rate)
            torch.manual_seed(seed_of(hyper.seed, state.step, dist.rank))  # of dropout, where a network has it
            loss, gradient_norm = state.take_step(
                image_NHWC, target_NHW, training.loss_of, hyper.clip_norm, hyper.accumulate
            )
            state.ema.update(state.step)
            state.count_step(dist.mean(loss), gradient_norm)
            bar.update()

            steps_into_epoch = state.step % schedule.steps_per_epoch
            if steps_into_epoch > 0:  # now and then show the loss and save
                flags = [stop.asked, stop.asked or save_timer.is_due(state.step), loss_timer.is_due(state.step)]
                stopping, saving, reading = dist.any_rank(flags)
                if saving or reading:
                    check_finite(data, schedule, state, dist)
                    mean_loss = state.loss_sum.item() / steps_into_epoch
                    rate = {f"{data.training.kind.noun}_per_s": f"{state.watch.images_per_s():.1f}"}
                    bar.set_postfix(loss=f"{mean_loss:.4f}", **rate)
                    loss_timer.restart()
                if saving:
                    save_timer.restart()
                    if dist.is_main:
                        state.save_last(training.settings, data)
            else:  # the end of an epoch: evaluate, log and save
                check_finite(data, schedule, state, dist)
                finish_epoch(training, schedule, curves)
                loss_timer.restart()
                save_timer.restart()
                (stopping,) = dist.any_rank([stop.asked])
            if stopping:
                raise dist.problem(messages.stopped(state.step, schedule.total_steps))


def finish_epoch(training: Training, schedule: BatchSchedule, curves: TensorBoardLog | None) -> None:
    """Evaluate the averaged network, add a row to the log, and save; a best.pt only for the best score so far."""
    hyper, data, state, dist = training.hyper, training.data, training.state, training.dist
    epoch = len(state.log) + 1
    row: dict[str, Any] = {
        "epoch": epoch,
        "train_loss": state.loss_sum.item() / schedule.steps_per_epoch,
        "val_dice": None, "val_dice_threshold": None,
        f"{data.training.kind.noun}_per_s": state.watch.images_per_s(),
        "waited_fraction": state.watch.waited_fraction(),
        "lr": state.optimizer.param_groups[0]["lr"],  # of the last step
    }
    if epoch % hyper.validate_every_epochs == 0 or epoch == hyper.epochs:
        row |= training.evaluate(state.ema.average)
    row |= {"seconds": state.watch.seconds(), "device": describe(dist.device), "commit": state.commit}
    is_best = state.end_epoch(row)
    if not dist.is_main:
        return
    if is_best:
        state.save_best(training.settings, data)
    state.save_last(training.settings, data)
    state.write_log(data.files.log)
    assert curves is not None
    shown = ("train_loss", state.score_name, f"{data.training.kind.noun}_per_s", "lr")
    curves.add(epoch, {key: row.get(key) for key in shown})
    for name, image in training.previews(state.ema.average):
        curves.show(epoch, name, image)
    print_above_bars(messages.epoch(row, hyper.epochs, data.training.kind.noun))


def check_finite(data: FoldData, schedule: BatchSchedule, state: TrainingState, dist: ProcessGroup) -> None:
    """Raise Problem if a loss or gradient was not finite: such weights must neither be trained on nor saved."""
    if (step := int(state.non_finite_step)) >= 0:
        names = [data.training.names[index] for _, index in schedule.batch(step)]
        section = data.training.kind.section
        raise dist.problem(messages.not_finite(step, schedule.total_steps, names, data.files.last, section))
