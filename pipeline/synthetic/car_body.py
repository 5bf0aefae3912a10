"""The body of a car: a loft with windows and walls, and the patches that lie on it.

At each station along x, a cross-section runs from the sill over the roof to the other sill. The corners of a half
section are its levels:

    0 sill, 1 flank (widest), 2 shoulder, 3 belt (below the windows), 4 roof edge, 5 roof centre

On bonnet and boot the belt lies just below the outline, so levels 3 to 5 are the lid there.
"""
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.synthetic.car_makes import Car, Make
from pipeline.synthetic.solids import (
    BLACK, CHROME, Material, Part, Piece, Points, Quads, flip_faces, grid_quads, make_part
)  # fmt: skip

STATION_STEP_M = 0.05
ARCH_FRACTION = 1.13  # radius of an arch relative to its wheel's
LAMP = Material((205, 212, 220), gloss=0.9)
TAIL_LAMP = Material((165, 18, 22), gloss=0.7)
PLATE = Material((214, 216, 208), gloss=0.1)
GRILLE = Material((22, 22, 24), gloss=0.3)


@dataclass(frozen=True, eq=False)
class Loft:
    """The body's skin."""

    x_m: NDArray[np.float64]  # (stations,), rising from the tail to the nose
    level: NDArray[np.float64]  # (levels,), rising from 0 to 5
    right: Points  # (stations, levels, 3)
    left: Points  # the same with y negated

    def at(self, x_m: NDArray, level: NDArray, side: int) -> Points:
        """Return points (n, 3) on one side (-1 right, 1 left) at x_m (n,) and levels (n,)."""
        half = self.left if side == 1 else self.right
        row, row_rest = locate(self.x_m, x_m)
        column, column_rest = locate(self.level, level)
        behind = half[row, column] * (1 - column_rest) + half[row, column + 1] * column_rest
        ahead = half[row + 1, column] * (1 - column_rest) + half[row + 1, column + 1] * column_rest
        return behind * (1 - row_rest) + ahead * row_rest


def locate(grid: NDArray, values: NDArray) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return each value's cell in a rising grid (n,), and its position within the cell, 0..1 (n, 1)."""
    cells = np.clip(np.searchsorted(grid, values, side="right") - 1, 0, len(grid) - 2)
    rest = (values - grid[cells]) / (grid[cells + 1] - grid[cells])
    return cells, np.clip(rest, 0, 1)[:, None]


def x_at(shape: Make, fraction: float) -> float:
    """Convert a fraction of the length, from the nose, to x in metres."""
    return (0.5 - fraction) * shape.length_m


def outline_m(shape: Make, x_m: NDArray | float) -> NDArray[np.float64]:
    """Return the height of the car's upper outline at x_m."""
    roof_fraction = shape.roof_rear_fraction - shape.roof_front_fraction
    corners = (
        (0.00, shape.nose_m - 0.10),
        (0.03, shape.nose_m),
        (shape.cowl_fraction, shape.bonnet_m),
        (shape.roof_front_fraction, shape.height_m - 0.04),
        (shape.roof_front_fraction + 0.25 * roof_fraction, shape.height_m - 0.005),
        (shape.roof_front_fraction + 0.50 * roof_fraction, shape.height_m),
        (shape.roof_front_fraction + 0.75 * roof_fraction, shape.height_m - 0.35 * shape.roof_drop_m),
        (shape.roof_rear_fraction, shape.height_m - shape.roof_drop_m),
        (shape.deck_fraction, shape.deck_m),
        (0.985, shape.tail_m if shape.open_bed else shape.deck_m - 0.03),
        (1.00, shape.tail_m),
    )
    fractions, heights_m = np.array(corners).T
    fine_m = np.linspace(-0.6, 0.6, 601) * shape.length_m  # smoothing needs a margin
    sharp = np.interp(0.5 - fine_m / shape.length_m, fractions, heights_m)
    kernel = np.hanning(31)  # rounds the corners over some 15 cm
    smooth = np.convolve(np.pad(sharp, 15, mode="edge"), kernel / kernel.sum(), mode="valid")
    return np.asarray(np.interp(x_m, fine_m, smooth))


