"""Loads the three splits that a configuration names. Nothing is downloaded.

The search sees the validation split; the test split is for the end. Splits that are not given are
drawn from the training images, stratified by class: the same seed gives the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Subset

from schemas.config import DataConfig
from workers.errors import UserError, cause_of
from workers.training.drawn import drawn_splits
from workers.training.images import Preprocessing, Splits, TensorImages, sampled
from workers.training.own_images import splits_of_function
from workers.training.references import call_reference

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid"),
    "test": ("test",),
}


def load_splits(config: DataConfig, seed: int) -> Splits:
    """The train, validation and test split. Raises ``UserError`` for a source that is unusable."""
    if config.name == "drawn":
        draw = partial(drawn_splits, config.image_size, seed)
        splits: Splits = call_reference(draw, config.arguments, {}, "data.name", config.name)
        return splits
    if config.arguments and ":" not in config.name:
        raise UserError(
            "data.arguments", f"{config.name} takes none", "remove them, or name a module:function"
        )
    if config.name == "digits":
        return _digits(config, seed)
    if config.name == "cifar10":
        return _cifar10(config, seed)
    if config.name == "imagefolder":
        return _imagefolder(config, seed)
    if ":" in config.name:
        return splits_of_function(config)
    raise UserError(
        "data.name",
        f"there is no data set {config.name!r}",
        "use digits, drawn, cifar10, imagefolder or module:function",
    )


def _held_out(labels: Sequence[int], shares: Mapping[str, float], seed: int) -> list[list[int]]:
    """Indices of the rest and of each share (a fraction of all), disjoint, stratified, sorted.

    ``shares``: setting -> fraction.
    """
    from sklearn.model_selection import train_test_split

    rest = np.arange(len(labels))
    classes = np.asarray(labels)
    parts = []
    for setting, share in shares.items():
        count = round(share * len(labels))
        try:
            rest, part = train_test_split(
                rest, test_size=count, random_state=seed, stratify=classes[rest]
            )
        except ValueError as error:
            raise UserError(
                setting,
                f"the images cannot be split by class ({error})",
                "add images or change the fraction",
            ) from error
        parts.append(sorted(part.tolist()))
    return [sorted(rest.tolist()), *parts]


def _digits(config: DataConfig, seed: int) -> Splits:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey values from 0 to 16, resized bilinearly."""
    from sklearn.datasets import load_digits

    source = load_digits()
    images = torch.from_numpy(source.images).float().unsqueeze(1) / 16
    images = _resized(images, config.image_size)
    labels = torch.from_numpy(source.target).long()
    shares = {
        "data.validation_fraction": config.validation_fraction,
        "data.test_fraction": config.test_fraction,
    }
    parts = _held_out(labels.tolist(), shares, seed)
    mean, std = float(images[parts[0]].mean()), float(images[parts[0]].std())
    images = (images - mean) / std
    train, validation, test = (TensorImages(images[part], labels[part]) for part in parts)
    return Splits(
        train,
        validation,
        test,
        tuple(str(name) for name in source.target_names),
        Preprocessing(config.image_size, 1, config.image_size, 16.0, (mean,), (std,)),
    )


def _resized(images: Tensor, size: int) -> Tensor:
    if images.shape[-2:] == (size, size):
        return images
    return functional.interpolate(images, (size, size), mode="bilinear", align_corners=False)


def _cifar10(config: DataConfig, seed: int) -> Splits:
    from torchvision.datasets import CIFAR10

    root = _folder(config)
    try:
        training, testing = (
            CIFAR10(str(root), train=flag, download=False) for flag in (True, False)
        )
    except RuntimeError as error:
        raise UserError(
            "data.root",
            f"{root} holds no complete CIFAR-10",
            "put the extracted folder cifar-10-batches-py (python version) into it",
        ) from error
    mean, std = _CIFAR10
    shares = {"data.validation_fraction": config.validation_fraction}
    keep, held = _held_out(training.targets, shares, seed)

    def images(dataset: CIFAR10, part: list[int] | slice) -> TensorImages:
        pixels = torch.from_numpy(dataset.data[part]).permute(0, 3, 1, 2).contiguous()
        if pixels.shape[-1] != config.image_size:
            pixels = _resized(pixels.float(), config.image_size).round().clamp(0, 255).byte()
        return TensorImages(pixels, torch.tensor(dataset.targets)[part], mean, std)

    return Splits(
        images(training, keep),
        images(training, held),
        images(testing, slice(None)),
        tuple(training.classes),
        Preprocessing(config.image_size, 3, config.image_size, 255.0, mean, std),
    )


def _folder(config: DataConfig) -> Path:
    root = Path(config.root or "").expanduser()
    if config.root is None or not root.is_dir():
        raise UserError(
            "data.root",
            f"there is no folder {config.root}",
            f"name the folder of the {config.name} images",
        )
    return root


def _imagefolder(config: DataConfig, seed: int) -> Splits:
    from torchvision import transforms

    root = _folder(config)
    mean, std = _IMAGENET
    resize = max(config.image_size, round(config.image_size * 256 / 224))
    transform = transforms.Compose(
        [
            transforms.Resize(resize),
            transforms.CenterCrop(config.image_size),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
    found = {
        split: root / name
        for split, names in _FOLDERS.items()
        for name in reversed(names)
        if (root / name).is_dir()
    }
    given = {split: _images_of(folder, transform) for split, folder in found.items()}
    whole = given.pop("train") if "train" in given else None
    if whole is None:
        if given:
            raise UserError(
                "data.root", f"{root} has no folder train", "add it, or give one folder per class"
            )
        whole = _images_of(root, transform)
    for split, dataset in given.items():
        if dataset.classes != whole.classes:
            raise UserError(
                "data.root",
                f"the classes in {found[split]} are not those of the training images",
                "give both the same class folders",
            )
    fractions = {"validation": config.validation_fraction, "test": config.test_fraction}
    if len(whole.classes) < 2:
        raise UserError(
            "data.root",
            f"{root} has one class folder, {whole.classes[0]}",
            "lay the images out in one folder for each of at least two classes",
        )
    missing = [split for split in fractions if split not in given]
    shares = {f"data.{split}_fraction": fractions[split] for split in missing}
    keep, *held = _held_out(whole.targets, shares, seed)
    drawn = {split: Subset(whole, part) for split, part in zip(missing, held, strict=True)}
    splits: dict[str, Any] = {
        "train": Subset(whole, keep) if missing else whole,
        **given,
        **drawn,
    }
    for dataset in splits.values():
        for index in sampled(len(dataset)):
            dataset[index]
    return Splits(
        splits["train"],
        splits["validation"],
        splits["test"],
        tuple(whole.classes),
        Preprocessing(config.image_size, 3, resize, 255.0, mean, std),
    )


def _images_of(folder: Path, transform: Any) -> Any:
    from torchvision.datasets import ImageFolder

    try:
        return ImageFolder(str(folder), transform=transform, loader=_image)
    except FileNotFoundError as error:
        raise UserError(
            "data.root",
            f"{folder} holds no images in one folder per class ({error})",
            "lay the images out as CLASS/IMAGE.png",
        ) from error


def _image(path: str) -> Any:
    from torchvision.datasets.folder import default_loader

    try:
        return default_loader(path)
    except Exception as error:  # what Pillow raises differs from one image format to the other
        raise UserError(
            "data.root", f"{path} cannot be read ({cause_of(error)})", "replace or remove it"
        ) from error
