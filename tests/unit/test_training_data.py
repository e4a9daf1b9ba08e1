"""The splits are real, disjoint, fixed by the seed, and bad sources are named."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from schemas.config import DataConfig
from workers.errors import UserError
from workers.training.data import load_splits
from workers.training.images import Splits, TensorImages, augment, batches, row_major

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


class _Listed:
    """Two classes of blank 1x8x8 images; an item that is an exception is raised."""

    classes = ("cat", "dog")

    def __init__(self, count: int = 40, **items: object) -> None:
        self._items: list[object] = [(torch.zeros(1, 8, 8), i % 2) for i in range(count)]
        for place, item in items.items():
            self._items[int(place.removeprefix("item"))] = item

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> object:
        item = self._items[index]
        if isinstance(item, Exception):
            raise item
        return item


def _own_splits(monkeypatch: pytest.MonkeyPatch, *three: object) -> Splits:
    """What a run gets of a function of the user's that returns these data sets."""
    module = types.ModuleType("own_images_here")
    module.three = lambda: three  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_images_here", module)
    return load_splits(DataConfig(name="own_images_here:three", image_size=8), seed=0)


def test_a_users_data_sets_are_read_item_by_item(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = np.ones((1, 8, 8), dtype=np.float64), np.int64(1)
    splits = _own_splits(monkeypatch, _Listed(), _Listed(item0=numbers), _Listed(1))
    assert splits.class_names == ("cat", "dog") and len(splits.train) == 40
    image, label = splits.validation[0]
    assert image.dtype == torch.float32 and label == 1


def test_a_users_data_say_how_images_were_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    """For whoever deploys the network; what says nothing is said to be the function's."""
    silent, told = _Listed(), _Listed()
    assert "own_images_here" in _own_splits(monkeypatch, silent, silent, silent).preprocessing.note
    told.preprocessing = {"resize": 10, "mean": [0.5], "std": [0.25]}
    found = _own_splits(monkeypatch, told, silent, silent).preprocessing
    assert (found.size, found.resize, found.divide_by) == (8, 10, 255.0)
    assert (found.mean, found.std, found.note) == ((0.5,), (0.25,), "")
    for wrong in ({"mean": [0.5]}, {"mean": [0.5, 0.5], "std": [1.0, 1.0]}, "ImageNet's"):
        told.preprocessing = wrong
        with pytest.raises(UserError, match="mean and std, 1 numbers each"):
            _own_splits(monkeypatch, told, silent, silent)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ((torch.zeros(1, 8, 9), 0), r"has shape \(1, 8, 9\), not that of the first"),
        ((torch.zeros(1, 8, 8), 2), "the label 2, which is not a whole number from 0 to 1"),
        ((torch.zeros(1, 8, 8), -1), "the label -1, which is not"),
        ((torch.zeros(1, 8, 8), 0.5), "the label 0.5, which is not"),
        ((torch.full((1, 8, 8), torch.nan), 0), "infinite or not a number"),
        ((torch.zeros(1, 8, 8), torch.zeros(2)), "is not a pair of an image tensor and a class"),
        ({"image": torch.zeros(1, 8, 8)}, "is not a pair of an image tensor and a class"),
        (KeyError("shelf"), r"cannot be read \(KeyError: 'shelf'\)"),
    ],
)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_bad_item_of_any_split_is_told_before_training(
    item: object, words: str, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    three = {name: _Listed() for name in SIZES} | {split: _Listed(item39=item)}
    where = f"item 39 of the {split} split of own_images_here:three"
    with pytest.raises(UserError, match=rf"^data\.name: {where} .*{words}.*; ") as caught:
        _own_splits(monkeypatch, *three.values())
    assert "\n" not in str(caught.value)


def test_an_item_that_was_not_looked_at_is_told_when_it_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    splits = _own_splits(monkeypatch, _Listed(item1=OSError("torn")), _Listed(), _Listed())
    with pytest.raises(UserError, match=r"^data\.name: item 1 of the train split .*OSError: torn"):
        list(batches(splits.train, 8, threads=2))


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (torch.zeros(6, 1, 8, 9), torch.arange(6) % 2, r"item 0 .* has shape \(1, 8, 9\)"),
        (torch.zeros(6, 1, 8, 8), torch.tensor([0, 1, 0, 1, -3, 0]), "item 4 .* label -3"),
        (torch.zeros(6, 1, 8, 8), torch.full((6,), 0.5), "item 0 .* label 0.5"),
        (torch.zeros(6, 1, 8, 8), torch.eye(6), r"labels of the validation split .*\(6, 6\)"),
        (torch.full((6, 1, 8, 8), torch.inf), torch.arange(6) % 2, "item 0 .* infinite"),
    ],
)
def test_a_bad_tensor_of_a_users_function_is_told_before_training(
    images: torch.Tensor, labels: torch.Tensor, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = TensorDataset(torch.zeros(6, 1, 8, 8), torch.arange(6) % 2)
    with pytest.raises(UserError, match=rf"^data\.name: .*{words}"):
        _own_splits(monkeypatch, good, TensorDataset(images, labels), good)


def test_one_class_is_too_few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    alone = TensorDataset(torch.zeros(6, 1, 8, 8), torch.zeros(6))
    with pytest.raises(UserError, match=r"^data\.name: .* images of 1 class; "):
        _own_splits(monkeypatch, alone, alone, alone)
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "cat" / "0.png")
    with pytest.raises(UserError, match=r"^data\.root: .* has one class folder, cat; "):
        load_splits(DataConfig(name="imagefolder", root=str(tmp_path), image_size=8), seed=0)


