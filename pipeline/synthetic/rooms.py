"""Synthetic rooms of coloured boxes, with the name and the depth of each pixel.

A scene is one room: walls and boxes, some of them flat on a wall, some on top of others. An image is what a camera in
it sees: each pixel's ray meets the nearest box. Images have the traits of NYU Depth v2: a white frame, and outlines and
things without a label. The colours of different things overlap, so that place and shape count too.

The same scene and angle give the same pixels. Nothing is read or written here.
"""
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

FOCAL_FRACTION = 0.81  # of the image's width: 518.9 px of 640, the Kinect of NYU Depth v2
FRAME_FRACTION = 1 / 64  # of the width: the white frame that rectifying NYU's images left
UNLABELLED_FRACTION = 0.04  # of the things on others and on walls: the annotator missed them
FLAT_M = 0.03  # how far a flat thing stands off its wall
NOISE_STD = 5.0  # of the camera, in 8-bit steps
SHADE = (0.86, 1.0, 0.72)  # brightness of faces across x, y (up) and z
OUTLINE = ((-1, 0), (0, -1))  # a pixel that differs from its upper or left neighbour belongs to an outline

# Name -> colour, and by how much it differs from room to room.
COLOURS = {
    "wall": ((205, 195, 175), 30), "floor": ((140, 105, 75), 25), "ceiling": ((225, 222, 215), 15),
    "door": ((150, 110, 80), 25), "window": ((190, 215, 240), 15), "curtain": ((170, 120, 125), 35),
    "picture": ((90, 110, 120), 60), "bed": ((110, 120, 175), 40), "pillow": ((230, 225, 215), 20),
    "night stand": ((115, 75, 50), 25), "lamp": ((245, 225, 150), 15), "dresser": ((105, 70, 45), 25),
    "floor mat": ((95, 45, 50), 35), "counter": ((200, 195, 190), 20), "cabinet": ((165, 125, 85), 25),
    "refridgerator": ((228, 230, 232), 12), "table": ((160, 120, 70), 25), "chair": ((60, 55, 60), 25),
    "bottle": ((40, 120, 60), 40), "oven": ((50, 50, 55), 15), "sofa": ((125, 60, 55), 40),
    "coffee table": ((120, 90, 60), 25), "tv stand": ((70, 55, 50), 20), "television": ((18, 20, 26), 10),
    "bookshelf": ((130, 90, 60), 25), "books": ((120, 70, 90), 70), "desk": ((175, 150, 115), 25),
    "whiteboard": ((245, 247, 250), 6), "monitor": ((30, 32, 40), 12), "bag": ((50, 80, 120), 45),
}  # fmt: skip
WORDS = tuple(COLOURS)


@dataclass(frozen=True)
class Kind:
    """A kind of thing: its name, size and place."""

    word: str
    size_m: tuple[float, float, float]  # along its wall, up, off its wall
    on: str = "floor"  # "floor": with its back to a wall; "wall"; else the word of the thing that it stands on
    up_m: float = 0.0  # on a wall: the height of its lower edge


