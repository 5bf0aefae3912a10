"""Held-out pictures through a predictor, judged at full size."""
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.inference.predictor import Predictor
from pipeline.masks import dice


def predictions(predictor: Predictor, batches: Iterable[Tensor]) -> Iterator[NDArray[np.uint8]]:
    """The 8-bit probabilities (height, width) of each picture, in order."""
    for image_NHWC in batches:
        yield from predictor(image_NHWC).numpy()


def histograms(
    predictor: Predictor,
    batches: Iterable[Tensor],
    names: list[str],
    read_mask: Callable[[str], NDArray[np.bool_]],
) -> NDArray[np.int32]:
    """Per picture the histogram that gives Dice at every cut, int32 array (pictures, 2, 256).

    batches: uint8 (N, H, W, 3), the pictures of `names` in order; read_mask: name -> mask at full size.
    """
    results: list[NDArray[np.int32]] = []
    with ThreadPoolExecutor() as pool:  # reading a mask and counting release the interpreter's lock
        rest = iter(names)
        for image_NHWC in batches:
            probability_NHW = predictor(image_NHWC).numpy()
            batch_names = [next(rest) for _ in probability_NHW]
            results += pool.map(lambda p, name: dice.histogram(p, read_mask(name)), probability_NHW, batch_names)
    return np.stack(results)