def sill_height_m(shape: Make, x_m: NDArray) -> NDArray[np.float64]:
    """Return the height of the body's lower edge at x_m, with the arches over the wheels."""
    sill_m = shape.clearance_m + 0.06 * np.abs(2 * x_m / shape.length_m) ** 8
    arch_radius_m = ARCH_FRACTION * shape.wheel_radius_m
    for axle_m in (-shape.wheelbase_m / 2, shape.wheelbase_m / 2):
        inside = np.clip(arch_radius_m**2 - (x_m - axle_m) ** 2, 0, None)
        sill_m = np.maximum(sill_m, np.where(inside > 0, shape.wheel_radius_m + np.sqrt(inside), 0))
    return sill_m


def make_loft(shape: Make) -> Loft:
    """Build the body's skin, bent at both ends so that nose and tail are not flat walls."""
    stations = int(round(shape.length_m / STATION_STEP_M)) + 1
    x_m = np.linspace(-shape.length_m / 2, shape.length_m / 2, stations)
    towards_end = np.abs(2 * x_m / shape.length_m)  # 0 in the car's centre, 1 at nose and tail

    top_m = outline_m(shape, x_m)
    belt_m = np.minimum(shape.belt_m + 0.04 * (0.5 - x_m / shape.length_m), top_m - 0.04)
    rise_m = top_m - belt_m
    sill_m = sill_height_m(shape, x_m)
    shoulder_m = np.maximum(belt_m - 0.30 * (belt_m - shape.clearance_m - 0.1), sill_m + 0.04)
    flank_m = 0.45 * sill_m + 0.55 * shoulder_m
    half_width_m = shape.width_m / 2 * (1 - (1 - shape.end_width) * towards_end**6)

    ones = np.ones(stations)
    corners = (  # of the section: level, fraction of the half width, height
        (0.0 * ones, 0.96 * ones, sill_m),
        (1.0 * ones, 1.00 * ones, flank_m),
        (2.0 * ones, 0.985 * ones, shoulder_m),
        (3.0 * ones, 0.93 * ones, belt_m),
        (4.0 * ones, 0.90 - shape.lean * rise_m, top_m - 0.10 * rise_m),
        (5.0 * ones, 0.0 * ones, top_m),
    )
    level, width, z_m = cut_corners(cut_corners(np.array(corners))).transpose(1, 2, 0)
    y_m = width * half_width_m[:, None]

    # Nose and tail bulge in the middle, and recede above and below the bumper.
    bow_m = shape.bulge_m * (1 - (y_m / (shape.width_m / 2)) ** 2)
    lean_m = 0.10 * np.clip(np.abs(z_m - shape.clearance_m - 0.25) / 0.45, 0, 1) ** 2
    bent_x_m = x_m[:, None] + (np.sign(x_m) * towards_end**5)[:, None] * (bow_m - lean_m)
    right, left = (np.stack((bent_x_m, side * y_m, z_m), axis=-1) for side in (-1, 1))
    return Loft(x_m, level[0], right, left)


def cut_corners(lines: NDArray) -> NDArray[np.float64]:
    """Round lines (corners, ...) by Chaikin's algorithm, which keeps the middle half of each edge."""
    edges = zip(lines[:-1], lines[1:])
    points = [fraction * a + (1 - fraction) * b for a, b in edges for fraction in (0.75, 0.25)]
    return np.stack((lines[0], *points, lines[-1]))


def body_part(car: Car, loft: Loft) -> Part:
    """Build the painted skin with its windows, closed by a wall at the nose and one at the tail."""
    shape = car.shape
    level = (loft.level[:-1] + loft.level[1:])[None] / 2
    x_m = (loft.x_m[:-1] + loft.x_m[1:])[:, None] / 2
    fraction = 0.5 - x_m / shape.length_m

    in_cabin = (fraction > shape.cowl_fraction) & (fraction < min(shape.deck_fraction, shape.windows_end_fraction))
    tall_enough = outline_m(shape, x_m) - shape.belt_m > 0.13
    on_pillar = np.isclose(fraction[:, :, None], shape.pillars, rtol=0, atol=0.012).any(axis=2)
    windscreen = (fraction > shape.cowl_fraction + 0.01) & (fraction < shape.roof_front_fraction - 0.005)
    rear_window = (fraction > shape.roof_rear_fraction + 0.01) & (fraction < shape.deck_fraction - 0.008)
    is_glass = (level > 3.05) & (level < 3.85) & in_cabin & tall_enough & ~on_pillar
    is_glass |= (level > 4.1) & (windscreen | rear_window)
    is_bed = shape.open_bed & (level > 4.1) & (fraction > shape.deck_fraction + 0.01) & (fraction < 0.975)
    is_trim = car.dark_trim & (level < 0.7)

    across = np.linspace(0, 1, 9)
    tail = between_sides(shape, loft.right[0], loft.left[0], across)
    nose = between_sides(shape, loft.right[-1], loft.left[-1], across)
    wall_is_trim = np.repeat(is_trim.ravel(), len(across) - 1)
    no_glass = np.zeros_like(wall_is_trim)
    skin_is_black = (is_bed | (is_trim & (fraction > 0))).ravel()

    outer = (grid_quads(loft.right), flip_faces(grid_quads(loft.left)), grid_quads(tail), flip_faces(grid_quads(nose)))
    quads = np.concatenate(outer)
    glass = np.concatenate((is_glass.ravel(), is_glass.ravel(), no_glass, no_glass))
    black = np.concatenate((skin_is_black, skin_is_black, wall_is_trim, wall_is_trim))
    return make_part([
        (quads[glass], Material((38, 46, 52), gloss=1.0, clear=car.glass_clear)),
        (quads[black], BLACK),
        (quads[~glass & ~black], Material(car.paint, gloss=0.6)),
    ])


