"""Pictures of cars that nobody photographed, with masks that are exactly theirs.

Numbers of a shape -> quadrilaterals in space (`synthetic_car`) -> polygons as a camera sees them
-> picture and mask. Both come out of one drawing at twice the size, with a fourth channel that says
"car": averaged over 2x2 it gives the picture its soft edges, and the mask is where the car covers at
least half of a pixel. Windows are car, daylight between spokes or under a roof rail is not; shadow
and mirror image on the floor are not either.

The same car and view give the same pixels. Nothing is read or written here.
"""
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline import carvana
from pipeline.data.synthetic_car import Part, Parts, parts_of
from pipeline.data.synthetic_makes import MAKES, Car, Make, make_car

__all__ = ["MAKES", "Car", "Make", "draw_car", "draw_view", "make_car"]

SUPERSAMPLING = 2  # the mask's "at least half" is exact for the four samples that fall into a pixel
SUBPIXEL_BITS = 4  # OpenCV takes corners of polygons in 1/16 of a pixel
BACKGROUND_SCALE = 8  # the studio is soft: it is painted small and enlarged
GREY_MEAN, GREY_STD = 172.0, 22.0  # of the studio's level, from car to car as in Kaggle's pictures
LIGHT = np.array((0.35, -0.30, 0.89))  # direction to the lamp, in the studio's axes


@dataclass(frozen=True)
class Studio:
    """Where a car stands and who looks at it; the same for a car's 16 views."""

    grey: float  # 0..255, the wall
    tint: NDArray[np.float64]  # (3,), multiplies grey into RGB
    floor_shade: float  # the floor's brightness as a share of the wall's
    wall_m: float  # distance from the turntable to where wall and floor meet
    turntable_m: float
    stripes: NDArray[np.float64]  # (stripes, 3): place 0..1 across the wall, width, strength
    camera_m: float  # distance from the turntable's middle
    camera_height_m: float
    focal_px: float
    centre_x_px: float
    centre_y_px: float  # row of the horizon


@dataclass(frozen=True)
class Camera:
    """Looks level at the turntable, which has turned by `turn_rad`; the car's nose faces it at 0."""

    studio: Studio
    turn_rad: float

    def turned(self, points: NDArray) -> NDArray[np.float64]:
        """Points or directions (..., 3) of the car -> the studio's axes: x towards the camera, y right."""
        cos, sin = np.cos(self.turn_rad), np.sin(self.turn_rad)
        turn = np.array(((cos, -sin, 0), (sin, cos, 0), (0, 0, 1)))
        return points @ turn.T

    @property
    def eye(self) -> NDArray[np.float64]:
        """The camera's place in the studio's axes, (3,)."""
        return np.array((self.studio.camera_m, 0.0, self.studio.camera_height_m))

    def seen(self, points: NDArray) -> NDArray[np.float64]:
        """Points (..., 3) in the studio's axes -> pixels (..., 2), column and row of pixel corners."""
        ahead_m = self.studio.camera_m - points[..., 0]
        scale = self.studio.focal_px / ahead_m
        column = self.studio.centre_x_px + scale * points[..., 1]
        row = self.studio.centre_y_px + scale * (self.studio.camera_height_m - points[..., 2])
        return np.stack((column, row), axis=-1)


