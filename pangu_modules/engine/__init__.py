"""Recipes and their command line: stages, runs and their folders, exact resume. It knows no method."""
