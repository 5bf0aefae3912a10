"""Charts of the report: numbers in, SVG text out.

Each is 360 units wide, about the width of a phone, so that its text is never scaled down; a wide page sets several
side by side.
"""
import contextlib
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.projections.polar import PolarAxes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from pipeline.report import palette

WIDTH, HEIGHT = 360, 230
MARGINS = {"left": 0.15, "right": 0.97, "top": 0.93, "bottom": 0.19}
RING_UNITS = 270  # smaller, since the page sets it within a ring of images
ROW_UNITS = 18  # of a chart with one row a group


def curves(name: str, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], label: str, log: bool) -> str:
    """Draw lines over epochs. lines: label -> (epochs, values); a single value is a dot."""
    with drawing(name, WIDTH, HEIGHT) as figure:
        axes = figure.subplots(gridspec_kw=MARGINS | {"left": 0.19})
        for number, (line, (epochs, values)) in enumerate(lines.items()):
            axes.plot(epochs, values, color=series(number), marker="o", markersize=3.5, label=line)
        if log:
            axes.set_yscale("log")
            label_log_axis(axes.yaxis)
        else:
            axes.yaxis.set_major_locator(MaxNLocator(5))
        if len(distinct := {value for _, values in lines.values() for value in values}) == 1:
            axes.set_ylim(min(distinct) * 0.995, max(distinct) * 1.005 or 0.005)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        axes.set(xlabel="epoch", ylabel=label)
        if len(lines) > 1:
            axes.legend(fontsize=10, handlelength=1.2, ncols=min(3, len(lines)), loc="best", columnspacing=1)
        last = ", ".join(f"{line} {values[-1]:.4g}" for line, (_, values) in lines.items())
        return to_svg(figure, name, f"{label} by epoch; at the end {last}")


def threshold_curve(thresholds: NDArray[np.float64], dice: NDArray[np.float64], chosen: float) -> str:
    """Draw mean Dice by threshold, near its best. thresholds, dice: float64 (256,); chosen: threshold of the run."""
    at = int(np.abs(thresholds - chosen).argmin())
    drop = max(2e-4, 1.5 * (dice[at] - dice[np.abs(thresholds - chosen) < 0.25].min()))
    with drawing("threshold", WIDTH, HEIGHT) as figure:
        axes = figure.subplots(gridspec_kw=MARGINS | {"left": 0.19})
        axes.plot(thresholds, dice, color=colour("accent"))
        axes.axvline(chosen, color=colour("soft"), linewidth=1, linestyle=(0, (3, 3)))
        axes.plot([thresholds[at]], [dice[at]], "o", color=colour("accent"), markersize=7)
        bottom = dice.max() - drop
        axes.annotate(f"{chosen:.3f}", (chosen, bottom), (5, 6), textcoords="offset points", color=colour("ink"))
        axes.set(xlim=(0, 1), ylim=(bottom, dice.max() + drop / 8), xlabel="threshold", ylabel="mean Dice")
        axes.yaxis.set_major_locator(MaxNLocator(5))
        return to_svg(figure, "threshold", f"Mean Dice by threshold; {dice[at]:.5f} at the chosen {chosen:.3f}")


def lost_histogram(dice: NDArray[np.float64]) -> str:
    """Draw a histogram of images by Dice, whose axis is logarithmic in lost Dice."""
    lost = np.maximum(1 - dice, 1e-4)
    with drawing("spread", WIDTH, HEIGHT) as figure:
        axes = figure.subplots(gridspec_kw=MARGINS)
        bins = np.geomspace(lost.min() * 0.95, max(lost.max() * 1.05, lost.min() * 2), 36).tolist()
        axes.hist(lost, bins=bins, color=colour("accent"), linewidth=0)
        axes.set_xscale("log")
        label_log_axis(axes.xaxis, to_shown=lambda lost: 1 - lost)
        axes.invert_xaxis()
        axes.grid(axis="x", visible=False)
        axes.set(xlabel="Dice", ylabel="images")
        return to_svg(figure, "spread", f"Images by Dice, from {dice.min():.4f} to {dice.max():.4f}")


