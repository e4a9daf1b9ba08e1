"""The structure of a network as data: channel groups and their widths."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from schemas.base import Schema, Timed


class ChannelGroup(Schema):
    """Layers whose channels must be removed together.

    ``group_id`` is the dotted name of the group's first producer in the order of the network's
    modules; it stays the same whatever the widths.
    """

    group_id: str
    channels: int = Field(ge=1, description="Channels of the dense network.")
    producers: tuple[str, ...] = Field(
        description="Module names of the convolutions and linear layers whose outputs these "
        "channels are."
    )
    consumers: tuple[str, ...] = Field(
        description="Module names of the convolutions and linear layers that read these channels."
    )
    divisor: int = Field(default=1, ge=1, description="Every width is a multiple of this.")
    prunable: bool = True
    reason: str = Field(default="", description="Why it is not prunable.")

    def share(self, fraction: float) -> int:
        """A share of its channels: the nearest multiple of its divisor, never none."""
        return max(1, round(self.channels // self.divisor * fraction)) * self.divisor


class Block(Schema):
    """A part of the network that may be taken out: its input goes on unchanged.

    A residual block, which adds to its input, or a plain layer: a convolution of a chain with its
    normalisation and activation, of whose input and output the shapes are the same.
    """

    block_id: str = Field(description="Module name; of a plain layer that of its convolution.")
    groups: tuple[str, ...] = Field(
        min_length=1,
        description="Prunable channel groups that are computed inside it alone. None has channels "
        "where it is taken out.",
    )
    layers: tuple[str, ...] = Field(
        description="Module names of its convolutions and linear layers."
    )
    modules: tuple[str, ...] = Field(
        default=(), description="Modules that go, where it is not the one of its own name."
    )
    source: str = Field(
        default="",
        description="Of a plain layer: the group that it reads, whose channels are read in place "
        "of its own once it is gone.",
    )

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the modules that go."""
        return self.modules or (self.block_id,)


class Sensitivity(Schema):
    """What removing channels of one group would cost a trained network, estimated."""

    PARTS: ClassVar[int] = 16

    group_id: str
    losses: tuple[float, ...] = Field(
        description="losses[i]: how much the loss is expected to rise, in a measure of its own, "
        "when i / PARTS of the channels that the group has now are removed, the least important "
        "first."
    )

    def loss(self, removed: float) -> float:
        """Expected rise when this share of the channels is removed; between the parts a line."""
        place = min(max(removed, 0.0), 1.0) * (len(self.losses) - 1)
        below = min(int(place), len(self.losses) - 2)
        first, second = self.losses[below], self.losses[below + 1]
        return first + (second - first) * (place - below)


class Structure(Schema):
    """A pruned network's structure: the width of every group that is not dense."""

    widths: dict[str, int] = Field(
        default_factory=dict,
        description="group_id -> kept channels; a group not named is dense. 0: the block that "
        "computes it is taken out.",
    )

    @property
    def gone(self) -> frozenset[str]:
        """The groups whose block is taken out."""
        return frozenset(group for group, width in self.widths.items() if width == 0)

    def with_widths(self, widths: dict[str, int]) -> Structure:
        """This structure with the given groups' widths replaced."""
        return Structure(widths=dict(sorted({**self.widths, **widths}.items())))


class NetworkInfo(Schema):
    """What is known of a network without compiling it."""

    macs: int = Field(ge=0, description="Multiply-accumulates of one input image.")
    params: int = Field(ge=0)
    input_shape: tuple[int, ...] = Field(description="Batch, channels, height, width.")
    class_names: tuple[str, ...] = ()


class Trained(Timed):
    """A network whose weights exist as a file."""

    left_out_of_keys: ClassVar[tuple[str, ...]] = ("train_s",)

    structure: Structure
    weights: str = Field(description="Artefact address (sha256) of the safetensors file.")
    val_accuracy: float = Field(ge=0.0, le=1.0)
    info: NetworkInfo
    train_s: float = Field(ge=0.0, description="Seconds of training that made these weights.")
    epochs: int = Field(ge=0)
