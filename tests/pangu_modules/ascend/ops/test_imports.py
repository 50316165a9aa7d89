"""The operators and `fuse` need torch and Lightning alone, and nothing loads torch_npu."""

import subprocess
import sys

ABSENT = ("pydantic", "timm", "jsonargparse", "datasets", "peft")
CODE = f"""
import sys
for name in {ABSENT!r}:
    sys.modules[name] = None  # importing it raises
import torch
from pangu_modules.ascend.ops import OPERATORS, rms_norm, explain
from pangu_modules.ascend.ops.fusing import fuse
from pangu_modules.ascend.ops.int8_linear import quantize_linears
from pangu_modules.ascend.ops import schemas
x = torch.randn(2, 8)
print(rms_norm(x, torch.ones(8)).shape, explain("rms_norm", x, torch.ones(8)))
print(fuse(torch.nn.Sequential(torch.nn.Linear(2, 2))))
assert "torch_npu" not in sys.modules
"""


def test_operators_and_fuse_without_what_only_recipes_need():
    run = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert "reference, because a tensor is on cpu" in run.stdout
    assert "fused where the device allows: nothing" in run.stdout
