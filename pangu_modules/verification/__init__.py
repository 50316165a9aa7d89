"""Judging what a model wrote: verifiers of answers, chosen by a task's label."""
