"""Races: our implementations against peers that compute the same, interleaved in one process, as ratios."""
