"""Ascend NPUs for PyTorch Lightning: ``import pangu_modules.ascend``, then ``Trainer(accelerator="npu", ...)``.

Importing registers the accelerator and its strategies with Lightning's Trainer and Fabric. It needs torch and
lightning only, and works on every machine, also where torch_npu is missing or broken; asking for an NPU there says
what to do. ``python -m pangu_modules.ascend doctor`` looks at a machine.
"""

from pangu_modules.ascend.autoload import import_torch

import_torch()  # before anything else imports it: a torch_npu that is broken would end that import

from pangu_modules.ascend.accelerator import NPUAccelerator  # noqa: E402
from pangu_modules.ascend.arguments import trainer_arguments  # noqa: E402
from pangu_modules.ascend.precision import NPUMixedPrecision  # noqa: E402
from pangu_modules.ascend.random_state import NPURandomState  # noqa: E402
from pangu_modules.ascend.registration import register  # noqa: E402
from pangu_modules.ascend.strategies import (  # noqa: E402
    NPUDDPStrategy,
    NPUFSDPStrategy,
    NPUModelParallelStrategy,
    SingleNPUStrategy,
)

__all__ = [
    "NPUAccelerator",
    "NPUDDPStrategy",
    "NPUFSDPStrategy",
    "NPUMixedPrecision",
    "NPUModelParallelStrategy",
    "NPURandomState",
    "SingleNPUStrategy",
    "trainer_arguments",
]

register()
