"""Stage `train`: config, folds and training pictures in; `runs/RUN/fold{k}/` with best.pt and log.jsonl out.

The loop below is the whole of it: no trainer class, no callbacks. A run is a function of its settings and
the pictures: each batch, each augmentation and each learning rate follows from the seed and the step, so
that a run that was stopped and started again ends with the same weights, on a CPU to the last bit.
"""
import hashlib
import json
import math
import pathlib
import time
from typing import Any

import torch
from torch import Tensor

from pipeline import carvana, config
from pipeline.config import Settings
from pipeline.data import augment, competition, folds
from pipeline.data.dataset import HeldOutPictures, Schedule, TrainingPictures, held_out_loader, training_loader
from pipeline.files import write_text
from pipeline.inference.device import autocast, describe, out_of_memory_told, pick_device
from pipeline.inference.evaluate import histograms
from pipeline.inference.predictor import Predictor
from pipeline.masks import dice
from pipeline.model import checkpoint
from pipeline.model.build import build, count_parameters
from pipeline.model.ema import Ema
from pipeline.model.losses import segmentation_loss
from pipeline.paths import Fold, Run
from pipeline.problem import Problem
from pipeline.progress import Stopwatch, progress
from pipeline.stop import StopSignals

LAST_KEYS = (
    *("settings", "fingerprint", "step", "network", "average", "optimiser"),
    *("loss_sum", "log", "best_dice", "seconds", "epoch_watch"),
)
# Settings that change how fast a run goes and what is done with it later, but not what it learns.
FREE_KEYS = ("data.folder", "data.workers", "data.cache", "train.compile", "train.checkpoint_minutes", "predict.")
SECONDS_BETWEEN_READINGS = 0.5  # of the loss: each reading makes the processor wait for the GPU


def run(settings: Settings, run: Run, fold_numbers: list[int], folder: pathlib.Path) -> None:
    for number in fold_numbers:
        train_fold(settings, run, number, folder)


