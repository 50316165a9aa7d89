"""Stages that repeat, and what stages take from several earlier ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from distilled import distilled

from pangu_modules import Recipe, repeat_stages
from pangu_modules.engine.earlier import recorded, with_earlier
from pangu_modules.engine.place import Place

ROUND = ("sample", "score", "distill")


def test_each_round_starts_from_the_one_before(tmp_path: Path) -> None:
    """Would fail if round 3 sampled from the first student again, or the teacher became the student."""
    stages = dict(distilled(tmp_path).stages)
    behind = stages["distill"].derive(start_from="distill", data_from=("score", "rollouts=sample"))
    rounds = repeat_stages({**stages, "more": behind}, ROUND, 3)
    assert list(rounds) == [
        *("teacher", "sft", "sample", "score", "distill"),
        *("sample_2", "score_2", "distill_2", "sample_3", "score_3", "distill_3", "more"),
    ]
    taken = {name: (stage.start_from, stage.data_from) for name, stage in rounds.items()}
    assert taken["distill"] == ("sft", "score")
    assert taken["sample_2"] == ("distill", None)
    assert taken["score_3"] == ("teacher", "sample_3")
    assert taken["distill_3"] == ("distill_2", "score_3")
    assert taken["more"] == ("distill_3", ("score_3", "rollouts=sample_3"))
    assert [rounds[name].seed for name in ("sample", "sample_2", "sample_3")] == [0, 1, 2]
    Recipe(stages=rounds)
    assert list(repeat_stages(stages, ROUND, 1)) == list(stages)


def test_what_cannot_repeat_is_refused(tmp_path: Path) -> None:
    stages = distilled(tmp_path).stages
    with pytest.raises(ValueError, match="stages to repeat follow each other; there are teacher, sft"):
        repeat_stages(stages, ("sample", "distill"), 2)
    with pytest.raises(ValueError, match="'score' ends a round, so it trains"):
        repeat_stages(stages, ("sample", "score"), 2)
    with pytest.raises(ValueError, match="rounds=0"):
        repeat_stages(stages, ROUND, 0)


def test_data_come_from_several_stages_and_those_behind_them(tmp_path: Path) -> None:
    stages = dict(distilled(tmp_path).stages)
    stages["score_b"] = stages["score"].derive(teacher="b")
    for name in ("sample", "score", "score_b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text("{}")
    (tmp_path / "sft/checkpoints").mkdir(parents=True)
    (tmp_path / "sft/checkpoints/last.ckpt").write_bytes(b"")
    distill = stages["distill"].derive(data_from=("score", "score_b"))
    made = with_earlier(distill, stages, Place(tmp_path))
    assert made.data.scores == (str(tmp_path / "score/scores"), str(tmp_path / "score_b/scores"))
    assert made.data.rollouts == str(tmp_path / "sample/rollouts")
    assert recorded(made, distill) == distill
    one = with_earlier(stages["distill"], stages, Place(tmp_path))
    assert one.data.scores == str(tmp_path / "score/scores")
    named = with_earlier(distill.derive(data_from="rollouts=sample"), stages, Place(tmp_path))
    assert named.data.rollouts == str(tmp_path / "sample/rollouts")
    taught = distill.derive(teacher_from="sft")
    found = with_earlier(taught, stages, Place(tmp_path))
    assert found.callbacks["distill"].teacher == str(tmp_path / "sft/checkpoints/last.ckpt")
    assert recorded(found, taught) == taught
    with pytest.raises(ValueError, match="no callback of the stage has a teacher"):
        with_earlier(taught.derive(callbacks={"distill": None}), stages, Place(tmp_path))
    with pytest.raises(ValueError, match="teacher_from='score' names no earlier stage that trains"):
        Recipe(stages={**stages, "distill": stages["distill"].derive(teacher_from="score")})
