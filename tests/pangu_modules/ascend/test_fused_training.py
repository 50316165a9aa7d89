"""A language model that trains on an NPU uses the fused operators by itself; off, it is left as it was."""

from __future__ import annotations

import pytest
import torch
from npu_ranks import with_npus


def trained(folder, fused_ops):
    """Return the losses of three steps on the fake NPU or (None) on the CPU, and what has been replaced."""
    from lightning.pytorch import Trainer
    from transformers.utils import import_utils

    # transformers would import operators for its own flash attention, of which the fake has none.
    import_utils.is_torch_npu_available = lambda *_, **__: False
    from tiny_llm import tiny_module
    from tiny_text import TokenBatches

    from pangu_modules.ascend import NPUAccelerator, SingleNPUStrategy

    module, losses = tiny_module(), []
    step = module.training_step

    def kept(batch, batch_idx):
        loss = step(batch, batch_idx)
        losses.append(loss.detach().cpu())
        return loss

    module.training_step = kept
    place = {"accelerator": "cpu"}
    if fused_ops is not None:
        place = {"accelerator": NPUAccelerator(fused_ops=fused_ops), "strategy": SingleNPUStrategy(), "devices": 1}
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(default_root_dir=folder, max_steps=3, **quiet, **place).fit(
        module, datamodule=TokenBatches.Config().build()
    )
    return {"losses": torch.stack(losses), "attention": module.model.config._attn_implementation}


@pytest.mark.parametrize("fused_ops", ["auto", "off"])
def test_it_is_fused_without_being_told(tmp_path, fused_ops):
    on_npu = with_npus(trained, tmp_path / "npu", tmp_path / "npu", fused_ops)
    on_cpu = with_npus(trained, tmp_path / "cpu", tmp_path / "cpu", None, npus=0)
    assert on_npu["attention"] == ("ascend" if fused_ops == "auto" else "sdpa")
    # On a device that it does not know torch takes other formulas (attention's plain one, SiLU's gradient), also where
    # nothing is fused; seen: 1e-7 in the first loss, 1e-6 after a step.
    torch.testing.assert_close(on_npu["losses"], on_cpu["losses"], rtol=1e-5, atol=0)
