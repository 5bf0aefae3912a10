"""Stage `train`: config, folds and training pictures in; `runs/RUN/fold{k}/` with best.pt and log.jsonl out.

The loop below is the whole of it: no trainer class, no callbacks. A run is a function of its settings and
the pictures: each batch, each augmentation and each learning rate follows from the seed and the step, so
that a run that was stopped and started again ends with the same weights, on a CPU to the last bit.
"""
import pathlib
import time
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline import config
from pipeline.runtime import git
from pipeline.training import resume
from pipeline.config import Settings
from pipeline.training.monitor import TensorBoardLog
from pipeline.data import augment, grouping, relabel
from pipeline.data.dataset import SegmentationDataset, open_dataset
from pipeline.data.loader import (
    ValidationDataset,
    BatchSchedule,
    TrainingDataset,
    prefetch_to_device,
    validation_loader,
    seed_of,
    training_loader,
)
from pipeline.runtime.files import write_text
from pipeline.runtime.device import autocast, describe, loss_scaler, explain_missing_kernel, set_up
from pipeline.inference.evaluate import (
    compute_class_scores, compute_dice_scores, evaluate_confusions, evaluate_histograms, merge_confusions,
)  # fmt: skip
from pipeline.inference.loading import build_ensemble
from pipeline.inference.ensemble import Member
from pipeline.training.previews import preview_images
from pipeline.inference.tta import ANGLES
from pipeline.model import checkpoint, losses, optim
from pipeline.model.sync_batchnorm import sync_batch_norm
from pipeline.model.factory import build, count_parameters
from pipeline.model.ema import Ema
from pipeline.runtime.memory import (
    MAX_BATCH_TRIED,
    found,
    largest_that_fits,
    limited_to_free_memory,
    explain_out_of_memory,
    smaller_batch_advice,
    too_large_message,
)
from pipeline.runtime.distributed import ProcessGroup, sync_gradients, process_group
from pipeline.paths import Fold, Run
from pipeline.runtime.problem import Problem
from pipeline.runtime.progress import Stopwatch, progress
from pipeline.runtime.signals import StopSignals

SECONDS_BETWEEN_READINGS = 0.5  # of the loss: each reading makes the processor wait for the GPU
NAMES_SHOWN = 8  # pictures of a batch that an error lists


def main(
    settings: Settings,
    run: Run,
    fold_numbers: list[int],
    folder: pathlib.Path,
    deterministic: bool = False,
    find_batch: bool = False,
) -> None:
    """deterministic: only kernels that give the same bits each time; find_batch: measure, print, and train nothing."""
    set_up(deterministic)
    with process_group() as dist, explain_missing_kernel():
        if find_batch and dist.world_size > 1:
            raise dist.problem("--find-batch measures one process; start it without torchrun.")
        table = grouping.read_folds(run.folds)
        for number in fold_numbers:
            grouping.check_fold(table, number)  # before it gets a folder
        for number in fold_numbers:
            with resume.trainer_lock(run.fold(number)) if dist.is_main and not find_batch else nullcontext():
                train_fold(settings, run, number, folder, dist, find_batch)


