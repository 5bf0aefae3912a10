"""Invented cars in numbers: what the cars of a make have in common, and how one car differs.

Each make has a body of its own; `car_body` and `car_parts` turn the numbers into a shape.
"""
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Colour = tuple[int, int, int]  # RGB, 0..255

PAINTS: tuple[Colour, ...] = (  # half of them are close to the studio's greys, as on real roads
    (196, 198, 200), (232, 232, 230), (150, 153, 156), (92, 95, 99), (178, 172, 160), (28, 29, 32),
    (140, 20, 26), (28, 52, 110), (52, 84, 130), (66, 40, 34), (34, 74, 52), (190, 120, 30),
)


@dataclass(frozen=True)
class Make:
    """What the cars of a make have in common. `_fraction`: of the car's length, from the nose."""

    length_m: float
    width_m: float
    height_m: float
    wheelbase_m: float
    wheel_radius_m: float
    clearance_m: float  # heights above the floor: of the sills,
    nose_m: float  # of the outline at the nose,
    bonnet_m: float  # where the bonnet meets the windscreen,
    deck_m: float  # where the rear window ends,
    tail_m: float  # and at the very end;
    belt_m: float  # of the side windows' lower edge
    cowl_fraction: float  # where the windscreen begins,
    roof_front_fraction: float  # and ends,
    roof_rear_fraction: float  # where the rear window begins,
    deck_fraction: float  # and ends
    roof_drop_m: float  # how far the roof falls towards its rear
    lean: float  # how fast the cabin narrows, in half widths per metre of height
    end_width: float  # width of nose and tail relative to the greatest width
    bulge_m: float  # how far nose and tail bow outwards
    spokes: int
    pillars: tuple[float, ...]  # fractions at which a post interrupts the side windows
    twin_spokes: bool = False
    windows_end_fraction: float = 1.0  # behind it, panels instead of side windows
    rails: bool = False  # on the roof, with a gap below
    wing: bool = False  # on the tail, with a gap below
    open_bed: bool = False  # a pickup's, with a rack behind the cab
    antenna_m: float = 0.0


