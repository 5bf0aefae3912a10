"""Stage `train`: config, folds and training images in; `runs/RUN/fold{k}/` with best.pt and log.jsonl out.

Start at `train_fold`, which resumes what an earlier start has left; `train_steps` takes the steps, updates the EMA and
saves last.pt now and then; `finish_epoch` evaluates the EMA, and saves best.pt if its score is the best so far.

A run is a function of its settings and the images: each batch, each augmentation and each learning rate follows from
the seed and the step, so that a run that was stopped and resumed ends with the same weights, on a CPU to the last bit.
"""
import pathlib
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import config
from pipeline.config import Settings
from pipeline.data import grouping
from pipeline.data.loader import (
    BatchSchedule, ValidationDataset, prefetch_to_device, seed_of, training_loader, validation_loader,
)  # fmt: skip
from pipeline.inference.ensemble import Member
from pipeline.inference.evaluate import (
    compute_class_scores, compute_dice_scores, evaluate_confusions, evaluate_histograms, merge_confusions,
)  # fmt: skip
from pipeline.inference.loading import build_ensemble
from pipeline.inference.tta import TTA_SETS
from pipeline.model import losses, optim
from pipeline.paths import Run
from pipeline.runtime.device import describe, explain_missing_kernel, set_up
from pipeline.runtime.distributed import ProcessGroup, process_group
from pipeline.runtime.files import write_text
from pipeline.runtime.memory import explain_out_of_memory, too_large_message
from pipeline.runtime.progress import Timer, print_above_bars, progress
from pipeline.runtime.signals import StopSignals
from pipeline.training import messages, resume
from pipeline.training.find_batch import out_of_memory_advice
from pipeline.training.fold_data import FoldData, open_fold
from pipeline.training.monitor import TensorBoardLog
from pipeline.training.previews import preview_images
from pipeline.training.state import TrainingState, create_state

LOSS_INTERVAL_S = 0.5  # between readings of the loss; each makes the CPU wait for the GPU


def main(
    settings: Settings, run: Run, fold_numbers: list[int], folder: pathlib.Path, deterministic: bool = False
) -> None:
    """Train these folds on the images in `folder`. deterministic: use kernels that give the same bits each time."""
    set_up(deterministic)
    with process_group() as dist, explain_missing_kernel():
        with dist.main_first():
            table = grouping.read_folds(run.folds)
            for number in fold_numbers:
                grouping.check_fold(table, number)  # before any of them gets a folder
        for number in fold_numbers:
            with resume.trainer_lock(run.fold(number)) if dist.is_main else nullcontext():
                train_fold(settings, run, number, folder, dist)


def train_fold(settings: Settings, run: Run, fold_number: int, folder: pathlib.Path, dist: ProcessGroup) -> None:
    """Train one fold, or what an earlier start has left of it to train."""
    # The images, and the checkpoint of an earlier start
    with dist.main_first():
        last = resume.read_last(run.fold(fold_number), settings, repair=dist.is_main)
        data = open_fold(settings, run, fold_number, folder, dist.world_size)
        resume.check_same_data(last, data)
    resume.check_ranks_agree(dist, last, data, settings)

    # The state: at step 0, or as it was saved
    hyper = settings.train
    state = create_state(settings, dist, pretrained=not last)
    if last:
        state.restore(last, data.paths.last)
    sizes = len(data.training), hyper.batch_size, hyper.epochs
    schedule = BatchSchedule(*sizes, hyper.seed, state.step, dist.rank, dist.world_size)
    if dist.is_main:
        resume.restore_files(settings, data, schedule, state)

    # The steps that are left
    is_trained = state.step == schedule.total_steps
    if not is_trained:
        if dist.is_main:
            write_text(data.paths.config, config.dump(settings))
            print(messages.start(settings, data, schedule, state, dist))
        train_steps(settings, data, schedule, state, dist)
    if dist.is_main:
        resume.check_best_exists(data, state)
        print(messages.trained_already(data, state) if is_trained else messages.end(data, state))


