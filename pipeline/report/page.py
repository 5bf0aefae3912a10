"""The page: a template, its style and its script, put together into one file that needs no other."""
import pathlib
import re
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from pipeline.masks.colours import ADDED, MISSED
from pipeline.report import palette

TEMPLATES = pathlib.Path(__file__).parent / "templates"  # *.html.j2, style.css, page.js


def render(template: str, **context: Any) -> str:
    """The page of `parts/TEMPLATE`; what a template names and nobody gives is an error.

    Texts are escaped; charts, which are SVG of our own, are passed as they are.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"dice": dice, "thousands": thousands, "signed": signed, "chart": Markup, "code": code}
    return environment.get_template(template).render(
        style=Markup((TEMPLATES / "style.css").read_text()),
        script=Markup((TEMPLATES / "page.js").read_text()),
        light=Markup(palette.css_variables(palette.LIGHT, palette.SERIES_LIGHT)),
        dark=Markup(palette.css_variables(palette.DARK, palette.SERIES_DARK)),
        missed=MISSED,
        added=ADDED,
        **context,
    )


def code(sentence: str) -> Markup:
    """A sentence of a Problem, with what stands in `backticks` as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(sentence))))


def dice(value: float | None) -> str:
    """0.99331; a dash for what is not known."""
    return "–" if value is None or value != value else f"{value:.5f}"


def thousands(value: float) -> str:
    """1234567 -> 1 234 567, with blanks that do not break."""
    return "–" if value != value else f"{value:,.0f}".replace(",", "\u202f")


def signed(value: float) -> str:
    """-0.00012 -> −0.00012, with a true minus."""
    return f"{value:+.5f}".replace("-", "−")
