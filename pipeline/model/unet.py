"""U-Net from scratch.

Ronneberger, Fischer, Brox: U-Net: Convolutional Networks for Biomedical Image Segmentation (2015),
https://arxiv.org/abs/1505.04597. As in its figure 1: pairs of 3x3 convolutions, 2x2 max-pooling in the
encoder, 2x2 transposed convolutions in the decoder, skips by concatenation. Three changes, all usual by
now: same-size padding, so that the output needs no cropping; batch normalisation (Ioffe, Szegedy 2015)
after each 3x3 convolution, which then needs no bias; He initialisation (2015).

Width 64 and depth 4 give the paper's 31.04 million parameters.
"""
import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class DoubleConv(nn.Sequential):
    """Twice: 3x3 convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class UNet(nn.Module):
    """Map images to one map of logits per class, at the size of the images.

    in_channels, classes: channels of the input and of the output.
    width: channels at the finest level; they double with each of the `depth` levels below it.
    patch: side of the squares of pixels that are folded into channels before the network and unfolded
        after it. 1 is the paper's network. 2 makes the network work at half the resolution, at a
        quarter of the cost, and still see and predict every pixel.
    checkpoint_activations: keep only the input of each pair of convolutions for the backward pass, and recompute
        the rest: a third more work, less memory. The result is the same.
    """

    def __init__(
        self, in_channels: int = 3, classes: int = 1, width: int = 64, depth: int = 4, patch: int = 1,
        checkpoint_activations: bool = False,
    ):
        super().__init__()
        self.checkpoint_activations = checkpoint_activations
        self.multiple = patch * 2**depth
        widths = [width * 2**level for level in range(depth + 1)]
        self.fold = nn.PixelUnshuffle(patch)
        self.stem = DoubleConv(in_channels * patch**2, width)
        self.pool = nn.MaxPool2d(2)
        steps = list(zip(widths, widths[1:]))
        self.down = nn.ModuleList(DoubleConv(fine, coarse) for fine, coarse in steps)
        self.up = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, stride=2) for fine, coarse in steps)
        self.merge = nn.ModuleList(DoubleConv(2 * fine, fine) for fine in widths[:-1])
        self.head = nn.Conv2d(width, classes * patch**2, 1)
        self.unfold = nn.PixelShuffle(patch)
        self.apply(he_initialise)

    def forward(self, image_NCHW: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> logits (N, classes, H, W); H and W are multiples of `multiple`."""
        x = self.convolve(self.stem, self.fold(image_NCHW))
        skips = []
        for down in self.down:
            skips.append(x)
            x = self.convolve(down, self.pool(x))
        for up, merge in zip(reversed(self.up), reversed(self.merge)):
            x = self.convolve(merge, torch.cat((skips.pop(), up(x)), dim=1))
        return self.unfold(self.head(x))

    def convolve(self, pair: nn.Module, x_NCHW: Tensor) -> Tensor:
        if not (self.checkpoint_activations and self.training):
            return pair(x_NCHW)
        if torch.compiler.is_compiling():  # then a pair is traced once, and its statistics are updated once
            return checkpoint(pair, x_NCHW, use_reentrant=False)
        contexts = contextlib.nullcontext(), frozen_batch_norm_statistics(pair)
        return checkpoint(pair, x_NCHW, use_reentrant=False, context_fn=lambda: contexts)


@contextlib.contextmanager
def frozen_batch_norm_statistics(network: nn.Module) -> Iterator[None]:
    """Keep the running statistics as they are while a batch is recomputed, which would count as a second batch."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum


def he_initialise(module: nn.Module) -> None:
    """He et al. 2015, https://arxiv.org/abs/1502.01852: variance 2 / fan_out, zero bias."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