MAKES: dict[str, Make] = {
    "Aster": Make(  # saloon
        length_m=4.78, width_m=1.84, height_m=1.44, wheelbase_m=2.80, wheel_radius_m=0.33,
        clearance_m=0.17, nose_m=0.74, bonnet_m=0.97, deck_m=1.04, tail_m=0.90, belt_m=0.93,
        cowl_fraction=0.29, roof_front_fraction=0.43, roof_rear_fraction=0.71, deck_fraction=0.87,
        roof_drop_m=0.05, lean=0.62, end_width=0.80, bulge_m=0.14, spokes=10, pillars=(0.54,),
    ),
    "Birch": Make(  # small hatchback
        length_m=3.95, width_m=1.70, height_m=1.50, wheelbase_m=2.50, wheel_radius_m=0.30,
        clearance_m=0.17, nose_m=0.78, bonnet_m=1.02, deck_m=0.98, tail_m=0.84, belt_m=0.95,
        cowl_fraction=0.25, roof_front_fraction=0.40, roof_rear_fraction=0.87, deck_fraction=0.965,
        roof_drop_m=0.07, lean=0.52, end_width=0.76, bulge_m=0.15, spokes=7, pillars=(0.55, 0.8), antenna_m=0.4,
    ),
    "Corvo": Make(  # coupe with a wing
        length_m=4.52, width_m=1.86, height_m=1.29, wheelbase_m=2.66, wheel_radius_m=0.34,
        clearance_m=0.13, nose_m=0.66, bonnet_m=0.88, deck_m=0.96, tail_m=0.86, belt_m=0.86,
        cowl_fraction=0.35, roof_front_fraction=0.50, roof_rear_fraction=0.66, deck_fraction=0.90,
        roof_drop_m=0.04, lean=0.75, end_width=0.74, bulge_m=0.20, spokes=5, pillars=(0.66,), wing=True,
    ),
    "Dune": Make(  # tall estate car for rough roads
        length_m=4.85, width_m=1.95, height_m=1.80, wheelbase_m=2.85, wheel_radius_m=0.38,
        clearance_m=0.25, nose_m=0.98, bonnet_m=1.18, deck_m=1.22, tail_m=0.98, belt_m=1.12,
        cowl_fraction=0.24, roof_front_fraction=0.37, roof_rear_fraction=0.91, deck_fraction=0.975,
        roof_drop_m=0.06, lean=0.42, end_width=0.84, bulge_m=0.12, spokes=6, pillars=(0.49, 0.72), rails=True,
    ),
    "Ember": Make(  # pickup
        length_m=5.55, width_m=1.98, height_m=1.86, wheelbase_m=3.55, wheel_radius_m=0.39,
        clearance_m=0.28, nose_m=1.02, bonnet_m=1.20, deck_m=1.14, tail_m=1.08, belt_m=1.16,
        cowl_fraction=0.25, roof_front_fraction=0.33, roof_rear_fraction=0.54, deck_fraction=0.585,
        roof_drop_m=0.03, lean=0.42, end_width=0.88, bulge_m=0.08, spokes=6,
        pillars=(0.44,), open_bed=True, antenna_m=0.5,
    ),
    "Fjord": Make(  # estate car
        length_m=4.80, width_m=1.85, height_m=1.48, wheelbase_m=2.80, wheel_radius_m=0.33,
        clearance_m=0.16, nose_m=0.74, bonnet_m=0.98, deck_m=1.02, tail_m=0.88, belt_m=0.94,
        cowl_fraction=0.27, roof_front_fraction=0.41, roof_rear_fraction=0.90, deck_fraction=0.97,
        roof_drop_m=0.10, lean=0.55, end_width=0.80, bulge_m=0.14, spokes=8,
        twin_spokes=True, pillars=(0.5, 0.7), rails=True,
    ),
    "Gale": Make(  # delivery van
        length_m=4.95, width_m=1.93, height_m=1.98, wheelbase_m=3.05, wheel_radius_m=0.34,
        clearance_m=0.20, nose_m=0.92, bonnet_m=1.22, deck_m=1.30, tail_m=0.70, belt_m=1.10,
        cowl_fraction=0.16, roof_front_fraction=0.30, roof_rear_fraction=0.965, deck_fraction=0.985,
        roof_drop_m=0.02, lean=0.24, end_width=0.90, bulge_m=0.08, spokes=12,
        pillars=(0.33,), windows_end_fraction=0.46,
    ),
    "Hazel": Make(  # small upright town car
        length_m=3.70, width_m=1.68, height_m=1.42, wheelbase_m=2.47, wheel_radius_m=0.31,
        clearance_m=0.15, nose_m=0.80, bonnet_m=0.98, deck_m=0.98, tail_m=0.82, belt_m=0.94,
        cowl_fraction=0.27, roof_front_fraction=0.35, roof_rear_fraction=0.88, deck_fraction=0.95,
        roof_drop_m=0.03, lean=0.40, end_width=0.80, bulge_m=0.12, spokes=8,
        twin_spokes=True, pillars=(0.58,), antenna_m=0.35,
    ),
    "Iris": Make(  # fastback saloon
        length_m=4.92, width_m=1.90, height_m=1.40, wheelbase_m=2.92, wheel_radius_m=0.35,
        clearance_m=0.14, nose_m=0.68, bonnet_m=0.92, deck_m=1.04, tail_m=0.92, belt_m=0.90,
        cowl_fraction=0.28, roof_front_fraction=0.44, roof_rear_fraction=0.64, deck_fraction=0.95,
        roof_drop_m=0.05, lean=0.66, end_width=0.76, bulge_m=0.18, spokes=5, twin_spokes=True, pillars=(0.55,),
    ),
    "Juno": Make(  # crossover
        length_m=4.42, width_m=1.84, height_m=1.64, wheelbase_m=2.66, wheel_radius_m=0.35,
        clearance_m=0.20, nose_m=0.88, bonnet_m=1.08, deck_m=1.12, tail_m=0.90, belt_m=1.04,
        cowl_fraction=0.25, roof_front_fraction=0.40, roof_rear_fraction=0.84, deck_fraction=0.96,
        roof_drop_m=0.12, lean=0.52, end_width=0.78, bulge_m=0.16, spokes=5,
        pillars=(0.52, 0.74), rails=True, antenna_m=0.2,
    ),
    "Kestrel": Make(  # low two-seater
        length_m=4.05, width_m=1.74, height_m=1.24, wheelbase_m=2.35, wheel_radius_m=0.32,
        clearance_m=0.13, nose_m=0.62, bonnet_m=0.86, deck_m=0.92, tail_m=0.80, belt_m=0.84,
        cowl_fraction=0.38, roof_front_fraction=0.50, roof_rear_fraction=0.63, deck_fraction=0.74,
        roof_drop_m=0.03, lean=0.70, end_width=0.70, bulge_m=0.20, spokes=7, pillars=(), wing=True, antenna_m=0.3,
    ),
    "Lark": Make(  # people carrier
        length_m=4.68, width_m=1.86, height_m=1.72, wheelbase_m=2.88, wheel_radius_m=0.33,
        clearance_m=0.17, nose_m=0.80, bonnet_m=1.06, deck_m=1.10, tail_m=0.86, belt_m=1.00,
        cowl_fraction=0.17, roof_front_fraction=0.38, roof_rear_fraction=0.90, deck_fraction=0.97,
        roof_drop_m=0.08, lean=0.40, end_width=0.78, bulge_m=0.16, spokes=9, pillars=(0.3, 0.52, 0.74),
    ),
}

