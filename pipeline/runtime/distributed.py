"""Several processes that work together: which one this is, and what all of them agree on.

torchrun starts them and sets the rank of each in its environment; a process alone is a group of one,
without communication. https://docs.pytorch.org/docs/stable/elastic/run.html
"""
import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.runtime.device import explain_missing_kernel, pick_device, set_up
from pipeline.runtime.problem import Problem

# The others wait while the main process checks all images or predicts those that a refiner learns from; torch would
# give up after half an hour. A process that ends is noticed at once all the same.
LONGEST_WAIT = timedelta(hours=12)
LONGEST_CAUSE = 300  # characters of a library's error that are shown
# What gloo, the store and NCCL say when the process at the other end has gone. NCCL's ncclRemoteError and its proxies:
# https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/types.html#ncclresult-t
PEER_EXIT_MESSAGES = (
    "Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection was likely closed",
    "closed by remote peer", "remote process exited", "communicator was aborted",
)  # fmt: skip


@dataclass(frozen=True)
class ProcessGroup:
    """Process `rank`, from 0, of `world_size`; each works on its part of every batch, on a device of its own."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the one that prints, saves and writes the log."""
        return self.rank == 0

    def problem(self, sentence: str) -> BaseException:
        """Return what all ranks raise for the same problem; only the main one prints it."""
        # Not 1: torchrun ends all processes as soon as one has failed, and the main one may still be saving.
        return Problem(sentence) if self.is_main else SystemExit(0)

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the other ranks enter when the main one has left, so that a problem of all is raised once."""
        if self.world_size > 1 and not self.is_main:
            dist.barrier()
        yield
        if self.world_size > 1 and self.is_main:
            dist.barrier()

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return the network so that its gradients are averaged over the processes during the backward pass."""
        if self.world_size == 1:
            return network
        return DistributedDataParallel(network, gradient_as_bucket_view=True)

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a tensor over the processes; on a GPU nothing waits for it."""
        if self.world_size > 1:
            dist.all_reduce(value)
            value /= self.world_size
        return value

    def any_rank(self, flags: list[bool]) -> list[bool]:
        """Return each flag, true if any process sets it: a signal or a clock may reach one a step before the others."""
        if self.world_size == 1:
            return flags
        maxima = torch.tensor(flags, dtype=torch.uint8)  # on the CPU, so that no GPU is waited for
        dist.all_reduce(maxima, op=dist.ReduceOp.MAX)
        return [bool(flag) for flag in maxima]

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, in the order of their ranks, in each of them."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values


def launched_by_torchrun() -> bool:
    return dist.is_torchelastic_launched()


@contextlib.contextmanager
def process_group() -> Iterator[ProcessGroup]:
    """Join the group that torchrun started; without torchrun, be a group of one."""
    if not launched_by_torchrun():
        yield ProcessGroup(rank=0, world_size=1, device=pick_device())
        return
    device = pick_device()
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    try:
        # gloo communicates CPU tensors, NCCL GPU tensors
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=LONGEST_WAIT)
        yield ProcessGroup(dist.get_rank(), dist.get_world_size(), device)
    except RuntimeError as error:
        if is_peer_exit(error):
            raise SystemExit(1) from None  # the process that ended has printed why
        if not is_communication_failure(error):
            raise
        cause = " ".join(str(error).split())[:LONGEST_CAUSE]
        rank, world_size = os.environ["RANK"], os.environ["WORLD_SIZE"]
        what = f"Process {rank} of {world_size} cannot communicate with the others ({cause})"
        raise Problem(f"{what}; set NCCL_DEBUG=WARN to see more, or train on one GPU with GPUS=1.") from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@contextlib.contextmanager
def trainers(deterministic: bool) -> Iterator[ProcessGroup]:
    """`process_group`, set up for training. deterministic: use kernels that give the same bits each time."""
    set_up(deterministic)
    with process_group() as dist, explain_missing_kernel():
        yield dist


def is_communication_failure(error: RuntimeError) -> bool:
    """Whether gloo, NCCL, or the store at which the processes meet raised this."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def is_peer_exit(error: RuntimeError) -> bool:
    """Whether gloo or NCCL raised this because another process of the group has ended."""
    return is_communication_failure(error) and any(message in str(error) for message in PEER_EXIT_MESSAGES)


def sync_gradients(network: nn.Module, wanted: bool) -> contextlib.AbstractContextManager[Any]:
    """A context for a backward pass that averages gradients over the processes, or only adds to this one's."""
    if wanted or not isinstance(network, DistributedDataParallel):
        return contextlib.nullcontext()
    return network.no_sync()
