"""The confusion matrix as a chart: rows are classes in truth, columns what they were taken for."""
from collections.abc import Sequence

import numpy as np
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from pipeline.report.charts import FONT_UNITS, colour, drawing, svg_of

MOST = 60  # classes that a chart can show
NUMBERED = 16  # up to so many, each cell has its number
CELL_UNITS, NUMBERED_CELL_UNITS = 15, 30
LETTER_UNITS = 6.2  # a letter's width, about
LONGEST = 18  # letters of a name
SEEN_FRACTION = 0.005  # a cell with less is left empty


def fractions_of_truth(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    """Each row by its sum, float64 (classes, classes), 0 to 1; nan in rows of classes that no truth has."""
    of_class = matrix.sum(axis=1, keepdims=True)
    return np.divide(matrix, of_class, out=np.full(matrix.shape, np.nan), where=of_class > 0)


def chart(matrix: NDArray[np.int64], classes: Sequence[str]) -> tuple[str, int]:
    """SVG and how wide it is, in units that want to be pixels: its letters are not to be made smaller.

    The diagonal, what is right, has one colour and the rest another, the stronger the larger the share.
    """
    fractions = fractions_of_truth(matrix)
    count, with_numbers = len(classes), len(classes) <= NUMBERED
    cell = NUMBERED_CELL_UNITS if with_numbers else CELL_UNITS
    names = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in classes]
    margin = round(LETTER_UNITS * max(map(len, names))) + 30
    width = margin + count * cell + 8
    with drawing("matrix", width, width) as figure:
        axes = figure.add_axes((margin / width, 8 / width, count * cell / width, count * cell / width))
        for row, column in np.argwhere(fractions >= SEEN_FRACTION):
            fraction = float(fractions[row, column])
            # Below a number the colour stays faint, so that the ink stands out; a small share is seen all the same.
            strength = (0.5 if with_numbers else 1.0) * fraction**0.6
            tint = colour("accent" if row == column else "missed")
            axes.add_patch(Rectangle((column, row), 1, 1, facecolor=tint, alpha=round(strength, 3), linewidth=0))
            if with_numbers:
                axes.text(column + 0.5, row + 0.5, percent(fraction), ha="center", va="center", fontsize=FONT_UNITS)
        axes.set(xlim=(0, count), ylim=(count, 0))
        middle = np.arange(count) + 0.5
        axes.set_xticks(middle, names, rotation=90, color=colour("ink"))
        axes.set_yticks(middle, names, color=colour("ink"))
        axes.xaxis.tick_top()
        axes.xaxis.set_label_position("top")
        axes.grid(visible=False)
        for line in range(count + 1):
            axes.axhline(line, color=colour("grid"), linewidth=0.7, zorder=0)
            axes.axvline(line, color=colour("grid"), linewidth=0.7, zorder=0)
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.set_xlabel("taken for")
        axes.set_ylabel("truth")
        right = ", ".join(f"{name} {fractions[k, k]:.0%}" for k, name in enumerate(names) if not np.isnan(fractions[k, k]))
        told = f"Of each class in truth, what its pixels were taken for; rightly: {right}"
        return svg_of(figure, "matrix", told), width


def percent(fraction: float) -> str:
    """In hundredths, without a sign; 100 is all of them."""
    return f"{100 * fraction:.0f}" if fraction < 0.995 or fraction == 1 else "99"
