"""The shape of a car: the numbers of `synthetic_makes` -> quadrilaterals in space.

Axes, in metres: x points forward, y to the car's left, z up; the floor is z = 0 and the turntable turns
about x = y = 0. The body is a loft: at each station along x, a cross-section runs from the sill over the
roof to the other sill. The corners of a half section are its levels:

    0 sill, 1 flank (widest), 2 shoulder, 3 belt (below the windows), 4 roof edge, 5 middle of the roof

On bonnet and boot the belt lies just below the outline, so that levels 3 to 5 are the lid there. All
the rest is a `ring`, a `bar`, or a patch that lies on the loft.
"""
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.data.synthetic_makes import Car, Colour, Make

Points = NDArray[np.float64]  # (..., 3)
Quads = NDArray[np.float64]  # (quads, 4 corners, 3), counter-clockwise for who sees the outer side

STATION_STEP_M = 0.05


@dataclass(frozen=True)
class Material:
    """What a surface does with light; gloss and clear are 0..1."""

    colour: Colour
    gloss: float = 0.0  # how much of the studio it mirrors
    clear: float = 0.0  # how much of the studio behind it shines through


RUBBER, BLACK, CHROME = Material((30, 30, 32), 0.08), Material((22, 22, 24), 0.1), Material((172, 174, 178), 0.6)
BRAKE, RIM_INSIDE, RAIL = Material((64, 62, 60), 0.2), Material((70, 70, 72), 0.1), Material((120, 122, 125), 0.4)
LAMP, TAIL_LAMP, PLATE = Material((205, 212, 220), 0.9), Material((165, 18, 22), 0.7), Material((214, 216, 208), 0.1)
GRILLE, DARK_RIM = Material((22, 22, 24), 0.3), Material((58, 59, 62), 0.6)

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


@dataclass(frozen=True, eq=False)
class Parts:
    """A whole car; `patches` lie on the body, `extras` stand off it."""

    wheels: list[Part]
    underbody: Part
    body: Part
    patches: Part
    extras: list[Part]


def parts_of(car: Car) -> Parts:
    """The car in space, ready to be looked at from any side."""
    shape, loft = car.shape, loft_of(car.shape)
    extras = [mirror_part(car, loft, side) for side in (-1, 1)]
    if shape.rails:
        extras += [rail_part(shape, loft, side) for side in (-1, 1)]
    if shape.wing:
        extras.append(wing_part(car))
    if shape.open_bed:
        extras.append(rack_part(shape))
    if shape.antenna_m:
        extras.append(antenna_part(shape))
    axles_m = (-shape.wheelbase_m / 2, shape.wheelbase_m / 2)
    return Parts(
        wheels=[wheel_part(car, axle_m, side) for axle_m in axles_m for side in (-1, 1)],
        underbody=underbody_part(shape),
        body=body_part(car, loft),
        patches=patches_part(shape, loft),
        extras=extras,
    )


def part_of(
    pieces: list[Piece], centre: Points = np.zeros(3), outward: Points = np.zeros(3)
) -> Part:
    """Pieces of several materials as one part."""
    counts = [len(quads) for quads, _ in pieces]
    return Part(
        quads=np.concatenate([quads for quads, _ in pieces]),
        colours=np.repeat([material.colour for _, material in pieces], counts, axis=0).astype(np.float64),
        gloss=np.repeat([material.gloss for _, material in pieces], counts),
        clear=np.repeat([material.clear for _, material in pieces], counts),
        centre=centre,
        outward=np.asarray(outward, np.float64),
    )


# --- the body ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Loft:
    """The body's skin."""

    x_m: NDArray[np.float64]  # (stations,), rising from the tail to the nose
    level: NDArray[np.float64]  # (levels,), rising from 0 to 5
    right: Points  # (stations, levels, 3)
    left: Points  # the same with y turned round

    def at(self, x_m: NDArray, level: NDArray, side: int) -> Points:
        """Points (n, 3) on one side (-1 right, 1 left) at places x_m (n,) and levels (n,)."""
        half = self.left if side == 1 else self.right
        row, row_rest = cell_of(self.x_m, x_m)
        column, column_rest = cell_of(self.level, level)
        behind = half[row, column] * (1 - column_rest) + half[row, column + 1] * column_rest
        ahead = half[row + 1, column] * (1 - column_rest) + half[row + 1, column + 1] * column_rest
        return behind * (1 - row_rest) + ahead * row_rest


