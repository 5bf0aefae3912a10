"""Pictures through a predictor, and what is made of its predictions while it works on the next ones."""
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.inference.oof import png
from pipeline.masks import confusion, dice, on_device
from pipeline.runtime.problem import Problem

Batch = TypeVar("Batch")
Predicted = TypeVar("Predicted", bound=Tensor | tuple[Tensor, ...])  # all on one device
Result = TypeVar("Result")


def one_behind(
    predict: Callable[[Batch], Predicted], batches: Iterable[Batch], finish: Callable[[Batch, Predicted], Result]
) -> Iterator[Result]:
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
            yield finish_on_side_stream(*ahead, finish)
        ahead = (batch, predicted, done)
    if ahead is not None:
        yield finish_on_side_stream(*ahead, finish)


def finish_on_side_stream(
    batch: Batch, predicted: Predicted, done: torch.cuda.Event, finish: Callable[[Batch, Predicted], Result]
) -> Result:
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
    predictor: Callable[[Tensor], Tensor | tuple[Tensor, Tensor]],
    batches: Iterable[Tensor],
    names: list[str],
    read_mask: Callable[[str], NDArray[np.bool_]],
    keep: Callable[[str, bytes], None] | None = None,
) -> NDArray[np.int32]:
    """Per picture the histogram that gives Dice at every cut, int32 array (pictures, 2, 256).

    predictor: gives probabilities, uint8 (N, height, width); where there is a `keep`, which gets `keep(name, png)` of
    each picture, in order, also those on the grid of the PNG. batches: uint8 (N, H, W, 3), the pictures of `names` in
    order; read_mask: name -> mask at full size.
    """
    rest = iter(names)
    with ThreadPoolExecutor() as pool:

        def finish(image_NHWC: Tensor, predicted: Tensor | tuple[Tensor, Tensor]) -> NDArray[np.int32]:
            full_size_NHW, *grids_NHW = tensors(predicted)
            its_names = [next(rest) for _ in image_NHWC]
            pngs = pool.map(png, grids_NHW[0].cpu().numpy()) if keep is not None else ()
            counts = count(full_size_NHW, pool.map(read_mask, its_names), pool)
            if keep is not None:
                for name, data in zip(its_names, pngs):
                    keep(name, data)
            return counts

        found = list(one_behind(predictor, batches, finish))
    return np.concatenate(found or [np.zeros((0, 2, dice.THRESHOLDS), np.int32)])  # one process of many may have no picture


def dice_scores(counts: NDArray[np.int32]) -> dict[str, float]:
    """`dice`, the mean over pictures at the cut 0.5, and `dice_cut`, the best cut, of histograms (pictures, 2, 256)."""
    scores = dice.dice_at_thresholds(counts)
    return {
        "dice": float(scores[:, dice.threshold_to_u8(0.5)].mean()),
        "dice_threshold": dice.threshold_from_u8(dice.best_threshold_u8(scores)),
    }


class Confusions(NamedTuple):
    """What is kept of class maps and their truth: enough for each picture's scores, and those of all."""

    matrix: NDArray[np.int64]  # (classes, classes), the sum of the pictures' confusion matrices
    hits: NDArray[np.int64]  # (pictures, classes) each, see `confusion.Counts`
    in_truth: NDArray[np.int64]
    predicted: NDArray[np.int64]

    @property
    def of_pictures(self) -> confusion.Counts:
        return confusion.Counts(self.hits, self.in_truth, self.predicted)


def confusions(
    predictor: Callable[[Tensor], Tensor],
    batches: Iterable[Tensor],
    names: list[str],
    read_truth: Callable[[str], confusion.Indices],
    classes: int,
    keep: Callable[[str, bytes], None] | None = None,
) -> Confusions:
    """What the confusion matrices of the pictures of `names` say; arguments as of `histograms`.

    predictor: gives class maps; `keep(name, png)`, where there is one, gets each, in order. One matrix for each
    picture would take 2 GB for 654 pictures of 894 classes.
    """
    rest = iter(names)
    total = np.zeros((classes, classes), np.int64)
    with ThreadPoolExecutor() as pool:

        def finish(image_NHWC: Tensor, index_NHW: Tensor) -> list[confusion.Counts]:
            its_names = [next(rest) for _ in image_NHWC]
            maps = index_NHW.cpu().numpy().astype(confusion.index_dtype(classes), copy=False)
            matrices = pool.map(confusion.matrix, maps, pool.map(read_truth, its_names), itertools.repeat(classes))
            if keep is not None:
                for name, data in zip(its_names, pool.map(png, maps)):
                    keep(name, data)
            found = []
            for matrix in matrices:
                np.add(total, matrix, out=total)
                found.append(confusion.counts(matrix))
            return found

        of_pictures = [counts for batch in one_behind(predictor, batches, finish) for counts in batch]
    # A process of many may have had no picture to judge.
    hits, in_truth, predicted = zip(*of_pictures) if of_pictures else ([], [], [])
    return Confusions(total, *(np.array(each, np.int64).reshape(-1, classes) for each in (hits, in_truth, predicted)))


def merge_confusions(parts: Sequence[Confusions]) -> Confusions:
    """What several processes judged, as one."""
    matrices, *counts = zip(*parts)
    return Confusions(sum(matrices), *(np.concatenate(arrays) for arrays in counts))


def missing_classes(judged: Confusions) -> list[int]:
    """The classes that no judged pixel has in truth: whether the network knows them nobody can tell."""
    return np.flatnonzero(confusion.counts(judged.matrix).in_truth == 0).tolist()


def class_scores(judged: Confusions) -> dict[str, float]:
    """`mean_iou`, `mean_dice` and `pixel_accuracy` of all pixels together; Problem when none of them has a class."""
    counts = confusion.counts(judged.matrix)
    if not counts.in_truth.any():
        raise Problem("No pixel of the held-out pictures has a class, so that nothing can be judged; see their masks.")
    return {
        "mean_iou": float(confusion.mean_of_classes(confusion.iou(counts))),
        "mean_dice": float(confusion.mean_of_classes(confusion.dice(counts))),
        "pixel_accuracy": float(confusion.pixel_accuracy(counts)),
    }


def count(
    probability_NHW: Tensor, masks: Iterable[NDArray[np.bool_]], pool: ThreadPoolExecutor
) -> NDArray[np.int32]:
    """The histogram of each prediction, uint8 on any device, and its mask: int32 array (N, 2, 256)."""
    if probability_NHW.device.type == "cuda":
        mask_NHW = torch.from_numpy(np.stack(list(masks))).to(probability_NHW.device)
        return on_device.histograms(probability_NHW, mask_NHW).int().cpu().numpy()
    return np.stack(list(pool.map(dice.histogram, probability_NHW.numpy(), masks)))