def train_fold(
    settings: Settings, run: Run, fold_number: int, folder: pathlib.Path, dist: ProcessGroup, find_batch: bool
) -> None:
    fold, device, hyper = run.fold(fold_number), dist.device, settings.train
    with dist.main_first():
        last = resume.read_last(fold, settings, repair=dist.is_main and not find_batch)
        table = grouping.read_folds(run.folds)
        training_set, validation_set = open_pictures(settings, run, table, fold_number, folder, dist.world_size)
        dataset = training_set.dataset
        other_masks = relabel.fingerprint(training_set.relabelled)
        fingerprint = resume.fingerprint_of(training_set.names, validation_set.names, dataset, other_masks)
        if last and last["fingerprint"] != fingerprint:
            raise Problem(f"{fold.folder} was begun with other pictures or masks than {folder} has; choose a new RUN=.")
    if len(set(dist.gather((last.get("step", 0), fingerprint, config.dump(settings))))) > 1:
        raise dist.problem(f"The processes do not see the same {fold.folder}; they must share that folder.")

    # Network and optimiser
    torch.manual_seed(hyper.seed)
    model = settings.model.model_copy(update={"encoder_weights": None}) if last else settings.model
    network: nn.Module = build(
        **model.model_dump(),
        channels=settings.data.channels,
        classes=settings.task.outputs,
        checkpoint_activations=hyper.checkpoint_activations,
    ).to(device)
    if dist.world_size > 1:
        network = sync_batch_norm(network)
    ema = Ema(network, hyper.ema_decay)
    optimizer = optim.build(hyper.optimizer, network, hyper.learning_rate, hyper.weight_decay, hyper.momentum)
    scaler = loss_scaler(device)
    if last:
        resume.restore(last, network, ema, optimizer, scaler, where=fold.last)
    if hyper.compile:
        network.compile()
    forward = dist.wrap(network)
    binary = settings.task.kind == "binary"
    loss_of = losses.build(binary, settings.task.class_weights, settings.loss.model_dump(), device)
    take_step = partial(one_step, forward, network, optimizer, scaler, hyper.clip_norm, loss_of)

    # Where the run stands
    step: int = last.get("step", 0)
    loss_sum = torch.tensor(last.get("loss_sum", 0.0), dtype=torch.float64, device=device)
    non_finite_step = torch.tensor(-1, device=device)  # the first whose loss or gradient was no number
    log: list[dict[str, Any]] = last.get("log", [])
    key_of_score, name_of_score = ("val_dice", "Dice") if binary else ("val_mean_iou", "mean IoU")
    best_score: float = last.get("best_score", -1.0)
    started = time.monotonic() - last.get("seconds", 0.0)
    commit = git.commit()
    schedule = BatchSchedule(
        len(training_set), hyper.batch_size, hyper.epochs, hyper.seed, step, share=(dist.rank, dist.world_size)
    )
    steps_per_epoch = schedule.steps_per_epoch
    steps = steps_per_epoch * hyper.epochs
    watch = Stopwatch(hyper.batch_size, **last.get("epoch_watch", {}))

    def save_last() -> None:
        state = {
            "settings": settings.model_dump(),
            "fingerprint": fingerprint,
            "step": step,
            "network": network.state_dict(),
            "average": ema.average.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
            "loss_sum": loss_sum.item(),
            "log": log,
            "best_score": best_score,
            "seconds": time.monotonic() - started,
            "epoch_watch": watch.readings(),
        }
        if dist.is_main:
            checkpoint.save(fold.last, state, keep_as=fold.previous)

    def save_best() -> None:
        best: dict[str, Any] = {"settings": settings.model_dump(), "network": ema.average.state_dict()}
        best |= {"log": resume.without_circumstances(log), "full_size": [dataset.height, dataset.width]}
        best |= {"classes": list(dataset.classes), "folds": grouping.digest(table)}
        checkpoint.save(fold.best, best)

    def stop_if_non_finite() -> None:
        """Never go on from weights that are no numbers, and never save them."""
        if (at := int(non_finite_step)) >= 0:
            raise dist.problem(non_finite_message(at, steps, [training_set.names[index] for _, index in schedule.batch(at)], fold))

    def largest_batch() -> int:
        """How many pictures at once fit, found by steps on one picture many times over; they spoil the network."""
        image, target = map(torch.from_numpy, training_set[0, 0])
        image_NHWC, target_NHW = image.to(device)[None], target.to(device)[None]
        network.train()
        with limited_to_free_memory(device):
            return largest_that_fits(
                lambda n: take_step(image_NHWC.repeat(n, 1, 1, 1), target_NHW.repeat(n, 1, 1), parts=1),
                at_most=MAX_BATCH_TRIED[device.type],
            )

    def advice() -> str:
        largest = largest_batch() if dist.world_size == 1 else None
        scale, name = settings.data.scale, describe(device)
        return smaller_batch_advice(hyper.batch_size, hyper.accumulate, dist.world_size, scale, largest, name)

    if find_batch:
        print(f"{found(largest_batch(), settings.data.scale, describe(device))}.")
        return
    if dist.is_main:
        resume.write_log(fold, log)  # a kill may have come between the checkpoint and its line
        if (best_row := resume.best_row(log, key_of_score)) and not fold.best.exists():
            if best_row["epoch"] * steps_per_epoch == step:
                save_best()
                print(f"{fold.best} was gone; it is made again.")
            else:
                resume.report_lost_best(fold, best_row["epoch"], is_last=step == steps)
        if step == steps:
            print(f"{fold.folder} is trained already: {name_of_score} {best_score:.5f}. Another RUN= starts anew.")
    if step == steps:
        return
    if dist.is_main:
        write_text(fold.config, config.dump(settings))
        print(
            f"Fold {fold_number}: {settings.model.arch} of {count_parameters(network) / 1e6:.2f} M parameters, "
            f"{len(training_set)} pictures at 1/{settings.data.scale}, {len(validation_set)} held out"
            f"{relabel.told(training_set.names, validation_set.names, dataset.names, training_set.relabelled)}, {describe(device)}"
            f"{f', {dist.world_size} processes' if dist.world_size > 1 else ''}."
        )
        absent = (grouping.find_missing_keys(table, number, dataset.names) for number in grouping.fold_numbers(table))
        if gone := [unit for units in absent for unit in units]:
            print(f"{folder} lacks {len(gone)} of the {len(table)} rows of {run.folds}, {gone[0]} the first.")
        if step:
            print(f"{fold.folder} was begun: going on after step {step} of {steps}.")

    # The loop: each turn is one step, and the last turn of an epoch also judges and saves
    loader = training_loader(training_set, schedule, settings.data.workers, pin_memory=device.type == "cuda")
    saved_at = read_at = time.monotonic()
    network.train()
    with (
        StopSignals() as stop,
        explain_out_of_memory(advice),
        TensorBoardLog(fold.tensorboard, step // steps_per_epoch + 1) if dist.is_main else nullcontext() as curves,
        progress(total=steps, initial=step, unit="step", wanted=dist.is_main) as bar,
    ):
        for image_NHWC, target_NHW in prefetch_to_device(watch.waiting_for(loader), device):
            learning_rate = optim.learning_rate_at(
                step, steps, hyper.learning_rate, hyper.warmup_fraction, hyper.schedule
            )
            optim.set_learning_rate(optimizer, learning_rate)
            torch.manual_seed(seed_of(hyper.seed, step, dist.rank))  # of dropout, where a network has it
            loss, gradient_norm = take_step(image_NHWC, target_NHW, parts=hyper.accumulate)
            ema.update(step)
            loss = dist.mean(loss)
            loss_sum += loss
            # In float16 an infinite gradient is ordinary: the scaler leaves the step out and scales less.
            is_finite = loss.isfinite() & (gradient_norm.isfinite() | scaler.is_enabled())
            non_finite_step = torch.where((non_finite_step < 0) & ~is_finite, step, non_finite_step)
            step += 1
            bar.update()

            epoch, steps_into_epoch = divmod(step, steps_per_epoch)
            if steps_into_epoch:
                now = time.monotonic()
                due = now - saved_at > 60 * hyper.checkpoint_minutes
                due = due or (hyper.checkpoint_steps is not None and step % hyper.checkpoint_steps == 0)
                stopping, saving, reading = dist.any_rank(
                    [stop.asked, stop.asked or due, now - read_at > SECONDS_BETWEEN_READINGS]
                )
                if saving or reading:
                    stop_if_non_finite()
                    mean_loss = loss_sum.item() / steps_into_epoch
                    bar.set_postfix(loss=f"{mean_loss:.4f}", images_per_s=f"{watch.images_per_s():.1f}")
                    read_at = now
                if saving:
                    save_last()
                    saved_at = now
                if stopping:
                    raise dist.problem(stopped_after(step, steps))
                continue

            stop_if_non_finite()
            row: dict[str, Any] = {"epoch": epoch, "train_loss": loss_sum.item() / steps_per_epoch}
            row |= {"val_dice": None, "val_dice_threshold": None}
            row |= {"images_per_s": watch.images_per_s(), "waited_fraction": watch.waited_fraction(), "lr": learning_rate}
            loss_sum.zero_()
            if epoch % hyper.validate_every_epochs == 0 or step == steps:
                row |= evaluate_epoch(ema, settings, validation_set, dataset, dist)
            row |= {"seconds": watch.seconds(), "device": describe(device), "commit": commit}
            log.append(row)
            score = resume.score_of(row, key_of_score)
            is_best = score > best_score
            best_score = max(score, best_score)
            watch.restart()
            if dist.is_main:
                if is_best:
                    save_best()
                save_last()
                resume.write_log(fold, log)
                if curves:
                    curves.add(epoch, {key: row.get(key) for key in ("train_loss", key_of_score, "images_per_s", "lr")})
                    for name, picture in preview_images(ema.average, validation_set, dataset, device):
                        curves.show(epoch, name, picture)
                bar.clear()
                print(describe_epoch(row, hyper.epochs), flush=True)
            saved_at = read_at = time.monotonic()
            if any(dist.any_rank([stop.asked])):
                raise dist.problem(stopped_after(step, steps))

    if dist.is_main:
        minutes = (time.monotonic() - started) / 60
        best_row = resume.best_row(log, key_of_score)
        if not fold.best.exists():
            resume.report_lost_best(fold, best_row["epoch"], is_last=True)
        cut = f" at the cut 0.5, best is {best_row['val_dice_threshold']:.3f}," if binary else ""
        next_stages = "validate threshold report" if binary else "validate report"
        print(
            f"{fold.best}: {name_of_score} {best_score:.5f}{cut} on held-out pictures at full size, after "
            f"{minutes:.1f} minutes; `make {next_stages} RUN={run.name}` shows where it is wrong."
        )


def one_step(
    forward: nn.Module,
    network: nn.Module,
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
    clip_norm: float,
    loss_of: losses.LossOf,
    image_NHWC: Tensor,
    target_NHW: Tensor,
    parts: int,
) -> tuple[Tensor, Tensor]:
    """One step of the optimizer: the loss of the batch and the length of its gradient, not waited for.

    The batch goes through the network in `parts`, one after another, and the gradient is the mean of theirs.
    """
    batch_loss = torch.zeros((), device=target_NHW.device)
    for part, (image, target) in enumerate(zip(image_NHWC.chunk(parts), target_NHW.chunk(parts)), start=1):
        with sync_gradients(forward, wanted=part == parts):
            with autocast(image.device):
                logits_NCHW = forward(image)
            loss = loss_of(logits_NCHW, target) / parts
            scaler.scale(loss).backward()
        batch_loss += loss.detach()
    scaler.unscale_(optimizer)
    gradient_norm = nn.utils.clip_grad_norm_(network.parameters(), clip_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return batch_loss, gradient_norm


def open_pictures(
    settings: Settings, run: Run, table: pd.DataFrame, fold_number: int, folder: pathlib.Path, process_group: int
) -> tuple[TrainingDataset, ValidationDataset]:
    """What the fold trains on and what it is judged by; Problem unless the settings and the folder go together."""
    hyper = settings.train
    dataset = open_dataset(settings.data, settings.task, folder)
    training, validation_set = grouping.split(table, fold_number, dataset.names)
    if len(training) + len(validation_set) != len(dataset.names):
        raise Problem(f"{folder} has pictures that {run.folds} does not know; run `make folds` under another RUN=.")
    training = relabel.without(training, settings.data.exclude)
    if len(training) < hyper.batch_size or not validation_set:
        raise Problem(
            f"Fold {fold_number} of {run.folds} has {len(training)} pictures to train on and {len(validation_set)} held out, "
            f"but train.batch_size is {hyper.batch_size}; lower it, or change data.folds under another RUN=."
        )
    if hyper.batch_size % (process_group * hyper.accumulate):
        raise Problem(
            f"train.batch_size ({hyper.batch_size}) must be a multiple of train.accumulate ({hyper.accumulate}) times "
            f"the number of processes ({process_group})."
        )
    other_masks = relabel.relabelled(training, settings.data.relabel)
    change = augment.build(**settings.augment.model_dump(), of_classes=settings.task.kind == "multiclass")
    scale, cache = settings.data.scale, settings.data.cache
    return (
        TrainingDataset(dataset, training, scale, change, hyper.seed, cache, other_masks),
        ValidationDataset(dataset, validation_set, scale),
    )


def stopped_after(step: int, steps: int) -> str:
    return f"Stopped after step {step} of {steps}; it is saved, and the same command goes on from there."


def non_finite_message(step: int, steps: int, names: list[str], fold: Fold) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    good = f"the last good checkpoint is {fold.last}" if fold.last.exists() else "there is no checkpoint yet"
    return (
        f"The loss or its gradient is no finite number at step {step + 1} of {steps}, on the pictures "
        f"{', '.join(names[:NAMES_SHOWN])}{more}; {good}. Look at these pictures, or lower train.learning_rate."
    )


def evaluate_epoch(
    ema: Ema, settings: Settings, validation_set: ValidationDataset, dataset: SegmentationDataset, dist: ProcessGroup
) -> dict[str, float]:
    """The averaged weights on the held-out pictures at full size, without flips, as keys of `log.jsonl`.

    Binary: mean Dice at the cut 0.5, and the best cut; else the scores of classes, of all pictures together. Each
    process judges its share of the pictures; all of them know the result.
    """
    mine = ValidationDataset(dataset, validation_set.names[dist.rank :: dist.world_size], settings.data.scale)
    binary, scale = settings.task.kind == "binary", settings.data.scale
    member = Member(ema.average, scale, ANGLES["none"], weight=1.0)
    ensemble = build_ensemble([member], binary, dataset.height, dataset.width)

    def predict(image_NHWC: Tensor) -> Tensor:
        return ensemble({scale: image_NHWC})

    on_gpu = dist.device.type == "cuda"
    loader = validation_loader(mine, settings.predict.batch_size, settings.data.workers, pin_memory=on_gpu)
    batches = progress(loader, "held-out pictures", wanted=dist.is_main)
    with explain_out_of_memory(lambda: too_large_message(settings.predict.batch_size, scale)):
        if binary:
            counts = evaluate_histograms(predict, batches, mine.names, dataset.truth)
            scores = compute_dice_scores(np.concatenate(dist.gather(counts)))
        else:
            judged = evaluate_confusions(predict, batches, mine.names, dataset.truth, settings.task.count)
            scores = compute_class_scores(merge_confusions(dist.gather(judged)))
    return {f"val_{key}": score for key, score in scores.items()}


def describe_epoch(row: dict[str, Any], epochs: int) -> str:
    judged = ""
    if row["val_dice"] is not None:
        judged = f"Dice {row['val_dice']:.5f} at 0.5 (best cut {row['val_dice_threshold']:.3f}), "
    if "val_mean_iou" in row:
        judged = f"mean IoU {row['val_mean_iou']:.4f}, pixel accuracy {row['val_pixel_accuracy']:.4f}, "
    return (
        f"epoch {row['epoch']}/{epochs}: loss {row['train_loss']:.4f}, {judged}{row['images_per_s']:.1f} images/s, "
        f"waited {row['waited_fraction']:.1%} for pictures, {row['seconds']:.0f} s"
    )
