"""The table of cards: every number has a source, bandwidth of groups, cards of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from pangu_modules.common.errors import UsageError
from pangu_modules.simulator import hardware
from pangu_modules.simulator.hardware import CARDS, NUMBERS, Card, find_card


def fields(**changes: Any) -> dict[str, Any]:
    return {**CARDS["l40s"].plain(), **changes}


@pytest.mark.parametrize("card", CARDS.values(), ids=lambda card: card.name)
def test_every_number_names_its_source(card: Card) -> None:
    given = {name for name in NUMBERS if getattr(card, name) is not None}
    assert given == set(card.sources)
    assert all(source.document for source in card.sources.values())


def test_shipped_cards_are_those_of_the_file_in_its_order() -> None:
    listed = yaml.safe_load((Path(hardware.__file__).parent / "cards.yaml").read_text(encoding="utf-8"))
    assert [card["name"] for card in listed] == list(CARDS)
    assert find_card("h200") is CARDS["h200"]
    assert (CARDS["h200"].memory_gb, CARDS["h200"].sources["memory_gb"].verified) == (141, False)
    assert CARDS["a100_80gb"].sources["memory_gb"].verified


def test_a_number_without_a_source_is_refused() -> None:
    sources = {name: source for name, source in fields()["sources"].items() if name != "memory_gb"}
    with pytest.raises(ValidationError, match="give a document for memory_gb of card 'l40s'"):
        Card.model_validate(fields(sources=sources))


def test_a_small_group_uses_few_links_of_a_mesh() -> None:
    mesh, switch = CARDS["ascend_800i_a2"], CARDS["h100_sxm"]
    assert mesh.group_bytes_per_s(8) == 196e9
    assert mesh.group_bytes_per_s(4) == pytest.approx(3 * 28e9)  # 392 GB/s both ways: 28 each way on each of 7 links
    assert mesh.group_bytes_per_s(2) == pytest.approx(28e9)
    assert switch.group_bytes_per_s(2) == switch.group_bytes_per_s(8) == 450e9


def test_a_group_over_nodes_has_the_network() -> None:
    assert CARDS["h100_sxm"].group_bytes_per_s(16) == 50e9
    with pytest.raises(UsageError, match="a group of 16 devices spans nodes of 8, and the card has no network"):
        CARDS["l40s"].group_bytes_per_s(16)


def test_unknown_card_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown card 'ascend_800i'. Did you mean 'ascend_800i_a2'\? Known: .*h200"):
        find_card("ascend_800i")


def test_a_card_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(fields(name="mine", memory_gb=96)))
    assert find_card(str(path)).memory_gb == 96
    path.write_text(yaml.safe_dump(fields(memory_gb=-1)))
    with pytest.raises(UsageError, match=r"mine.yaml.memory_gb: Input should be greater than 0, got -1"):
        find_card(str(path))
    path.write_text("{")
    with pytest.raises(UsageError, match="not valid YAML"):
        find_card(str(path))
    path.write_bytes(b"name: \xff")
    with pytest.raises(UsageError, match=r"mine.yaml is not UTF-8 text: invalid start byte at byte 6"):
        find_card(str(path))
    path.write_text("- name: mine")
    with pytest.raises(UsageError, match=r"mine.yaml: Input should be a valid dictionary"):
        find_card(str(path))
    with pytest.raises(UsageError, match=r"cannot read .*other.yaml: No such file"):
        find_card(str(tmp_path / "other.yaml"))
