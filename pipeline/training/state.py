"""What a training step changes. `last.pt` holds all of it, so that a resumed run ends with the same bits."""
import json
import pathlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.config import Settings, Train
from pipeline.data import grouping
from pipeline.model import checkpoint, optim
from pipeline.model.ema import Ema
from pipeline.model.losses import LossOf
from pipeline.model.sync_batchnorm import sync_batch_norm
from pipeline.runtime import git
from pipeline.runtime.device import autocast, check_compiler, loss_scaler
from pipeline.runtime.distributed import ProcessGroup, sync_gradients
from pipeline.runtime.files import write_text
from pipeline.runtime.problem import Problem
from pipeline.runtime.progress import Stopwatch
from pipeline.training.fold_data import FoldData

# Keys of an epoch's row that differ from run to run. best.pt has none, so that the same training gives the same bytes.
CIRCUMSTANCES = ("images_per_s", "tiles_per_s", "waited_fraction", "seconds", "device", "commit")


@dataclass
class TrainingState:
    """The network and its average, the optimizer and its scaler, and where the run stands."""

    network: nn.Module
    forward: nn.Module  # the network as a step calls it: itself, or wrapped to average gradients over the processes
    ema: Ema
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    watch: Stopwatch  # of this epoch
    loss_sum: Tensor  # over the steps of this epoch, float64, on the device so that no step waits for it
    non_finite_step: Tensor  # the first step whose loss or gradient was not finite, on the device; -1: none
    score_name: str  # the key of the log by which epochs are compared: val_dice or val_mean_iou
    best_score: float = -1.0  # -1: no epoch was evaluated
    step: int = 0  # steps taken
    log: list[dict[str, Any]] = field(default_factory=list)  # the rows of log.jsonl
    started: float = field(default_factory=time.monotonic)  # as if the run had never been interrupted
    commit: str = field(default_factory=git.commit)  # the code that trains, as it was when this state was created

    def take_step(
        self, image_NHWC: Tensor, target_NHW: Tensor, loss_of: LossOf, clip_norm: float, micro_batches: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Take one optimizer step; return the loss of the batch and the norm of its gradient, still on the device.

        The batch goes through the network in `micro_batches`, one after another; the gradient is the mean of theirs.
        """
        batch_loss = torch.zeros((), device=target_NHW.device)
        chunks = zip(image_NHWC.chunk(micro_batches), target_NHW.chunk(micro_batches))
        for number, (image, target) in enumerate(chunks, start=1):
            with sync_gradients(self.forward, wanted=number == micro_batches):
                with autocast(image.device):
                    logits_NCHW = self.forward(image)
                loss = loss_of(logits_NCHW, target) / micro_batches
                self.scaler.scale(loss).backward()
            batch_loss += loss.detach()
        self.scaler.unscale_(self.optimizer)
        gradient_norm = nn.utils.clip_grad_norm_(self.network.parameters(), clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return batch_loss, gradient_norm

    def count_step(self, loss: Tensor, gradient_norm: Tensor) -> None:
        """Count the step that was taken; add its loss to the epoch's sum, and note whether it was finite."""
        self.loss_sum += loss
        # In float16 an infinite gradient is ordinary: the scaler skips the step and lowers its scale.
        is_finite = loss.isfinite() & (gradient_norm.isfinite() | self.scaler.is_enabled())
        self.non_finite_step = torch.where((self.non_finite_step < 0) & ~is_finite, self.step, self.non_finite_step)
        self.step += 1

    def end_epoch(self, row: dict[str, Any]) -> bool:
        """Append the row of an epoch to the log and begin the next; return whether its score is the best so far."""
        self.log.append(row)
        self.loss_sum.zero_()
        self.watch.restart()
        score = row.get(self.score_name)
        if score is None or score <= self.best_score:  # None: the epoch was not evaluated
            return False
        self.best_score = score
        return True

    def best_row(self) -> dict[str, Any] | None:
        """Return the row of the epoch whose weights are in `best.pt`, the first of equals; None if there is none."""
        evaluated = [row for row in self.log if row.get(self.score_name) is not None]
        return max(evaluated, key=lambda row: row[self.score_name], default=None)

    def seconds(self) -> float:
        """Return the seconds of training, those before interruptions included."""
        return time.monotonic() - self.started

    def save_last(self, settings: Settings, data: FoldData) -> None:
        """Write `last.pt`; the one before stays as `last.previous.pt`."""
        contents: dict[str, Any] = {"settings": settings.model_dump(), "fingerprint": data.fingerprint}
        contents |= {"digests": data.digest_of}
        contents |= {"step": self.step, "network": self.network.state_dict()}
        contents |= {"average": self.ema.average.state_dict(), "optimizer": self.optimizer.state_dict()}
        contents |= {"scaler": self.scaler.state_dict(), "loss_sum": self.loss_sum.item(), "log": self.log}
        contents |= {"best_score": self.best_score, "score_name": self.score_name}
        contents |= {"seconds": self.seconds(), "epoch_watch": self.watch.readings()}
        contents |= {"trained_before": list(data.trained_before)}
        checkpoint.save(data.files.last, contents, keep_as=data.files.previous)

    def restore(self, last: dict[str, Any], path: pathlib.Path) -> None:
        """Continue from the contents of `last.pt`, which `resume.read_last` gave; Problem when they do not fit."""
        try:
            self.network.load_state_dict(last["network"])
            self.ema.average.load_state_dict(last["average"])
            self.optimizer.load_state_dict(last["optimizer"])
            if last["scaler"]:  # empty when the processor that saved it needed none
                self.scaler.load_state_dict(last["scaler"])
            self.watch = Stopwatch(self.watch.images_per_step, **last["epoch_watch"])
        except (RuntimeError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            reason = " ".join(str(error).split())[:120]
            what = f"The checkpoint {path} does not fit its own settings ({reason})"
            raise Problem(f"{what}; {checkpoint.ADVICE}.") from None
        self.step, self.log = last["step"], last["log"]
        self.best_score, self.score_name = last["best_score"], last["score_name"]
        self.loss_sum.fill_(last["loss_sum"])
        self.started = time.monotonic() - last["seconds"]

    def save_best(self, settings: Settings, data: FoldData) -> None:
        """Write `best.pt`: the averaged weights, and what later stages must know of their training."""
        contents: dict[str, Any] = {"settings": settings.model_dump(), "network": self.ema.average.state_dict()}
        contents |= {"log": without_circumstances(self.log), "full_size": [data.dataset.height, data.dataset.width]}
        contents |= {"classes": list(data.dataset.classes), "folds": grouping.digest(data.folds)}
        contents |= {"trained_on": data.trained_on()}
        checkpoint.save(data.files.best, contents | data.facts)

    def write_log(self, path: pathlib.Path) -> None:
        """Write `log.jsonl`, one object an epoch; leave a file alone that has this content already."""
        text = "".join(json.dumps(row) + "\n" for row in self.log)
        if self.log and (not path.exists() or path.read_text() != text):
            write_text(path, text)


def create_state(
    build_network: Callable[[], nn.Module], hyper: Train, dist: ProcessGroup, score_name: str = "val_dice"
) -> TrainingState:
    """Build the state at step 0, seeded by `hyper.seed`. score_name: the log's key whose highest value is best."""
    torch.manual_seed(hyper.seed)
    network = build_network().to(dist.device)
    if dist.world_size > 1:
        network = sync_batch_norm(network, hyper.compile)
    ema = Ema(network, hyper.ema_decay)
    optimizer = optim.build(hyper.optimizer, network, hyper.learning_rate, hyper.weight_decay, hyper.momentum)
    if hyper.compile:
        check_compiler(dist.device, "train.compile")
        network.compile()
    return TrainingState(
        network=network, forward=dist.wrap(network), ema=ema, optimizer=optimizer, scaler=loss_scaler(dist.device),
        watch=Stopwatch(hyper.batch_size), loss_sum=torch.zeros((), dtype=torch.float64, device=dist.device),
        non_finite_step=torch.tensor(-1, device=dist.device), score_name=score_name,
    )


def without_circumstances(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows without CIRCUMSTANCES, and with interned keys, whether they were read from a file or are new.

    A pickle stores a string that is the same object as an earlier one otherwise than one that is merely equal to it.
    """
    return [{sys.intern(key): row[key] for key in row if key not in CIRCUMSTANCES} for row in log]
