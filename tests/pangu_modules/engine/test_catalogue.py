import subprocess
import sys
from pathlib import Path

import pytest

from pangu_modules.engine.catalogue import Entry, catalogue

REPOSITORY = Path(__file__).parents[3]

BASE = '''"""Deep: from 12 to 24 layers.

More about it.
"""
from nowhere import Recipe

recipe = Recipe(module=1, cost="8 minutes on two cores")
'''
VARIANT = '''"""Deep, small."""
from recipes.base import recipe as base

recipe = base.derive(module={"width": 64})
'''
OWN_COST = '''"""Deep, large."""
from recipes.base import recipe

recipe = recipe.derive(cost="paper scale")
'''


@pytest.fixture
def folder(tmp_path):
    for name, text in {"base": BASE, "small": VARIANT, "large": OWN_COST, "helper": "x = 1\n"}.items():
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


def test_names_descriptions_and_costs_are_read_without_importing(folder):
    assert catalogue(folder) == [
        Entry("base", "Deep: from 12 to 24 layers.", "8 minutes on two cores"),
        Entry("large", "Deep, large.", "paper scale"),
        Entry("small", "Deep, small.", "8 minutes on two cores"),
    ]


def test_what_a_recipe_leaves_out_reads_not_stated(folder):
    (folder / "bare.py").write_text("recipe = Recipe(module=1)\n")
    assert catalogue(folder)[0] == Entry("bare", "not stated", "not stated")


def test_a_missing_folder_is_named():
    with pytest.raises(ValueError, match="no folder 'no/such'"):
        catalogue("no/such")


def test_every_recipe_of_the_repository_states_description_and_cost():
    assert [entry for entry in catalogue(REPOSITORY / "recipes") if "not stated" in entry] == []


def test_the_command_imports_neither_torch_nor_lightning(folder):
    program = (
        "import runpy, sys; sys.argv = ['catalogue', sys.argv[1]];"
        "runpy.run_module('pangu_modules.engine.catalogue', run_name='__main__');"
        "print([name for name in ('torch', 'lightning', 'timm', 'pydantic') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True, check=True)
    lines = run.stdout.splitlines()
    assert lines[-1] == "[]"
    assert lines[1].split()[0] == "base"
    assert lines[1].endswith("8 minutes on two cores")


def test_the_command_answers_a_missing_folder_with_exit_code_2():
    run = subprocess.run(
        [sys.executable, "-m", "pangu_modules.engine.catalogue", "no/such"], capture_output=True, text=True
    )
    assert run.returncode == 2
    assert run.stderr.startswith("error: no folder 'no/such'")
