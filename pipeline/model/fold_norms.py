"""Fold batch norms into convolutions, in a network that only predicts.

In evaluation mode a batch norm multiplies and shifts each channel by fixed numbers. Those can go into the weights and
the bias of the convolution before it, and a pass over the activations in memory is saved.
"""
import copy
from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pipeline.model.sync_batchnorm import SyncedBatchNorm2d

BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, SyncedBatchNorm2d)  # alike in evaluation mode


def folded_copy(network: nn.Module) -> nn.Module:
    """Return a copy of a network that is being trained, in evaluation mode and with its batch norms folded."""
    copied = copy.deepcopy(network).eval()
    fold_batch_norms(copied)
    return copied


def fold_batch_norms(network: nn.Module) -> None:
    """Replace each `Conv2d` that a `BatchNorm2d` follows in a `Sequential` by a convolution that does the work of both.

    The network must be in evaluation mode. Its results change by rounding; its state_dict has other entries.
    """
    for module in list(network.modules()):
        if not isinstance(module, nn.Sequential) or type(module).forward is not nn.Sequential.forward:
            continue  # elsewhere only running it tells what follows what
        # `named_children` would leave out an activation that occurs twice, and what it separates would be neighbours.
        for (name, layer), (next_name, next_layer) in pairwise(list(module._modules.items())):
            if type(layer) is nn.Conv2d and isinstance(next_layer, BATCH_NORMS) and type(next_layer) in BATCH_NORMS:
                setattr(module, name, fuse_conv_bn_eval(layer, next_layer))
                setattr(module, next_name, nn.Identity())
