"""Run a predictor over images and evaluate each prediction while a GPU works on the next batch."""
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.inference.ensemble import ByScale
from pipeline.inference.oof import COARSE, Store, png
from pipeline.masks import confusion, dice, on_device
from pipeline.runtime.problem import Problem

Batch = TypeVar("Batch")
Predicted = TypeVar("Predicted", bound=Tensor | tuple[Tensor, ...])  # all on one device
Result = TypeVar("Result")


def predict_ahead(
    predict: Callable[[Batch], Predicted], batches: Iterable[Batch], finish: Callable[[Batch, Predicted], Result]
) -> Iterator[Result]:
    """Yield `finish(batch, predict(batch))` for each batch, in order.

    predict: only queues work on a GPU, but for a refiner, which waits once for the coarse map; finish: copies the
    results to the CPU. A GPU gets the next batch on its main stream before another stream waits for this one.
    """
    # One side stream for all batches: the allocator keeps the memory of each stream for that stream alone.
    side: torch.cuda.Stream | None = None
    pending: tuple[Batch, Predicted, torch.cuda.Event] | None = None
    for batch in batches:
        predicted = predict(batch)
        if (device := as_tuple(predicted)[0].device).type != "cuda":
            yield finish(batch, predicted)
            continue
        done = torch.cuda.Event()
        done.record()
        side = side or torch.cuda.Stream(device)
        if pending is not None:
            yield finish_on_side_stream(side, *pending, finish)
        pending = (batch, predicted, done)
    if side is not None and pending is not None:
        yield finish_on_side_stream(side, *pending, finish)


def finish_on_side_stream(
    side: torch.cuda.Stream, batch: Batch, predicted: Predicted, done: torch.cuda.Event,
    finish: Callable[[Batch, Predicted], Result],
) -> Result:  # fmt: skip
    """Return `finish(batch, predicted)`, run on the stream `side` once the event `done` has occurred."""
    with torch.cuda.stream(side):
        side.wait_event(done)
        for tensor in as_tuple(predicted):
            tensor.record_stream(side)  # its memory is in use until this stream is done, too
        result = finish(batch, predicted)
        side.synchronize()
    return result


