"""Results of unchanged arms are taken over from an earlier result file."""

import json
from dataclasses import replace

import pytest
from toy_method import method, results

from benchmarks.harness.output import result_of, write_results
from benchmarks.harness.reuse import reuse_results
from benchmarks.harness.running import codes_of, run_arms


def test_unchanged_arms_are_taken_over_from_a_result_file(tmp_path):
    first = method(seeds=2)
    file = write_results(result_of(first, results(2)), first, tmp_path)[0]

    def taken(second, folder):
        return reuse_results(second, file, tmp_path / folder)

    everything = [("base", 0), ("better", 0), ("extra", 0), ("base", 1), ("better", 1)]
    assert taken(first, "all") == everything
    lines = []
    assert run_arms(first, tmp_path / "all", jobs=1, report=lines.append) == results(2)
    assert lines == ["5 of 5 results are there already"]
    assert taken(first, "all") == []  # what is there stays
    # One more seed runs; a changed arm runs, and so does what it needs, whose folder is not there.
    assert taken(method(seeds=3), "more") == everything
    arms = {arm.name: arm for arm in first.arms}
    changed = {**arms, "better": replace(arms["better"], config={"rank": 16})}
    assert taken(replace(first, arms=tuple(changed.values())), "dependent") == [("extra", 0)]
    changed = {**arms, "base": replace(arms["base"], config={"width": 32})}
    assert taken(replace(first, arms=tuple(changed.values())), "needed") == [("extra", 0)]


def test_results_of_other_versions_or_none_are_not_taken_over(tmp_path):
    file = write_results(result_of(method(), results()), method(), tmp_path)[0]
    stored = json.loads(file.read_text())
    file.write_text(json.dumps({**stored, "versions": {"torch": "0.1"}}))
    with pytest.raises(ValueError, match="other versions of the libraries: leave out --reuse"):
        reuse_results(method(), file, tmp_path)
    with pytest.raises(ValueError, match="no earlier results to take over; leave out --reuse"):
        reuse_results(method(), tmp_path / "none.json", tmp_path)


def test_the_code_of_arms_is_kept_in_the_result_and_taken_over_with_them(tmp_path):
    first = method(seeds=1)
    by_seed = run_arms(first, tmp_path / "work", jobs=2, report=lambda line: None)
    codes = codes_of(first, tmp_path / "work")
    assert set(codes) == {("base", 0), ("better", 0), ("extra", 0)}
    codes["base", 0] = {"b" * 12: ["a.py"]}  # toy arms import nothing that counts
    result = result_of(first, by_seed, codes)
    (own,) = codes["better", 0]
    assert result["arms"]["better"]["code"] == sorted([own, "b" * 12])  # with that of the arm it needs
    assert result["arms"]["base"]["code"] == ["b" * 12]
    assert result["code"] == {own: codes["better", 0][own], "b" * 12: ["a.py"]}
    reuse_results(first, write_results(result, first, tmp_path)[0], tmp_path / "again")
    assert codes_of(first, tmp_path / "again")["base", 0] == codes["base", 0]
    unknown = result_of(first, by_seed, {key: value for key, value in codes.items() if key[0] != "base"})
    assert ["code" in unknown["arms"][name] for name in ("base", "better", "extra")] == [False, False, True]
