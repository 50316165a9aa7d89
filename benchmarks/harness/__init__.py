"""What all benchmarks share: arms, claims, verdicts, races, results."""