def cell_of(grid: NDArray, values: NDArray) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Each value's cell in a rising grid, (n,), and how far along the cell it lies, 0..1, (n, 1)."""
    cells = np.clip(np.searchsorted(grid, values, side="right") - 1, 0, len(grid) - 2)
    rest = (values - grid[cells]) / (grid[cells + 1] - grid[cells])
    return cells, np.clip(rest, 0, 1)[:, None]


def x_at(shape: Make, share: float) -> float:
    """Share of the length, counted from the nose -> x in metres."""
    return (0.5 - share) * shape.length_m


def outline_m(shape: Make, x_m: NDArray | float) -> NDArray[np.float64]:
    """Height of the car's upper outline at places along it."""
    roof_share = shape.roof_rear_share - shape.roof_front_share
    corners = (
        (0.00, shape.nose_m - 0.10),
        (0.03, shape.nose_m),
        (shape.cowl_share, shape.bonnet_m),
        (shape.roof_front_share, shape.height_m - 0.04),
        (shape.roof_front_share + 0.25 * roof_share, shape.height_m - 0.005),
        (shape.roof_front_share + 0.50 * roof_share, shape.height_m),
        (shape.roof_front_share + 0.75 * roof_share, shape.height_m - 0.35 * shape.roof_drop_m),
        (shape.roof_rear_share, shape.height_m - shape.roof_drop_m),
        (shape.deck_share, shape.deck_m),
        (0.985, shape.tail_m if shape.open_bed else shape.deck_m - 0.03),
        (1.00, shape.tail_m),
    )
    shares, heights_m = np.array(corners).T
    fine_m = np.linspace(-0.6, 0.6, 601) * shape.length_m  # beyond the car: smoothing needs a margin
    sharp = np.interp(0.5 - fine_m / shape.length_m, shares, heights_m)
    kernel = np.hanning(31)  # rounds the corners over some 15 cm
    smooth = np.convolve(np.pad(sharp, 15, mode="edge"), kernel / kernel.sum(), mode="valid")
    return np.interp(x_m, fine_m, smooth)


def sill_height_m(shape: Make, x_m: NDArray) -> NDArray[np.float64]:
    """Height of the body's lower edge, with the arches over the wheels."""
    sill_m = shape.clearance_m + 0.06 * np.abs(2 * x_m / shape.length_m) ** 8
    arch_radius_m = 1.13 * shape.wheel_radius_m
    for axle_m in (-shape.wheelbase_m / 2, shape.wheelbase_m / 2):
        inside = np.clip(arch_radius_m**2 - (x_m - axle_m) ** 2, 0, None)
        arch_m = np.where(inside > 0, shape.wheel_radius_m + np.sqrt(inside), 0)
        sill_m = np.maximum(sill_m, arch_m)
    return sill_m


