"""Exports of pruned models: plain carriers, padding, or a modelling file of their own."""