def as_tuple(predicted: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (predicted,) if isinstance(predicted, Tensor) else predicted


# --- binary tasks ----------------------------------------------------------------------------------------------------


def evaluate_histograms(
    predict: Callable[[ByScale], Tensor | tuple[Tensor, ...]], batches: Iterable[ByScale], names: list[str],
    read_mask: Callable[[str], NDArray[np.bool_]], store: Store | None = None,
) -> NDArray[np.int32]:
    """Return for each image the histogram that gives Dice at every threshold, int32 array (images, 2, 256).

    predict: returns probabilities, uint8 (N, height, width); with `store` also those to store, whose PNGs go there
    in order: those on the network's grid, or the refined ones and the coarse ones. batches: scale -> uint8
    (N, H, W, channels), the images of `names` in order, and others that fill up the last batch; read_mask: name ->
    mask at full size.
    """
    remaining = iter(names)
    with ThreadPoolExecutor() as pool:

        def finish(image_of_scale: ByScale, predicted: Tensor | tuple[Tensor, ...]) -> NDArray[np.int32]:
            batch_names = list(itertools.islice(remaining, len(as_tuple(predicted)[0])))
            full_size_NHW, *stored_layers = (each_NHW[: len(batch_names)] for each_NHW in as_tuple(predicted))
            pngs = [pool.map(png, each_NHW.cpu().numpy()) for each_NHW in stored_layers] if store is not None else []
            histograms = count_histograms(full_size_NHW, pool.map(read_mask, batch_names), pool)
            if store is not None:
                for name, *layers in zip(batch_names, *pngs):
                    for kind, data in zip(("", COARSE), layers):
                        store(name, data, kind)
            return histograms

        histograms = list(predict_ahead(predict, batches, finish))
    # One process of many may have no image.
    return np.concatenate(histograms or [np.zeros((0, 2, dice.THRESHOLDS), np.int32)])


def count_histograms(
    probability_u8_NHW: Tensor, masks: Iterable[NDArray[np.bool_]], pool: ThreadPoolExecutor
) -> NDArray[np.int32]:
    """Return `dice.histogram` of each prediction, on any device, and its mask: int32 array (N, 2, 256)."""
    if probability_u8_NHW.device.type == "cuda":
        mask_NHW = torch.from_numpy(np.stack(list(masks))).to(probability_u8_NHW.device)
        return on_device.histograms(probability_u8_NHW, mask_NHW).int().cpu().numpy()
    return np.stack(list(pool.map(dice.histogram, probability_u8_NHW.numpy(), masks)))


def compute_dice_scores(histograms: NDArray[np.int32]) -> dict[str, float]:
    """Return `dice`, the mean over images at threshold 0.5, and `dice_threshold`, the best one.

    histograms: (images, 2, 256), see masks.dice.
    """
    scores = dice.dice_at_thresholds(histograms)
    best_threshold = dice.threshold_from_u8(dice.best_threshold_u8(scores))
    return {"dice": float(scores[:, dice.threshold_to_u8(0.5)].mean()), "dice_threshold": best_threshold}


# --- several classes -------------------------------------------------------------------------------------------------


class Confusions(NamedTuple):
    """The confusion of class maps with their truth: enough for the scores of each image, and of all."""

    matrix: NDArray[np.int64]  # (classes, classes), the sum of the images' confusion matrices
    per_image: confusion.Counts  # int64 (images, classes) each


def evaluate_confusions(
    predict: Callable[[ByScale], Tensor], batches: Iterable[ByScale], names: list[str],
    read_truth: Callable[[str], confusion.Indices], classes: int, store: Store | None = None,
) -> Confusions:
    """Return the confusion of the images of `names`; arguments as of `evaluate_histograms`.

    predict: returns class maps, whose PNGs go to `store(name, png)` in order. Keeping one matrix for each image would
    take 2 GB for 654 images of 894 classes.
    """
    remaining = iter(names)
    total = np.zeros((classes, classes), np.int64)
    with ThreadPoolExecutor() as pool:

        def finish(image_of_scale: ByScale, index_NHW: Tensor) -> list[confusion.Counts]:
            batch_names = list(itertools.islice(remaining, len(index_NHW)))
            maps = index_NHW[: len(batch_names)].cpu().numpy().astype(confusion.index_dtype(classes), copy=False)
            matrices = pool.map(confusion.matrix, maps, pool.map(read_truth, batch_names), itertools.repeat(classes))
            if store is not None:
                for name, data in zip(batch_names, pool.map(png, maps)):
                    store(name, data)
            counts = []
            for matrix in matrices:
                np.add(total, matrix, out=total)
                counts.append(confusion.counts(matrix))
            return counts

        per_image = [counts for batch in predict_ahead(predict, batches, finish) for counts in batch]
    by_kind = zip(*per_image) if per_image else ([], [], [])  # one process of many may have no image
    return Confusions(total, confusion.Counts(*(np.array(each, np.int64).reshape(-1, classes) for each in by_kind)))


def merge_confusions(confusions: Sequence[Confusions]) -> Confusions:
    """Return the confusions of several processes as one."""
    matrices, per_image = zip(*confusions)
    return Confusions(sum(matrices), confusion.Counts(*map(np.concatenate, zip(*per_image))))


def find_missing_classes(confusions: Confusions) -> list[int]:
    """Return the classes that no valid pixel has in truth, so that nothing tells whether the network knows them."""
    return np.flatnonzero(confusion.counts(confusions.matrix).in_truth == 0).tolist()


def compute_class_scores(confusions: Confusions) -> dict[str, float]:
    """Return `mean_iou`, `mean_dice` and `pixel_accuracy` over the pixels of all images together.

    Raise Problem if no pixel has a class.
    """
    counts = confusion.counts(confusions.matrix)
    if not counts.in_truth.any():
        raise Problem("No pixel of the held-out images has a class, so there is nothing to evaluate; see their masks.")
    of_classes = {"mean_iou": confusion.iou(counts), "mean_dice": confusion.dice(counts)}
    means = {name: float(confusion.mean_of_classes(scores)) for name, scores in of_classes.items()}
    return means | {"pixel_accuracy": float(confusion.pixel_accuracy(counts))}
