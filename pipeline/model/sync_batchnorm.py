"""Batch normalisation over the batches of several processes.

Otherwise a batch of 8 on four processes would be normalised two by two, and would train another network than one
process does. torch has `SyncBatchNorm` for GPUs only, and each of its layers waits for the GPU once; the code here
does the same on CPUs.
"""
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.runtime.problem import Problem


class MeanOverProcesses(torch.autograd.Function):
    """The mean of a tensor over all processes; in the backward pass, of its gradients."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total / dist.get_world_size()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return MeanOverProcesses.apply(gradient)


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """`BatchNorm2d` with the mean and variance over the batches of all processes, which must have the same size.

    Ioffe, Szegedy 2015, https://arxiv.org/abs/1502.03167, algorithm 1.
    """

    def forward(self, x_NCHW: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x_NCHW)
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        x = x_NCHW.float()
        mean = MeanOverProcesses.apply(x.mean((0, 2, 3)))
        centred = x - mean[:, None, None]
        variance = MeanOverProcesses.apply(centred.square().mean((0, 2, 3)))
        values = dist.get_world_size() * x.numel() / x.shape[1]
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * values / (values - 1), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x_NCHW.dtype)


def sync_batch_norm(network: nn.Module) -> nn.Module:
    """Return the network with batch norms that are synchronised between processes; its state_dict stays the same."""
    if next(network.parameters()).device.type == "cuda":
        if any(type(module).__module__.startswith("timm.") for module in network.modules()):
            from timm.layers import convert_sync_batchnorm  # torch's would drop the activation in timm's batch norms

            return convert_sync_batchnorm(network)
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, _BatchNorm) and type(child) is not nn.BatchNorm2d:
                what = f"{type(child).__name__} cannot be synchronised between processes on a CPU"
                raise Problem(f"The network's {what}; train it with one process, or on GPUs.")
            if isinstance(child, nn.BatchNorm2d):
                synced = SyncedBatchNorm2d(child.num_features, child.eps, child.momentum)
                synced.load_state_dict(child.state_dict())
                setattr(parent, name, synced)
    return network