def loft_of(shape: Make) -> Loft:
    """The body's skin, bent at both ends so that nose and tail are no flat walls."""
    stations = int(round(shape.length_m / STATION_STEP_M)) + 1
    x_m = np.linspace(-shape.length_m / 2, shape.length_m / 2, stations)
    towards_end = np.abs(2 * x_m / shape.length_m)  # 0 in the car's middle, 1 at nose and tail

    top_m = outline_m(shape, x_m)
    belt_m = np.minimum(shape.belt_m + 0.04 * (0.5 - x_m / shape.length_m), top_m - 0.04)
    rise_m = top_m - belt_m
    sill_m = sill_height_m(shape, x_m)
    shoulder_m = np.maximum(belt_m - 0.30 * (belt_m - shape.clearance_m - 0.1), sill_m + 0.04)
    flank_m = 0.45 * sill_m + 0.55 * shoulder_m
    half_width_m = shape.width_m / 2 * (1 - (1 - shape.end_width) * towards_end**6)

    one = np.ones(stations)
    corners = (  # of the section: level, share of the half width, height
        (0.0 * one, 0.96 * one, sill_m),
        (1.0 * one, 1.00 * one, flank_m),
        (2.0 * one, 0.985 * one, shoulder_m),
        (3.0 * one, 0.93 * one, belt_m),
        (4.0 * one, 0.90 - shape.lean * rise_m, top_m - 0.10 * rise_m),
        (5.0 * one, 0.0 * one, top_m),
    )
    level, width, z_m = cut_corners(cut_corners(np.array(corners))).transpose(1, 2, 0)
    y_m = width * half_width_m[:, None]

    # The middle of nose and tail stands forward, and all of it leans back above and below the bumper.
    bow_m = shape.bulge_m * (1 - (y_m / (shape.width_m / 2)) ** 2)
    lean_m = 0.10 * np.clip(np.abs(z_m - shape.clearance_m - 0.25) / 0.45, 0, 1) ** 2
    bent_x_m = x_m[:, None] + (np.sign(x_m) * towards_end**5)[:, None] * (bow_m - lean_m)
    right, left = (np.stack((bent_x_m, side * y_m, z_m), axis=-1) for side in (-1, 1))
    return Loft(x_m, level[0], right, left)


def cut_corners(lines: NDArray) -> NDArray[np.float64]:
    """Chaikin's rounding of lines (corners, ...): each edge is left by its second and third quarter."""
    edges = zip(lines[:-1], lines[1:])
    cut = [share * a + (1 - share) * b for a, b in edges for share in (0.75, 0.25)]
    return np.stack((lines[0], *cut, lines[-1]))


def grid_quads(points: Points) -> Quads:
    """The cells of a grid of points (rows, columns, 3), row by row."""
    corners = (points[:-1, :-1], points[1:, :-1], points[1:, 1:], points[:-1, 1:])
    return np.stack(corners, axis=2).reshape(-1, 4, 3)


def inside_out(quads: Quads) -> Quads:
    return quads[:, ::-1]


def body_part(car: Car, loft: Loft) -> Part:
    """The painted skin with its windows, closed by a wall at the nose and one at the tail."""
    shape = car.shape
    level = (loft.level[:-1] + loft.level[1:])[None] / 2
    x_m = (loft.x_m[:-1] + loft.x_m[1:])[:, None] / 2
    share = 0.5 - x_m / shape.length_m

    windows_end_share = min(shape.deck_share, shape.windows_end_share)
    in_cabin = (share > shape.cowl_share) & (share < windows_end_share)
    tall_enough = outline_m(shape, x_m) - shape.belt_m > 0.13
    on_pillar = np.isclose(share[:, :, None], shape.pillars, rtol=0, atol=0.012).any(axis=2)
    windscreen = (share > shape.cowl_share + 0.01) & (share < shape.roof_front_share - 0.005)
    rear_window = (share > shape.roof_rear_share + 0.01) & (share < shape.deck_share - 0.008)
    is_glass = (level > 3.05) & (level < 3.85) & in_cabin & tall_enough & ~on_pillar
    is_glass |= (level > 4.1) & (windscreen | rear_window)
    is_bed = shape.open_bed & (level > 4.1) & (share > shape.deck_share + 0.01) & (share < 0.975)
    is_trim = car.dark_trim & (level < 0.7)

    across = np.linspace(0, 1, 9)
    tail = between_sides(shape, loft.right[0], loft.left[0], across)
    nose = between_sides(shape, loft.right[-1], loft.left[-1], across)
    wall_is_trim = np.repeat(is_trim.ravel(), len(across) - 1)
    no_glass = np.zeros_like(wall_is_trim)
    skin_is_black = (is_bed | (is_trim & (share > 0))).ravel()

    quads = np.concatenate((
        grid_quads(loft.right), inside_out(grid_quads(loft.left)), grid_quads(tail), inside_out(grid_quads(nose)),
    ))
    glass = np.concatenate((is_glass.ravel(), is_glass.ravel(), no_glass, no_glass))
    black = np.concatenate((skin_is_black, skin_is_black, wall_is_trim, wall_is_trim))
    return part_of([
        (quads[glass], Material((38, 46, 52), gloss=1.0, clear=car.glass_clear)),
        (quads[black], BLACK),
        (quads[~glass & ~black], Material(car.paint, gloss=0.6)),
    ])


