"""Folding batch norm changes no output and no name; what does not trace says so."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

from workers.errors import UserError
from workers.pruning.fold import exported_program, fold_batch_norm
from workers.training.small_resnet import small_resnet


def _lived_in(network: nn.Module) -> nn.Module:
    """With batch norms whose statistics and weights are not those of a new network."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5, generator)
                nn.init.normal_(module.bias, 0.0, 0.1, generator)
    return network


def _norms(network: nn.Module) -> list[str]:
    kind = nn.modules.batchnorm._BatchNorm
    return [name for name, module in network.named_modules() if isinstance(module, kind)]


@pytest.mark.parametrize("name", ["small_resnet", "resnet18", "mobilenet_v2"])
def test_the_folded_network_is_equal_and_keeps_its_names(name: str) -> None:
    torch.manual_seed(0)
    network = small_resnet() if name == "small_resnet" else getattr(torchvision.models, name)()
    network = _lived_in(network)
    images = torch.randn(2, 1 if name == "small_resnet" else 3, 32, 32)
    folded = fold_batch_norm(network, images)
    with torch.no_grad():
        found, expected = folded(images), network.eval()(images)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5
    assert not _norms(folded) and _norms(network)
    layers = [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert layers == [n for n, m in folded.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def test_exported_parameters_tell_their_module() -> None:
    program = exported_program(
        fold_batch_norm(small_resnet(), torch.zeros(1, 1, 32, 32)), torch.zeros(1, 1, 32, 32)
    )
    names = program.graph_signature.inputs_to_parameters
    assert names["p_layer1_0_conv1_weight"] == "layer1.0.conv1.weight"
    assert names["p_layer2_0_downsample_0_bias"] == "layer2.0.downsample.0.bias"
    assert not any("bn" in name for name in names)


def test_linear_layers_are_folded_too() -> None:
    network = _lived_in(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU()))
    images = torch.randn(3, 4)
    folded = fold_batch_norm(network, images)
    assert not _norms(folded)
    assert torch.allclose(folded(images), network.eval()(images), atol=1e-6)


class _Shared(nn.Module):
    """``first``'s output is also used without its norm, and ``last`` follows an activation."""

    def __init__(self, affine: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.first, self.last = (nn.BatchNorm2d(4, affine=affine) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.last(torch.relu(self.first(x) + x))


@pytest.mark.parametrize("affine", [True, False])
def test_a_batch_norm_that_does_not_directly_follow_becomes_a_product_and_a_sum(
    affine: bool,
) -> None:
    network, images = _lived_in(_Shared(affine)), torch.randn(1, 1, 8, 8)
    folded = fold_batch_norm(network, images)
    assert _norms(folded) == []
    names = [name for name, _ in folded.named_parameters() if not name.startswith("conv")]
    assert names == ["first.scale", "first.shift", "last.scale", "last.shift"]
    assert torch.allclose(folded(images), network.eval()(images), atol=1e-5)


def test_the_given_network_stays() -> None:
    network = small_resnet()
    weight = network.conv1.weight.clone()
    fold_batch_norm(network, torch.zeros(1, 1, 32, 32))
    assert network.training and torch.equal(network.conv1.weight, weight)
    assert network.conv1.bias is None and all(p.requires_grad for p in network.parameters())


class _Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.sum() > 0 else self.conv(-x)


def test_a_network_that_does_not_trace_names_the_field_in_one_sentence() -> None:
    with pytest.raises(UserError, match=r"^model\.name: torch\.export cannot trace") as caught:
        exported_program(_Branching(), torch.zeros(1, 1, 8, 8))
    assert "\n" not in str(caught.value) and "data-dependent" in str(caught.value)
