"""Render a page: template, style and script in one self-contained HTML file."""
import pathlib
import re
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from pipeline.masks.colours import ADDED, MISSED
from pipeline.report import palette

TEMPLATES = pathlib.Path(__file__).parent / "templates"  # *.html.j2, style.css, page.js


def render(template: str, **context: Any) -> str:
    """Render `templates/TEMPLATE`; raise for a variable without a value. Texts are escaped, our own charts are not."""
    loader = FileSystemLoader(TEMPLATES)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"score": score, "thousands": thousands, "signed": signed, "chart": Markup, "code": code}
    return environment.get_template(template).render(
        style=Markup((TEMPLATES / "style.css").read_text()), script=Markup((TEMPLATES / "page.js").read_text()),
        light=Markup(palette.css_variables(palette.LIGHT, palette.SERIES_LIGHT)),
        dark=Markup(palette.css_variables(palette.DARK, palette.SERIES_DARK)),
        missed=MISSED, added=ADDED, **context,
    )  # fmt: skip


def code(sentence: str) -> Markup:
    """Escape a sentence and turn what stands in `backticks` into code elements."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(sentence))))


def score(value: float | None) -> str:
    """0.99331; a dash for None and NaN."""
    return "–" if value is None or value != value else f"{value:.5f}"


def thousands(value: float) -> str:
    """1234567 -> 1 234 567, with narrow no-break spaces."""
    return "–" if value != value else f"{value:,.0f}".replace(",", "\u202f")


def signed(value: float) -> str:
    """-0.00012 -> −0.00012, with a minus sign instead of a hyphen."""
    return f"{value:+.5f}".replace("-", "−")
