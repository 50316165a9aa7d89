"""The dispatch table against the real torch_npu, made importable by stand-ins of CANN's libraries.

`.ci/npu-contract` sets a Python with torch and torch_npu up and runs this; by hand: PANGU_NPU_PYTHON=its/bin/python.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pangu_modules.ascend.ops import OPERATORS

PYTHON = os.environ.get("PANGU_NPU_PYTHON")
ROOT = Path(__file__).parents[4]
SUPPORT = ROOT / "tests/support"

pytestmark = pytest.mark.skipif(
    PYTHON is None, reason="PANGU_NPU_PYTHON names no Python with torch_npu: run .ci/npu-contract"
)


@pytest.fixture(scope="module")
def contract(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cann")
    subprocess.run([PYTHON, str(SUPPORT / "cann_standins.py"), str(folder)], check=True, timeout=300)
    environment = {
        **os.environ,
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
        "LD_LIBRARY_PATH": str(folder),
        "LD_PRELOAD": str(folder / "libpreloaded.so"),
        "PYTHONPATH": f"{ROOT}:{SUPPORT}",
    }
    run = subprocess.run(
        [PYTHON, str(SUPPORT / "npu_contract.py")], capture_output=True, text=True, env=environment, timeout=600
    )
    assert run.returncode == 0, run.stderr[-3000:]
    result = json.loads(run.stdout[run.stdout.index("{") :])
    print(f"torch {result['torch']}, torch_npu {result['torch_npu']}", file=sys.stderr)
    return result


def test_stored_signatures_are_those_of_the_wheel(contract):
    assert contract["differences"] == []


@pytest.mark.parametrize("name", OPERATORS)
def test_every_call_is_taken_and_has_the_shapes_of_the_reference(contract, name):
    assert contract["operators"][name] == []


def test_a_whole_layer_of_pangu_pro_moe_runs_fused(contract):
    assert contract["layer"] == {
        "shape": [2, 64, 5120],
        "calls": {
            "npu_rms_norm": 3,
            "npu_rotary_mul": 2,
            "npu_fused_infer_attention_score": 1,
            "npu_moe_gating_top_k_softmax": 1,
            "npu_grouped_matmul": 2,
        },
    }