def between_sides(shape: Make, right: Points, left: Points, fractions: NDArray) -> Points:
    """Return a grid (n, fractions, 3) from right to left (n, 3) across nose or tail, bowed like the loft."""
    points = right[:, None] * (1 - fractions[:, None]) + left[:, None] * fractions[:, None]
    inset = (right[:, None, 1] ** 2 - points[:, :, 1] ** 2) / (shape.width_m / 2) ** 2
    points[:, :, 0] += np.sign(points[:, :, 0]) * shape.bulge_m * inset
    return points


def patches_part(shape: Make, loft: Loft) -> Part:
    """Build lamps, grille, plates, door seams and handles."""
    end_m, half_plate = shape.length_m / 2, 0.26 / shape.width_m
    doors_m = [x_at(shape, fraction) for fraction in (shape.cowl_fraction + 0.02, *shape.pillars)]
    handles_m = doors_m[1:] or [x_at(shape, 0.60)]
    pieces: list[Piece] = []
    for side in (-1, 1):
        pieces += [(side_patch(loft, side, x_m - 0.006, x_m + 0.006, 0.4, 3.0), BLACK) for x_m in doors_m]
        pieces += [(side_patch(loft, side, x_m + 0.05, x_m + 0.24, 2.35, 2.55), CHROME) for x_m in handles_m]
        pieces.append((side_patch(loft, side, end_m - 0.38, end_m, 1.75, 2.7), LAMP))
        pieces.append((side_patch(loft, side, -end_m, -end_m + 0.28, 1.8, 2.8), TAIL_LAMP))
    for from_fraction, to_fraction in ((0.0, 0.2), (0.8, 1.0)):
        pieces.append((end_patch(shape, loft, 1, from_fraction, to_fraction, 1.75, 2.7), LAMP))
        pieces.append((end_patch(shape, loft, -1, from_fraction, to_fraction, 1.8, 2.8), TAIL_LAMP))
    pieces.append((end_patch(shape, loft, 1, 0.24, 0.76, 1.45, 2.5), GRILLE))
    pieces.append((end_patch(shape, loft, 1, 0.14, 0.86, 0.25, 0.85), GRILLE))
    for end, low in ((1, 0.95), (-1, 1.15)):
        pieces.append((end_patch(shape, loft, end, 0.5 - half_plate, 0.5 + half_plate, low, low + 0.38), PLATE))
    return make_part(pieces)


def side_patch(loft: Loft, side: int, from_x_m: float, to_x_m: float, low: float, high: float) -> Quads:
    """Return a patch on one flank between two x and two levels."""
    x_m, level = np.repeat(np.linspace(from_x_m, to_x_m, 7), 7), np.tile(np.linspace(low, high, 7), 7)
    quads = grid_quads(loft.at(x_m, level, side).reshape(7, 7, 3))
    return flip_faces(quads) if side == 1 else quads


def end_patch(
    shape: Make, loft: Loft, end: int, from_fraction: float, to_fraction: float, low: float, high: float
) -> Quads:
    """Return a patch on tail (-1) or nose (1) between two fractions of the width (0 right) and two levels."""
    x_m, level = np.full(7, end * shape.length_m / 2), np.linspace(low, high, 7)
    right, left = (loft.at(x_m, level, side) for side in (-1, 1))
    quads = grid_quads(between_sides(shape, right, left, np.linspace(from_fraction, to_fraction, 7)))
    return flip_faces(quads) if end == 1 else quads
