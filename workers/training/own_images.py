"""The images of a user's function: some are checked before training, each one as it is read.

A data set that fails in the middle of a run has cost hours: a mistake in it is to be found first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from schemas.config import DataConfig
from workers.errors import UserError, cause_of
from workers.training.images import ImageSet, Preprocessing, Splits, TensorImages, sampled
from workers.training.references import call_reference, resolve_reference

_FIELD = "data.name"
_SPLITS = ("train", "validation", "test")
_BLOCK = 1024


@dataclass(frozen=True)
class Origin:
    """Where images come from: a split of what a function returned."""

    function: str
    split: str

    def refuse(self, index: int, problem: str, hint: str) -> UserError:
        """The error that names an item, counted from 0."""
        return UserError(
            _FIELD, f"item {index} of the {self.split} split of {self.function} {problem}", hint
        )


class CheckedImages:
    """A data set whose items are checked as they are read; its images become float32 tensors.

    Raises ``UserError`` where an item cannot be read, where its shape is not ``shape``, where its
    label is not a whole number below ``classes``, or where its values are not finite.
    """

    def __init__(
        self, dataset: ImageSet, origin: Origin, shape: tuple[int, ...], classes: int
    ) -> None:
        self._dataset, self._origin = dataset, origin
        self._shape, self._classes = shape, classes

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = _read(self._dataset, index, self._origin)
        _check_shape(tuple(image.shape), self._shape, index, self._origin)
        _check_label(label, self._classes, index, self._origin)
        _check_finite(image, index, self._origin)
        return image, int(label)


def splits_of_function(config: DataConfig) -> Splits:
    """Three data sets of the user's: images are ``(C, H, W)`` float tensors, normalised already.

    Raises ``UserError`` for the first thing that is wrong with them.
    """
    function = resolve_reference(config.name, _FIELD)
    result = call_reference(function, config.arguments, {}, _FIELD, config.name)
    if not isinstance(result, tuple | list) or len(result) != 3:
        raise UserError(
            _FIELD,
            f"{config.name} does not return three data sets",
            "return (train, validation, test)",
        )
    origins = [Origin(config.name, split) for split in _SPLITS]
    given = [_given(data, origin) for data, origin in zip(result, origins, strict=True)]
    names = _class_names(result[0], given, config.name)
    shape = tuple(_read(given[0], 0, origins[0])[0].shape)
    size = config.image_size
    if len(shape) != 3 or shape[1:] != (size, size):
        raise UserError(
            "data.image_size",
            f"an image of {config.name} has shape {shape}, not (channels, {size}, {size})",
            "correct it or the function",
        )
    train, validation, test = (
        _checked(data, origin, shape, len(names))
        for data, origin in zip(given, origins, strict=True)
    )
    preprocessing = _preprocessing(result[0], size, shape[0], config.name)
    return Splits(train, validation, test, names, preprocessing)


def _preprocessing(train: Any, size: int, channels: int, function: str) -> Preprocessing:
    """What the training split says it was prepared by, for whoever deploys the network; none that
    is known where it says nothing."""
    told = getattr(train, "preprocessing", None)
    if told is None:
        unchanged = ((0.0,) * channels, (1.0,) * channels)
        return Preprocessing(size, channels, size, 1.0, *unchanged, note=f"done by {function}")
    try:
        resize, divide_by = told.get("resize", size), told.get("divide_by", 255)
        mean, std = (tuple(map(float, told[name])) for name in ("mean", "std"))
        found = Preprocessing(size, channels, int(resize), float(divide_by), mean, std)
    except (AttributeError, KeyError, TypeError, ValueError):
        found = None
    if found is None or {len(found.mean), len(found.std)} != {channels}:
        raise UserError(
            _FIELD,
            f"the attribute preprocessing of the training split of {function} is {told!r}",
            f"make it a mapping with mean and std, {channels} numbers each, and optionally resize "
            "and divide_by, or leave it out",
        )
    return found


def _given(data: Any, origin: Origin) -> ImageSet:
    if not hasattr(data, "__len__") or len(data) == 0:
        raise UserError(
            _FIELD,
            f"the {origin.split} split of {origin.function} is empty or has no length",
            "correct it",
        )
    if isinstance(data, TensorDataset) and len(data.tensors) == 2:
        return _in_memory(*data.tensors, origin)
    given: ImageSet = data
    return given


def _class_names(train: Any, given: Sequence[ImageSet], function: str) -> tuple[str, ...]:
    """The training split's own names, or numbers where all labels are in memory."""
    names = getattr(train, "classes", None)
    if names is None:
        labels = [data.labels for data in given if isinstance(data, TensorImages)]
        if len(labels) != len(given):
            raise UserError(
                _FIELD,
                f"the training split of {function} has no attribute classes",
                "give it the list of class names",
            )
        names = range(int(torch.cat(labels).max()) + 1)
    if len(names) < 2:
        raise UserError(
            _FIELD,
            f"{function} gives images of {len(names)} class",
            "give it images of at least two classes",
        )
    return tuple(str(name) for name in names)


