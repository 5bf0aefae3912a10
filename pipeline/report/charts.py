"""The report's charts: plain numbers in, SVG text out.

Each is 360 units wide, about the width of a telephone, so that its letters are never smaller than drawn; a wide page
sets several side by side.
"""
import contextlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.projections.polar import PolarAxes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from pipeline.report import palette

WIDTH, HEIGHT = 360, 230
MARGINS = {"left": 0.15, "right": 0.97, "top": 0.93, "bottom": 0.19}
RING_UNITS = 270  # smaller, since the page sets it within a ring of photos
ROW_UNITS = 18  # of a chart with one row a group


def curves(name: str, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], label: str, log: bool) -> str:
    """Lines over epochs. lines: what each is -> (epochs, values); one value alone is a dot."""
    with drawing(name, WIDTH, HEIGHT) as figure:
        axes = figure.subplots(gridspec_kw=MARGINS | {"left": 0.19})
        for number, (line, (epochs, values)) in enumerate(lines.items()):
            axes.plot(epochs, values, color=series(number), marker="o", markersize=3.5, label=line)
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        else:
            axes.yaxis.set_major_locator(MaxNLocator(5))
        if len(known := {value for _, values in lines.values() for value in values}) == 1:
            axes.set_ylim(min(known) * 0.995, max(known) * 1.005 or 0.005)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        if len(lines) > 1:
            axes.legend(fontsize=10, handlelength=1.2, ncols=min(3, len(lines)), loc="best", columnspacing=1)
        last = ", ".join(f"{line} {values[-1]:.4g}" for line, (_, values) in lines.items())
        return svg_of(figure, name, f"{label} by epoch; at the end {last}")


def threshold_curve(fractions: NDArray[np.float64], dice: NDArray[np.float64], chosen: float) -> str:
    """Mean Dice against the cut, near its best. shares, dice: float64 (cuts,); chosen: the cut of the run."""
    at = int(np.abs(fractions - chosen).argmin())
    drop = max(2e-4, 1.5 * (dice[at] - dice[np.abs(fractions - chosen) < 0.25].min()))
    with drawing("threshold", WIDTH, HEIGHT) as figure:
        axes = figure.subplots(gridspec_kw=MARGINS | {"left": 0.19})
        axes.plot(fractions, dice, color=colour("accent"))
        axes.set_ylim(dice.max() - drop, dice.max() + drop / 8)
        axes.axvline(chosen, color=colour("soft"), linewidth=1, linestyle=(0, (3, 3)))
        axes.plot([fractions[at]], [dice[at]], "o", color=colour("accent"), markersize=7)
        axes.annotate(
            f"{chosen:.3f}", (chosen, dice.max() - drop), (5, 6), textcoords="offset points", color=colour("ink")
        )
        axes.set_xlim(0, 1)
        axes.set_xlabel("threshold")
        axes.set_ylabel("mean Dice")
        axes.yaxis.set_major_locator(MaxNLocator(5))
        return svg_of(figure, "threshold", f"Mean Dice against the cut; it is {dice[at]:.5f} at the chosen {chosen:.3f}")


def spread(dice: NDArray[np.float64]) -> str:
    """How many pictures lose how much Dice, on a logarithmic axis."""
    lost = np.maximum(1 - dice, 1e-4)
    with drawing("spread", WIDTH, HEIGHT) as figure:
        axes = figure.subplots(gridspec_kw=MARGINS)
        bins = np.geomspace(lost.min() * 0.95, max(lost.max() * 1.05, lost.min() * 2), 36).tolist()
        axes.hist(lost, bins=bins, color=colour("accent"), linewidth=0)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{1 - value:g}"))
        axes.invert_xaxis()
        axes.grid(axis="x", visible=False)
        axes.set_xlabel("Dice")
        axes.set_ylabel("pictures")
        return svg_of(figure, "spread", f"Pictures by Dice, from {dice.min():.4f} to {dice.max():.4f}")


