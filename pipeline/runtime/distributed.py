"""Several processes that train one network: which of them I am, and what all of them agree on.

torchrun starts them and tells each its number in the environment; a process alone is the same thing
without a group, and pays nothing for it. https://docs.pytorch.org/docs/stable/elastic/run.html
"""
import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.runtime.device import pick_device
from pipeline.runtime.problem import Problem


@dataclass(frozen=True)
class ProcessGroup:
    """`rank` of `world_size` processes, from 0; each trains on its share of every batch, on a device of its own."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the one that prints, saves and keeps the log."""
        return self.rank == 0

    def problem(self, sentence: str) -> BaseException:
        """To be raised by all of them at once; only the first tells it."""
        # Not 1: torchrun ends all processes as soon as one has failed, and the first may still be saving.
        return Problem(sentence) if self.is_main else SystemExit(0)

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """The others begin when the first has ended: what is wrong for all of them is told once."""
        if self.world_size > 1 and not self.is_main:
            dist.barrier()
        yield
        if self.world_size > 1 and self.is_main:
            dist.barrier()

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network with gradients that are averaged over the processes during the backward pass."""
        if self.world_size == 1:
            return network
        return DistributedDataParallel(network, gradient_as_bucket_view=True)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over the processes; on a GPU nothing waits for it."""
        if self.world_size > 1:
            dist.all_reduce(value)
            value /= self.world_size
        return value

    def any_rank(self, wishes: list[bool]) -> list[bool]:
        """Each wish, when any process has it: a signal or a clock may reach one of them a step before the others."""
        if self.world_size == 1:
            return wishes
        votes = torch.tensor(wishes, dtype=torch.uint8)  # on the CPU, so that no GPU is waited for
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return [bool(vote) for vote in votes]

    def gather(self, mine: Any) -> list[Any]:
        """What each process brought, in the order of their ranks, in all of them."""
        if self.world_size == 1:
            return [mine]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, mine)
        return values


def launched_by_torchrun() -> bool:
    """Whether torchrun started this process."""
    return dist.is_torchelastic_launched()


@contextlib.contextmanager
def process_group() -> Iterator[ProcessGroup]:
    """The group that torchrun started, or a process alone."""
    if not launched_by_torchrun():
        yield ProcessGroup(rank=0, world_size=1, device=pick_device())
        return
    device = pick_device()
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    # gloo carries what lies in a processor's memory, NCCL what lies on a GPU
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield ProcessGroup(dist.get_rank(), dist.get_world_size(), device)
    except RuntimeError as error:
        if not is_peer_exit(error):
            raise
        raise SystemExit(1) from None  # the process that ended has told why
    finally:
        dist.destroy_process_group()


def is_peer_exit(error: RuntimeError) -> bool:
    """Whether this is how gloo or NCCL says that another process of the group has ended."""
    return isinstance(error, dist.DistBackendError) or "gloo" in str(error)


def sync_gradients(network: nn.Module, wanted: bool) -> contextlib.AbstractContextManager[Any]:
    """A backward pass that averages gradients over the processes, or one that only adds to this one's."""
    if wanted or not isinstance(network, DistributedDataParallel):
        return contextlib.nullcontext()
    return network.no_sync()