WINDOW, DOOR = Kind("window", (1.3, 1.0, FLAT_M), "wall", 1.0), Kind("door", (0.9, 2.0, FLAT_M), "wall")
CURTAIN, PICTURE = Kind("curtain", (0.4, 1.7, 0.1), "wall", 0.5), Kind("picture", (0.7, 0.5, FLAT_M), "wall", 1.4)
KINDS = {
    "bedroom": (
        Kind("bed", (1.6, 0.55, 2.0)), Kind("pillow", (0.6, 0.15, 0.4), "bed"), Kind("night stand", (0.5, 0.55, 0.4)),
        Kind("lamp", (0.2, 0.4, 0.2), "night stand"), Kind("dresser", (1.1, 0.9, 0.5)),
        Kind("floor mat", (1.4, 0.02, 0.9)), Kind("bag", (0.4, 0.4, 0.3)), WINDOW, CURTAIN, PICTURE, DOOR,
    ),
    "kitchen": (
        Kind("counter", (2.0, 0.9, 0.6)), Kind("cabinet", (1.6, 0.7, 0.35), "wall", 1.5), Kind("oven", (0.6, 0.9, 0.6)),
        Kind("refridgerator", (0.7, 1.8, 0.7)), Kind("table", (1.2, 0.75, 0.8)), Kind("chair", (0.45, 0.9, 0.45)),
        Kind("bottle", (0.1, 0.3, 0.1), "counter"), Kind("bottle", (0.1, 0.3, 0.1), "table"), WINDOW, DOOR,
    ),
    "living_room": (
        Kind("sofa", (2.0, 0.8, 0.9)), Kind("pillow", (0.4, 0.3, 0.2), "sofa"), Kind("coffee table", (1.1, 0.4, 0.6)),
        Kind("tv stand", (1.3, 0.5, 0.45)), Kind("television", (1.1, 0.65, 0.1), "tv stand"),
        Kind("bookshelf", (0.9, 1.9, 0.35)), Kind("books", (0.5, 0.25, 0.2), "coffee table"), WINDOW, CURTAIN, PICTURE,
    ),
    "office": (
        Kind("desk", (1.5, 0.75, 0.75)), Kind("monitor", (0.55, 0.4, 0.1), "desk"), Kind("chair", (0.5, 1.0, 0.5)),
        Kind("bookshelf", (1.0, 2.0, 0.4)), Kind("books", (0.6, 0.3, 0.2), "desk"), Kind("bag", (0.4, 0.4, 0.3)),
        Kind("whiteboard", (1.5, 1.0, FLAT_M), "wall", 1.0), PICTURE, DOOR, WINDOW,
    ),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Box:
    word: str
    low_m: NDArray[np.float64]  # (3,): x to the right, y up, z away from the camera's side
    high_m: NDArray[np.float64]
    rgb: NDArray[np.float64]  # (3,), 0..255
    unlabelled: bool = False


@dataclass(frozen=True, eq=False)
class RoomImage:
    """One image with its annotation, all arrays (rows, columns)."""

    image: NDArray[np.uint8]  # RGB, (rows, columns, 3)
    words: NDArray[np.int64]  # index in WORDS, -1 where there is no label
    instances: NDArray[np.uint8]  # 1, 2, ... among those of the same word, 0 where there is no label
    depth_m: NDArray[np.float32]


def make_room(scene_type: str, seed: int) -> tuple[NDArray[np.float64], list[Box]]:
    """Return width, height and length in m of a room of a type in KINDS, and its boxes; the first six are its sides."""
    rng = np.random.default_rng([seed, 0])
    size_m = rng.uniform((3.6, 2.4, 3.8), (5.5, 2.8, 5.5))
    colour = {word: mean + rng.uniform(-spread, spread, 3) for word, (mean, spread) in COLOURS.items()}
    boxes = sides(size_m, colour)
    for kind in KINDS[scene_type]:
        for _ in range(rng.integers(1, 3) if kind.on != "floor" or kind.word in ("chair", "bag") else 1):
            unlabelled = kind.on != "floor" and rng.random() < UNLABELLED_FRACTION
            if (place := find_place(kind, size_m, boxes, rng)) is not None:
                boxes.append(Box(kind.word, *place, colour[kind.word] + rng.uniform(-8, 8, 3), unlabelled))
    return size_m, boxes


def sides(size_m: NDArray[np.float64], colour: dict[str, NDArray[np.float64]]) -> list[Box]:
    """Return floor, ceiling and four walls, as slabs around the room."""
    boxes = []
    for axis in range(3):
        for end in range(2):
            low, high = np.full(3, -1.0), size_m + 1
            low[axis], high[axis] = (size_m[axis], size_m[axis] + 1) if end else (-1, 0)
            word = ("floor", "ceiling")[end] if axis == 1 else "wall"
            boxes.append(Box(word, low, high, colour[word]))
    return boxes


def find_place(
    kind: Kind, size_m: NDArray[np.float64], boxes: list[Box], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return the low and high corner of a free place for a thing; None after 20 failed tries."""
    along, up, off = np.array(kind.size_m) * rng.uniform(0.85, 1.15, 3)
    below = [box for box in boxes if box.word == kind.on]
    for _ in range(20):
        if kind.on in ("floor", "wall"):
            side = ("back", "back", "left", "right")[rng.integers(4)]
            room = size_m[0] if side == "back" else size_m[2]
            start = rng.uniform(0, max(0.0, room - along))
            near, far = (0.0, off) if side == "left" else (size_m[0] - off, size_m[0])
            if side == "back":
                low, high = (start, kind.up_m, size_m[2] - off), (start + along, kind.up_m + up, size_m[2])
            else:
                low, high = (near, kind.up_m, start), (far, kind.up_m + up, start + along)
        elif not below:
            return None
        else:
            under = below[rng.integers(len(below))]
            spare = np.maximum(0, under.high_m - under.low_m - (along, 0, off))
            x, _, z = under.low_m + rng.random(3) * spare
            low, high = (x, under.high_m[1], z), (x + along, under.high_m[1] + up, z + off)
        place = np.array(low), np.array(high)
        if not any(overlap(*place, box) for box in boxes[6:]):
            return place
    return None


def overlap(low_m: NDArray[np.float64], high_m: NDArray[np.float64], box: Box) -> bool:
    return bool(np.all(low_m < box.high_m - 1e-6) and np.all(box.low_m < high_m - 1e-6))


def draw_image(
    room_m: NDArray[np.float64], boxes: list[Box], height: int, width: int, seed: int, angle: int
) -> RoomImage:
    """Draw a room from `make_room` as seen by the camera at a random place; `angle` chooses it."""
    rng = np.random.default_rng([seed, 1, angle])
    eye = room_m * rng.uniform((0.3, 0.5, 0.04), (0.7, 0.62, 0.2))
    rays = rays_of(height, width, yaw_rad=rng.uniform(-0.5, 0.5), pitch_rad=rng.uniform(-0.35, -0.05))
    box_index, axis, depth = nearest(eye, rays, boxes)

    colour = np.array([box.rgb for box in boxes])[box_index] * np.array(SHADE)[axis][..., None]
    light = rng.uniform(0.8, 1.1) * (1.08 - 0.05 * depth)[..., None]
    image = cv2.GaussianBlur(np.clip(colour * light, 0, 255), (3, 3), 0) + rng.normal(0, NOISE_STD, (height, width, 3))

    outline = np.zeros((height, width), bool)
    for shift in OUTLINE:
        outline |= box_index != np.roll(box_index, shift, (0, 1))
    outline[-1], outline[:, -1] = outline[-2], outline[:, -2]  # np.roll compared these with the opposite side
    unlabelled = outline | np.array([box.unlabelled for box in boxes])[box_index]
    frame = max(1, round(width * FRAME_FRACTION))
    inside = np.zeros((height, width), bool)
    inside[frame:-frame, frame:-frame] = True

    image = np.where(inside[..., None], np.clip(image, 0, 255), 255).round().astype(np.uint8)
    word = np.array([WORDS.index(box.word) for box in boxes])
    instance = np.array([sum(other.word == box.word for other in boxes[: i + 1]) for i, box in enumerate(boxes)])
    labelled = inside & ~unlabelled
    words, instances = np.where(labelled, word[box_index], -1), np.where(labelled, instance[box_index], 0)
    return RoomImage(image, words, instances.astype(np.uint8), depth)


def rays_of(height: int, width: int, yaw_rad: float, pitch_rad: float) -> NDArray[np.float32]:
    """Return each pixel's direction (rows, columns, 3), of length 1 along the camera's axis: depth is its multiple."""
    x, y = np.meshgrid(np.arange(width) - (width - 1) / 2, (height - 1) / 2 - np.arange(height))
    straight = np.stack([x, y, np.full(x.shape, FOCAL_FRACTION * width)], -1) / (FOCAL_FRACTION * width)
    sin, cos = np.sin(pitch_rad), np.cos(pitch_rad)
    pitch = np.array([[1, 0, 0], [0, cos, sin], [0, -sin, cos]])
    sin, cos = np.sin(yaw_rad), np.cos(yaw_rad)
    yaw = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    return (straight @ (yaw @ pitch).T).astype(np.float32)


def nearest(
    eye_m: NDArray[np.float64], rays: NDArray[np.float32], boxes: list[Box]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return for each ray the index of the box that it meets first, the axis of the face, and the depth."""
    best = np.full(rays.shape[:2], np.inf, np.float32)
    box_index, axis = np.zeros(rays.shape[:2], np.int64), np.zeros(rays.shape[:2], np.int64)
    per_axis = np.ascontiguousarray(np.moveaxis(1 / np.where(np.abs(rays) < 1e-9, np.float32(1e-9), rays), -1, 0))
    for i, box in enumerate(boxes):
        a, b = ((corner_m - eye_m).astype(np.float32)[:, None, None] * per_axis for corner_m in (box.low_m, box.high_m))
        enter, leave = np.minimum(a, b), np.maximum(a, b).min(0)
        distance = enter.max(0)
        hit = (distance > 0) & (distance < leave) & (distance < best)
        best[hit], box_index[hit], axis[hit] = distance[hit], i, enter[:, hit].argmax(0)
    return box_index, axis, best
