"""The race of clients at miniature size: both get the same answers."""

from benchmarks.methods.generation.client_race import bare, contests, stub_server
from benchmarks.races.race import run_contests


def test_both_clients_get_the_same_answers():
    (entry,) = run_contests(contests(prompts=6, width=3, delay=0.0), repeats=1, report=lambda line: None)
    assert (entry["error"], entry["bound"]) == (0.0, 0.0)
    with stub_server(0.0) as base_url:
        assert bare(base_url, ["a", "b"], 1) == ["after a", "after b"]
