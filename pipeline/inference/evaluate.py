"""Pictures through a predictor, and what is made of its predictions while it works on the next ones."""
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.inference.kept import png
from pipeline.masks import dice, on_device

Batch = TypeVar("Batch")
Predicted = TypeVar("Predicted", Tensor, tuple[Tensor, Tensor])  # all on one device
Found = TypeVar("Found")


def one_behind(
    predict: Callable[[Batch], Predicted], batches: Iterable[Batch], finish: Callable[[Batch, Predicted], Found]
) -> Iterator[Found]:
    """Yield `finish(batch, predict(batch))` for each batch, in order.

    predict: only tells a GPU what to do; finish: brings what is wanted of it to the CPU. A GPU has the next batch
    to work on, on its main stream, before this one is waited for, on another.
    """
    ahead: tuple[Batch, Predicted, torch.cuda.Event] | None = None
    for batch in batches:
        predicted = predict(batch)
        if tensors(predicted)[0].device.type != "cuda":
            yield finish(batch, predicted)
            continue
        done = torch.cuda.Event()
        done.record()
        if ahead is not None:
            yield finished_on_a_stream_of_its_own(*ahead, finish)
        ahead = (batch, predicted, done)
    if ahead is not None:
        yield finished_on_a_stream_of_its_own(*ahead, finish)


def finished_on_a_stream_of_its_own(
    batch: Batch, predicted: Predicted, done: torch.cuda.Event, finish: Callable[[Batch, Predicted], Found]
) -> Found:
    side = torch.cuda.Stream(tensors(predicted)[0].device)
    with torch.cuda.stream(side):
        side.wait_event(done)
        for tensor in tensors(predicted):
            tensor.record_stream(side)  # its memory is in use until this stream is done, too
        found = finish(batch, predicted)
        side.synchronize()
    return found


def tensors(predicted: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (predicted,) if isinstance(predicted, Tensor) else predicted


def histograms(
    predictor: Callable[[Tensor], Tensor],
    batches: Iterable[Tensor],
    names: list[str],
    read_mask: Callable[[str], NDArray[np.bool_]],
) -> NDArray[np.int32]:
    """Per picture the histogram that gives Dice at every cut, int32 array (pictures, 2, 256).

    batches: uint8 (N, H, W, 3), the pictures of `names` in order; read_mask: name -> mask at full size.
    """
    rest = iter(names)
    with ThreadPoolExecutor() as pool:

        def finish(image_NHWC: Tensor, probability_NHW: Tensor) -> NDArray[np.int32]:
            masks = pool.map(read_mask, [next(rest) for _ in image_NHWC])
            return count(probability_NHW, masks, pool)

        return np.concatenate(list(one_behind(predictor, batches, finish)))


def histograms_keeping(
    predictor: Callable[[Tensor], tuple[Tensor, Tensor]],
    batches: Iterable[Tensor],
    names: list[str],
    read_mask: Callable[[str], NDArray[np.bool_]],
    keep: Callable[[str, bytes], None],
) -> NDArray[np.int32]:
    """`histograms`, and `keep(name, png)` for each picture, in order.

    predictor: uint8 (N, H, W, 3) -> two times its probabilities in uint8, at full size and on the grid of the PNG.
    """
    rest = iter(names)
    with ThreadPoolExecutor() as pool:

        def finish(image_NHWC: Tensor, predicted: tuple[Tensor, Tensor]) -> NDArray[np.int32]:
            full_size_NHW, grid_NHW = predicted
            its_names = [next(rest) for _ in image_NHWC]
            pngs = pool.map(png, grid_NHW.cpu().numpy())
            counts = count(full_size_NHW, pool.map(read_mask, its_names), pool)
            for name, data in zip(its_names, pngs):
                keep(name, data)
            return counts

        return np.concatenate(list(one_behind(predictor, batches, finish)))


def count(
    probability_NHW: Tensor, masks: Iterable[NDArray[np.bool_]], pool: ThreadPoolExecutor
) -> NDArray[np.int32]:
    """The histogram of each prediction, uint8 on any device, and its mask: int32 array (N, 2, 256)."""
    if probability_NHW.device.type == "cuda":
        mask_NHW = torch.from_numpy(np.stack(list(masks))).to(probability_NHW.device)
        return on_device.histograms(probability_NHW, mask_NHW).int().cpu().numpy()
    return np.stack(list(pool.map(dice.histogram, probability_NHW.numpy(), masks)))
