import json

import pytest

from benchmarks.pages.tables import main, recipes_section, replace_sections, results_section

README = """# Title

<!-- results:begin -->
old
<!-- results:end -->
between \\1
<!-- recipes:begin --><!-- recipes:end -->
end
"""

CLAIM = {
    "id": "a",
    "statement": "Better | deeper",
    "paper": "+7.42 points",
    "measured": 2.6,
    "spread": 1.7,
    "unit": "points",
    "seeds": [0, 1, 2],
    "values": [1.0, 2.0, 4.8],
    "verdict": "holds",
}
RATIO = {
    "id": "step",
    "title": "training step",
    "peer_name": "24 blocks",
    "unit": "s",
    "ours": 2.0,
    "peer": 2.1,
    "ratio": 1.05,
    "low": 1.0,
    "high": 1.1,
    "target": 0.926,
    "met": True,
}


@pytest.fixture
def project(tmp_path):
    claims, speed = tmp_path / "results" / "claims", tmp_path / "results" / "speed"
    for folder in (claims, speed, tmp_path / "recipes"):
        folder.mkdir(parents=True)
    (claims / "toy.json").write_text(
        json.dumps({"method": "toy", "title": "Toy_", "source": "arXiv:1", "claims": [CLAIM]})
    )
    (speed / "toy.json").write_text(json.dumps({"method": "toy", "title": "Fast", "ratios": [RATIO]}))
    (tmp_path / "recipes" / "toy.py").write_text('"""A toy."""\nrecipe = Recipe(cost="1 minute")\n')
    (tmp_path / "README.md").write_text(README)
    return tmp_path


def command(project, *arguments):
    paths = {"--readme": "README.md", "--results": "results", "--recipes": "recipes"}
    return main([*arguments, *(text for name, path in paths.items() for text in (name, str(project / path)))])


def test_both_sections_are_written_between_their_markers_only(project):
    assert command(project) == 0
    text = (project / "README.md").read_text()
    assert text.startswith("# Title\n\n<!-- results:begin -->\n| method |")
    assert (
        "| Toy\\_ (arXiv:1) | Better \\| deeper: +2.6 ± 1.7 points | 1 of 1 | - | unknown | make claims NAME=toy |"
        in text
    )
    assert "| Fast | 1 of 1 | - | unknown | make speed NAME=toy |" in text
    assert "[toy](benchmarks/results/speed/toy.md)" in text
    assert "\n<!-- results:end -->\nbetween \\1\n<!-- recipes:begin -->\n| recipe |" in text
    assert text.endswith("| toy | A toy. | 1 minute |\n<!-- recipes:end -->\nend\n")


def test_check_changes_nothing_and_tells_what_is_old(project, capsys):
    assert command(project, "--check") == 1
    assert (project / "README.md").read_text() == README
    assert "is out of date: run python -m benchmarks.pages.tables" in capsys.readouterr().err
    assert command(project) == 0
    assert command(project, "--check") == 0
    (project / "recipes" / "toy.py").write_text('"""Another."""\nrecipe = Recipe()\n')
    assert command(project, "--check") == 1


def test_what_does_not_hold_and_what_is_missed_is_named(project):
    lost = {**CLAIM, "statement": "Smaller", "verdict": "does not hold"}
    result = {"method": "toy", "title": "Toy", "source": "arXiv:1", "claims": [CLAIM, lost]}
    (project / "results" / "claims" / "toy.json").write_text(json.dumps(result))
    slow = {**RATIO, "title": "decoding", "ratio": 0.5, "met": False}
    (project / "results" / "speed" / "toy.json").write_text(
        json.dumps({"method": "toy", "title": "Fast", "ratios": [RATIO, slow, {**RATIO, "target": None, "met": None}]})
    )
    text = results_section(project / "results")
    assert "| 1 of 2 | Smaller: +2.6 ± 1.7 points (does not hold) |" in text
    assert "| 1 of 2 | decoding: 0.50, target 0.93 |" in text


def test_nothing_measured_yet_is_said(tmp_path):
    assert results_section(tmp_path) == "No results yet."
    assert recipes_section(tmp_path) == "No recipes yet."


@pytest.mark.parametrize(
    "text",
    ["", "<!-- x:begin -->", "<!-- x:end --><!-- x:begin -->", "<!-- x:begin --><!-- x:begin --><!-- x:end -->"],
)
def test_wrong_markers_are_an_error(text):
    with pytest.raises(ValueError, match="expected one <!-- x:begin --> and after it one <!-- x:end -->"):
        replace_sections(text, {"x": "new"})


def test_the_command_answers_missing_markers_with_exit_code_2(project, capsys):
    (project / "README.md").write_text("nothing")
    with pytest.raises(SystemExit) as exit_:
        command(project)
    assert exit_.value.code == 2
    assert "put both where the results belong" in capsys.readouterr().err