def between_sides(shape: Make, right: Points, left: Points, shares: NDArray) -> Points:
    """A grid (n, shares, 3) from right (n, 3) to left (n, 3) across nose or tail, bowed like the loft."""
    points = right[:, None] * (1 - shares[:, None]) + left[:, None] * shares[:, None]
    inset = (right[:, None, 1] ** 2 - points[:, :, 1] ** 2) / (shape.width_m / 2) ** 2
    points[:, :, 0] += np.sign(points[:, :, 0]) * shape.bulge_m * inset
    return points


def underbody_part(shape: Make) -> Part:
    """A dark box between the wheels: what one sees through the arches; below it there is daylight."""
    end = np.array((shape.length_m / 2 - 0.15, 0.0, 0.0))
    top_m = min(shape.nose_m, shape.tail_m) - 0.08  # below the bonnet, above the arches
    middle = np.array((0.0, 0.0, (shape.clearance_m + top_m) / 2))
    box = bar(middle - end, middle + end, shape.width_m - 0.56, top_m - shape.clearance_m)
    return part_of([(box, BLACK)])


# --- patches on the body ----------------------------------------------------------------------------


def patches_part(shape: Make, loft: Loft) -> Part:
    """Lamps, grille, plates, door seams and handles."""
    end_m = shape.length_m / 2
    half_plate = 0.26 / shape.width_m
    doors_m = [x_at(shape, share) for share in (shape.cowl_share + 0.02, *shape.pillars)]
    handles_m = doors_m[1:] or [x_at(shape, 0.60)]
    pieces: list[Piece] = []
    for side in (-1, 1):
        pieces += [(side_patch(loft, side, x - 0.006, x + 0.006, 0.4, 3.0), BLACK) for x in doors_m]
        pieces += [(side_patch(loft, side, x + 0.05, x + 0.24, 2.35, 2.55), CHROME) for x in handles_m]
        pieces.append((side_patch(loft, side, end_m - 0.38, end_m, 1.75, 2.7), LAMP))
        pieces.append((side_patch(loft, side, -end_m, -end_m + 0.28, 1.8, 2.8), TAIL_LAMP))
    for from_share, to_share in ((0.0, 0.2), (0.8, 1.0)):
        pieces.append((end_patch(shape, loft, 1, from_share, to_share, 1.75, 2.7), LAMP))
        pieces.append((end_patch(shape, loft, -1, from_share, to_share, 1.8, 2.8), TAIL_LAMP))
    pieces.append((end_patch(shape, loft, 1, 0.24, 0.76, 1.45, 2.5), GRILLE))
    pieces.append((end_patch(shape, loft, 1, 0.14, 0.86, 0.25, 0.85), GRILLE))
    for end, low in ((1, 0.95), (-1, 1.15)):
        plate = end_patch(shape, loft, end, 0.5 - half_plate, 0.5 + half_plate, low, low + 0.38)
        pieces.append((plate, PLATE))
    return part_of(pieces)


def side_patch(
    loft: Loft, side: int, from_x_m: float, to_x_m: float, low: float, high: float
) -> Quads:
    """A patch on one flank between two places along the car and two levels."""
    x_m, level = np.meshgrid(np.linspace(from_x_m, to_x_m, 7), np.linspace(low, high, 7), indexing="ij")
    quads = grid_quads(loft.at(x_m.ravel(), level.ravel(), side).reshape(7, 7, 3))
    return inside_out(quads) if side == 1 else quads


def end_patch(
    shape: Make, loft: Loft, end: int, from_share: float, to_share: float, low: float, high: float
) -> Quads:
    """A patch on tail (-1) or nose (1) between two shares of the width (0 right) and two levels."""
    x_m, level = np.full(7, end * shape.length_m / 2), np.linspace(low, high, 7)
    shares = np.linspace(from_share, to_share, 7)
    right, left = (loft.at(x_m, level, side) for side in (-1, 1))
    quads = grid_quads(between_sides(shape, right, left, shares))
    return inside_out(quads) if end == 1 else quads


