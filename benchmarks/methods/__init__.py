"""One folder a method: its claims, the task they run on, its races."""
