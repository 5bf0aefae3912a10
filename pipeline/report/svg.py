"""A matplotlib figure as SVG that lives in a page: its text is text, its colours are the page's variables.

A chart is drawn in stand-in colours, one for each variable of the page, and these are exchanged in the SVG's text for
`var(--ink)` and the like. So one drawing serves the light and the dark page, and its letters are the page's own.
"""
import contextlib
import io
import re
from collections.abc import Iterator
from html import escape

import matplotlib
from matplotlib.figure import Figure

from pipeline.report import palette

VARIABLES = (*palette.LIGHT, *(f"series{number}" for number in range(len(palette.SERIES_LIGHT))))
STAND_IN = {name: f"#0102{number:02x}" for number, name in enumerate(VARIABLES, start=16)}
UNITS_PER_INCH = 72  # of matplotlib's SVG: a figure of 360/72 inches is 360 units wide, and its letters count in them
FONT_UNITS = 11


def colour(name: str) -> str:
    """The stand-in for a variable of the page, for matplotlib."""
    return STAND_IN[name]


def series(number: int) -> str:
    """The stand-in for the colour of the nth line; they come round again."""
    return STAND_IN[f"series{number % len(palette.SERIES_LIGHT)}"]


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
    for variable, stand_in in STAND_IN.items():
        text = text.replace(stand_in, f"var(--{variable})")
    view_box = re.search(r'viewBox="[^"]+"', text)
    assert view_box, "matplotlib always gives one"
    head = f'<svg class="chart" {view_box.group()} role="img" aria-label="{escape(description)}" '
    head += 'xmlns:xlink="http://www.w3.org/1999/xlink">'
    return re.sub(r"^<svg[^>]*>", lambda _: head, text)
