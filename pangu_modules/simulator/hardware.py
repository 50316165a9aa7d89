"""The table of accelerators: peak rates, memory and links of each, with the public document every number stands in.

A *device* is what a process sees; a *card* is what one buys, and may hold two devices. All rates are the vendor's peak
figures per device without sparsity; what software reaches of them is `Efficiency`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

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


def _card(document: str, links: str, read: Mapping[str, str] | None = None, **fields: Any) -> Card:
    """Make a card whose compute and memory figures are quoted from `document`, and its link figures from `links`.

    `read` names, by figure, a public page in which it was read for this table.
    """
    sources = {name: Source(document=links if name in NUMBERS[4:] else document) for name in NUMBERS}
    sources["link_latency_us"] = Source(document="estimate of the order of magnitude, in no datasheet")
    sources |= {name: Source(document=page, verified=True) for name, page in (read or {}).items()}
    return Card(sources={name: source for name, source in sources.items() if fields.get(name) is not None}, **fields)


_ATLAS_800I = "Huawei, Atlas 800I A2 inference server, product page and user guide"
_ATLAS_DUO = "Huawei, Atlas 300I Duo inference card, product page and user guide"
_LOCKWOOD_A100 = "glennklockwood.com/garden/processors/A100, which quotes NVIDIA's datasheet"
_LOCKWOOD_H100 = "glennklockwood.com/garden/processors/h100, which quotes NVIDIA's figures"
_DUO_PAGES = "3dnews.ru/1131049 and elektronikpraxis.de on the Atlas 300I Duo: two processors"
_MI300X_PAGE = "aiwiki.ai/wiki/amd_instinct_mi300x"

_CARDS = (
    _card(
        _ATLAS_800I,
        f"{_ATLAS_800I}: HCCS full mesh, 392 GB/s in both directions over 7 links",
        name="ascend_800i_a2",
        title="Ascend 800I A2 (64 GB)",
        tflops_16bit=280,
        tops_int8=550,
        memory_gb=64,
        memory_gb_per_s=1600,
        link_gb_per_s=196,
        link_latency_us=10,
        topology="mesh",
        network_gb_per_s=25,
    ),
    _card(
        _ATLAS_800I,
        f"{_ATLAS_800I}: HCCS full mesh, 392 GB/s in both directions over 7 links",
        name="ascend_800i_a2_32gb",
        title="Ascend 800I A2 (32 GB)",
        tflops_16bit=280,
        tops_int8=550,
        memory_gb=32,
        memory_gb_per_s=800,
        link_gb_per_s=196,
        link_latency_us=10,
        topology="mesh",
        network_gb_per_s=25,
    ),
    _card(
        f"{_ATLAS_DUO}: 140 TFLOPS fp16, 280 TOPS int8, 96 GB and 408 GB/s over two processors",
        f"{_ATLAS_DUO}: PCIe 4.0 x16 (32 GB/s in one direction) shared by two processors",
        {
            "tops_int8": f"{_DUO_PAGES}, 280 TOPS together",
            "memory_gb": f"{_DUO_PAGES}, 48 GB each",
            "memory_gb_per_s": f"{_DUO_PAGES}, 408 GB/s together, about 204 each",
        },
        name="ascend_300i_duo",
        title="Ascend 300I Duo (96 GB)",
        tflops_16bit=70,
        tops_int8=140,
        memory_gb=48,
        memory_gb_per_s=204,
        link_gb_per_s=16,
        link_latency_us=20,
        topology="switch",
        devices_per_card=2,
    ),
    _card(
        "NVIDIA A100 Tensor Core GPU datasheet",
        "NVIDIA A100 Tensor Core GPU datasheet: NVLink 600 GB/s in both directions",
        dict.fromkeys(NUMBERS[:5], _LOCKWOOD_A100),
        name="a100_80gb",
        title="NVIDIA A100 SXM 80 GB",
        tflops_16bit=312,
        tops_int8=624,
        memory_gb=80,
        memory_gb_per_s=2039,
        link_gb_per_s=300,
        link_latency_us=3,
        topology="switch",
        network_gb_per_s=25,
    ),
    _card(
        "NVIDIA H100 Tensor Core GPU datasheet",
        "NVIDIA H100 Tensor Core GPU datasheet: NVLink 900 GB/s in both directions",
        dict.fromkeys(NUMBERS[:5], _LOCKWOOD_H100),
        name="h100_sxm",
        title="NVIDIA H100 SXM 80 GB",
        tflops_16bit=989,
        tops_int8=1979,
        memory_gb=80,
        memory_gb_per_s=3350,
        link_gb_per_s=450,
        link_latency_us=3,
        topology="switch",
        network_gb_per_s=50,
    ),
    _card(
        "NVIDIA H200 Tensor Core GPU datasheet",
        "NVIDIA H200 Tensor Core GPU datasheet: NVLink 900 GB/s in both directions",
        name="h200",
        title="NVIDIA H200 SXM",
        tflops_16bit=989,
        tops_int8=1979,
        memory_gb=141,
        memory_gb_per_s=4800,
        link_gb_per_s=450,
        link_latency_us=3,
        topology="switch",
        network_gb_per_s=50,
    ),
    _card(
        "NVIDIA L40S datasheet",
        "NVIDIA L40S datasheet: PCIe 4.0 x16",
        name="l40s",
        title="NVIDIA L40S",
        tflops_16bit=362,
        tops_int8=733,
        memory_gb=48,
        memory_gb_per_s=864,
        link_gb_per_s=32,
        link_latency_us=10,
        topology="switch",
    ),
    _card(
        "NVIDIA Ada GPU architecture whitepaper, RTX 4090, fp16 with fp32 accumulation",
        "NVIDIA Ada GPU architecture whitepaper: PCIe 4.0 x16",
        name="rtx_4090",
        title="NVIDIA RTX 4090",
        tflops_16bit=165,
        tops_int8=661,
        memory_gb=24,
        memory_gb_per_s=1008,
        link_gb_per_s=32,
        link_latency_us=10,
        topology="switch",
    ),
    _card(
        "AMD Instinct MI300X data sheet",
        "AMD Instinct MI300X data sheet: 7 Infinity Fabric links of 128 GB/s in both directions",
        {"memory_gb": _MI300X_PAGE, "memory_gb_per_s": _MI300X_PAGE},
        name="mi300x",
        title="AMD Instinct MI300X",
        tflops_16bit=1307,
        tops_int8=2615,
        memory_gb=192,
        memory_gb_per_s=5300,
        link_gb_per_s=448,
        link_latency_us=5,
        topology="mesh",
        network_gb_per_s=50,
    ),
)
CARDS: dict[str, Card] = {card.name: card for card in _CARDS}


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
    import yaml

    try:
        return Card.model_validate(yaml.safe_load(Path(name).read_text(encoding="utf-8")))
    except OSError as error:
        raise UsageError(f"hardware: cannot read {name}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"hardware: {name} is not valid YAML: {error}") from error
    except ValidationError as error:
        raise UsageError(readable(error, f"hardware {name}")) from error
