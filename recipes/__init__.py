"""Recipes: one runnable file per experiment; `make list` names them."""
