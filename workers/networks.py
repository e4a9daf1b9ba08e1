"""Networks by what the ledger says of them: structure and weights become torch modules."""

from __future__ import annotations

from functools import cached_property

from torch import Tensor, nn

from schemas.config import RunConfig
from schemas.network import Block, ChannelGroup, NetworkInfo, Structure, Trained
from workers.artifacts import ArtifactStore
from workers.pruning.blocks import residual_blocks
from workers.pruning.groups import channel_groups, check_patterns
from workers.pruning.plain_layers import plain_blocks
from workers.pruning.surgery import materialise, network_info
from workers.training.data import load_splits
from workers.training.distillation import Teacher
from workers.training.images import Splits
from workers.training.networks import build_model, example_input
from workers.training.weights import put_weights, weights_from_bytes, weights_to_bytes


class Networks:
    """The networks of one run: the dense one, those pruned from it, the uniformly narrower one."""

    def __init__(self, config: RunConfig, artifacts: ArtifactStore) -> None:
        self.config = config
        self._artifacts = artifacts
        self._teachers: dict[str, Teacher] = {}

    @cached_property
    def splits(self) -> Splits:
        """The run's data."""
        return load_splits(self.config.data, self.config.seed)

    @property
    def image(self) -> Tensor:
        """One input image of zeros, ``(1, channels, size, size)``."""
        return example_input(1, self.splits.in_channels, self.config.data.image_size)

    @property
    def batch(self) -> Tensor:
        """One input of the deployed network, ``(batch, channels, size, size)``."""
        return example_input(
            self.config.input.batch_size, self.splits.in_channels, self.config.data.image_size
        )

    @cached_property
    def groups(self) -> tuple[ChannelGroup, ...]:
        """Channel groups of the dense network."""
        prune = self.config.prune
        dense = self.dense()
        check_patterns(dense, "prune.min_widths", prune.min_widths)
        return channel_groups(dense, self.image, prune.exclude, prune.include)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Residual blocks and plain layers of the dense network that may be taken out."""
        dense, prune = self.dense(), self.config.prune
        residual = residual_blocks(dense, self.image, self.groups, prune)
        return residual + plain_blocks(dense, self.image, self.groups, residual, prune)

    def dense(self, fraction: float = 1.0) -> nn.Module:
        """The dense network, or the one of a fraction of its widths, with fresh weights."""
        return build_model(
            self.config.model,
            self.splits.num_classes,
            self.splits.in_channels,
            fraction,
            image_size=self.config.data.image_size,
            seed=self.config.seed,
        )

    def of_structure(self, structure: Structure, fraction: float | None = None) -> nn.Module:
        """A network of the structure whose weights say nothing, in evaluation mode."""
        if fraction is not None:
            return self.dense(fraction).eval()
        blocks = self.blocks if structure.gone else ()
        return materialise(self.dense, self.image, structure, blocks).eval()

    def load(self, trained: Trained, fraction: float | None = None) -> nn.Module:
        """The network with its weights, in evaluation mode."""
        model = self.of_structure(trained.structure, fraction)
        put_weights(model, weights_from_bytes(self._artifacts.get_bytes(trained.weights)))
        return model.eval()

    def teacher(self, dense: Trained) -> Teacher:
        """What pruned networks learn from besides the labels: one for all trainings, as it keeps
        its outputs."""
        if dense.weights not in self._teachers:
            recipe = self.config.fine_tune
            self._teachers[dense.weights] = Teacher(
                self.load(dense), recipe.distillation, recipe.distillation_temperature
            )
        return self._teachers[dense.weights]

    def store(self, model: nn.Module) -> str:
        """Store a network's weights; their artefact address."""
        return self._artifacts.put_bytes(weights_to_bytes(model.state_dict()), ".safetensors")

    def info(self, model: nn.Module) -> NetworkInfo:
        """Size, input shape and classes of a network."""
        return network_info(model, self.batch, self.splits.class_names)
