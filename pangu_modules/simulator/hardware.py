"""Accelerators (``cards.yaml``): peak rates, memory and links, with the public document every number stands in.

A *device* is what a process sees; a *card* is what one buys, and may hold two devices. All rates are the vendor's peak
figures per device without sparsity; what software reaches of them is `Efficiency`.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from pangu_modules.common.config import Config
from pangu_modules.common.errors import UsageError, readable
from pangu_modules.common.names import nearest

NUMBERS = (
    "tflops_16bit",
    "tops_int8",
    "memory_gb",
    "memory_gb_per_s",
    "link_gb_per_s",
    "link_latency_us",
    "network_gb_per_s",
)


class Source(Config):
    """Where a constant comes from."""

    document: str = Field(description="Title of the public document, or what the figure was derived from.")
    verified: bool = Field(False, description="Read in this document for the table; otherwise quoted from memory.")


class Card(Config):
    """An accelerator: peak figures per device (GB = 1e9 bytes), and the source of each."""

    name: str = Field(description="Name on the command line.")
    title: str = Field(description="Name in tables.")
    tflops_16bit: PositiveFloat = Field(description="Peak of dense 16-bit matrix products, TFLOP/s per device.")
    tops_int8: PositiveFloat | None = Field(None, description="Peak of dense int8 matrix products, TOP/s per device.")
    memory_gb: PositiveFloat = Field(description="Memory, GB (1e9 bytes) per device.")
    memory_gb_per_s: PositiveFloat = Field(description="Peak memory bandwidth, GB/s per device.")
    link_gb_per_s: PositiveFloat = Field(description="Links to all other devices of the node, GB/s in one direction.")
    link_latency_us: PositiveFloat = Field(description="Time of one step of a collective on little data, microseconds.")
    topology: Literal["mesh", "switch"] = Field(
        description="mesh: a link per peer, so that a small group uses few; switch: any group has the whole bandwidth."
    )
    network_gb_per_s: PositiveFloat | None = Field(None, description="Network between nodes, GB/s per device.")
    devices_per_card: PositiveInt = Field(1, description="Devices on one card.")
    devices_per_node: PositiveInt = Field(8, description="Devices within one node.")
    sources: dict[str, Source] = Field(description="Source of each number, by field name.")

    @model_validator(mode="after")
    def _every_number_has_a_source(self) -> Card:
        missing = [name for name in NUMBERS if getattr(self, name) is not None and name not in self.sources]
        if missing:
            raise ValueError(f"sources: give a document for {', '.join(missing)} of card {self.name!r}")
        return self

    def group_bytes_per_s(self, ranks: int) -> float:
        """Return the peak bandwidth (bytes/s, one direction) that a device has within a group of `ranks` devices.

        Raises:
            UsageError: the group spans nodes and the card has no figure for the network.
        """
        if ranks > self.devices_per_node:
            if self.network_gb_per_s is None:
                raise UsageError(
                    f"hardware {self.name}: a group of {ranks} devices spans nodes of {self.devices_per_node}, and the "
                    "card has no network_gb_per_s; use a smaller group or give the figure in a card file"
                )
            return 1e9 * min(self.link_gb_per_s, self.network_gb_per_s)
        if self.topology == "mesh":
            return 1e9 * self.link_gb_per_s * (ranks - 1) / (self.devices_per_node - 1)
        return 1e9 * self.link_gb_per_s


class Efficiency(Config):
    """What software reaches of the peaks. Chosen from general experience, not fitted to any model's throughput."""

    matmul: float = Field(0.7, gt=0, le=1, description="Fraction of peak FLOPs that large matrix products reach.")
    attention: float = Field(0.4, gt=0, le=1, description="Fraction of the 16-bit peak that fused attention reaches.")
    memory: float = Field(0.8, gt=0, le=1, description="Fraction of peak memory bandwidth that streaming reaches.")
    link: float = Field(0.7, gt=0, le=1, description="Fraction of the links' bandwidth that collectives reach.")
    usable_memory: float = Field(0.9, gt=0, le=1, description="Fraction of memory for weights, cache and activations.")
    operator_latency_us: float = Field(5.0, ge=0, description="Fixed time of starting one operator, microseconds.")
    overlap: float = Field(0.0, ge=0, le=1, description="Fraction of communication hidden behind computation.")


def _shipped() -> dict[str, Card]:
    """Read ``cards.yaml``, a list of cards."""
    text = files("pangu_modules.simulator").joinpath("cards.yaml").read_text(encoding="utf-8")
    cards = [Card.model_validate(fields) for fields in yaml.safe_load(text)]
    return {card.name: card for card in cards}


CARDS: dict[str, Card] = _shipped()


def find_card(name: str) -> Card:
    """Return the card of this name, or the one described in a ``.yaml`` file with the fields of `Card`.

    Raises:
        UsageError: no such card, or the file does not describe one.
    """
    if name in CARDS:
        return CARDS[name]
    if not name.endswith((".yaml", ".yml")):
        known = ", ".join(CARDS)
        raise UsageError(
            f"hardware: unknown card {name!r}.{nearest(name, CARDS)} Known: {known}; or give a .yaml file of a card"
        )
    try:
        return Card.model_validate(yaml.safe_load(Path(name).read_text(encoding="utf-8")))
    except OSError as error:
        raise UsageError(f"hardware: cannot read {name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"hardware: {name} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"hardware: {name} is not valid YAML: {error}") from error
    except ValidationError as error:
        raise UsageError(readable(error, f"hardware {name}")) from error
