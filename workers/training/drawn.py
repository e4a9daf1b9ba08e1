"""A drawn data set: as many images as are asked for, without any file. It is synthetic.

Every image shows one large figure among small ones, on a background with waves of its own, under
noise. Its class is the large figure's shape. Figures are striped or checked; how strongly they show
against the background is random, and so are colours, places, sizes, the angle of the figure (up to
45 degrees either way) and that of its pattern.

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
    "hourglass": lambda v: 0.7 * np.abs(v),
    "cross": lambda v: np.where(np.abs(v) < 0.25, 0.75, 0.22),
    "dumbbell": lambda v: np.where(np.abs(v) > 0.45, 0.5, 0.15),
    "hammer": lambda v: np.where(v > 0.45, 0.65, 0.2),
    "arrow": lambda v: np.where(v > 0.0, 0.75 * (1.0 - v), 0.2),
    "mushroom": lambda v: np.where(v > 0.1, 0.75 * np.sqrt(np.maximum(0.0, 1.0 - v * v)), 0.2),
}
"""Half the width of each figure at the place v of its length, which goes from -1 to 1."""
CLASS_NAMES = tuple(_FIGURES)
_CHUNK = 250
"""Images drawn at once: a multiple of the number of classes, each of which is drawn equally often.
Part of what a seed means."""
_SMALL_FIGURES = 8
"""With so many a network of few filters is less accurate than one of many; with two it hardly was,
and with more noise instead no network sees the figures (benchmarks/EXPERIMENTS.md)."""
_MEAN, _STD = (0.34, 0.34, 0.34), (0.19, 0.19, 0.19)


def drawn_splits(
    size: int,
    seed: int,
    *,
    train: int = 6000,
    validation: int = 2000,
    test: int = 2000,
    noise: float = 0.1,
) -> Splits:
    """The three splits of these many images, each from random numbers of its own.

    An image has ``size`` x ``size`` pixels and three channels. ``noise`` is the standard deviation
    of the noise of each channel of a pixel, of values from 0 to 1, in an image of 32 pixels; in
    others it is in proportion to ``size``, so that the same part of a picture is equally noisy.
    With the same seed a smaller split is the beginning of a larger one. Raises ``UserError`` for an
    argument of the wrong kind.
    """
    counts = {"train": train, "validation": validation, "test": test}
    for name, count in counts.items():
        check_count(f"data.arguments.{name}", count)
    check_number("data.arguments.noise", noise, 0.0, 1.0)
    parts = {
        name: TensorImages(*draw(count, size, seed, number, noise), _MEAN, _STD)
        for number, (name, count) in enumerate(counts.items())
    }
    preprocessing = Preprocessing(size, 3, size, 255.0, _MEAN, _STD, note="synthetic images")
    return Splits(**parts, class_names=CLASS_NAMES, preprocessing=preprocessing)


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
        any_kind = rng.integers(0, len(CLASS_NAMES), _CHUNK)
        _paint_figures(picture, any_kind, rng, half_length=(0.15, 0.25), reach=0.8)
    _paint_figures(picture, labels, rng, half_length=(0.65, 0.85), reach=0.2)
    picture += noise * size / 32 * rng.standard_normal(picture.shape)
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
    colour, tint = _colours(rng, 0.1, 0.4), _colours(rng, -0.08, 0.08)
    waves = np.zeros((_CHUNK, size, size))
    for _ in range(2):
        angle, length = _between(rng, 0.0, 2 * np.pi), _between(rng, 0.25, 1.5)
        along = _turned(y, x, angle)[0]
        waves += np.sin(2 * np.pi * (along / length + _between(rng, 0.0, 1.0)))
    return colour + tint * waves[:, None]


def _paint_figures(
    picture: Array,
    kinds: npt.NDArray[np.int64],
    rng: np.random.Generator,
    *,
    half_length: tuple[float, float],
    reach: float,
) -> None:
    """Paints a figure of each of the classes ``kinds`` ``(_CHUNK,)`` over the pictures, in place.

    Half its length lies between the two of ``half_length``, its centre at most ``reach`` down and
    across from the picture's, in halves of the picture's height.
    """
    y, x = _grid(picture.shape[-1])
    y, x = y - _between(rng, -reach, reach), x - _between(rng, -reach, reach)
    half = _between(rng, *half_length)
    v, u = _turned(y, x, _between(rng, -np.pi / 4, np.pi / 4))
    widths = np.empty_like(v)
    for number, width_at in enumerate(_FIGURES.values()):
        chosen = kinds == number
        widths[chosen] = width_at(v[chosen] / half[chosen])
    pixel = 2 / picture.shape[-1]
    inside = np.clip(0.5 + (widths * half - np.abs(u)) / pixel, 0.0, 1.0)
    inside *= np.clip(0.5 + (half - np.abs(v)) / pixel, 0.0, 1.0)
    wavelength = _between(rng, 0.4, 0.55)
    stripes, others = (
        np.sin(2 * np.pi * (along / wavelength + _between(rng, 0.0, 1.0)))
        for along in _turned(y, x, _between(rng, 0.0, 2 * np.pi))
    )
    # A product of waves varies less than a wave: brought to about the same contrast.
    checked = _between(rng, 0.0, 1.0) < 0.5
    pattern = np.where(checked, 1.4 * stripes * others, stripes)
    inside *= _between(rng, 0.4, 1.0)
    colour, tint = _colours(rng, 0.5, 0.8), _colours(rng, 0.0, 0.3)
    picture += inside[:, None] * (colour + tint * pattern[:, None] - picture)


def _turned(y: Array, x: Array, angle: Array) -> tuple[Array, Array]:
    """Places along two axes at right angles, the first at ``angle`` to the image's rows."""
    return np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