def train_fold(settings: Settings, run: Run, fold_number: int, folder: pathlib.Path) -> None:
    fold, device, hyper = run.fold(fold_number), pick_device(), settings.train
    last = read_last(fold, settings)  # where an earlier start of the same run left off, or nothing
    torch.manual_seed(hyper.seed)

    # Pictures
    pictures = competition.Pictures(folder, "train_hq" if settings.data.hq else "train")
    masks = competition.open_masks(folder)
    competition.check_training_set(pictures, masks, competition.read_makes(folder))
    training, held_out = folds.split(folds.read_folds(run.folds), fold_number, pictures.names)
    if len(training) + len(held_out) != len(pictures.names):
        raise Problem(f"{folder} has cars that {run.folds} does not know; run `make folds` under another RUN=.")
    if len(training) < hyper.batch_size or not held_out:
        raise Problem(
            f"Fold {fold_number} of {run.folds} has {len(training)} pictures to train on and {len(held_out)} held out, "
            f"but train.batch_size is {hyper.batch_size}; lower it, or change data.folds under another RUN=."
        )
    fingerprint = fingerprint_of(training, held_out, pictures.stored_scale)
    if last and last["fingerprint"] != fingerprint:
        raise Problem(f"{fold.folder} was begun with other pictures than those of {folder}; choose another RUN=.")
    dataset = TrainingPictures(
        pictures,
        masks,
        training,
        settings.data.scale,
        augment.build(**settings.augment.model_dump()),
        hyper.seed,
        settings.data.cache,
        full_size=(carvana.HEIGHT_PX, carvana.WIDTH_PX),
    )

    # Network and optimiser
    model = settings.model.model_copy(update={"encoder_weights": None}) if last else settings.model
    network = build(**model.model_dump()).to(device)
    ema = Ema(network, hyper.ema_decay)
    optimiser = torch.optim.AdamW(
        [
            {"params": [p for p in network.parameters() if p.ndim > 1], "weight_decay": hyper.weight_decay},
            {"params": [p for p in network.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ],
        fused=True,
    )
    if last:
        network.load_state_dict(last["network"])
        ema.average.load_state_dict(last["average"])
        optimiser.load_state_dict(last["optimiser"])
    step: int = last.get("step", 0)
    loss_sum = torch.tensor(last.get("loss_sum", 0.0), dtype=torch.float64, device=device)
    log: list[dict[str, Any]] = last.get("log", [])
    best_dice: float = last.get("best_dice", -1.0)
    started = time.monotonic() - last.get("seconds", 0.0)

    schedule = Schedule(len(training), hyper.batch_size, hyper.epochs, hyper.seed, first_step=step)
    steps_per_epoch = schedule.steps_per_epoch
    steps = steps_per_epoch * hyper.epochs
    write_log(fold, log)  # a kill may have come between the checkpoint and its line
    if step == steps:
        print(f"{fold.folder} is trained already: Dice {best_dice:.5f}. Another RUN= starts anew.")
        return
    write_text(fold.config, config.dump(settings))
    print(
        f"Fold {fold_number}: {settings.model.arch} of {count_parameters(network) / 1e6:.2f} M parameters, "
        f"{len(training)} pictures at 1/{settings.data.scale}, {len(held_out)} held out, {describe(device)}."
    )
    if step:
        print(f"{fold.last} is there: going on after step {step} of {steps}.")

    def save_last() -> None:
        checkpoint.save(
            fold.last,
            {
                "settings": settings.model_dump(),
                "fingerprint": fingerprint,
                "step": step,
                "network": network.state_dict(),
                "average": ema.average.state_dict(),
                "optimiser": optimiser.state_dict(),
                "loss_sum": loss_sum.item(),
                "log": log,
                "best_dice": best_dice,
                "seconds": time.monotonic() - started,
                "epoch_watch": watch.readings(),
            },
        )

    # The loop: each turn is one step, and the last turn of an epoch also judges and saves
    forward = torch.compile(network) if hyper.compile else network
    loader = training_loader(dataset, schedule, settings.data.workers, pin_memory=device.type == "cuda")
    watch = Stopwatch(hyper.batch_size, **last.get("epoch_watch", {}))
    saved_at = read_at = time.monotonic()
    network.train()
    with (
        StopSignals() as stop,
        out_of_memory_told(f"train.batch_size {hyper.batch_size}, data.scale {settings.data.scale}"),
        open_tensorboard(fold, first_epoch=step // steps_per_epoch + 1) as tensorboard,
        progress(total=steps, initial=step, unit="step") as bar,
    ):
        for image_NHWC, coverage_NHW in watch.waiting_for(loader):
            learning_rate = learning_rate_at(step, steps, hyper.learning_rate, hyper.warmup_share)
            for group in optimiser.param_groups:
                group["lr"] = learning_rate
            torch.manual_seed(hyper.seed + step)  # of dropout, where a network has it
            image_NHWC = image_NHWC.to(device, non_blocking=True)
            share_NHW = coverage_NHW.to(device, non_blocking=True).float() / 255

            with autocast(device):
                logits_NCHW = forward(image_NHWC)
            loss = segmentation_loss(logits_NCHW[:, 0].float(), share_NHW, hyper.bce_weight, hyper.dice_weight)
            loss.backward()
            gradient_norm = torch.nn.utils.clip_grad_norm_(network.parameters(), hyper.clip_norm)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            ema.update(step)
            # A gradient that is no number spoils the weights for good, even where the loss still is one.
            loss_sum += torch.where(gradient_norm.isfinite(), loss.detach(), torch.nan)
            step += 1
            bar.update()

            epoch, steps_into_epoch = divmod(step, steps_per_epoch)
            if steps_into_epoch:
                now = time.monotonic()
                save_now = stop.asked or now - saved_at > 60 * hyper.checkpoint_minutes
                if save_now or now - read_at > SECONDS_BETWEEN_READINGS:
                    mean_loss = finite(loss_sum / steps_into_epoch, fold, step)
                    bar.set_postfix(loss=f"{mean_loss:.4f}", images_per_s=f"{watch.images_per_s():.1f}")
                    read_at = now
                if save_now:
                    save_last()
                    saved_at = now
                if stop.asked:
                    raise Problem(stopped_after(step, steps))
                continue

            train_loss = finite(loss_sum / steps_per_epoch, fold, step)
            loss_sum.zero_()
            row = {"epoch": epoch, "train_loss": train_loss, "val_dice": None, "val_dice_cut": None}
            row |= {"images_per_s": watch.images_per_s(), "waited_share": watch.waited_share(), "lr": learning_rate}
            if epoch % hyper.validate_every_epochs == 0 or step == steps:
                row["val_dice"], row["val_dice_cut"] = judge(ema, settings, pictures, masks, held_out)
            row["seconds"] = watch.seconds()
            log.append(row)
            if row["val_dice"] is not None and row["val_dice"] > best_dice:
                best_dice = row["val_dice"]
                best = {"settings": settings.model_dump(), "network": ema.average.state_dict(), "log": log}
                checkpoint.save(fold.best, best)
            watch.restart()
            save_last()
            write_log(fold, log)
            for key in ("train_loss", "val_dice", "images_per_s", "lr"):
                if row[key] is not None:
                    tensorboard.add_scalar(key, row[key], epoch)
            bar.clear()
            print(describe_epoch(row, hyper.epochs), flush=True)
            saved_at = read_at = time.monotonic()
            if stop.asked:
                raise Problem(stopped_after(step, steps))

    minutes = (time.monotonic() - started) / 60
    print(f"{fold.best}: Dice {best_dice:.5f} on held-out makes at full size, after {minutes:.1f} minutes.")


def fingerprint_of(training: list[str], held_out: list[str], stored_scale: int) -> str:
    """Tells one set of pictures, and one copy of it, from another."""
    text = "\n".join([*training, "held out", *held_out, f"stored at 1/{stored_scale}"])
    return hashlib.sha256(text.encode()).hexdigest()


def stopped_after(step: int, steps: int) -> str:
    return f"Stopped after step {step} of {steps}; it is saved, and the same command goes on from there."


def learning_rate_at(step: int, steps: int, peak: float, warmup_share: float) -> float:
    """From 0 up to `peak` in a line over the first share of the steps, then down to 0 along a cosine."""
    warmup_steps = round(warmup_share * steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return peak * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps))) / 2


def finite(loss: Tensor, fold: Fold, step: int) -> float:
    """The loss as a number; training never goes on from one that is none."""
    value = loss.item()
    if not math.isfinite(value):
        raise Problem(
            f"The loss is {value} at step {step}; the last good checkpoint is {fold.last} if there is one. "
            "Lower train.learning_rate, or train.clip_norm."
        )
    return value


def judge(
    ema: Ema, settings: Settings, pictures: competition.Pictures, masks: competition.Masks, names: list[str]
) -> tuple[float, float]:
    """Mean Dice of the averaged weights at full size at the cut 0.5, without flips; and the best cut."""
    predictor = Predictor([ema.average], False, settings.data.scale, carvana.HEIGHT_PX, carvana.WIDTH_PX)
    held_out = HeldOutPictures(pictures, names, settings.data.scale)
    loader = held_out_loader(
        held_out, settings.predict.batch_size, settings.data.workers, pin_memory=predictor.device.type == "cuda"
    )
    counts = histograms(predictor, progress(loader, "held-out makes"), names, masks.read)
    scores = dice.dice_at_every_cut(counts)
    return float(scores[:, dice.cut_from_share(0.5)].mean()), dice.cut_as_share(dice.best_cut(scores))


def read_last(fold: Fold, settings: Settings) -> dict[str, Any]:
    """The state of `last.pt`, or an empty one; Problem when other settings trained it."""
    if not fold.last.exists():
        return {}
    state = checkpoint.load(fold.last, keys=LAST_KEYS)
    trained = config.parse(state["settings"], where=str(fold.last))
    if changed := [line for line in config.difference(trained, settings) if not line.startswith(FREE_KEYS)]:
        raise Problem(
            f"{fold.folder} was begun with other settings ({', '.join(changed[:3])}); "
            "set them back, choose another RUN=, or delete that folder."
        )
    return state


def write_log(fold: Fold, log: list[dict[str, Any]]) -> None:
    """`log.jsonl`, one object an epoch; a file that says so already is left alone."""
    text = "".join(json.dumps(row) + "\n" for row in log)
    if log and (not fold.log.exists() or fold.log.read_text() != text):
        write_text(fold.log, text)


def open_tensorboard(fold: Fold, first_epoch: int):
    """A SummaryWriter whose points from `first_epoch` on replace those of an interrupted start."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(fold.tensorboard), purge_step=first_epoch)


def describe_epoch(row: dict[str, Any], epochs: int) -> str:
    judged = "" if row["val_dice"] is None else f"Dice {row['val_dice']:.5f} (best cut {row['val_dice_cut']:.3f}), "
    return (
        f"epoch {row['epoch']}/{epochs}: loss {row['train_loss']:.4f}, {judged}{row['images_per_s']:.1f} images/s, "
        f"waited {row['waited_share']:.1%} for pictures, {row['seconds']:.0f} s"
    )
