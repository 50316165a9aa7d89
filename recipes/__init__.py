"""Recipes: one runnable file per experiment; `make list` names them."""

from pangu_modules.common.threads import spin_briefly

spin_briefly()  # whoever imports a recipe is about to run it, and torch is loaded by its next line
