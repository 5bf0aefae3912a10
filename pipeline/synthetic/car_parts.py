"""A whole car: the numbers of `car_makes` -> quadrilaterals in space, part by part."""
from dataclasses import dataclass

import numpy as np

from pipeline.synthetic.car_body import ARCH_FRACTION, Loft, body_part, make_loft, outline_m, patches_part, x_at
from pipeline.synthetic.car_makes import Car, Make
from pipeline.synthetic.solids import (
    BLACK, CHROME, Material, Part, Piece, Points, Quads, bar, flip_faces, make_part, ring
)  # fmt: skip

RUBBER = Material((30, 30, 32), gloss=0.08)
BRAKE = Material((64, 62, 60), gloss=0.2)
RIM_INSIDE = Material((70, 70, 72), gloss=0.1)
DARK_RIM = Material((58, 59, 62), gloss=0.6)
RAIL = Material((120, 122, 125), gloss=0.4)


@dataclass(frozen=True, eq=False)
class Parts:
    """A whole car; `patches` lie on the body, `extras` stand off it."""

    wheels: list[Part]
    underbody: Part
    body: Part
    patches: Part
    extras: list[Part]


def build_parts(car: Car) -> Parts:
    """Build the car in space, to be drawn from any side."""
    shape, loft = car.shape, make_loft(car.shape)
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
    wheels = [wheel_part(car, axle_m, side) for axle_m in axles_m for side in (-1, 1)]
    return Parts(wheels, underbody_part(shape), body_part(car, loft), patches_part(shape, loft), extras)


def underbody_part(shape: Make) -> Part:
    """Build what is dark behind the arches: a box between the wheels and the upper half of each arch.

    Below the box there is daylight, also through the spokes of the wheels.
    """
    end = np.array((shape.length_m / 2 - 0.10, 0.0, 0.0))
    bottom_m, top_m = shape.clearance_m + 0.02, min(shape.nose_m, shape.tail_m) - 0.08
    middle = np.array((0.0, 0.0, (bottom_m + top_m) / 2))
    pieces = [(bar(middle - end, middle + end, shape.width_m - 0.60, top_m - bottom_m), BLACK)]
    radius_m = shape.wheel_radius_m
    for axle_m in (-shape.wheelbase_m / 2, shape.wheelbase_m / 2):
        centre = np.array((axle_m, 0.465 * shape.width_m, radius_m))
        disc = ring(centre, (0.0, ARCH_FRACTION * radius_m + 0.03), (0.0, 0.0))
        upper = disc[disc[:, :, 2].min(axis=1) > radius_m - 0.01]
        pieces += [(upper, BLACK), (flip_faces(upper * (1, -1, 1)), BLACK)]
    return make_part(pieces)


def wheel_part(car: Car, axle_m: float, side: int) -> Part:
    """Build a wheel with daylight between its spokes, where brake and underbody leave it open."""
    radius_m, half_m = car.shape.wheel_radius_m, 0.11
    rim_m, hub_m, shoulder_m = 0.70 * radius_m, 0.16 * radius_m, 0.93 * radius_m
    brake_m = car.brake_fraction * rim_m
    face_m, edge_m = half_m - 0.025, half_m - 0.02  # positions along the axle, from the tyre's centre
    centre = np.array((axle_m, car.shape.width_m / 2 - half_m - 0.035, radius_m))
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
        (flip_faces(star), RIM_INSIDE),
    ]
    if side == -1:  # the mirror image of a left wheel; mirroring also turns the faces inside out
        pieces = [(flip_faces(quads * (1, -1, 1)), material) for quads, material in pieces]
    return make_part(pieces, centre * (1, side, 1), np.array((0, side, 0)))


