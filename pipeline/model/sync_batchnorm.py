"""Batch normalisation over the batches of several processes.

Otherwise a batch of 8 on four processes would be normalised two by two, and would train another network than one
process does. torch has `SyncBatchNorm` for GPUs only, and torch.compile cannot look into it: of the U-Net it compiled 4
operations instead of 73. The code here runs on CPUs, too, and compiles whole.
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

    Ioffe, Szegedy 2015, https://arxiv.org/abs/1502.03167, algorithm 1. One communication a layer and pass: that of the
    mean and of the mean square.
    """

    def forward(self, x_NCHW: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x_NCHW)
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        x = x_NCHW.float()
        variance_here, mean_here = torch.var_mean(x, (0, 2, 3), correction=0)
        here = torch.stack((mean_here, variance_here + mean_here.square()))
        mean, mean_square = MeanOverProcesses.apply(here).unbind()
        variance = (mean_square - mean.square()).clamp(min=0)  # by rounding it may be just below
        values = dist.get_world_size() * x.numel() / x.shape[1]
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * values / (values - 1), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return ((x - mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]).to(x_NCHW.dtype)


class SyncedBatchNormAct2d(SyncedBatchNorm2d):
    """timm's `BatchNormAct2d`: batch norm, dropout, and an activation in one module."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x_NCHW)))


def sync_batch_norm(network: nn.Module, compiled: bool) -> nn.Module:
    """Return the network with batch norms that are synchronised between processes; its state_dict stays the same.

    compiled: whether torch.compile will compile the network. On a GPU without it torch's own are better: one kernel
    each, which keeps 4 bytes of an element for the backward pass instead of 10. Raises Problem for a batch norm of
    another kind than torch's `BatchNorm2d` and timm's `BatchNormAct2d`.
    """
    if any(parameter.is_cuda for parameter in network.parameters()) and not compiled:
        if any(type(module).__module__.startswith("timm.") for module in network.modules()):
            from timm.layers import convert_sync_batchnorm  # torch's would drop the activation in timm's batch norms

            return convert_sync_batchnorm(network)
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, _BatchNorm):
                setattr(parent, name, synced(child))
    return network


def synced(norm: _BatchNorm) -> SyncedBatchNorm2d:
    """Return a batch norm with the same parameters that is synchronised between processes."""
    kind = type(norm).__name__  # of timm, which only some networks need and which takes seconds to import
    if type(norm) is not nn.BatchNorm2d and kind != "BatchNormAct2d" or not (norm.affine and norm.track_running_stats):
        raise Problem(f"The network's {kind} cannot be synchronised between processes; train it with GPUS=1.")
    device = norm.weight.device
    if type(norm) is nn.BatchNorm2d:
        copy = SyncedBatchNorm2d(norm.num_features, norm.eps, norm.momentum)
    else:
        copy = SyncedBatchNormAct2d(norm.num_features, norm.eps, norm.momentum)
        copy.drop, copy.act = norm.get_submodule("drop"), norm.get_submodule("act")
    copy.load_state_dict(norm.state_dict())
    return copy.to(device)