def _checked(
    data: ImageSet, origin: Origin, shape: tuple[int, ...], classes: int
) -> TensorImages | CheckedImages:
    if not isinstance(data, TensorImages):
        checked = CheckedImages(data, origin, shape, classes)
        for index in sampled(len(checked)):
            checked[index]
        return checked
    _check_shape(tuple(data.images.shape[1:]), shape, 0, origin)
    _check_labels(data.labels, classes, origin)
    for number, block in enumerate(torch.split(data.images, _BLOCK)):
        if not bool(block.isfinite().all()):
            for offset, image in enumerate(block):
                _check_finite(image, number * _BLOCK + offset, origin)
    return data


def _read(dataset: ImageSet, index: int, origin: Origin) -> tuple[Tensor, float]:
    """An image and its label. Raises ``UserError`` where there is no such pair."""
    try:
        item = dataset[index]
    except UserError:
        raise
    except Exception as error:
        raise origin.refuse(
            index, f"cannot be read ({cause_of(error)})", "correct the data set, or leave it out"
        ) from error
    try:
        image, label = item
        return torch.as_tensor(image).float(), float(label)
    except Exception as error:
        raise origin.refuse(
            index,
            "is not a pair of an image tensor and a class number",
            "return (image, label)",
        ) from error


def _in_memory(images: Tensor, labels: Tensor, origin: Origin) -> TensorImages:
    """Images whose labels are whole numbers, one for each. Raises ``UserError`` otherwise."""
    if labels.ndim != 1 or len(labels) != len(images):
        raise UserError(
            _FIELD,
            f"the labels of the {origin.split} split of {origin.function} have shape "
            f"{tuple(labels.shape)}, not ({len(images)},)",
            "give one class number for each image",
        )
    _check_labels(labels, math.inf, origin)
    return TensorImages(images.float(), labels.long())


def _check_shape(found: tuple[int, ...], wanted: tuple[int, ...], index: int, at: Origin) -> None:
    if found != wanted:
        raise at.refuse(
            index,
            f"has shape {found}, not that of the first training image, {wanted}",
            "give all images of the three splits one shape",
        )


def _check_labels(labels: Tensor, classes: float, origin: Origin) -> None:
    numbers = labels.double()
    good = (numbers >= 0) & (numbers < classes) & (numbers == numbers.floor())
    for index in (~good).nonzero()[:1].flatten().tolist():
        _check_label(float(numbers[index]), classes, index, origin)


def _check_label(label: float, classes: float, index: int, origin: Origin) -> None:
    if not (0 <= label < classes and label.is_integer()):
        known = f"from 0 to {classes - 1}" if math.isfinite(classes) else "from 0 on"
        raise origin.refuse(
            index,
            f"has the label {label:g}, which is not a whole number {known}",
            "number the classes from 0; the training split's attribute classes names them all",
        )


def _check_finite(image: Tensor, index: int, origin: Origin) -> None:
    if not bool(image.isfinite().all()):
        raise origin.refuse(
            index, "holds values that are infinite or not a number", "correct the image"
        )