def histogram(name: str, values: NDArray[np.float64], label: str) -> str:
    """How many pictures have which value, 0 to 1."""
    with drawing(name, WIDTH, HEIGHT) as figure:
        axes = figure.subplots(gridspec_kw=MARGINS)
        axes.hist(values, bins=np.linspace(0, 1, 41).tolist(), color=colour("accent"), linewidth=0)
        axes.set_xlim(0, 1)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(axis="x", visible=False)
        axes.set_xlabel(label)
        axes.set_ylabel("pictures")
        return svg_of(figure, name, f"Pictures by {label}, from {values.min():.4f} to {values.max():.4f}")


def ring(lost_by_angle: Sequence[float]) -> str:
    """Mean lost Dice of each view, as a bar in the direction from which it was taken: view 1 is the front, at the top.

    The numbers run against the clock, as the camera goes round a car that is seen from above.
    """
    values = np.array(lost_by_angle) * 1000
    angles = 2 * np.pi * np.arange(len(values)) / len(values)
    with drawing("ring", RING_UNITS, RING_UNITS) as figure:
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0), projection="polar")
        assert isinstance(axes, PolarAxes)
        axes.set_theta_zero_location("N")
        axes.set_theta_direction(1)  # against the clock
        inner, outer = 0.42, 1.0
        top = float(np.nanmax(values)) or 1.0
        worst = int(np.nanargmax(values))
        heights = (outer - inner) * values / top * 0.7
        colours = [colour("missed") if view == worst else colour("accent") for view in range(len(values))]
        axes.bar(angles, heights, 0.72 * 2 * np.pi / len(values), inner, color=colours, linewidth=0)
        for angle, height, value in zip(angles, heights, values):
            radius = inner + height + 0.08 + 0.05 * abs(np.sin(angle))  # words are wider than high
            axes.text(angle, radius, f"{value:.1f}", ha="center", va="center")
        axes.set_ylim(0, outer)
        axes.set_axis_off()
        told = ", ".join(f"{view}: {value:.1f}" for view, value in enumerate(values, start=1))
        return svg_of(figure, "ring", f"Lost Dice in thousandths by view, 1 is the front: {told}")


def groups(name: str, label: str, dice_of_group: Mapping[str, NDArray[np.float64]]) -> str:
    """A row a group, in the given order: each picture (or car) a faint dot, their mean a strong one."""
    means = [float(values.mean()) for values in dice_of_group.values()]
    everything = np.concatenate(list(dice_of_group.values()))
    low, high = float(np.quantile(everything, 0.01)), float(everything.max())
    units = ROW_UNITS * len(means) + 52
    with drawing(name, WIDTH, units) as figure:
        axes = figure.add_axes((0.31, 34 / units, 0.66, 1 - 44 / units))
        for row, values in enumerate(dice_of_group.values()):
            shown = np.maximum(values, low)
            axes.plot(shown, np.full(len(values), row), "|", color=colour("faint"), markersize=7, alpha=0.8)
        axes.plot(means, range(len(means)), "o", color=colour("accent"), markersize=6.5)
        axes.set_yticks(range(len(means)), list(dice_of_group), color=colour("ink"))
        axes.set_ylim(len(means) - 0.5, -0.5)
        margin = (high - low) * 0.03 or 0.005  # where all are alike
        axes.set_xlim(low - margin, high + margin)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(label)
        told = ", ".join(f"{group} {mean:.4f}" for group, mean in zip(dice_of_group, means))
        return svg_of(figure, name, f"{label} by group: {told}")


