"""Drawn images are fixed by their seed, of every class equally often, and called synthetic."""

from __future__ import annotations

import hashlib

import pytest
import synthetic_record
import torch

from orchestrator import plan, results
from orchestrator.report.page import render
from orchestrator.summary import summarise
from schemas.config import DataConfig
from workers.errors import UserError
from workers.training.data import load_splits
from workers.training.drawn import CLASS_NAMES, draw
from workers.training.images import Splits

COUNTS = {"train": 300, "validation": 100, "test": 50}


def _splits(seed: int = 0, size: int = 16, **arguments: float) -> Splits:
    config = DataConfig(name="drawn", image_size=size, arguments={**COUNTS, **arguments})
    return load_splits(config, seed)


def test_three_splits_of_as_many_images_as_are_asked_for() -> None:
    splits = _splits()
    assert {name: len(getattr(splits, name)) for name in COUNTS} == COUNTS
    assert splits.num_classes == 10 and splits.class_names == CLASS_NAMES
    image, label = splits.train[0]
    assert image.shape == (3, 16, 16) and image.dtype == torch.float32
    assert 0 <= int(label) < 10


def test_the_seed_fixes_the_images() -> None:
    first, again, other = (_splits(seed) for seed in (3, 3, 4))
    for name in COUNTS:
        images = getattr(first, name).images
        assert torch.equal(images, getattr(again, name).images)
        assert not torch.equal(images, getattr(other, name).images)


def test_the_images_of_a_seed_are_the_same_on_every_machine_and_in_every_version() -> None:
    images, labels = draw(20, 32, seed=0, split=0, noise=0.1)
    digest = hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
    assert digest[:16] == "3cf60b3a30bb847e"


def test_no_image_is_in_two_splits_or_twice_in_one() -> None:
    splits = _splits()
    images = torch.cat([getattr(splits, name).images for name in COUNTS])
    assert len({image.numpy().tobytes() for image in images}) == sum(COUNTS.values())


def test_a_smaller_split_is_the_beginning_of_a_larger_one() -> None:
    few, many = _splits(), _splits(train=700)
    assert torch.equal(few.train.images, many.train.images[:300])
    assert torch.equal(few.train.labels, many.train.labels[:300])
    assert torch.equal(few.validation.images, many.validation.images)


def test_every_class_is_drawn_equally_often() -> None:
    _, labels = draw(500, 8, seed=1, split=0, noise=0.0)
    assert torch.bincount(labels).tolist() == [50] * 10


def test_images_are_normalised_as_the_preprocessing_says() -> None:
    splits = _splits(train=1000, size=32)
    images, _ = splits.train.batch(torch.arange(1000))
    assert images.mean((0, 2, 3)).abs().max() < 0.1
    assert (images.std((0, 2, 3)) - 1).abs().max() < 0.2
    data = splits.preprocessing.as_data()
    assert (data["size"], data["channels"], data["divide_by"]) == (32, 3, 255.0)
    assert data["note"] == "synthetic images"


@pytest.mark.parametrize("size", [16, 32])
def test_the_same_part_of_a_picture_is_equally_noisy_at_any_size(size: int) -> None:
    plain, noisy = (draw(250, size, seed=0, split=0, noise=noise)[0] for noise in (0.0, 0.1))
    difference = torch.nn.functional.avg_pool2d((noisy.float() - plain.float()) / 255, size // 8)
    assert 0.021 < float(difference.std()) < 0.026, "0.1 / 4, less where values end at 0 or 1"


@pytest.mark.parametrize(
    ("argument", "value", "words"),
    [
        ("train", 0, "0 is not a whole number of at least 1"),
        ("test", 10.5, "10.5 is not a whole number"),
        ("noise", 2, "2 is not a number from 0 to 1"),
        ("noise", "much", "'much' is not a number from 0 to 1"),
    ],
)
def test_an_argument_of_the_wrong_kind_is_named(argument: str, value: object, words: str) -> None:
    with pytest.raises(UserError, match=rf"^data\.arguments\.{argument}: {words}"):
        load_splits(DataConfig(name="drawn", arguments={argument: value}), seed=0)


def test_an_unknown_argument_is_told_with_where_it_stands() -> None:
    with pytest.raises(UserError, match=r"^data\.name: drawn\(images=9\) .*; .*data\.arguments"):
        load_splits(DataConfig(name="drawn", arguments={"images": 9}), seed=0)


def test_page_console_and_summary_call_the_data_synthetic() -> None:
    record = synthetic_record.record()
    summary = summarise(record)
    assert not summary.synthetic_data
    assert "synthetic)" not in render(record, summary).partition("<h1>")[0]
    config = synthetic_record.config(data={"name": "drawn"})
    record = record.model_copy(update={"config": config})
    summary = summarise(record)
    assert summary.synthetic_data
    assert "small_resnet on drawn (synthetic)" in render(record, summary)
    assert any(line.startswith("SYNTHETIC data") for line in results.lines(summary))


def test_the_plan_knows_how_many_images_are_drawn_and_what_the_network_costs() -> None:
    def seconds(images: int, width: int) -> float:
        config = synthetic_record.config(
            data={"name": "drawn", "arguments": {"train": images}},
            model={"name": "resnet18_cifar", "arguments": {"width": width}},
        )
        epoch = plan._epoch(config)
        assert epoch is not None
        return epoch[0]

    assert seconds(4000, 32) == pytest.approx(2 * seconds(2000, 32))
    assert seconds(2000, 64) == pytest.approx(4 * seconds(2000, 32))