def spokes(centre: Points, shape: Make, from_m: float, to_m: float, y_m: float) -> Quads:
    """Return bars from hub to rim, flat on the wheel's face, single or in pairs."""
    angles = np.arange(shape.spokes) * 2 * np.pi / shape.spokes + 0.3
    half_width = 2.2 / shape.spokes  # in radians, at the hub
    if shape.twin_spokes:
        half_width, spread = 1.2 / shape.spokes, 0.28 * np.pi / shape.spokes
        angles = np.concatenate((angles - spread, angles + spread))
    outer = half_width / 2.5
    corners = []
    for radius_m, turn in ((from_m, -half_width), (from_m, half_width), (to_m, outer), (to_m, -outer)):
        x_m, z_m = radius_m * np.cos(angles + turn), radius_m * np.sin(angles + turn)
        corners.append(centre + np.stack((x_m, np.full_like(x_m, y_m), z_m), axis=1))
    return np.stack(corners, axis=1)


def mirror_part(car: Car, loft: Loft, side: int) -> Part:
    """Build a mirror at the foot of the windscreen, with its arm."""
    x_m = x_at(car.shape, car.shape.cowl_fraction + 0.05)
    foot = loft.at(np.array([x_m]), np.array([3.0]), side)[0] + (0, 0, 0.03)
    inner, outer = foot + (0, side * 0.06, 0.04), foot + (-0.01, side * 0.20, 0.05)
    arm, head = bar(foot - (0, side * 0.05, 0), inner, 0.05, 0.04), bar(inner, outer, 0.10, 0.15)
    paint = Material(car.paint, gloss=0.5)
    return make_part([(arm, paint), (head, paint)], outer, np.array((0.6, side, 0)))


def rail_part(shape: Make, loft: Loft, side: int) -> Part:
    """Build a rail along one edge of the roof on three feet; the studio shows below it."""
    fractions = np.linspace(shape.roof_front_fraction + 0.03, shape.roof_rear_fraction - 0.02, 7)
    feet = loft.at((0.5 - fractions) * shape.length_m, np.full(7, 4.1), side)
    tops = feet + (0, 0, 0.085)
    pieces = [(bar(tops[i], tops[i + 1], 0.035, 0.03), RAIL) for i in range(6)]
    pieces += [(bar(feet[i] - (0, 0, 0.02), tops[i], 0.08, 0.035), RAIL) for i in (0, 3, 6)]
    return make_part(pieces, tops[3], np.array((0, side, 0.25)))


def wing_part(car: Car) -> Part:
    """Build a wing across the tail on two posts."""
    x_m, half_m = -car.shape.length_m / 2 + 0.16, 0.40 * car.shape.width_m
    lid_m = float(outline_m(car.shape, x_m + 0.05))
    paint, half_span = Material(car.paint, gloss=0.5), np.array((0, half_m, 0))
    middle = np.array((x_m, 0, lid_m + 0.16))
    pieces: list[Piece] = [(bar(middle - half_span, middle + half_span, 0.20, 0.03), paint)]
    for y in (-0.6, 0.6):
        foot = np.array((x_m + 0.04, y * half_m, lid_m - 0.06))
        pieces.append((bar(foot, middle + y * half_span, 0.03, 0.10), paint))
    return make_part(pieces, middle, np.array((-1, 0, 0)))


def rack_part(shape: Make) -> Part:
    """Build a hoop of bars behind a pickup's cab."""
    x_m, half_m = x_at(shape, shape.deck_fraction + 0.03), 0.36 * shape.width_m
    low, high = np.array((x_m, 0, shape.deck_m - 0.03)), np.array((x_m, 0, shape.height_m + 0.03))
    offsets = np.linspace(-half_m, half_m, 4)[:, None] * (0, 1, 0)
    pieces = [(bar(low + offset, high + offset, 0.05, 0.05), BLACK) for offset in offsets]
    pieces.append((bar(high + offsets[0], high + offsets[-1], 0.05, 0.05), BLACK))
    return make_part(pieces, low, np.array((-1, 0, 0)))


def antenna_part(shape: Make) -> Part:
    """Build a thin rod on the rear of the roof."""
    x_m = x_at(shape, shape.roof_rear_fraction - 0.03)
    foot = np.array((x_m, 0, float(outline_m(shape, x_m)) - 0.02))
    tip = foot + (-0.5 * shape.antenna_m, 0, shape.antenna_m)
    return make_part([(bar(foot, tip, 0.014, 0.014), BLACK)], foot, np.array((-1, 0, 0)))