# --- wheels, and what stands off the body -------------------------------------------------------------


def ring(centre: Points, radii_m: tuple[float, float], y_m: tuple[float, float]) -> Quads:
    """A band of 32 quads about a wheel's axle, from one radius and place on the axle to another.

    Equal places give a flat ring, seen from the left when the radius grows; equal radii give a tube,
    seen from outside when the place falls. Both turned round, the band is seen from its other side.
    """
    angles = np.linspace(0, 2 * np.pi, 33)
    circle = np.stack((np.cos(angles), 0 * angles, np.sin(angles)), axis=1)
    edges = [centre + radius * circle + (0, y, 0) for radius, y in zip(radii_m, y_m)]
    return inside_out(grid_quads(np.stack(edges)))


def wheel_part(car: Car, axle_m: float, side: int) -> Part:
    """A wheel with daylight between its spokes, as far as brake and underbody leave it open."""
    radius_m, half_m = car.shape.wheel_radius_m, 0.11
    rim_m, hub_m, shoulder_m = 0.70 * radius_m, 0.16 * radius_m, 0.93 * radius_m
    brake_m = car.brake_share * rim_m
    face_m, edge_m = half_m - 0.025, half_m - 0.02  # places on the axle, from the tyre's middle outwards
    y_m = car.shape.width_m / 2 - half_m - 0.035
    centre = np.array((axle_m, y_m, radius_m))
    rim = DARK_RIM if car.dark_rims else CHROME
    star = spokes(centre, car.shape, 0.8 * hub_m, 0.97 * rim_m, face_m)
    pieces: list[Piece] = [
        (ring(centre, (rim_m, shoulder_m), (half_m, half_m)), RUBBER),
        (ring(centre, (shoulder_m, radius_m), (half_m, edge_m)), RUBBER),
        (ring(centre, (radius_m, radius_m), (edge_m, -half_m)), RUBBER),
        (ring(centre, (radius_m, rim_m), (-half_m, -half_m)), RUBBER),
        (ring(centre, (rim_m, rim_m), (-half_m, half_m)), RIM_INSIDE),
        (ring(centre, (0.93 * rim_m, rim_m), (face_m, half_m)), rim),
        (ring(centre, (0.0, hub_m), (face_m + 0.01, face_m)), rim),
        (ring(centre, (0.0, brake_m), (0.0, 0.0)), BRAKE),
        (ring(centre, (brake_m, 0.0), (-0.01, -0.01)), BRAKE),
        (star, rim),
        (inside_out(star), RIM_INSIDE),
    ]
    if side == -1:  # the mirror image of a left wheel; a mirror also turns the faces inside out
        pieces = [(inside_out(quads * (1, -1, 1)), material) for quads, material in pieces]
    return part_of(pieces, centre * (1, side, 1), np.array((0, side, 0)))


def spokes(centre: Points, shape: Make, from_m: float, to_m: float, y_m: float) -> Quads:
    """Bars from hub to rim, flat on the wheel's face, single or in pairs."""
    angles = np.arange(shape.spokes) * 2 * np.pi / shape.spokes + 0.3
    half_width = 2.2 / shape.spokes  # in radians, at the hub
    if shape.twin_spokes:
        half_width = 1.2 / shape.spokes
        apart = 0.28 * np.pi / shape.spokes
        angles = np.concatenate((angles - apart, angles + apart))
    corners = []
    outer = half_width / 2.5
    for radius_m, turn in ((from_m, -half_width), (from_m, half_width), (to_m, outer), (to_m, -outer)):
        circle = (np.cos(angles + turn), np.full_like(angles, y_m / radius_m), np.sin(angles + turn))
        corners.append(centre + radius_m * np.stack(circle, axis=1))
    return np.stack(corners, axis=1)