def fractions(name: str, parts: Mapping[str, float], colours: Sequence[str], label: str) -> str:
    """A bar a part, with what it is of the whole. parts: 0 to 1; colours: names of the page's variables."""
    units = 34 * len(parts) + 12
    with drawing(name, WIDTH, units) as figure:
        axes = figure.add_axes((0.34, 0.02, 0.52, 0.96))
        axes.barh(range(len(parts)), list(parts.values()), 0.62, color=[colour(c) for c in colours], linewidth=0)
        for row, part in enumerate(parts.values()):
            axes.text(part + 0.015, row, f"{part:.0%}", va="center", fontsize=12)
        axes.set_yticks(range(len(parts)), list(parts), color=colour("ink"))
        axes.set_xlim(0, max(parts.values()) or 1)
        axes.set_ylim(len(parts) - 0.5, -0.5)
        axes.set_xticks([])
        axes.grid(visible=False)
        axes.spines[["left", "bottom"]].set_visible(False)
        return svg_of(figure, name, f"{label}: " + ", ".join(f"{part} {fraction:.0%}" for part, fraction in parts.items()))


def area_by_angle(train: Mapping[int, NDArray[np.float64]], test: Mapping[int, NDArray[np.float64]]) -> str:
    """Share of the picture that the object covers: a band for the training masks, dots for the test predictions."""
    views = sorted(train)
    with drawing("area", WIDTH, HEIGHT) as figure:
        axes = figure.subplots(gridspec_kw=MARGINS)
        band = np.array([np.quantile(train[view], (0.05, 0.5, 0.95)) for view in views]) * 100
        axes.fill_between(views, band[:, 0], band[:, 2], color=colour("faint"), alpha=0.25, linewidth=0)
        axes.plot(views, band[:, 1], color=colour("soft"), linewidth=1.5)
        found = sorted(set(test) & set(views))
        middle = [np.quantile(test[view], (0.05, 0.5, 0.95)) * 100 for view in found]
        axes.vlines(found, [m[0] for m in middle], [m[2] for m in middle], color=colour("accent"), linewidth=1.5)
        axes.plot(found, [m[1] for m in middle], "o", color=colour("accent"), markersize=5)
        axes.set_xticks(views[::3] if len(views) > 8 else views)
        axes.set_xlabel("view")
        axes.set_ylabel("% of the picture")
        axes.set_ylim(bottom=0)
        text = ", ".join(f"{view}: {np.median(train[view]):.1%} and {np.median(test[view]):.1%}" for view in found)
        return svg_of(figure, "area", f"Median area of training masks and test predictions by view; {text}")


def differences(name: str, label: str, rows: Mapping[str, tuple[float, float, float]]) -> str:
    """A row a group: (mean difference, low, high end of its interval), around a line at 0.

    Grey is what holds 0, or has no interval (NaN).
    """
    values = np.array(list(rows.values())) * 1000
    units = ROW_UNITS * len(rows) + 52
    with drawing(name, WIDTH, units) as figure:
        axes = figure.add_axes((0.31, 34 / units, 0.66, 1 - 44 / units))
        places = range(len(rows))
        axes.axvline(0, color=colour("soft"), linewidth=1)
        tints = [colour("accent") if low > 0 else colour("missed") if high < 0 else colour("faint")
                 for _, low, high in values]  # fmt: skip
        axes.hlines(places, values[:, 1], values[:, 2], color=tints, linewidth=2)
        axes.scatter(values[:, 0], places, color=tints, s=34, zorder=3)
        axes.set_yticks(places, list(rows), color=colour("ink"))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(label)
        return svg_of(figure, name, f"{label}: " + ", ".join(f"{k} {v[0] * 1000:+.2f}" for k, v in rows.items()))


def against(
    name: str, one: NDArray[np.float64], other: NDArray[np.float64], labels: tuple[str, str], score: str = "Dice"
) -> str:
    """Lost Dice of each picture in two runs, on logarithmic axes; on the diagonal they are equal."""
    lost = [np.maximum(1 - values, 1e-4) for values in (one, other)]
    ends = min(map(np.min, lost)) * 0.9, max(map(np.max, lost)) * 1.1
    with drawing(name, WIDTH, 330) as figure:
        axes: Axes = figure.add_axes((0.17, 0.14, 0.79, 0.82))
        axes.plot(ends, ends, color=colour("soft"), linewidth=1)
        axes.plot(*lost, ".", color=colour("accent"), markersize=4, alpha=0.45, rasterized=len(one) > 2000)
        axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
        steps = (1, 2, 5) if ends[1] < 500 * ends[0] else (1,)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=steps))
            axis.set_minor_formatter(NullFormatter())
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel(f"lost {score} of {labels[0]}")
        axes.set_ylabel(f"of {labels[1]}")
        return svg_of(figure, name, f"Lost {score} of {len(one)} pictures in {labels[0]} and in {labels[1]}")