def histogram(name: str, values: NDArray[np.float64], label: str) -> str:
    """Draw a histogram of images by a value, 0 to 1."""
    with drawing(name, WIDTH, HEIGHT) as figure:
        axes = figure.subplots(gridspec_kw=MARGINS)
        axes.hist(values, bins=np.linspace(0, 1, 41).tolist(), color=colour("accent"), linewidth=0)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(axis="x", visible=False)
        axes.set(xlim=(0, 1), xlabel=label, ylabel="images")
        return to_svg(figure, name, f"Images by {label}, from {values.min():.4f} to {values.max():.4f}")


def ring(lost_by_angle: Sequence[float]) -> str:
    """Draw mean lost Dice of each angle as a bar in the direction of the camera: angle 1 is the front, at the top.

    The numbers run counterclockwise, as the camera moves round a car that is seen from above.
    """
    values = np.array(lost_by_angle) * 1000
    directions = 2 * np.pi * np.arange(len(values)) / len(values)
    with drawing("ring", RING_UNITS, RING_UNITS) as figure:
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0), projection="polar")
        assert isinstance(axes, PolarAxes)
        axes.set_theta_zero_location("N")
        axes.set_theta_direction(1)  # counterclockwise
        inner, outer = 0.42, 1.0
        top, worst = float(np.nanmax(values)) or 1.0, int(np.nanargmax(values))
        heights = (outer - inner) * values / top * 0.7
        colours = [colour("missed") if index == worst else colour("accent") for index in range(len(values))]
        axes.bar(directions, heights, 0.72 * 2 * np.pi / len(values), inner, color=colours, linewidth=0)
        for direction, height, value in zip(directions, heights, values):
            radius = inner + height + 0.08 + 0.05 * abs(np.sin(direction))  # text is wider than high
            axes.text(direction, radius, f"{value:.1f}", ha="center", va="center")
        axes.set_ylim(0, outer)
        axes.set_axis_off()
        listing = ", ".join(f"{angle}: {value:.1f}" for angle, value in enumerate(values, start=1))
        return to_svg(figure, "ring", f"Lost Dice in thousandths by angle, 1 is the front: {listing}")


def groups(name: str, label: str, scores_of_group: Mapping[str, NDArray[np.float64]]) -> str:
    """Draw a row a group, in the given order: a faint tick for each image (or car), a dot for their mean."""
    means = [float(values.mean()) for values in scores_of_group.values()]
    all_scores = np.concatenate(list(scores_of_group.values()))
    low, high = float(np.quantile(all_scores, 0.01)), float(all_scores.max())
    with drawing_rows(name, list(scores_of_group), label) as (figure, axes):
        for row, values in enumerate(scores_of_group.values()):
            shown = np.maximum(values, low)
            axes.plot(shown, np.full(len(values), row), "|", color=colour("faint"), markersize=7, alpha=0.8)
        axes.plot(means, range(len(means)), "o", color=colour("accent"), markersize=6.5)
        margin = (high - low) * 0.03 or 0.005  # if all are equal
        axes.set_xlim(low - margin, high + margin)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        listing = ", ".join(f"{group} {mean:.4f}" for group, mean in zip(scores_of_group, means))
        return to_svg(figure, name, f"{label} by group: {listing}")


def fractions(name: str, fraction_of: Mapping[str, float], colours: Sequence[str], label: str) -> str:
    """Draw a bar for each fraction of a whole, 0 to 1. colours: names of the page's variables."""
    with drawing(name, WIDTH, 34 * len(fraction_of) + 12) as figure:
        axes = figure.add_axes((0.34, 0.02, 0.52, 0.96))
        values = list(fraction_of.values())
        axes.barh(range(len(values)), values, 0.62, color=[colour(c) for c in colours], linewidth=0)
        for row, value in enumerate(values):
            axes.text(value + 0.015, row, f"{value:.0%}", va="center", fontsize=12)
        axes.set_yticks(range(len(values)), list(fraction_of), color=colour("ink"))
        axes.set(xlim=(0, max(values) or 1), ylim=(len(values) - 0.5, -0.5), xticks=[])
        axes.grid(visible=False)
        axes.spines[["left", "bottom"]].set_visible(False)
        listing = ", ".join(f"{part} {value:.0%}" for part, value in fraction_of.items())
        return to_svg(figure, name, f"{label}: {listing}")


