"""Races: two implementations of one thing, measured in turn."""
