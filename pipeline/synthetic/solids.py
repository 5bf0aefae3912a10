"""The building blocks of a drawn car: surfaces made of quadrilaterals, and their materials.

Axes, in metres: x points forward, y to the car's left, z up; the floor is z = 0, and the turntable turns about
x = y = 0.
"""
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.synthetic.car_makes import Colour

Points = NDArray[np.float64]  # (..., 3)
Quads = NDArray[np.float64]  # (quads, 4 corners, 3), counter-clockwise when seen from outside


@dataclass(frozen=True)
class Material:
    """How a surface reflects and passes light; gloss and clear are 0..1."""

    colour: Colour
    gloss: float = 0.0  # how much of the studio it reflects
    clear: float = 0.0  # how much of the studio behind it shines through


BLACK = Material((22, 22, 24), gloss=0.1)
CHROME = Material((172, 174, 178), gloss=0.6)

Piece = tuple[Quads, Material]


@dataclass(frozen=True, eq=False)
class Part:
    """Quadrilaterals that are drawn together, the farthest first.

    quads: float64 (n, 4, 3). colours: float64 (n, 3), RGB 0..255. gloss, clear: float64 (n,), 0..1.
    centre, outward: float64 (3,), where the part sits on the car and to which side.
    """

    quads: Quads
    colours: NDArray[np.float64]
    gloss: NDArray[np.float64]
    clear: NDArray[np.float64]
    centre: Points
    outward: Points


def make_part(pieces: list[Piece], centre: Points = np.zeros(3), outward: Points = np.zeros(3)) -> Part:
    """Join pieces of several materials into one part."""
    counts = [len(quads) for quads, _ in pieces]
    colours = np.array([material.colour for _, material in pieces], dtype=np.float64)
    return Part(
        quads=np.concatenate([quads for quads, _ in pieces]), colours=np.repeat(colours, counts, axis=0),
        gloss=np.repeat([material.gloss for _, material in pieces], counts),
        clear=np.repeat([material.clear for _, material in pieces], counts),
        centre=centre, outward=np.asarray(outward, np.float64),
    )  # fmt: skip


def grid_quads(points: Points) -> Quads:
    """Return the cells of a grid of points (rows, columns, 3), row by row."""
    corners = (points[:-1, :-1], points[1:, :-1], points[1:, 1:], points[:-1, 1:])
    return np.stack(corners, axis=2).reshape(-1, 4, 3)


def flip_faces(quads: Quads) -> Quads:
    return quads[:, ::-1]


def ring(centre: Points, radii_m: tuple[float, float], y_m: tuple[float, float]) -> Quads:
    """Return a band of 32 quads about a wheel's axle, from one radius and y to another.

    Equal y give a flat ring, which faces left when the radius grows; equal radii give a tube, which faces outwards when
    y falls. With both reversed it faces the other way.
    """
    angles = np.linspace(0, 2 * np.pi, 33)
    circle = np.stack((np.cos(angles), 0 * angles, np.sin(angles)), axis=1)
    edges = [centre + radius * circle + (0, y, 0) for radius, y in zip(radii_m, y_m)]
    return flip_faces(grid_quads(np.stack(edges)))


def bar(start: Points, end: Points, width_m: float, height_m: float) -> Quads:
    """Return a box of six faces about the line from start to end; a steep one has its height along x."""
    along = (end - start) / np.linalg.norm(end - start)
    across = np.cross((1.0, 0.0, 0.0) if abs(along[2]) > 0.7 else (0.0, 0.0, 1.0), along)
    across /= np.linalg.norm(across)
    up = np.cross(along, across)
    sides = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    a, b, c, d = (start + s * across * width_m / 2 + t * up * height_m / 2 for s, t in sides)
    e, f, g, h = (corner + end - start for corner in (a, b, c, d))
    return np.array(((a, d, c, b), (e, f, g, h), (a, b, f, e), (b, c, g, f), (c, d, h, g), (d, a, e, h)))