def bar(start: Points, end: Points, width_m: float, height_m: float) -> Quads:
    """A box of six faces about the line from start to end; a steep line is as high as the box along x."""
    along = (end - start) / np.linalg.norm(end - start)
    steep = abs(along[2]) > 0.7
    across = np.cross((1.0, 0.0, 0.0) if steep else (0.0, 0.0, 1.0), along)
    across /= np.linalg.norm(across)
    up = np.cross(along, across)
    sides = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    a, b, c, d = (start + s * across * width_m / 2 + t * up * height_m / 2 for s, t in sides)
    e, f, g, h = (corner + end - start for corner in (a, b, c, d))
    faces = ((a, d, c, b), (e, f, g, h), (a, b, f, e), (b, c, g, f), (c, d, h, g), (d, a, e, h))
    return np.array(faces)


def mirror_part(car: Car, loft: Loft, side: int) -> Part:
    """A mirror at the foot of the windscreen, with its arm."""
    x_m = x_at(car.shape, car.shape.cowl_share + 0.05)
    foot = loft.at(np.array([x_m]), np.array([3.0]), side)[0] + (0, 0, 0.03)
    inner, outer = foot + (0, side * 0.06, 0.04), foot + (-0.01, side * 0.20, 0.05)
    arm, head = bar(foot - (0, side * 0.05, 0), inner, 0.05, 0.04), bar(inner, outer, 0.10, 0.15)
    paint = Material(car.paint, gloss=0.5)
    return part_of([(arm, paint), (head, paint)], outer, np.array((0.6, side, 0)))


def rail_part(shape: Make, loft: Loft, side: int) -> Part:
    """A rail along one edge of the roof on three feet; the studio shows below it."""
    shares = np.linspace(shape.roof_front_share + 0.03, shape.roof_rear_share - 0.02, 7)
    feet = loft.at((0.5 - shares) * shape.length_m, np.full(7, 4.1), side)
    tops = feet + (0, 0, 0.085)
    pieces = [(bar(tops[i], tops[i + 1], 0.035, 0.03), RAIL) for i in range(6)]
    pieces += [(bar(feet[i] - (0, 0, 0.02), tops[i], 0.08, 0.035), RAIL) for i in (0, 3, 6)]
    return part_of(pieces, tops[3], np.array((0, side, 0.25)))


def wing_part(car: Car) -> Part:
    """A wing across the tail on two posts."""
    x_m, half_m = -car.shape.length_m / 2 + 0.16, 0.40 * car.shape.width_m
    lid_m = float(outline_m(car.shape, x_m + 0.05))
    paint, half_span = Material(car.paint, gloss=0.5), np.array((0, half_m, 0))
    middle = np.array((x_m, 0, lid_m + 0.16))
    pieces: list[Piece] = [(bar(middle - half_span, middle + half_span, 0.20, 0.03), paint)]
    for y in (-0.6, 0.6):
        post = bar(np.array((x_m + 0.04, y * half_m, lid_m - 0.06)), middle + y * half_span, 0.03, 0.10)
        pieces.append((post, paint))
    return part_of(pieces, middle, np.array((-1, 0, 0)))


def rack_part(shape: Make) -> Part:
    """A hoop of bars behind a pickup's cab."""
    x_m, half_m = x_at(shape, shape.deck_share + 0.03), 0.36 * shape.width_m
    low, high = np.array((x_m, 0, shape.deck_m - 0.03)), np.array((x_m, 0, shape.height_m + 0.03))
    places = np.linspace(-half_m, half_m, 4)[:, None] * (0, 1, 0)
    pieces = [(bar(low + place, high + place, 0.05, 0.05), BLACK) for place in places]
    pieces.append((bar(high + places[0], high + places[-1], 0.05, 0.05), BLACK))
    return part_of(pieces, low, np.array((-1, 0, 0)))


def antenna_part(shape: Make) -> Part:
    """A thin rod on the rear of the roof."""
    x_m = x_at(shape, shape.roof_rear_share - 0.03)
    foot = np.array((x_m, 0, float(outline_m(shape, x_m)) - 0.02))
    tip = foot + (-0.5 * shape.antenna_m, 0, shape.antenna_m)
    return part_of([(bar(foot, tip, 0.014, 0.014), BLACK)], foot, np.array((-1, 0, 0)))
