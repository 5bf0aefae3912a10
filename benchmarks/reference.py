"""The yardstick: how milesial/Pytorch-UNet, the most used public code for this competition, reads and trains.

Reimplemented from its README and its behaviour, as of its newest commit, 21d7850 of 2024-02-10:

- The README's command is `python train.py --amp`. On a GPU that is float16 with a gradient scaler; on a CPU the
  same autocast means bf16 and the scaler, one for CUDA, turns itself off. Without `--amp`, its default: float32.
- Network and images are in channels-last order. Two classes by default: cross-entropy plus the Dice loss of
  both classes, in float32. The network takes any size: a decoder's map that is short by a row or column is padded.
- RMSprop with foreach, gradients clipped to norm 1, the loss copied to the CPU after every step.
- The default batch is 1, the default scale 0.5. Here it gets our scale and batch, which favours it.
- Reading: two listings of whole folders for each image, to find a file by its stem; images decoded at full size and
  resized with Pillow, masks by nearest neighbour; float32 images and int64 masks from the loader.

Omitted, in its favour: logging to wandb at each step, and validation five times an epoch.
https://github.com/milesial/Pytorch-UNet
"""
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.model.unet import UNet

CLASSES = 2


class ReferenceImages(Dataset):
    """Extracted JPEGs and GIF masks -> float32 (3, H, W) and int64 (H, W), at `scale` of their size."""

    def __init__(self, image_folder: pathlib.Path, mask_folder: pathlib.Path, scale: float):
        self.image_folder, self.mask_folder, self.scale = image_folder, mask_folder, scale
        self.stems = [path.stem for path in image_folder.iterdir()]

    def __len__(self) -> int:
        return len(self.stems)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        stem = self.stems[index]
        (mask_path,) = self.mask_folder.glob(f"{stem}_mask.*")
        (image_path,) = self.image_folder.glob(f"{stem}.*")
        mask, image = Image.open(mask_path), Image.open(image_path)
        size = (int(self.scale * image.width), int(self.scale * image.height))
        pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC)).transpose(2, 0, 1)
        if (pixels > 1).any():
            pixels = pixels / 255.0
        values = np.asarray(mask.resize(size, Image.Resampling.NEAREST))
        classes = np.zeros(values.shape, dtype=np.int64)
        for number, value in enumerate((0, 1)):
            classes[values == value] = number
        return torch.as_tensor(pixels.copy()).float().contiguous(), torch.as_tensor(classes.copy()).long().contiguous()


class ReferenceNetwork(UNet):
    """The same layers as ours; sizes that cannot be halved are padded on the way up."""

    def forward(self, image_NCHW: Tensor) -> Tensor:
        x = self.stem(image_NCHW)
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(self.pool(x))
        for up, merge in zip(reversed(self.up), reversed(self.merge)):
            skip, x = skips.pop(), up(x)
            rows, columns = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
            x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
            x = merge(torch.cat((skip, x), dim=1))
        return self.head(x)


class ReferenceTrainer:
    """The reference's training step: `step(images, masks) -> loss` with float32 (N, 3, H, W) and int64 (N, H, W)."""

    def __init__(self, device: torch.device, amp: bool):
        self.device, self.amp = device, amp
        self.network = ReferenceNetwork(classes=CLASSES, width=64, depth=4)
        self.network.to(memory_format=torch.channels_last).to(device)
        self.optimizer = torch.optim.RMSprop(
            self.network.parameters(), lr=1e-5, weight_decay=1e-8, momentum=0.999, foreach=True
        )
        self.scaler = torch.amp.GradScaler("cuda", enabled=amp and device.type == "cuda")

    def step(self, images: Tensor, masks: Tensor) -> float:
        images = images.to(device=self.device, dtype=torch.float32, memory_format=torch.channels_last)
        masks = masks.to(device=self.device, dtype=torch.long)
        with torch.autocast(self.device.type, enabled=self.amp):
            logits = self.network(images)
            truth = F.one_hot(masks, CLASSES).permute(0, 3, 1, 2).float()
            loss = F.cross_entropy(logits, masks) + dice_loss(F.softmax(logits, dim=1).float(), truth)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.item()


def dice_loss(probability_NCHW: Tensor, truth_NCHW: Tensor) -> Tensor:
    """1 - Dice, of all images and classes pooled into one mask."""
    overlap = 2 * (probability_NCHW * truth_NCHW).sum()
    total = probability_NCHW.sum() + truth_NCHW.sum()
    return 1 - (overlap + 1e-6) / (total + 1e-6)