def area_by_angle(train: Mapping[int, NDArray[np.float64]], test: Mapping[int, NDArray[np.float64]]) -> str:
    """Draw the fraction of the image that the object covers: a band for training masks, dots for test predictions."""
    angles = sorted(train)
    with drawing("area", WIDTH, HEIGHT) as figure:
        axes = figure.subplots(gridspec_kw=MARGINS)
        band = np.array([np.quantile(train[angle], (0.05, 0.5, 0.95)) for angle in angles]) * 100
        axes.fill_between(angles, band[:, 0], band[:, 2], color=colour("faint"), alpha=0.25, linewidth=0)
        axes.plot(angles, band[:, 1], color=colour("soft"), linewidth=1.5)
        in_both = sorted(set(test) & set(angles))
        middle = [np.quantile(test[angle], (0.05, 0.5, 0.95)) * 100 for angle in in_both]
        axes.vlines(in_both, [m[0] for m in middle], [m[2] for m in middle], color=colour("accent"), linewidth=1.5)
        axes.plot(in_both, [m[1] for m in middle], "o", color=colour("accent"), markersize=5)
        axes.set_xticks(angles[::3] if len(angles) > 8 else angles)
        axes.set(xlabel="angle", ylabel="% of the image")
        axes.set_ylim(bottom=0)
        medians = {angle: (np.median(train[angle]), np.median(test[angle])) for angle in in_both}
        listing = ", ".join(f"{angle}: {one:.1%} and {other:.1%}" for angle, (one, other) in medians.items())
        return to_svg(figure, "area", f"Median area of training masks and test predictions by angle; {listing}")


def differences(name: str, label: str, rows: Mapping[str, tuple[float, float, float]]) -> str:
    """Draw a row a group around 0: (mean, low end, high end of its interval), grey if that contains 0 or is NaN."""
    values = np.array(list(rows.values())) * 1000
    with drawing_rows(name, list(rows), label) as (figure, axes):
        places = range(len(rows))
        axes.axvline(0, color=colour("soft"), linewidth=1)
        tints = [colour("accent") if low > 0 else colour("missed") if high < 0 else colour("faint")
                 for _, low, high in values]  # fmt: skip
        axes.hlines(places, values[:, 1], values[:, 2], color=tints, linewidth=2)
        axes.scatter(values[:, 0], places, color=tints, s=34, zorder=3)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        return to_svg(figure, name, f"{label}: " + ", ".join(f"{k} {v[0] * 1000:+.2f}" for k, v in rows.items()))


def scatter(
    name: str, one: NDArray[np.float64], other: NDArray[np.float64], labels: tuple[str, str], metric: str = "Dice"
) -> str:
    """Draw the lost score of each image in two runs, on logarithmic axes; on the diagonal they are equal."""
    lost = [np.maximum(1 - values, 1e-4) for values in (one, other)]
    ends = min(map(np.min, lost)) * 0.9, max(map(np.max, lost)) * 1.1
    with drawing(name, WIDTH, 330) as figure:
        axes: Axes = figure.add_axes((0.17, 0.14, 0.79, 0.82))
        axes.plot(ends, ends, color=colour("soft"), linewidth=1)
        axes.plot(*lost, ".", color=colour("accent"), markersize=4, alpha=0.45, rasterized=len(one) > 2000)
        axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
        for axis in (axes.xaxis, axes.yaxis):
            label_log_axis(axis, (1, 2, 5) if ends[1] < 500 * ends[0] else (1,))
        axes.set(xlabel=f"lost {metric} of {labels[0]}", ylabel=f"of {labels[1]}")
        return to_svg(figure, name, f"Lost {metric} of {len(one)} images in {labels[0]} and in {labels[1]}")


