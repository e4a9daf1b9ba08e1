"""The splits are real, disjoint, fixed by the seed, and bad sources are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from schemas.config import DataConfig
from workers.errors import UserError
from workers.training.data import load_splits
from workers.training.images import TensorImages, augment, batches, row_major

SIZES = {"train": 1079, "validation": 359, "test": 359}


def _rows(images: torch.Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in images}


def test_digits_has_three_splits_of_all_images() -> None:
    splits = load_splits(DataConfig(), seed=0)
    assert {name: len(getattr(splits, name)) for name in SIZES} == SIZES
    assert splits.num_classes == 10 and splits.in_channels == 1
    image, label = splits.train[0]
    assert image.shape == (1, 32, 32) and image.dtype == torch.float32
    assert 0 <= int(label) < 10


def test_digits_splits_are_disjoint() -> None:
    splits = load_splits(DataConfig(image_size=8), seed=0)
    train, validation, test = (
        _rows(s.images) for s in (splits.train, splits.validation, splits.test)
    )
    assert not train & validation and not train & test and not validation & test


def test_the_seed_fixes_the_splits() -> None:
    first, again, other = (load_splits(DataConfig(image_size=8), seed) for seed in (3, 3, 4))
    for name in SIZES:
        assert torch.equal(getattr(first, name).images, getattr(again, name).images)
    assert not torch.equal(first.test.labels, other.test.labels)


def test_every_class_is_in_every_split_in_proportion() -> None:
    splits = load_splits(DataConfig(image_size=8), seed=0)
    for split in (splits.validation, splits.test):
        counts = torch.bincount(split.labels, minlength=10)
        assert counts.min() >= 34 and counts.max() <= 38


def test_preprocessing_describes_what_was_done() -> None:
    splits = load_splits(DataConfig(), seed=0)
    data = splits.preprocessing.as_data()
    assert data["divide_by"] == 16.0 and data["size"] == 32 and data["channels"] == 1
    assert abs(float(splits.train.images.mean())) < 1e-5
    assert abs(float(splits.train.images.std()) - 1) < 1e-5


def _write_images(folder: Path, count: int) -> None:
    for label, shade in (("cat", 40), ("dog", 200)):
        (folder / label).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (20, 16), (shade, i, 0)).save(folder / label / f"{i}.png")


def test_imagefolder_of_one_folder_is_split_by_the_seed(tmp_path: Path) -> None:
    _write_images(tmp_path, 10)
    config = DataConfig(name="imagefolder", root=str(tmp_path), image_size=8)
    splits = load_splits(config, seed=0)
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [12, 4, 4]
    assert splits.class_names == ("cat", "dog")
    assert splits.train[0][0].shape == (3, 8, 8)


def test_imagefolder_keeps_the_splits_it_is_given(tmp_path: Path) -> None:
    _write_images(tmp_path / "train", 10)
    _write_images(tmp_path / "val", 3)
    splits = load_splits(DataConfig(name="imagefolder", root=str(tmp_path), image_size=8), seed=0)
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [16, 6, 4]


@pytest.mark.parametrize("name", ["imagefolder", "cifar10"])
def test_a_missing_folder_names_the_field(name: str, tmp_path: Path) -> None:
    config = DataConfig(name=name, root=str(tmp_path / "absent"))
    with pytest.raises(UserError, match=r"^data\.root: there is no folder .*absent; "):
        load_splits(config, seed=0)


def test_a_folder_without_the_images_names_the_field(tmp_path: Path) -> None:
    for name in ("imagefolder", "cifar10"):
        with pytest.raises(UserError) as caught:
            load_splits(DataConfig(name=name, root=str(tmp_path)), seed=0)
        assert caught.value.field == "data.root"


def test_a_users_function_gives_the_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_images.py").write_text(
        "import torch\nfrom torch.utils.data import TensorDataset\n"
        "def three(count):\n"
        "    part = TensorDataset(torch.zeros(count, 2, 8, 8), torch.arange(count) % 3)\n"
        "    return part, part, part\n"
    )
    monkeypatch.chdir(tmp_path)
    config = DataConfig(name="my_images:three", arguments={"count": 6}, image_size=8)
    splits = load_splits(config, seed=0)
    assert splits.in_channels == 2 and splits.class_names == ("0", "1", "2")
    with pytest.raises(UserError, match=r"^data\.image_size: "):
        load_splits(config.model_copy(update={"image_size": 9}), seed=0)


@pytest.mark.parametrize("name", ["mnist", "no_such_module_here:load"])
def test_an_unknown_data_set_names_the_field(name: str) -> None:
    with pytest.raises(UserError, match=r"^data\.name: "):
        load_splits(DataConfig(name=name), seed=0)


def test_batches_of_any_data_set_are_the_same() -> None:
    images, labels = torch.randn(11, 1, 4, 4), torch.arange(11)
    memory, other = TensorImages(images, labels), TensorDataset(images, labels)
    order = torch.randperm(11)
    for (a, b), (c, d) in zip(
        batches(memory, 5, order), batches(other, 5, order, threads=2), strict=True
    ):
        assert torch.equal(a, c) and torch.equal(b, d)
    assert [len(b) for _, b in batches(memory, 5, order)] == [5, 5], "no batch of one to train on"
    assert [len(b) for _, b in batches(memory, 5)] == [5, 5, 1]


def test_augmentation_is_seeded_and_moves_each_image_by_itself() -> None:
    images = torch.zeros(64, 1, 9, 9)
    images[:, :, 4, 4] = 1
    shifted = augment(images, "shift", torch.Generator().manual_seed(0))
    assert torch.equal(shifted, augment(images, "shift", torch.Generator().manual_seed(0)))
    assert torch.equal(shifted.sum((1, 2, 3)), torch.ones(64)), "a move keeps the point"
    places = {tuple(image[0].nonzero()[0].tolist()) for image in shifted}
    assert len(places) > 10
    assert all(2 <= row <= 6 and 2 <= column <= 6 for row, column in places)
    assert torch.equal(augment(images, "none", torch.Generator()), images)


def test_crop_flip_mirrors_about_half_of_the_images() -> None:
    ramp = torch.arange(32.0).expand(200, 1, 32, 32).contiguous()
    found = augment(ramp, "crop_flip", torch.Generator().manual_seed(0))
    mirrored = (found[:, 0, 0, 0] > found[:, 0, 0, -1]).sum()
    assert 70 < int(mirrored) < 130


def test_images_reach_a_network_in_the_default_memory_format() -> None:
    for channels in (1, 3):
        moved = augment(torch.zeros(4, channels, 6, 5), "shift", torch.Generator())
        assert row_major(moved).stride() == (channels * 30, 30, 5, 1)
