"""Images as splits and in memory, batches of any data set, augmentation of whole batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

Augmentation = Literal["none", "shift", "crop_flip", "resized_crop"]
_SAMPLE = 16
_LEAST_AREA = 0.08  # of a resized crop; this and the next as torchvision's RandomResizedCrop
_WIDEST = 4 / 3  # width over height, and the other way round


class ImageSet(Protocol):
    """A data set: gives pairs of a normalised image ``(C, H, W)`` and its class number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class Preprocessing:
    """What turns an image into the network's input, as plain data for the exports.

    An image of ``channels`` channels is resized so that its shorter side has ``resize`` pixels
    (bilinear), cropped at its centre to ``size`` x ``size``, scaled so that its values lie between
    0 and 1 (divided by ``divide_by``), and normalised: ``(value - mean) / std`` per channel.
    """

    size: int
    channels: int
    resize: int
    divide_by: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    note: str = ""

    def as_data(self) -> dict[str, Any]:
        """The description as JSON data."""
        return asdict(self)


@dataclass(frozen=True)
class Splits:
    """Three disjoint data sets of ``(image (C, H, W) float32 normalised, label)`` pairs."""

    train: ImageSet
    validation: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]
    preprocessing: Preprocessing

    @property
    def in_channels(self) -> int:
        """Channels of an image."""
        return self.preprocessing.channels

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)


class TensorImages(Dataset[tuple[Tensor, Tensor]]):
    """Images held in memory.

    ``images`` is ``(N, C, H, W)``: float that is normalised already, or uint8 that is divided by
    255 and normalised with ``mean`` and ``std`` when it is read. ``labels`` is ``(N,)`` int64.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
    ) -> None:
        self.images = images
        self.labels = labels
        self._mean = torch.tensor(mean).reshape(1, -1, 1, 1)
        self._std = torch.tensor(std).reshape(1, -1, 1, 1)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.batch(torch.tensor([index]))
        return images[0], labels[0]

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised float images ``(n, C, H, W)`` and labels ``(n,)``."""
        images = self.images[indices]
        if images.dtype == torch.uint8:
            images = (images.float() / 255 - self._mean) / self._std
        return images, self.labels[indices]


def sampled(count: int) -> list[int]:
    """A few indices, the first and the last of ``count`` among them."""
    steps = min(_SAMPLE, count) - 1
    return [step * (count - 1) // max(1, steps) for step in range(steps + 1)]


def batches(
    dataset: ImageSet, batch_size: int, order: Tensor | None = None, threads: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of images ``(n, C, H, W)`` and labels ``(n,)`` in ``order`` (by default as they lie).

    Images that are not in memory are read by ``threads`` threads, while the batch before is in use.
    A last batch of one image is left out of a shuffled order: batch norm cannot train on it.
    """
    chunks = torch.split(torch.arange(len(dataset)) if order is None else order, batch_size)
    if order is not None and len(chunks) > 1 and len(chunks[-1]) == 1:
        chunks = chunks[:-1]
    if isinstance(dataset, TensorImages):
        for chunk in chunks:
            yield dataset.batch(chunk)
        return
    with ThreadPoolExecutor(max(1, threads)) as pool:
        waiting = (
            [pool.submit(dataset.__getitem__, i) for i in chunks[0].tolist()] if chunks else []
        )
        for number in range(len(chunks)):
            ready = waiting
            if number + 1 < len(chunks):
                waiting = [pool.submit(dataset.__getitem__, i) for i in chunks[number + 1].tolist()]
            samples = [future.result() for future in ready]
            images = torch.stack([torch.as_tensor(image) for image, _ in samples])
            yield images, torch.tensor([int(label) for _, label in samples])


def augment(images: Tensor, kind: Augmentation, generator: torch.Generator) -> Tensor:
    """A batch ``(n, C, H, W)`` changed at random, each image by itself, all at once.

    ``shift`` moves by up to 2 pixels; ``crop_flip`` moves by up to an eighth of the height and
    mirrors every other image on average. Borders are filled with the nearest pixel.
    ``resized_crop`` takes a part of 8 to 100 % of the area, resizes it and mirrors alike.
    """
    if kind == "none":
        return images
    if kind == "resized_crop":
        images = _resized_crops(images, generator)
    else:
        reach = 2 if kind == "shift" else max(1, images.shape[-2] // 8)
        images = _moved(images, reach, generator)
    if kind != "shift":
        mirrored = torch.rand(len(images), generator=generator) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    return images


def _resized_crops(images: Tensor, generator: torch.Generator) -> Tensor:
    count = len(images)
    area, stretch, *place = torch.rand(4, count, generator=generator)
    area = _LEAST_AREA + (1 - _LEAST_AREA) * area
    stretch = _WIDEST ** (stretch - 0.5)  # the root of width over height
    sides = torch.stack([area.sqrt() * stretch, area.sqrt() / stretch]).clamp(max=1.0)
    middles = (1 - sides) * (2 * torch.stack(place) - 1)  # from -1 to 1, as the grid's
    crops = torch.zeros(count, 2, 3)
    for axis in (0, 1):
        crops[:, axis, axis], crops[:, axis, 2] = sides[axis], middles[axis]
    grid = functional.affine_grid(crops.to(images), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _moved(images: Tensor, reach: int, generator: torch.Generator) -> Tensor:
    count, _, height, width = images.shape
    padded = functional.pad(images, (reach, reach, reach, reach), mode="replicate")
    offsets = torch.randint(0, 2 * reach + 1, (2, count, 1), generator=generator)
    rows = (offsets[0] + torch.arange(height))[:, :, None]
    columns = (offsets[1] + torch.arange(width))[:, None, :]
    batch = torch.arange(count)[:, None, None]
    return padded[batch, :, rows, columns].permute(0, 3, 1, 2)


def row_major(images: Tensor) -> Tensor:
    """A copy ``(n, C, H, W)`` in torch's default memory format, even where C is 1.

    Indexing and permuting can leave images in the channels-last format, which a network passes on
    from layer to layer. With torch 2.15 on the CPU, the backward pass of a strided 1x1 convolution
    in that format corrupts memory where its width fills no vector register (12, 24), and the
    process dies.
    """
    return images.clone(memory_format=torch.contiguous_format)
