"""The yardstick: how milesial/Pytorch-UNet, the most used public code for this competition, reads and trains.

Written anew from its README and its behaviour, with its choices: pictures decoded whole and resized with
Pillow, masks by nearest neighbour, float32 pictures from the loader, channels-last, RMSprop, BCE plus
Dice, the loss fetched after every step, mixed precision with a gradient scaler on a GPU (its `--amp`).
https://github.com/milesial/Pytorch-UNet
"""
import pathlib

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from pipeline.model.build import pad_to_multiple, unpad
from pipeline.model.unet import UNet


class ReferencePictures(Dataset):
    """Unpacked pictures and GIF masks -> float32 (3, H, W) and int64 (H, W), at `scale` of their size."""

    def __init__(self, image_paths: list[pathlib.Path], mask_folder: pathlib.Path, scale: float):
        self.image_paths, self.mask_folder, self.scale = image_paths, mask_folder, scale

    def __len__(self) -> int:
        return len(self.image_paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        path = self.image_paths[index]
        image = Image.open(path)
        mask = Image.open(self.mask_folder / f"{path.stem}_mask.gif")
        size = (int(self.scale * image.width), int(self.scale * image.height))
        pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC)).transpose(2, 0, 1) / 255.0
        values = np.asarray(mask.resize(size, Image.Resampling.NEAREST))
        classes = np.zeros(values.shape, dtype=np.int64)
        for number, value in enumerate((0, 1)):
            classes[values == value] = number
        return torch.as_tensor(pixels.copy()).float(), torch.as_tensor(classes.copy()).long()


class ReferenceTrainer:
    """Its training step: `step(images, masks) -> loss` with float32 (N, 3, H, W) and int64 (N, H, W)."""

    def __init__(self, device: torch.device):
        self.device, self.amp = device, device.type == "cuda"
        self.network = UNet(width=64, depth=4).to(device).to(memory_format=torch.channels_last)
        self.optimiser = torch.optim.RMSprop(
            self.network.parameters(), lr=1e-5, weight_decay=1e-8, momentum=0.999, foreach=True
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.amp)
        self.criterion = nn.BCEWithLogitsLoss()

    def step(self, images: Tensor, masks: Tensor) -> float:
        images = images.to(self.device).contiguous(memory_format=torch.channels_last)
        masks = masks.to(self.device)
        with torch.autocast(self.device.type, enabled=self.amp):
            padded, margins = pad_to_multiple(images, self.network.multiple)  # it pads inside the network
            logits = unpad(self.network(padded), margins).squeeze(1)
            loss = self.criterion(logits, masks.float()) + dice_loss(logits.sigmoid(), masks.float())
        self.optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimiser)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return loss.item()


def dice_loss(probability: Tensor, target: Tensor) -> Tensor:
    overlap = 2 * (probability * target).sum((-1, -2))
    total = probability.sum((-1, -2)) + target.sum((-1, -2))
    return 1 - ((overlap + 1e-6) / (total + 1e-6)).mean()
