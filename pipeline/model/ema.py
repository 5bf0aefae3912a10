"""An exponential moving average of a network's weights, which is judged and kept in its place."""
import copy

import torch
from torch import nn


class Ema:
    """`average` is a copy of the network that follows it: average += (1 - decay) * (weights - average).

    The first steps use a smaller decay, (1 + step) / (10 + step), so that the average soon forgets the
    weights that were drawn at random. Buffers (the statistics of batch norm) are averaged alike; a decay
    of 0 makes the average the network itself.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.decay = decay
        self.average = copy.deepcopy(network).requires_grad_(False).eval()
        self.pairs = [
            (mine, theirs)
            for mine, theirs in zip(self.average.state_dict().values(), network.state_dict().values())
            if mine.is_floating_point()
        ]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow the network after its optimizer's step number `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        mine, theirs = map(list, zip(*self.pairs))
        torch._foreach_lerp_(mine, theirs, 1 - decay)
