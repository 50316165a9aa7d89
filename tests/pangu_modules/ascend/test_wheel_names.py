"""What we ask of `torch.npu` is there in the real wheel, read as text: torch_npu itself needs CANN to be imported."""

from __future__ import annotations

import ast
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
REAL = "PANGU_NPU_PYTHON"  # a Python with the real torch_npu
FIND = "import importlib.util; print(importlib.util.find_spec('torch_npu').submodule_search_locations[0])"


def asked_for() -> set[str]:
    """Return the attributes of ``npu()`` in our sources: each has to be of the wheel."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / "pangu_modules" / "ascend").glob("*.py")]
    return {
        node.attr
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Name)
        and node.value.func.id == "npu"
    }


def defined(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            names |= defined(path.parent / f"{str(node.module).rpartition('.')[2]}.py")
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def test_the_fake_has_what_we_ask_for():
    from fake_npu import device_module

    assert {"set_device", "memory_stats", "config", "set_compile_mode"} <= asked_for()
    assert not [name for name in asked_for() if not hasattr(device_module(1), name)]


@pytest.mark.slow
@pytest.mark.skipif(REAL not in os.environ, reason=f"{REAL} names no Python with torch_npu")
def test_the_wheel_has_what_we_ask_for():
    done = subprocess.run([os.environ[REAL], "-c", FIND], check=True, capture_output=True, text=True)
    folder = Path(done.stdout.strip()) / "npu"
    assert asked_for() <= defined(folder / "__init__.py")
    settings = ast.unparse(ast.parse((folder / "npu_config.py").read_text()))
    assert "'allow_internal_format'" in settings
    assert "'allow_hf32'" in settings