# --- confusion matrix ------------------------------------------------------------------------------------------------

MAX_MATRIX_CLASSES = 60  # more do not fit
MAX_NUMBERED_CLASSES = 16  # up to this many, each cell shows its percentage
CELL_UNITS, NUMBERED_CELL_UNITS = 15, 30
CHARACTER_UNITS = 6.2  # mean width of a character
MAX_CHARACTERS = 18  # of a class name
MIN_SHOWN_FRACTION = 0.005  # a cell with less stays empty


def confusion_matrix(matrix: NDArray[np.int64], classes: Sequence[str]) -> tuple[str, int]:
    """Draw a confusion matrix (truth, prediction); return its SVG and width in pixels, below which text gets too small.

    Each row is divided by its sum. The diagonal, which is right, has one colour and the rest another, the stronger the
    larger the fraction.
    """
    fractions = fractions_of_truth(matrix)
    count, with_numbers = len(classes), len(classes) <= MAX_NUMBERED_CLASSES
    cell = NUMBERED_CELL_UNITS if with_numbers else CELL_UNITS
    names = [name if len(name) <= MAX_CHARACTERS else f"{name[: MAX_CHARACTERS - 1]}…" for name in classes]
    margin = round(CHARACTER_UNITS * max(map(len, names))) + 30
    width = margin + count * cell + 8
    with drawing("matrix", width, width) as figure:
        axes = figure.add_axes((margin / width, 8 / width, count * cell / width, count * cell / width))
        for row, column in np.argwhere(fractions >= MIN_SHOWN_FRACTION):
            fraction = float(fractions[row, column])
            # Below a number the colour stays faint, so that the ink stands out; small fractions remain visible.
            strength = (0.5 if with_numbers else 1.0) * fraction**0.6
            tint = colour("accent" if row == column else "missed")
            axes.add_patch(Rectangle((column, row), 1, 1, facecolor=tint, alpha=round(strength, 3), linewidth=0))
            if with_numbers:
                axes.text(column + 0.5, row + 0.5, percent(fraction), ha="center", va="center", fontsize=FONT_UNITS)
        axes.set(xlim=(0, count), ylim=(count, 0), xlabel="predicted as", ylabel="truth")
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
        recalls = zip(names, np.diagonal(fractions))
        listing = ", ".join(f"{name} {recall:.0%}" for name, recall in recalls if not np.isnan(recall))
        description = f"What the pixels of each class in truth were predicted as; correctly: {listing}"
        return to_svg(figure, "matrix", description), width


