"""The page of fused operators: written, checked, and what it says of a model."""

from benchmarks.pages import ascend


def test_page_is_written_once_and_checked(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ascend, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(ascend, "FAMILIES", ("llama",))
    assert ascend.main(["--check"]) == 1
    assert "out of date" in capsys.readouterr().err
    assert ascend.main([]) == 0
    assert ascend.main(["--check"]) == 0
    text = (tmp_path / "page.md").read_text()
    assert "was measured on an NPU: none was at hand" in text
    assert "Predictions, not measurements" in text


def test_reasons_stand_where_a_model_is_not_fused():
    rows = {row["what"]: row for row in ascend.model_rows("cohere")}
    assert rows["rotary embedding of CohereAttention"]["training"].startswith("left: its apply_rotary_pos_emb")
    assert (rows["fusion_attention"]["training"], rows["fusion_attention"]["inference"]) == ("fused", "")
