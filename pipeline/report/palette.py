"""Colours of the page: CSS variables in a light and a dark set, which its charts use too.

Added and missed pixels have two of Okabe and Ito's colours (https://jfly.uni-koeln.de/color/), distinct for every kind
of colour vision: blue for added, vermilion for missed. Small text has a contrast of at least 4.5 to its background and
lines of at least 3, as WCAG 2.2 requires (1.4.3, 1.4.11); tests compute both.
"""
from collections.abc import Iterable

from pipeline.masks.colours import ADDED, OKABE_ITO


def css_colour(rgb: Iterable[int]) -> str:
    """(0, 114, 178) -> `"#0072b2"`."""
    return "#%02x%02x%02x" % tuple(rgb)


BLUE, SKY_BLUE = css_colour(ADDED), css_colour(OKABE_ITO[0])
LIGHT = {
    "page": "#f7f6f3",
    "card": "#ffffff",
    "ink": "#1b1e23",
    "soft": "#5b616b",  # secondary text
    "line": "#dddad3",  # between cards and rows
    "grid": "#eceae5",  # in charts
    "faint": "#81868f",  # dots and lines of which there are many
    "accent": BLUE,
    "missed": "#b94900",  # vermilion, darkened until text has enough contrast
    "added": BLUE,
}
DARK = {
    "page": "#121417", "card": "#1a1d21", "ink": "#eceae5", "soft": "#a4aab3", "line": "#2f343a", "grid": "#262a30",
    "faint": "#7b828c", "accent": SKY_BLUE, "missed": "#ff8a3d", "added": SKY_BLUE,  # missed: vermilion, lightened
}  # fmt: skip
# Layers over images have the same colours in both sets: `masks.colours`.
# Lines of a chart, one for each fold or run.
SERIES_LIGHT = (BLUE, "#b94900", "#00785a", "#a8508a", "#8a6d00", "#3b7ea6")
SERIES_DARK = (SKY_BLUE, "#ff8a3d", "#2fc79d", "#e08dc0", "#e0b000", "#9ad2f5")


def css_variables(colours: dict[str, str], series: tuple[str, ...]) -> str:
    """Return `--ink: #1b1e23; ...`, with the series as `--series0` and so on."""
    named = colours | {f"series{number}": colour for number, colour in enumerate(series)}
    return " ".join(f"--{name}: {colour};" for name, colour in named.items())
