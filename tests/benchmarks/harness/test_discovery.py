"""Benchmarks are found by their folder."""

import pytest

from benchmarks.harness.discovery import load, names_of


def test_benchmarks_are_found_by_name():
    assert "scalenet" in names_of("claims")
    assert "harness" not in names_of("claims")
    with pytest.raises(ValueError, match=r"no claims of 'scalnet'. Did you mean 'scalenet'\?"):
        load("claims", "scalnet")
