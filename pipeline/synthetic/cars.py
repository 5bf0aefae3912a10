"""Synthetic images of cars, with exact masks.

Numbers that describe a car (`car_makes`) -> quadrilaterals in space (`car_parts`) -> polygons as a camera sees them ->
image and mask. Both come from one drawing at twice the size, whose fourth channel marks the car: averaged over 2x2
samples it gives the image its soft edges, and the mask is where the car covers at least half of a pixel. Windows belong
to the car; daylight between spokes or under a roof rail does not, nor do the shadow and the reflection on the floor.

The same car and angle give the same pixels. Nothing is read or written here.
"""
from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline import carvana
from pipeline.synthetic.car_makes import Car
from pipeline.synthetic.car_parts import Parts, build_parts
from pipeline.synthetic.solids import Part, Points

SUPERSAMPLING = 2
SUBPIXEL_BITS = 4  # OpenCV takes the corners of polygons in 1/16 pixel
SOFT_SCALE = 8  # wall, floor and shadow have no edges: they are painted at 1/8 and upsampled
SOFT_ROWS = carvana.HEIGHT_PX // SOFT_SCALE
SOFT_COLUMNS = -(-carvana.WIDTH_PX // SOFT_SCALE)  # rounded up: 1918 is not a multiple of 8
GREY_MEAN, GREY_STD = 172.0, 22.0  # of the studio from car to car, as in Kaggle's images
LIGHT = np.array((0.35, -0.30, 0.89))  # direction to the lamp, in the studio's axes
# What a face reflects, by the height of the reflected ray: dark floor, horizon, bright wall, soft boxes.
REFLECTED_HEIGHT = (-1.0, -0.25, -0.02, 0.04, 0.35, 0.55, 0.75, 1.0)
REFLECTED_GREY = (60, 95, 120, 170, 185, 250, 250, 200)


@dataclass(frozen=True, eq=False)
class Studio:
    """The surroundings of a car and the camera's place; the same for the car's 16 angles."""

    rgb: NDArray[np.float64]  # (3,), 0..255, of the wall
    floor_fraction: float  # the floor's brightness relative to the wall's
    wall_m: float  # from the turntable's centre to the corner of wall and floor
    turntable_m: float  # radius
    stripes: NDArray[np.float64]  # (stripes, 3): position and width 0..1 across the wall, strength
    camera_m: float  # from the turntable's centre
    camera_height_m: float
    focal_px: float
    middle_px: float  # column of the turntable's centre
    horizon_px: float  # row


@dataclass(frozen=True, eq=False)
class Camera:
    """A level camera before a turntable that has turned by `turn_rad`; at 0 the car's nose faces it.

    The studio's axes: x towards the camera, y to the right in the image, z up.
    """

    studio: Studio
    turn_rad: float

    @property
    def eye(self) -> Points:
        return np.array((self.studio.camera_m, 0.0, self.studio.camera_height_m))

    def to_studio(self, points: Points) -> Points:
        """Rotate points or directions (..., 3) from the car's axes to the studio's."""
        cos, sin = np.cos(self.turn_rad), np.sin(self.turn_rad)
        return points @ np.array(((cos, sin, 0), (-sin, cos, 0), (0, 0, 1)))

    def project(self, points: Points) -> NDArray[np.float64]:
        """Project points (..., 3) in the studio's axes to column and row (..., 2); (0, 0) is the image's corner."""
        px_per_m = self.studio.focal_px / (self.studio.camera_m - points[..., 0])
        column = self.studio.middle_px + px_per_m * points[..., 1]
        row = self.studio.horizon_px + px_per_m * (self.studio.camera_height_m - points[..., 2])
        return np.stack((column, row), axis=-1)


def draw_car(
    car: Car, angles: Iterable[int] = range(1, carvana.ANGLES + 1)
) -> list[tuple[NDArray[np.uint8], NDArray[np.bool_]]]:
    """Return image, RGB uint8 (1280, 1918, 3), and mask, bool (1280, 1918), of each angle, 1 to 16."""
    parts, studio = build_parts(car), make_studio(car)
    return [draw(car, parts, studio, angle) for angle in angles]


def draw(car: Car, parts: Parts, studio: Studio, angle: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    camera = Camera(studio, turn_rad=np.deg2rad((angle - 1) * 360 / carvana.ANGLES))
    image = draw_studio(camera)
    darken_floor(image, car, camera)

    layers = [flatten(part, camera) for part in sort_back_to_front(parts, camera)]
    polygons_px = np.concatenate([polygons for polygons, _ in layers])
    colours = np.concatenate([colours for _, colours in layers])
    rows, columns = bounding_box(polygons_px)
    mask = np.zeros(image.shape[:2], dtype=bool)
    corner_px = (columns.start, rows.start)
    image[rows, columns], mask[rows, columns] = paint(image[rows, columns], polygons_px - corner_px, colours)
    cv2.GaussianBlur(image, (3, 3), 0.55, dst=image)  # no lens is as sharp as a polygon
    add_noise(image, np.random.default_rng([car.studio_seed, angle]))
    return image, mask


# --- the studio -----------------------------------------------------------------------------------


def make_studio(car: Car) -> Studio:
    """Return a random studio for this car; the lens is chosen so that the car fills the image."""
    rng, shape = np.random.default_rng(car.studio_seed), car.shape
    grey = np.clip(rng.normal(GREY_MEAN, GREY_STD), 110, 228)
    camera_m = 3.0 + 0.5 * shape.length_m + rng.uniform(-0.2, 0.2)
    camera_height_m = rng.uniform(1.35, 1.65)
    side_width_px = rng.uniform(1440, 1590)  # width of the car seen from its side
    focal_px = side_width_px / shape.length_m * (camera_m - shape.width_m / 2)
    car_middle_px = 0.54 * carvana.HEIGHT_PX + rng.uniform(-25, 25)  # row of half the car's height
    return Studio(
        rgb=grey * (1 + rng.uniform(-0.02, 0.02, size=3)), floor_fraction=rng.uniform(0.82, 1.04),
        wall_m=rng.uniform(3.5, 6.0), turntable_m=shape.length_m / 2 + rng.uniform(0.15, 0.5),
        stripes=rng.uniform((0, 0.01, -0.05), (1, 0.08, 0.05), size=(rng.integers(2, 7), 3)),
        camera_m=camera_m, camera_height_m=camera_height_m, focal_px=focal_px,
        middle_px=carvana.WIDTH_PX / 2 + rng.uniform(-30, 30),
        horizon_px=car_middle_px - focal_px / camera_m * (camera_height_m - shape.height_m / 2),
    )  # fmt: skip


def upsample(small: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Upsample (SOFT_ROWS, SOFT_COLUMNS, ...) to (1280, 1918, ...)."""
    large = cv2.resize(small, None, fx=SOFT_SCALE, fy=SOFT_SCALE, interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(large[:, :carvana.WIDTH_PX])


def draw_studio(camera: Camera) -> NDArray[np.uint8]:
    """Draw wall, floor and the turntable's edge, RGB uint8 (1280, 1918, 3)."""
    studio = camera.studio
    row = ((np.arange(SOFT_ROWS) + 0.5) / SOFT_ROWS)[:, None]  # 0 at the top, 1 at the bottom
    column = ((np.arange(SOFT_COLUMNS) + 0.5) / SOFT_COLUMNS)[None]
    wall = 1.03 - 0.10 * (1 - row) ** 2 - 0.12 * (column - 0.5) ** 2
    for position, width, strength in studio.stripes:
        wall = wall + strength * np.exp(-(((column - position) / width) ** 2))
    floor = studio.floor_fraction * (1.05 - 0.28 * (row - 0.75) ** 2 - 0.35 * (column - 0.5) ** 2)
    corner_px = camera.project(np.array((-studio.wall_m, 0.0, 0.0)))[1]
    on_floor = 1 / (1 + np.exp(-45 * (row - corner_px / carvana.HEIGHT_PX)))  # a rounded corner
    light = wall * (1 - on_floor) + floor * on_floor
    image = upsample(np.clip(light[:, :, None] * studio.rgb, 0, 255).astype(np.uint8))

    angles = np.linspace(0, 2 * np.pi, 97)
    circle = np.stack((np.cos(angles), np.sin(angles), 0 * angles), axis=1)
    edge = subpixels(camera.project(studio.turntable_m * circle))
    colour = tuple(0.80 * studio.floor_fraction * studio.rgb)
    cv2.polylines(image, [edge], True, colour, 3, cv2.LINE_AA, SUBPIXEL_BITS)
    return image


def darken_floor(image: NDArray[np.uint8], car: Car, camera: Camera) -> None:
    """Darken the floor by the car's shadow and a faint reflection, in place."""
    half = np.array((car.shape.length_m / 2, car.shape.width_m / 2, 1.0))
    footprint = half * ((1, 1, 0), (1, -1, 0), (-1, -1, 0), (-1, 1, 0))

    def hull(corners: Points) -> NDArray[np.int32]:
        seen_px = camera.project(camera.to_studio(corners)) / SOFT_SCALE
        return subpixels(cv2.convexHull(seen_px.astype(np.float32)))

    shadow, mirror = (np.zeros((SOFT_ROWS, SOFT_COLUMNS), np.uint8) for _ in range(2))
    for grown, depth in ((1.10, 45), (0.98, 110)):  # of 255
        cv2.fillConvexPoly(shadow, hull(grown * footprint), depth, cv2.LINE_AA, SUBPIXEL_BITS)
    below_floor = np.concatenate((footprint, footprint - (0, 0, 0.7))) * (0.92, 0.92, 1)
    cv2.fillConvexPoly(mirror, hull(below_floor), 26, cv2.LINE_AA, SUBPIXEL_BITS)
    dark = np.maximum(cv2.GaussianBlur(shadow, (0, 0), 3), cv2.GaussianBlur(mirror, (0, 0), 4))

    floor = slice(carvana.HEIGHT_PX // 3, None)  # no shadow is higher
    light = cv2.cvtColor(upsample(255 - dark)[floor], cv2.COLOR_GRAY2RGB)
    image[floor] = cv2.multiply(image[floor], light, scale=1 / 255)


def add_noise(image: NDArray[np.uint8], rng: np.random.Generator) -> None:
    """Add grain of one grey level up or down, the same in the three channels, in place."""
    rows, columns = image.shape[:2]
    for add_or_subtract in (cv2.add, cv2.subtract):
        grain = np.frombuffer(rng.bytes(rows * columns), np.uint8).reshape(rows, columns) & 1
        add_or_subtract(image, cv2.cvtColor(grain, cv2.COLOR_GRAY2RGB), dst=image)


# --- the car --------------------------------------------------------------------------------------


def sort_back_to_front(parts: Parts, camera: Camera) -> list[Part]:
    """Sort parts from back to front; parts that face away from the camera are behind the body."""

    def distance_m(part: Part) -> float:
        return float(np.linalg.norm(camera.eye - camera.to_studio(part.centre)))

    def is_near(part: Part) -> bool:
        to_camera = camera.eye - camera.to_studio(part.centre)
        return bool(camera.to_studio(part.outward) @ to_camera > 0)

    wheels, extras = (sorted(each, key=distance_m, reverse=True) for each in (parts.wheels, parts.extras))
    return [
        *(wheel for wheel in wheels if not is_near(wheel)),
        *(extra for extra in extras if not is_near(extra)),
        parts.underbody,
        *(wheel for wheel in wheels if is_near(wheel)),  # they stand in the body's arches
        parts.body, parts.patches,
        *(extra for extra in extras if is_near(extra)),
    ]


def flatten(part: Part, camera: Camera) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Return the faces of a part that face the camera, the farthest first.

    They are polygons (n, 4, 2) in pixels and their colours (n, 3) as lit in the studio.
    """
    quads = camera.to_studio(part.quads)
    normals = np.cross(quads[:, 2] - quads[:, 0], quads[:, 3] - quads[:, 1])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12
    rays = quads.mean(axis=1) - camera.eye
    distance_m = np.linalg.norm(rays, axis=1)
    rays /= distance_m[:, None]
    facing = -np.sum(normals * rays, axis=1)  # 1: faces the camera, 0: is seen edge-on
    visible = np.flatnonzero(facing > 0)
    visible = visible[np.argsort(-distance_m[visible], kind="stable")]
    normals, rays, facing = normals[visible], rays[visible], facing[visible, None]

    studio_rgb, clear = camera.studio.rgb, part.clear[visible, None]
    colours = part.colours[visible] * (1 - clear) + studio_rgb * clear
    light = 0.42 + 0.46 * np.clip(normals @ LIGHT, 0, 1) + 0.08 * normals[:, 2]
    lit = colours * light[:, None] * (studio_rgb.mean() / 255 + 0.30)

    reflected_z = rays[:, 2] + 2 * facing[:, 0] * normals[:, 2]
    reflected = np.interp(reflected_z, REFLECTED_HEIGHT, REFLECTED_GREY)[:, None]
    mirror_fraction = part.gloss[visible, None] * (0.16 + 0.45 * (1 - facing) ** 3)
    shaded = lit * (1 - mirror_fraction) + reflected * mirror_fraction
    return camera.project(quads[visible]), np.clip(shaded, 0, 255).astype(np.uint8)


def subpixels(points_px: NDArray) -> NDArray[np.int32]:
    """Convert pixels, counted from a pixel's corner, to OpenCV's units, counted from a pixel's centre."""
    return np.round((points_px - 0.5) * 2**SUBPIXEL_BITS).astype(np.int32)


def bounding_box(polygons_px: NDArray) -> tuple[slice, slice]:
    """Return rows and columns of the image that the polygons can touch."""
    left, top = np.floor(polygons_px.min(axis=(0, 1))).astype(int) - 2
    right, bottom = np.ceil(polygons_px.max(axis=(0, 1))).astype(int) + 3
    rows = slice(max(top, 0), min(bottom, carvana.HEIGHT_PX))
    return rows, slice(max(left, 0), min(right, carvana.WIDTH_PX))


def paint(
    background: NDArray[np.uint8], polygons_px: NDArray, colours: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Paint polygons over a background (rows, columns, 3), in order; return image and mask of that size."""
    rows, columns = background.shape[:2]
    canvas = cv2.cvtColor(background, cv2.COLOR_RGB2RGBA)
    canvas[:, :, 3] = 0  # not car
    canvas = cv2.resize(canvas, (columns * SUPERSAMPLING, rows * SUPERSAMPLING), interpolation=cv2.INTER_NEAREST)
    for polygon, colour in zip(subpixels(polygons_px * SUPERSAMPLING), colours.tolist()):
        cv2.fillConvexPoly(canvas, polygon, (*colour, 255), cv2.LINE_8, SUBPIXEL_BITS)
    canvas = cv2.resize(canvas, (columns, rows), interpolation=cv2.INTER_AREA)
    mask = canvas[:, :, 3] >= 128  # 2 of 4 samples average to 128
    return canvas[:, :, :3].astype(np.uint8, copy=False), mask