def fractions_of_truth(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    """Divide each row by its sum, float64 (classes, classes), 0 to 1; NaN in rows of classes that no truth has."""
    pixels = matrix.sum(axis=1, keepdims=True)
    return np.divide(matrix, pixels, out=np.full(matrix.shape, np.nan), where=pixels > 0)


def percent(fraction: float) -> str:
    """0.456 -> "46"; only all of them is "100"."""
    return f"{100 * fraction:.0f}" if fraction < 0.995 or fraction == 1 else "99"


# --- SVG -------------------------------------------------------------------------------------------------------------

# A matplotlib figure becomes SVG inside the page: its text stays text, in the page's own font. It is drawn in
# placeholder colours, one for each CSS variable of the page, which are then replaced in the SVG by `var(--ink)` and so
# on. So one drawing serves the light and the dark page.

VARIABLES = (*palette.LIGHT, *(f"series{number}" for number in range(len(palette.SERIES_LIGHT))))
PLACEHOLDER = {name: f"#0102{number:02x}" for number, name in enumerate(VARIABLES, start=16)}
UNITS_PER_INCH = 72  # of matplotlib's SVG: a figure of 360/72 inches is 360 units wide; font sizes are in units
FONT_UNITS = 11


def colour(name: str) -> str:
    """Return the placeholder of a CSS variable, for matplotlib."""
    return PLACEHOLDER[name]


def series(number: int) -> str:
    """Return the placeholder of the colour of the nth line; colours repeat after the last one."""
    return PLACEHOLDER[f"series{number % len(palette.SERIES_LIGHT)}"]


@contextlib.contextmanager
def drawing(name: str, width: int, height: int) -> Iterator[Figure]:
    """Yield an empty figure of this size in units. name: makes its ids differ from those of other charts."""
    with matplotlib.rc_context(style(name)):
        yield Figure(figsize=(width / UNITS_PER_INCH, height / UNITS_PER_INCH), dpi=UNITS_PER_INCH)


@contextlib.contextmanager
def drawing_rows(name: str, labels: Sequence[str], x_label: str) -> Iterator[tuple[Figure, Axes]]:
    """Yield a figure and its axes with a labelled row for each of `labels`, at y = 0, 1, ... from the top."""
    units = ROW_UNITS * len(labels) + 52
    with drawing(name, WIDTH, units) as figure:
        axes = figure.add_axes((0.31, 34 / units, 0.66, 1 - 44 / units))
        axes.set_yticks(range(len(labels)), labels, color=colour("ink"))
        axes.set(ylim=(len(labels) - 0.5, -0.5), xlabel=x_label)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        yield figure, axes


def label_log_axis(
    axis: Axis, subs: Sequence[int] = (1, 2, 5), to_shown: Callable[[float], float] = lambda value: value
) -> None:
    """Put ticks at `subs` times powers of ten. to_shown: converts a value to the number that its tick shows."""
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{to_shown(value):g}"))


def style(name: str) -> dict:
    """Return matplotlib's settings for a chart. name: makes the ids of its SVG the same at each run."""
    return {
        "svg.fonttype": "none", "svg.hashsalt": name, "font.size": FONT_UNITS, "text.color": colour("ink"),
        "figure.facecolor": "none", "axes.facecolor": "none", "axes.edgecolor": colour("line"),
        "axes.labelcolor": colour("soft"), "axes.labelsize": FONT_UNITS, "axes.formatter.useoffset": False,
        "axes.spines.top": False, "axes.spines.right": False,
        "axes.grid": True, "axes.axisbelow": True, "grid.color": colour("grid"), "grid.linewidth": 1,
        "xtick.color": colour("soft"), "xtick.major.size": 0, "xtick.minor.size": 0, "xtick.major.pad": 7,
        "ytick.color": colour("soft"), "ytick.major.size": 0, "ytick.minor.size": 0, "ytick.major.pad": 6,
        "lines.linewidth": 1.75, "lines.solid_capstyle": "round", "legend.frameon": False,
    }  # fmt: skip


def to_svg(figure: Figure, name: str, description: str) -> str:
    """Return the figure as an `<svg>` element. description: its text for screen readers."""
    with matplotlib.rc_context(style(name)):
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return embed(file.getvalue(), name, description)


def embed(text: str, name: str, description: str) -> str:
    """Turn matplotlib's SVG document into an element of a page."""
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda match: match.group() if match.group(1) in used else "", text)
    for each in used:
        text = text.replace(f'id="{each}"', f'id="{name}-{each}"').replace(f"#{each}", f"#{name}-{each}")
    text = re.sub(r"font-family: [^;\"]+;? ?", "", text)  # the page's own font
    text = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px", text)
    for variable, placeholder in PLACEHOLDER.items():
        text = text.replace(placeholder, f"var(--{variable})")
    view_box = re.search(r'viewBox="[^"]+"', text)
    assert view_box, "matplotlib always writes one"
    head = f'<svg class="chart" {view_box.group()} role="img" aria-label="{escape(description)}" '
    head += 'xmlns:xlink="http://www.w3.org/1999/xlink">'
    return re.sub(r"^<svg[^>]*>", lambda _: head, text)