def test_an_image_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    _write_images(tmp_path, 10)
    torn = tmp_path / "dog" / "9.png"
    torn.write_bytes(torn.read_bytes()[:40])
    config = DataConfig(name="imagefolder", root=str(tmp_path), image_size=8)
    with pytest.raises(UserError, match=r"^data\.root: .*dog/9\.png cannot be read \(.*; replace"):
        load_splits(config, seed=0)


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


def test_the_share_that_cannot_be_split_off_is_the_one_that_is_named(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("validation", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8)).save(folder / f"{number}.png")
    config = DataConfig(name="imagefolder", root=str(tmp_path), image_size=8, test_fraction=0.05)
    with pytest.raises(UserError, match=r"data\.test_fraction.*cannot be split by class"):
        load_splits(config, seed=0)


def test_a_module_that_fails_itself_is_not_looked_for_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_broken_data.py").write_text("import no_such_package_at_all\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no_such_package_at_all.*install what it imports"):
        load_splits(DataConfig(name="my_broken_data:make"), seed=0)
    with pytest.raises(UserError, match="run from the folder that holds my_missing_data"):
        load_splits(DataConfig(name="my_missing_data:make"), seed=0)


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


def test_resized_crops_are_parts_of_8_to_100_percent_of_the_area_anywhere_and_mirrored() -> None:
    places = torch.linspace(0.5 / 32, 1 - 0.5 / 32, 32)  # of the pixels' middles
    ramps = torch.stack(torch.meshgrid(places, places, indexing="ij")).expand(300, 2, 32, 32)
    found = augment(ramps, "resized_crop", torch.Generator().manual_seed(0))
    assert found.shape == ramps.shape
    assert torch.equal(found, augment(ramps, "resized_crop", torch.Generator().manual_seed(0)))
    # Inside a crop the ramps are ramps again, as steep as the crop is high or wide.
    height = (found[:, 0, 16, 16] - found[:, 0, 15, 16]) * 32
    width = (found[:, 1, 16, 16] - found[:, 1, 16, 15]) * 32
    area, stretch = height * width.abs(), width.abs() / height
    assert 0.07 < area.min() < 0.15 and 0.85 < area.max() < 1.01
    assert 0.5 < area.median() < 0.6
    assert 0.74 < stretch.min() and stretch.max() < 1.34
    assert 120 < int((width < 0).sum()) < 180
    middle = found[:, :, 15:17, 15:17].mean((2, 3))
    assert middle.min() < 0.3 and middle.max() > 0.7


def test_images_reach_a_network_in_the_default_memory_format() -> None:
    for channels in (1, 3):
        moved = augment(torch.zeros(4, channels, 6, 5), "shift", torch.Generator())
        assert row_major(moved).stride() == (channels * 30, 30, 5, 1)
