"""A configuration's network is built, narrower or whole, and its checkpoint is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from schemas.config import DataConfig, ModelConfig, PruneConfig, RunConfig
from schemas.work import PrepareWork
from workers.artifacts import ArtifactStore
from workers.errors import UserError
from workers.jobs import TrainingJobs
from workers.networks import Networks
from workers.pruning.surgery import network_info
from workers.training.networks import build_model, example_input
from workers.training.weights import load_checkpoint, save_weights, weights_to_bytes


def test_small_resnet_has_the_shape_it_says() -> None:
    network = build_model(ModelConfig(), 10, 1)
    names = dict(network.named_modules())
    assert names["conv1"].out_channels == 16
    assert [names[f"layer{i}.0.conv2"].out_channels for i in (1, 2, 3)] == [16, 32, 64]
    assert names["layer2.0.downsample.0"].kernel_size == (1, 1)
    assert "layer1.0.downsample.0" not in names
    assert network(torch.zeros(3, 1, 32, 32)).shape == (3, 10)


def test_the_seed_fixes_the_weights_and_nothing_else_moves() -> None:
    state = torch.get_rng_state()
    first, again, other = (build_model(ModelConfig(), 10, 1, seed=s) for s in (1, 1, 2))
    assert torch.equal(first.conv1.weight, again.conv1.weight)
    assert not torch.equal(first.conv1.weight, other.conv1.weight)
    assert torch.equal(torch.get_rng_state(), state)


def test_half_the_width_is_a_smaller_network_with_its_own_weights() -> None:
    half = build_model(ModelConfig(), 10, 1, 0.5)
    assert half.conv1.out_channels == 8 and half.fc.in_features == 32
    config = ModelConfig(name="torchvision:squeezenet1_1")
    example = example_input(1, 3, 32)
    narrow, whole = build_model(config, 10, 3, 0.5), build_model(config, 10, 3)
    assert network_info(narrow, example).macs < 0.35 * network_info(whole, example).macs
    kept = whole.features[0].weight[: narrow.features[0].out_channels]
    assert not torch.equal(narrow.features[0].weight, kept)


def test_torchvision_networks_take_the_images_there_are() -> None:
    network = build_model(ModelConfig(name="torchvision:resnet18"), 7, 1)
    assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 7)


def test_a_users_function_gives_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_network.py").write_text(
        "from torch import nn\n"
        "def small(num_classes, width=4):\n"
        "    return nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),\n"
        "                         nn.Flatten(), nn.Linear(width, num_classes))\n"
        "def two():\n    return small(2)\n"
        "def broken():\n    raise RuntimeError('no weights here')\n"
        "def number():\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    config = ModelConfig(name="my_network:small", arguments={"width": 6})
    assert build_model(config, 10, 1)[0].out_channels == 6
    for name, words in (
        ("two", "data has 10 classes"),
        ("broken", "no weights here"),
        ("number", "not a torch module"),
        ("absent", "no function 'absent'"),
    ):
        with pytest.raises(UserError, match=rf"^model\.name: .*{words}"):
            build_model(ModelConfig(name=f"my_network:{name}"), 10, 1)


@pytest.mark.parametrize("name", ["resnet", "torchvision:resnet19", "no_such_module_here:net"])
def test_an_unknown_network_names_the_field(name: str) -> None:
    with pytest.raises(UserError, match=r"^model\.name: .*; ") as caught:
        build_model(ModelConfig(name=name), 10, 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["small_resnet", "torchvision:resnet18"])
def test_wrong_arguments_are_named_with_the_network(name: str) -> None:
    with pytest.raises(UserError) as caught:
        build_model(ModelConfig(name=name, arguments={"depth": 3}), 10, 1)
    assert str(caught.value).startswith(f"model.name: {name}(depth=3) failed with TypeError: ")
    assert "model.arguments" in caught.value.hint


@pytest.mark.parametrize(
    ("argument", "value"),
    [("widths", "a"), ("widths", []), ("widths", [8, None]), ("stem", "b"), ("blocks", True)],
)
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_an_argument_of_the_wrong_kind_is_named(
    argument: str, value: object, fraction: float
) -> None:
    with pytest.raises(UserError, match=rf"^model\.arguments\.{argument}: .* is not a "):
        build_model(ModelConfig(arguments={argument: value}), 10, 1, fraction)


def test_a_network_that_does_not_trace_is_told_before_it_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_choice.py").write_text(
        "from torch import nn\n"
        "class Choice(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv = nn.Conv2d(1, 4, 3)\n"
        "        self.fc = nn.Linear(4, 10)\n"
        "    def forward(self, x):\n"
        "        x = self.fc(self.conv(x).mean((2, 3)))\n"
        "        return x if x.sum() > 0 else -x\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("workers.jobs.train", None)
    config = RunConfig(
        model=ModelConfig(name="my_choice:Choice"),
        data=DataConfig(image_size=8),
        prune=PruneConfig(max_accuracy_drop=0.1),
    )
    jobs = TrainingJobs(Networks(config, ArtifactStore(str(tmp_path / "artifacts"))), threads=1)
    with pytest.raises(UserError, match=r"^model\.name: torch\.export cannot trace the network"):
        jobs.run(PrepareWork())


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_checkpoint_is_loaded(suffix: str, tmp_path: Path) -> None:
    trained, network = build_model(ModelConfig(), 10, 1, seed=1), build_model(ModelConfig(), 10, 1)
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pt":
        state = {f"module.{name}": value for name, value in trained.state_dict().items()}
        torch.save({"state_dict": state}, path)
    else:
        save_weights(trained.state_dict(), path)
    assert load_checkpoint(network, ModelConfig(checkpoint=str(path)))
    assert torch.equal(network.fc.weight, trained.fc.weight)
    assert not load_checkpoint(network, ModelConfig())


def test_weights_without_a_version_load_into_a_network_that_asks_for_it(tmp_path: Path) -> None:
    """MNASNet reads the version from a state dictionary; a safetensors file has tensors alone."""
    config = ModelConfig(name="torchvision:mnasnet0_5", checkpoint=str(tmp_path / "w.safetensors"))
    network = build_model(config, 10, 3, seed=1)
    save_weights(network.state_dict(), tmp_path / "w.safetensors")
    other = build_model(config, 10, 3, seed=2)
    assert load_checkpoint(other, config)
    name = "layers.0.weight"
    assert torch.equal(other.state_dict()[name], network.state_dict()[name])


def test_auxiliary_classifiers_are_taken_out_of_the_network_and_of_a_checkpoint(
    tmp_path: Path,
) -> None:
    config = ModelConfig(name="torchvision:googlenet", checkpoint=str(tmp_path / "whole.pt"))
    whole = torchvision.models.googlenet(num_classes=4, init_weights=False)
    torch.save(whole.state_dict(), tmp_path / "whole.pt")
    network = build_model(config, 4, 3, image_size=32)
    assert isinstance(network.train()(torch.zeros(2, 3, 32, 32)), torch.Tensor)
    assert load_checkpoint(network, config)
    assert torch.equal(network.fc.weight, whole.fc.weight)


def test_a_bad_checkpoint_names_the_field(tmp_path: Path) -> None:
    network = build_model(ModelConfig(), 10, 1)
    save_weights(build_model(ModelConfig(), 5, 1).state_dict(), tmp_path / "five.safetensors")
    save_weights({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    diverged = {**network.state_dict(), "fc.bias": torch.full((10,), float("nan"))}
    save_weights(diverged, tmp_path / "diverged.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    torch.save(nn.Linear(1, 1), tmp_path / "whole.pt")
    for name, words in (
        ("absent.pt", "there is no file"),
        ("five.safetensors", r"another shape \(fc\.bias is \(5,\), not \(10,\)"),
        ("other.safetensors", "tensors are missing"),
        ("diverged.safetensors", r"infinite or not a number \(fc\.bias\)"),
        ("torn.safetensors", "cannot be read"),
        ("whole.pt", "holds more than tensors"),
    ):
        with pytest.raises(UserError, match=rf"^model\.checkpoint: .*{words}"):
            load_checkpoint(network, ModelConfig(checkpoint=str(tmp_path / name)))


def test_equal_weights_give_equal_bytes() -> None:
    first, again = (build_model(ModelConfig(), 10, 1, seed=1).state_dict() for _ in range(2))
    assert weights_to_bytes(first) == weights_to_bytes(dict(reversed(again.items())))
