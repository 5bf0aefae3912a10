"""The page's colours, each once: CSS variables in a light and a dark set, from which charts and pictures take theirs.

What must be told apart has two of Okabe and Ito's colours (https://jfly.uni-koeln.de/color/), which every kind of
colour vision tells apart: blue for what was added, vermilion for what was missed. Small text has a contrast of at
least 4.5 to its ground and lines of at least 3, as WCAG 2.2 asks for (1.4.3, 1.4.11); tests compute both.
"""
LIGHT = {
    "page": "#f7f6f3",
    "card": "#ffffff",
    "ink": "#1b1e23",
    "soft": "#5b616b",  # text of second rank
    "line": "#dddad3",  # between cards and rows
    "grid": "#eceae5",  # in charts
    "faint": "#81868f",  # dots and lines that are many
    "accent": "#0072b2",  # Okabe and Ito's blue
    "missed": "#b94900",  # their vermilion, a little darker so that text can be in it
    "added": "#0072b2",
}
DARK = {
    "page": "#121417",
    "card": "#1a1d21",
    "ink": "#eceae5",
    "soft": "#a4aab3",
    "line": "#2f343a",
    "grid": "#262a30",
    "faint": "#7b828c",
    "accent": "#56b4e9",  # their sky blue
    "missed": "#ff8a3d",  # vermilion, lighter
    "added": "#56b4e9",
}
# What lies on pictures is the same in both sets: `masks.palette`.
# A line for each fold or run: their colours, as the two sets can carry them.
SERIES_LIGHT = ("#0072b2", "#b94900", "#00785a", "#a8508a", "#8a6d00", "#3b7ea6")
SERIES_DARK = ("#56b4e9", "#ff8a3d", "#2fc79d", "#e08dc0", "#e0b000", "#9ad2f5")


def css_variables(colours: dict[str, str], series: tuple[str, ...]) -> str:
    """`--ink: #1b1e23; ...`, the series as `--series0` and so on."""
    named = colours | {f"series{number}": colour for number, colour in enumerate(series)}
    return " ".join(f"--{name}: {colour};" for name, colour in named.items())


def contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio of two colours such as `#1b1e23`, 1 to 21."""
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    """WCAG's relative luminance, 0 to 1."""
    red, green, blue = (linear(int(colour[at : at + 2], 16) / 255) for at in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def linear(fraction: float) -> float:
    """A channel of sRGB, 0 to 1, without its gamma."""
    return fraction / 12.92 if fraction <= 0.04045 else ((fraction + 0.055) / 1.055) ** 2.4