def train_steps(
    settings: Settings, data: FoldData, schedule: BatchSchedule, state: TrainingState, dist: ProcessGroup
) -> None:
    """Take one step a batch until all epochs are over, or until a signal asks to stop."""
    hyper, task, device = settings.train, settings.task, dist.device
    loss_of = losses.build(task.kind == "binary", task.class_weights, settings.loss.model_dump(), device)
    loader = training_loader(data.training, schedule, settings.data.workers, pin_memory=device.type == "cuda")
    save_timer, loss_timer = Timer(60 * hyper.checkpoint_minutes, hyper.checkpoint_steps), Timer(LOSS_INTERVAL_S)
    state.network.train()
    with (
        StopSignals() as stop,
        explain_out_of_memory(lambda: out_of_memory_advice(settings, state, data.training, loss_of, dist)),
        TensorBoardLog(data.paths.tensorboard, len(state.log) + 1) if dist.is_main else nullcontext() as curves,
        progress(total=schedule.total_steps, initial=state.step, unit="step", wanted=dist.is_main) as bar,
    ):
        for image_NHWC, target_NHW in prefetch_to_device(state.watch.waiting_for(loader), device):
            peak, warmup = hyper.learning_rate, hyper.warmup_fraction
            learning_rate = optim.learning_rate_at(state.step, schedule.total_steps, peak, warmup, hyper.schedule)
            optim.set_learning_rate(state.optimizer, learning_rate)
            torch.manual_seed(seed_of(hyper.seed, state.step, dist.rank))  # of dropout, where a network has it
            loss, gradient_norm = state.take_step(image_NHWC, target_NHW, loss_of, hyper.clip_norm, hyper.accumulate)
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
                    bar.set_postfix(loss=f"{mean_loss:.4f}", images_per_s=f"{state.watch.images_per_s():.1f}")
                    loss_timer.restart()
                if saving:
                    save_timer.restart()
                    if dist.is_main:
                        state.save_last(settings, data)
            else:  # the end of an epoch: evaluate, log and save
                check_finite(data, schedule, state, dist)
                finish_epoch(settings, data, schedule, state, dist, curves)
                loss_timer.restart()
                save_timer.restart()
                (stopping,) = dist.any_rank([stop.asked])
            if stopping:
                raise dist.problem(messages.stopped(state.step, schedule.total_steps))


def finish_epoch(
    settings: Settings, data: FoldData, schedule: BatchSchedule, state: TrainingState, dist: ProcessGroup,
    curves: TensorBoardLog | None,
) -> None:
    """Evaluate the averaged network, add a row to the log, and save; a best.pt only for the best score so far."""
    epoch, hyper = len(state.log) + 1, settings.train
    row: dict[str, Any] = {
        "epoch": epoch,
        "train_loss": state.loss_sum.item() / schedule.steps_per_epoch,
        "val_dice": None, "val_dice_threshold": None,
        "images_per_s": state.watch.images_per_s(), "waited_fraction": state.watch.waited_fraction(),
        "lr": state.optimizer.param_groups[0]["lr"],  # of the last step
    }
    if epoch % hyper.validate_every_epochs == 0 or epoch == hyper.epochs:
        row |= evaluate_epoch(settings, data, state.ema.average, dist)
    row |= {"seconds": state.watch.seconds(), "device": describe(dist.device), "commit": state.commit}
    is_best = state.end_epoch(row)
    if not dist.is_main:
        return
    if is_best:
        state.save_best(settings, data)
    state.save_last(settings, data)
    state.write_log(data.paths.log)
    assert curves is not None
    curves.add(epoch, {key: row.get(key) for key in ("train_loss", state.score_name, "images_per_s", "lr")})
    for name, image in preview_images(state.ema.average, data.validation, data.dataset, dist.device):
        curves.show(epoch, name, image)
    print_above_bars(messages.epoch(row, hyper.epochs))


def evaluate_epoch(settings: Settings, data: FoldData, network: nn.Module, dist: ProcessGroup) -> dict[str, float]:
    """Return the scores of the held-out images at full size, without TTA, under the keys of `log.jsonl`.

    Binary: mean Dice at the threshold 0.5, and the best threshold; multiclass: the scores of all pixels together.
    Each process evaluates every `world_size`-th image; all of them return the scores of all images.
    """
    binary, scale, dataset = settings.task.kind == "binary", settings.data.scale, data.dataset
    mine = ValidationDataset(dataset, data.validation.names[dist.rank :: dist.world_size], scale)
    member = Member(network, scale, TTA_SETS["none"], weight=1.0)
    ensemble = build_ensemble([member], binary, dataset.height, dataset.width)

    batch_size, workers = settings.predict.batch_size, settings.data.workers
    loader = validation_loader(mine, batch_size, workers, pin_memory=dist.device.type == "cuda")
    batches = progress(loader, "held-out images", wanted=dist.is_main)

    def predict(image_NHWC: Tensor) -> Tensor:
        return ensemble({scale: image_NHWC})

    with explain_out_of_memory(lambda: too_large_message(batch_size, scale)):
        if binary:
            histograms = evaluate_histograms(predict, batches, mine.names, dataset.truth)
            scores = compute_dice_scores(np.concatenate(dist.gather(histograms)))
        else:
            confusions = evaluate_confusions(predict, batches, mine.names, dataset.truth, settings.task.count)
            scores = compute_class_scores(merge_confusions(dist.gather(confusions)))
    return {f"val_{key}": score for key, score in scores.items()}


def check_finite(data: FoldData, schedule: BatchSchedule, state: TrainingState, dist: ProcessGroup) -> None:
    """Raise Problem if a loss or gradient was not finite: such weights must neither be trained on nor saved."""
    if (step := int(state.non_finite_step)) >= 0:
        names = [data.training.names[index] for _, index in schedule.batch(step)]
        raise dist.problem(messages.not_finite(step, schedule.total_steps, names, data.paths.last))