def draw_view(car: Car, view: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Picture, RGB uint8 (1280, 1918, 3), and mask, bool (1280, 1918), of view 1 to 16."""
    return _draw(car, parts_of(car), studio_of(car), view)


def draw_car(car: Car) -> list[tuple[NDArray[np.uint8], NDArray[np.bool_]]]:
    """All 16 views, as `draw_view` gives them."""
    parts, studio = parts_of(car), studio_of(car)
    return [_draw(car, parts, studio, view) for view in range(1, carvana.VIEWS + 1)]


def studio_of(car: Car) -> Studio:
    """The studio on the day when this car came."""
    rng = np.random.default_rng(car.studio_seed)
    camera_m = 3.0 + 0.5 * car.shape.length_m + rng.uniform(-0.2, 0.2)
    side_view_px = rng.uniform(1400, 1560)  # how wide the car seen from the side shall be
    focal_px = side_view_px * (camera_m - car.shape.width_m / 2) / car.shape.length_m
    camera_height_m = rng.uniform(1.35, 1.65)
    middle_row_px = 0.54 * carvana.HEIGHT_PX + rng.uniform(-25, 25)
    return Studio(
        grey=float(np.clip(rng.normal(GREY_MEAN, GREY_STD), 110, 228)),
        tint=1 + rng.uniform(-0.02, 0.02, size=3),
        floor_shade=rng.uniform(0.82, 1.04),
        wall_m=rng.uniform(3.5, 6.0),
        turntable_m=car.shape.length_m / 2 + rng.uniform(0.15, 0.5),
        stripes=rng.uniform((0, 0.01, -0.05), (1, 0.08, 0.05), size=(rng.integers(2, 7), 3)),
        camera_m=camera_m,
        camera_height_m=camera_height_m,
        focal_px=focal_px,
        centre_x_px=carvana.WIDTH_PX / 2 + rng.uniform(-30, 30),
        centre_y_px=middle_row_px - focal_px / camera_m * (camera_height_m - car.shape.height_m / 2),
    )


def _draw(
    car: Car, parts: Parts, studio: Studio, view: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    camera = Camera(studio, turn_rad=np.deg2rad((view - 1) * 360 / carvana.VIEWS))
    rng = np.random.default_rng([car.studio_seed, view])
    picture = empty_studio(camera)
    darken_floor(picture, car, camera)

    layers = [flatten(part, camera) for part in in_drawing_order(parts, camera)]
    polygons_px = np.concatenate([layer.polygons_px for layer in layers])
    colours = np.concatenate([layer.colours for layer in layers])
    box = box_around(polygons_px)
    mask = np.zeros(picture.shape[:2], dtype=bool)
    picture[box], mask[box] = paint(picture[box], polygons_px - (box[1].start, box[0].start), colours)

    cv2.GaussianBlur(picture, (3, 3), 0.55, dst=picture)  # no lens is as sharp as a polygon
    add_noise(picture, rng)
    return picture, mask


# --- the studio -------------------------------------------------------------------------------------


def empty_studio(camera: Camera) -> NDArray[np.uint8]:
    """Wall, floor and the turntable's edge, RGB uint8 (1280, 1918, 3)."""
    studio = camera.studio
    rows = (np.arange(carvana.HEIGHT_PX // BACKGROUND_SCALE) + 0.5)[:, None] / 160
    columns = (np.arange(-(-carvana.WIDTH_PX // BACKGROUND_SCALE)) + 0.5)[None] / 240
    corner_px = studio.centre_y_px + studio.focal_px * studio.camera_height_m / (studio.camera_m + studio.wall_m)
    on_floor = 1 / (1 + np.exp(-(rows - corner_px / carvana.HEIGHT_PX) * 45))  # a rounded corner
    wall = 1.03 - 0.10 * (1 - rows) ** 2 - 0.12 * (columns - 0.5) ** 2 + 0 * rows
    for place, width, strength in studio.stripes:
        wall = wall + strength * np.exp(-(((columns - place) / width) ** 2))
    floor = studio.floor_shade * (1.05 - 0.28 * (rows - 0.75) ** 2 - 0.35 * (columns - 0.5) ** 2)
    light = (wall * (1 - on_floor) + floor * on_floor)[:, :, None] * studio.grey * studio.tint
    small = np.clip(light, 0, 255).astype(np.uint8)
    picture = cv2.resize(small, None, fx=BACKGROUND_SCALE, fy=BACKGROUND_SCALE)
    picture = np.ascontiguousarray(picture[:, :carvana.WIDTH_PX])

    angles = np.linspace(0, 2 * np.pi, 97)
    edge = studio.turntable_m * np.stack((np.cos(angles), np.sin(angles), 0 * angles), axis=1)
    edge_px = np.round(camera.seen(edge) * 2**SUBPIXEL_BITS).astype(np.int32)
    colour = tuple(0.80 * studio.floor_shade * studio.grey * studio.tint)
    cv2.polylines(picture, [edge_px], True, colour, 3, cv2.LINE_AA, SUBPIXEL_BITS)
    return picture


def darken_floor(picture: NDArray[np.uint8], car: Car, camera: Camera) -> None:
    """Lay the car's shadow and a hint of its mirror image upon the floor, in place."""
    shape = car.shape
    footprint = np.array([(x, y, 0.0) for x, y in ((1, 1), (1, -1), (-1, -1), (-1, 1))])
    scale = np.array((shape.length_m / 2, shape.width_m / 2, 1.0))
    small = (carvana.HEIGHT_PX // BACKGROUND_SCALE, -(-carvana.WIDTH_PX // BACKGROUND_SCALE))
    shade = np.zeros(small, np.uint8)
    for grown, depth in ((1.10, 45), (0.98, 110)):
        corners = camera.seen(camera.turned(footprint * scale * grown)) / BACKGROUND_SCALE
        cv2.fillConvexPoly(shade, np.round(corners * 16).astype(np.int32), depth, cv2.LINE_AA, 4)
    mirrored = np.array([(x, y, -0.7) for x, y in ((1, 1), (1, -1), (-1, -1), (-1, 1))])
    both = np.concatenate((footprint, mirrored))
    corners = camera.seen(camera.turned(both * scale * 0.92)) / BACKGROUND_SCALE
    hull = cv2.convexHull(corners.astype(np.float32))
    mirror = np.zeros(small, np.uint8)
    cv2.fillConvexPoly(mirror, np.round(hull * 16).astype(np.int32), 26, cv2.LINE_AA, 4)
    shade = np.maximum(cv2.GaussianBlur(shade, (0, 0), 3), cv2.GaussianBlur(mirror, (0, 0), 4))
    light = 255 - cv2.resize(shade, None, fx=BACKGROUND_SCALE, fy=BACKGROUND_SCALE)
    top = carvana.HEIGHT_PX // 3  # no shadow reaches higher
    light = cv2.cvtColor(light[top:, :carvana.WIDTH_PX], cv2.COLOR_GRAY2RGB)
    picture[top:] = cv2.multiply(picture[top:], light, scale=1 / 255)


def add_noise(picture: NDArray[np.uint8], rng: np.random.Generator) -> None:
    """Grain of one grey level up or down, the same in the three channels, in place."""
    pixels = picture.shape[0] * picture.shape[1]
    for change in (cv2.add, cv2.subtract):
        grain = np.frombuffer(rng.bytes(pixels), np.uint8).reshape(picture.shape[:2]) & 1
        change(picture, cv2.cvtColor(grain, cv2.COLOR_GRAY2RGB), dst=picture)


# --- the car ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """What of a part can be seen, the farthest first. polygons_px: (n, 4, 2). colours: uint8 (n, 3)."""

    polygons_px: NDArray[np.float64]
    colours: NDArray[np.uint8]


def in_drawing_order(parts: Parts, camera: Camera) -> list[Part]:
    """Parts from back to front: each is convex enough for the farthest-first rule, the car is not."""

    def faces_camera(part: Part) -> bool:
        to_camera = camera.eye - camera.turned(part.centre)
        return bool(camera.turned(part.outward) @ to_camera > 0)

    def distance_m(part: Part) -> float:
        return float(np.linalg.norm(camera.eye - camera.turned(part.centre)))

    wheels = sorted(parts.wheels, key=distance_m, reverse=True)
    extras = sorted(parts.extras, key=distance_m, reverse=True)
    behind = [part for part in extras if not faces_camera(part)]
    front = [part for part in extras if faces_camera(part)]
    far_wheels = [wheel for wheel in wheels if not faces_camera(wheel)]
    near_wheels = [wheel for wheel in wheels if faces_camera(wheel)]
    return [*far_wheels, *behind, parts.underbody, *near_wheels, parts.body, parts.patches, *front]


def flatten(part: Part, camera: Camera, glass_clear: float) -> Layer:
    """The faces of a part that look at the camera, as polygons and the colours that the light gives them."""
    quads = camera.turned(part.quads)
    normals = np.cross(quads[:, 2] - quads[:, 0], quads[:, 3] - quads[:, 1])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12
    rays = quads.mean(axis=1) - camera.eye
    distance_m = np.linalg.norm(rays, axis=1)
    rays /= distance_m[:, None]
    visible = np.flatnonzero(np.einsum("ij,ij->i", normals, rays) < 0)
    order = visible[np.argsort(-distance_m[visible], kind="stable")]
    colours = shaded(
        part.colours[order], part.gloss[order], part.glass[order], normals[order], rays[order],
        camera.studio, glass_clear,
    )
    return Layer(camera.seen(quads[order]), colours)


def shaded(
    colours: NDArray, gloss: NDArray, glass: NDArray, normals: NDArray, rays: NDArray,
    studio: Studio, glass_clear: float,
) -> NDArray[np.uint8]:
    """Colours (n, 3) of faces under the lamp, with the studio mirrored in what is glossy."""
    grey = studio.grey * studio.tint
    colours = np.where(glass[:, None], colours * (1 - glass_clear) + grey * glass_clear, colours)
    lamp = np.clip(normals @ LIGHT, 0, 1)
    diffuse = colours * (0.42 + 0.46 * lamp + 0.08 * normals[:, 2])[:, None] * (studio.grey / 255 + 0.30)
    mirrored = rays - 2 * np.einsum("ij,ij->i", normals, rays)[:, None] * normals
    # What a face mirrors, by height: dark floor, a dim band at the horizon, bright wall, soft boxes.
    height = mirrored[:, 2]
    brightness = np.interp(height, (-1, -0.25, -0.02, 0.04, 0.35, 0.55, 0.75, 1), (60, 95, 120, 170, 185, 250, 250, 200))
    grazing = (1 + np.einsum("ij,ij->i", normals, rays)) ** 3  # a mirror at a flat angle
    share = gloss * (0.16 + 0.45 * np.clip(grazing, 0, 1))
    return np.clip(diffuse * (1 - share[:, None]) + (brightness * share)[:, None], 0, 255).astype(np.uint8)


def box_around(polygons_px: NDArray) -> tuple[slice, slice]:
    """Rows and columns of the picture that the polygons can touch."""
    left, top = np.floor(polygons_px.min(axis=(0, 1))).astype(int) - 2
    right, bottom = np.ceil(polygons_px.max(axis=(0, 1))).astype(int) + 3
    return (
        slice(max(top, 0), min(bottom, carvana.HEIGHT_PX)),
        slice(max(left, 0), min(right, carvana.WIDTH_PX)),
    )


def paint(
    background: NDArray[np.uint8], polygons_px: NDArray, colours: NDArray[np.uint8],
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Polygons over a background (rows, columns, 3), in order -> picture and mask of that size."""
    rows, columns = background.shape[:2]
    canvas = cv2.cvtColor(background, cv2.COLOR_RGB2RGBA)
    canvas[:, :, 3] = 0
    large = (columns * SUPERSAMPLING, rows * SUPERSAMPLING)
    canvas = cv2.resize(canvas, large, interpolation=cv2.INTER_NEAREST)
    # Pixel corners -> OpenCV's pixel centres: the middle of the first sample is 0, not a half.
    corners = np.round((polygons_px * SUPERSAMPLING - 0.5) * 2**SUBPIXEL_BITS).astype(np.int32)
    for polygon, colour in zip(corners, colours.tolist()):
        cv2.fillConvexPoly(canvas, polygon, (*colour, 255), cv2.LINE_8, SUBPIXEL_BITS)
    averaged = cv2.resize(canvas, (columns, rows), interpolation=cv2.INTER_AREA)
    return averaged[:, :, :3], averaged[:, :, 3] >= 128
