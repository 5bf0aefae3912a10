"""The connected pieces of a mask, from its run lengths; no pixel is touched."""
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.data.images import runs_by_row


def piece_sizes_px(bounds: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """Pixels of each connected piece, the largest first; pixels that touch at a corner are connected.

    bounds: of the mask's runs, int64 array (runs, 2), as `rle.parse` gives them.
    """
    if len(bounds) == 0:
        return np.empty(0, np.int64)
    row, begin, end = runs_by_row(bounds, width)
    # Numbered as if each row had a column more on either side, a run touches those of the next row that lie
    # between the pixels below it, one more to the left and to the right; no other row comes in between.
    first, last = begin + row * (width + 2), end + row * (width + 2)
    from_run = np.searchsorted(last, first + width + 1, side="right")
    to_run = np.searchsorted(first, last + width + 3, side="left")
    touching = np.maximum(to_run - from_run, 0)
    above = np.repeat(np.arange(len(row)), touching)
    nth = np.arange(touching.sum()) - np.repeat(np.cumsum(touching) - touching, touching)
    below = np.repeat(from_run, touching) + nth
    touch = coo_array((np.ones(len(above), bool), (above, below)), shape=(len(row), len(row)))
    pieces, piece = connected_components(touch, directed=False)
    sizes = np.bincount(piece, weights=end - begin, minlength=pieces).astype(np.int64)
    return np.sort(sizes)[::-1]
