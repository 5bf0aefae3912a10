"""An exponential moving average (EMA) of a network's weights, which is evaluated and saved in their place."""
import copy

import torch
from torch import nn


class Ema:
    """`average` is a copy of the network that follows it: average += (1 - decay) * (weights - average).

    The first steps use a smaller decay, (1 + step) / (10 + step), so that the average soon forgets the random
    initial weights. Buffers (the statistics of batch norm) are averaged in the same way; a decay of 0 makes the
    average the network itself.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.decay = decay
        self.average = copy.deepcopy(network).requires_grad_(False).eval()
        pairs = zip(self.average.state_dict().values(), network.state_dict().values())
        self.pairs = [(average, weight) for average, weight in pairs if average.is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average after the optimiser's step number `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages, weights = map(list, zip(*self.pairs))
        torch._foreach_lerp_(averages, weights, 1 - decay)