# --- SVG -------------------------------------------------------------------------------------------------------------

# A matplotlib figure as SVG that lives in a page: its text is text, its colours are the page's variables.
#
# A chart is drawn in stand-in colours, one for each variable of the page, and these are exchanged in the SVG's text for
# `var(--ink)` and the like. So one drawing serves the light and the dark page, and its letters are the page's own.

VARIABLES = (*palette.LIGHT, *(f"series{number}" for number in range(len(palette.SERIES_LIGHT))))
PLACEHOLDER = {name: f"#0102{number:02x}" for number, name in enumerate(VARIABLES, start=16)}
UNITS_PER_INCH = 72  # of matplotlib's SVG: a figure of 360/72 inches is 360 units wide, and its letters count in them
FONT_UNITS = 11


def colour(name: str) -> str:
    """The stand-in for a variable of the page, for matplotlib."""
    return PLACEHOLDER[name]


def series(number: int) -> str:
    """The stand-in for the colour of the nth line; they come round again."""
    return PLACEHOLDER[f"series{number % len(palette.SERIES_LIGHT)}"]


@contextlib.contextmanager
def drawing(name: str, width: int, height: int) -> Iterator[Figure]:
    """A figure of so many units, without the marks that say nothing. name: makes its ids differ from other charts'."""
    with matplotlib.rc_context(style(name)):
        yield Figure(figsize=(width / UNITS_PER_INCH, height / UNITS_PER_INCH), dpi=UNITS_PER_INCH)


def style(name: str) -> dict:
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": FONT_UNITS,
        "axes.edgecolor": colour("line"),
        "axes.labelcolor": colour("soft"),
        "axes.labelsize": FONT_UNITS,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "grid.color": colour("grid"),
        "grid.linewidth": 1,
        "text.color": colour("ink"),
        "xtick.color": colour("soft"),
        "ytick.color": colour("soft"),
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "xtick.minor.size": 0,
        "ytick.minor.size": 0,
        "xtick.major.pad": 7,
        "ytick.major.pad": 6,
        "lines.linewidth": 1.75,
        "lines.solid_capstyle": "round",
        "legend.frameon": False,
        "axes.formatter.useoffset": False,
    }


def svg_of(figure: Figure, name: str, description: str) -> str:
    """The figure as an `<svg>` element; description: what a person hears who cannot see it."""
    with matplotlib.rc_context(style(name)):
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return in_page(file.getvalue(), name, description)


def in_page(text: str, name: str, description: str) -> str:
    """matplotlib's SVG document as an element of a page."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda found: found.group() if found.group(1) in used else "", text)
    for each in used:
        text = text.replace(f'id="{each}"', f'id="{name}-{each}"').replace(f"#{each}", f"#{name}-{each}")
    text = re.sub(r"font-family: [^;\"]+;? ?", "", text)  # the page's own letters
    text = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px", text)
    for variable, placeholder in PLACEHOLDER.items():
        text = text.replace(placeholder, f"var(--{variable})")
    view_box = re.search(r'viewBox="[^"]+"', text)
    assert view_box, "matplotlib always gives one"
    head = f'<svg class="chart" {view_box.group()} role="img" aria-label="{escape(description)}" '
    head += 'xmlns:xlink="http://www.w3.org/1999/xlink">'
    return re.sub(r"^<svg[^>]*>", lambda _: head, text)
