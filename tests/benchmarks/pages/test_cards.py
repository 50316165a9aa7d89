"""The generated parts of the method cards."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.pages.cards import NOT_MEASURED, config_table, main

CARD = "# A card\n<!-- {0}:begin -->\n{1}\n<!-- {0}:end -->\n"


def test_config_table_lists_every_field() -> None:
    table = config_table("pangu_modules.vision.scalenet.config.ScaleNetConfig")
    assert "| depth_factor | integer above 0, or None | None |" in table
    assert "| ('attn', 'mlp') |" in table
    with pytest.raises(ValueError, match=r"no configuration class 'pangu_modules\.Nothing'"):
        config_table("pangu_modules.Nothing")


def test_cards_are_written_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--docs", str(tmp_path), "--results", str(tmp_path)]
    card = tmp_path / "card.md"
    card.write_text(CARD.format("claims nothing", "old"))
    assert main([*words, "--check"]) == 1
    assert "card.md" in capsys.readouterr().err
    assert main(words) == 0
    assert card.read_text() == CARD.format("claims nothing", NOT_MEASURED)
    assert main([*words, "--check"]) == 0


def test_a_lost_end_marker_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "card.md").write_text("<!-- claims nothing:begin -->\n")
    with pytest.raises(SystemExit) as stopped:
        main(["--docs", str(tmp_path), "--results", str(tmp_path)])
    assert stopped.value.code == 2
    assert "card.md" in capsys.readouterr().err
