"""A drawn data set: as many images as are asked for, without any file. It is synthetic.

Every image shows one large striped figure among small ones, on a background with waves of its own,
under noise. Its class is the figure's shape together with the direction of its stripes relative to
the figure: neither tells the class by itself, nor does the direction of the stripes in the image,
since figures lie at every angle. Colours, places, sizes and contrasts are random.

Drawn in double precision and rounded to 8 bits, so that machines whose sines differ in the last
place draw the same image.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from workers.training.images import Preprocessing, Splits, TensorImages
from workers.training.references import check_count, check_number

Array = npt.NDArray[np.float64]

_FIGURES: dict[str, Callable[[Array], Array]] = {
    "ellipse": lambda v: 0.6 * np.sqrt(np.maximum(0.0, 1.0 - v * v)),
    "rectangle": lambda v: np.full_like(v, 0.5),
    "rhombus": lambda v: 0.7 * (1.0 - np.abs(v)),
    "triangle": lambda v: 0.4 * (1.0 - v),
    "hourglass": lambda v: 0.65 * np.abs(v),
}
"""Half the width of each figure at the place v of its length, which goes from -1 to 1."""
_STRIPES = ("lengthwise", "crosswise")
CLASS_NAMES = tuple(f"{figure} striped {way}" for figure in _FIGURES for way in _STRIPES)
_CHUNK = 250
"""Images drawn at once: a multiple of the number of classes, each of which is drawn equally often.
Part of what a seed means."""
_SMALL_FIGURES = 3
_MEAN, _STD = (0.5, 0.5, 0.5), (0.17, 0.17, 0.17)


def drawn_splits(
    size: int,
    seed: int,
    *,
    train: int = 6000,
    validation: int = 2000,
    test: int = 2000,
    noise: float = 0.06,
) -> Splits:
    """The three splits of these many images, each from random numbers of its own.

    An image has ``size`` x ``size`` pixels and three channels. ``noise`` is the standard deviation
    of the noise of each pixel's channels, of values from 0 to 1. With the same seed a smaller split
    is the beginning of a larger one. Raises ``UserError`` for an argument of the wrong kind.
    """
    counts = {"train": train, "validation": validation, "test": test}
    for name, count in counts.items():
        check_count(f"data.arguments.{name}", count)
    check_number("data.arguments.noise", noise, 0.0, 1.0)
    parts = []
    for number, count in enumerate(counts.values()):
        images, labels = draw(count, size, seed, number, noise)
        parts.append(TensorImages(images, labels, _MEAN, _STD))
    preprocessing = Preprocessing(size, 3, size, 255.0, _MEAN, _STD, note="synthetic images")
    return Splits(*parts, CLASS_NAMES, preprocessing)


def draw(count: int, size: int, seed: int, split: int, noise: float) -> tuple[Tensor, Tensor]:
    """Images ``(count, 3, size, size)`` uint8 and labels ``(count,)`` int64 of a split's number."""
    chunks = [
        _chunk(size, np.random.default_rng((seed, split, number)), noise)
        for number in range(-(-count // _CHUNK))
    ]
    images, labels = (np.concatenate(part)[:count] for part in zip(*chunks, strict=True))
    return torch.from_numpy(images), torch.from_numpy(labels)


def _chunk(
    size: int, rng: np.random.Generator, noise: float
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    labels = rng.permutation(np.arange(_CHUNK, dtype=np.int64) % len(CLASS_NAMES))
    picture = _background(size, rng)
    for _ in range(_SMALL_FIGURES):
        kinds = rng.integers(0, len(_FIGURES), _CHUNK)
        _paint_figure(picture, kinds, _between(rng, 0.0, np.pi), rng, (0.2, 0.3), 0.8)
    figures, ways = np.divmod(labels, len(_STRIPES))
    across = np.where(ways == _STRIPES.index("crosswise"), 0.0, np.pi / 2)
    _paint_figure(picture, figures, across[:, None, None], rng, (0.5, 0.7), 0.3)
    picture += noise * rng.standard_normal(picture.shape)
    return np.rint(255 * np.clip(picture, 0.0, 1.0)).astype(np.uint8), labels


def _between(rng: np.random.Generator, low: float, high: float) -> Array:
    """A number for each image of a chunk, ``(_CHUNK, 1, 1)``."""
    return low + (high - low) * rng.random((_CHUNK, 1, 1))


def _colours(rng: np.random.Generator, low: float, high: float) -> Array:
    """A colour for each image of a chunk, ``(_CHUNK, 3, 1, 1)``."""
    return low + (high - low) * rng.random((_CHUNK, 3, 1, 1))


def _grid(size: int) -> tuple[Array, Array]:
    """Places of the pixels' centres, from -1 to 1, down ``(1, size, 1)`` and across."""
    places = (np.arange(size) + 0.5) * 2 / size - 1
    return places[None, :, None], places[None, None, :]


def _background(size: int, rng: np.random.Generator) -> Array:
    """Pictures ``(_CHUNK, 3, size, size)`` of one colour with two waves in another."""
    y, x = _grid(size)
    colour, tint = _colours(rng, 0.25, 0.75), _colours(rng, -0.12, 0.12)
    waves = np.zeros((_CHUNK, size, size))
    for _ in range(2):
        angle, length = _between(rng, 0.0, 2 * np.pi), _between(rng, 0.25, 1.5)
        along = (np.cos(angle) * x + np.sin(angle) * y) / length
        waves += np.sin(2 * np.pi * (along + _between(rng, 0.0, 1.0)))
    return colour + tint * waves[:, None]


def _paint_figure(
    picture: Array,
    kinds: npt.NDArray[np.int64],
    stripes: Array,
    rng: np.random.Generator,
    lengths: tuple[float, float],
    reach: float,
) -> None:
    """Paints a striped figure of each of ``kinds`` ``(_CHUNK,)`` over the pictures, in place.

    ``stripes`` is the angle between the figure's length and that in which the stripes follow each
    other; half the figure's length is between ``lengths`` and its centre at most ``reach`` from the
    picture's, both in halves of the picture's height.
    """
    y, x = _grid(picture.shape[-1])
    y, x = (axis - _between(rng, -reach, reach) for axis in (y, x))
    angle, half = _between(rng, 0.0, 2 * np.pi), _between(rng, *lengths)
    v, u = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    widths = np.empty_like(v)
    for number, width_at in enumerate(_FIGURES.values()):
        chosen = kinds == number
        widths[chosen] = width_at(v[chosen] / half[chosen])
    pixel = 2 / picture.shape[-1]
    inside = np.clip(0.5 + (widths * half - np.abs(u)) / pixel, 0.0, 1.0)
    inside *= np.clip(0.5 + (half - np.abs(v)) / pixel, 0.0, 1.0)
    along = (np.cos(stripes) * v + np.sin(stripes) * u) / _between(rng, 0.26, 0.36)
    wave = np.sin(2 * np.pi * (along + _between(rng, 0.0, 1.0)))
    colour, tint = _colours(rng, 0.3, 0.7), _colours(rng, -0.35, 0.35)
    picture += inside[:, None] * (colour + tint * wave[:, None] - picture)