SPREADS = {  # by how much a number of a make differs from car to car at most, as a fraction of it
    "length_m": 0.03, "width_m": 0.015, "height_m": 0.02, "wheel_radius_m": 0.04, "clearance_m": 0.10,
    "roof_front_fraction": 0.03, "roof_rear_fraction": 0.01,
}  # fmt: skip
LIFTED = ("nose_m", "bonnet_m", "deck_m", "belt_m")  # heights that differ from car to car together


@dataclass(frozen=True)
class Car:
    """One car: its make's numbers slightly varied, its paint, and the seed of its studio."""

    make: str
    shape: Make
    paint: Colour
    dark_trim: bool  # bumpers and sills of black plastic
    dark_rims: bool
    brake_fraction: float  # the brake's radius relative to the rim's: the rest is daylight
    glass_clear: float  # 0..1: how much of the studio shines through the windows
    studio_seed: int


def make_car(make: str, car_seed: int) -> Car:
    """Return a random car of a make in `MAKES`: the same name and seed give the same car."""
    rng = np.random.default_rng([car_seed, list(MAKES).index(make)])
    typical = MAKES[make]
    lift_m = rng.uniform(-0.03, 0.03)  # of the whole lower outline

    def near(value: float, spread: float) -> float:
        return float(value * (1 + spread * rng.uniform(-1, 1)))

    # The order of the arguments is that of the random draws.
    varied: dict[str, Any] = {name: near(getattr(typical, name), spread) for name, spread in SPREADS.items()}
    lifted: dict[str, Any] = {name: getattr(typical, name) + lift_m for name in LIFTED}
    shape = replace(
        typical, **varied, **lifted, spokes=typical.spokes + int(rng.integers(2)),
        rails=typical.rails and rng.random() < 0.8, wing=typical.wing and rng.random() < 0.8,
    )  # fmt: skip
    red, green, blue = np.clip(PAINTS[rng.integers(len(PAINTS))] + rng.integers(-10, 11, 3), 8, 240)
    return Car(
        make, shape, paint=(int(red), int(green), int(blue)),
        dark_trim=bool(rng.random() < 0.35), dark_rims=bool(rng.random() < 0.25),
        brake_fraction=0.60 if rng.random() < 0.35 else 0.97, glass_clear=float(rng.uniform(0.0, 0.35)),
        studio_seed=int(rng.integers(2**31)),
    )  # fmt: skip
