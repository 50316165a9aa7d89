"""Trainings on the fake NPU are the CPU's, bit for bit in float32: the same arithmetic, and nothing lost on the way."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from npu_ranks import with_npus
from npu_training import STATE, Kept, Regression, Sharded, fit, numbers

import pangu_modules.ascend as ascend

ONE = {"accelerator": "npu", "devices": 1, "strategy": "single_npu"}


def trained(folder, options, averaged=False):
    from callbacks import WeightAverage

    callbacks = [WeightAverage.Config(decay=0.5).build()] if averaged else []
    trainer = fit(
        folder, callbacks=[*callbacks, Kept(folder / STATE, epoch=1)], **options
    )  # after it, all is on the CPU
    return {**numbers(trainer), "device": str(trainer.strategy.root_device)}


@pytest.mark.parametrize(
    "options", [{}, {"accumulate_grad_batches": 3}, {"gradient_clip_val": 0.1}, {"averaged": True}]
)
def test_a_fit_is_the_cpus(tmp_path, options):
    averaged = bool(options.get("averaged"))
    options = {} if averaged else options
    on_npu = with_npus(trained, tmp_path / "npu", tmp_path / "npu", {**ONE, **options}, averaged)
    on_cpu = with_npus(trained, tmp_path / "cpu", tmp_path / "cpu", {"accelerator": "cpu", **options}, averaged, npus=0)
    assert (on_npu.pop("device"), on_cpu.pop("device")) == ("npu:0", "cpu")
    torch.testing.assert_close(on_npu, on_cpu, rtol=0, atol=0)
    check_loads_on_the_cpu(tmp_path / "npu" / STATE, tmp_path / "cpu" / STATE)


def check_loads_on_the_cpu(path, expected):
    """This process has no NPU: a checkpoint says where its tensors were, and must load nevertheless."""
    assert b"npu:0" in path.read_bytes()
    assert b"npu:0" not in expected.read_bytes()
    states = [torch.load(each, map_location="cpu", weights_only=True) for each in (path, expected)]
    for part in ("state_dict", "optimizer_states"):
        torch.testing.assert_close(states[0][part], states[1][part], rtol=0, atol=0)


def dropped_out(folder, stored, interrupted):
    """Train with dropout, whose masks the NPU draws; interrupted after an epoch and resumed, or not."""
    callbacks = [stored()] if stored else []
    options = {**ONE, "module": partial(Regression, 0.5)}
    if not interrupted:
        return numbers(fit(folder, callbacks=callbacks, **options))
    fit(folder, callbacks=[*callbacks, Kept(folder / STATE, epoch=0)], **options)
    return numbers(fit(folder, callbacks=callbacks, ckpt_path=folder / STATE, **options))


def exact_resume():
    """Return what recipes have for it."""
    from callbacks import ExactResume

    return ExactResume.Config().build(name="exact_resume")


@pytest.mark.parametrize("stored", [ascend.NPURandomState, exact_resume])
def test_a_resumed_run_draws_the_masks_of_one_that_was_not_interrupted(tmp_path, stored):
    whole = with_npus(dropped_out, tmp_path / "0", tmp_path / "0", stored, False)
    resumed = with_npus(dropped_out, tmp_path / "1", tmp_path / "1", stored, True)
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)
    without = with_npus(dropped_out, tmp_path / "2", tmp_path / "2", None, True)
    assert not torch.equal(without["model.0.weight"], whole["model.0.weight"])  # so the states did it


def on_two(folder, options):
    if options.get("strategy") == "model_parallel":
        kind = ascend.NPUModelParallelStrategy if options["accelerator"] == "npu" else _cpu_model_parallel()
        strategy = kind(data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=False)
        options = {**options, "strategy": strategy, "module": Sharded}
    trainer = fit(folder, devices=2, **options)
    trainer.save_checkpoint(folder / STATE)
    backend = torch.distributed.get_backend()
    stored = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    loss = trainer.callback_metrics["val/loss"].cpu()
    return {**stored["state_dict"], "loss": loss, "where": f"{trainer.strategy.root_device} over {backend}"}


def _cpu_model_parallel():
    from lightning.pytorch.strategies import ModelParallelStrategy

    return ModelParallelStrategy


@pytest.mark.parametrize(("npu", "cpu"), [("ddp_npu", "ddp"), ("model_parallel", "model_parallel")])
def test_two_npus_over_hccl_are_two_cpus_over_gloo(tmp_path: Path, npu, cpu):
    options = {"accelerator": "npu", "strategy": npu, "accumulate_grad_batches": 2}
    on_npus = with_npus(on_two, tmp_path / "npu", tmp_path / "npu", options, ranks=2)
    options = {"accelerator": "cpu", "strategy": cpu, "accumulate_grad_batches": 2}
    on_cpus = with_npus(on_two, tmp_path / "cpu", tmp_path / "cpu", options, ranks=2, npus=0)
    assert [each.pop("where") for each in on_npus] == ["npu:0 over hccl", "npu:1 over hccl"]
    assert [each.pop("where") for each in on_cpus] == ["cpu over gloo", "cpu over gloo"]
    torch.testing.assert_close(on_npus, on_cpus, rtol=0, atol=0)


def mesh_of_fsdp1(folder):
    """Only set up: the fake NPU has no memory that FSDP1 could move and free, and on the CPU it refuses to run."""
    import lightning

    strategy = ascend.NPUFSDPStrategy(device_mesh=(1, 2), sharding_strategy="HYBRID_SHARD")
    trainer = lightning.Trainer(accelerator="npu", devices=2, strategy=strategy, precision="bf16-mixed", logger=False)
    trainer.strategy.setup_environment()
    mesh = strategy.kwargs["device_mesh"]
    return [mesh.device_type, *mesh.shape, torch.distributed.get_backend(), type(trainer.precision_plugin).__name__]


def test_fsdp1_lays_its_mesh_out_over_npus_and_talks_over_hccl(tmp_path):
    said = with_npus(mesh_of_fsdp1, tmp_path / "run", tmp_path, ranks=2)
    assert said == [["npu", 1, 2, "hccl", "NPUFSDPPrecision"]] * 2


def precision_of_fsdp():
    from lightning.pytorch.plugins.precision import FSDPPrecision

    from pangu_modules.ascend.precision import NPUFSDPPrecision, on_npu

    half, brain = on_npu(FSDPPrecision("16-mixed")), on_npu(FSDPPrecision("bf16-mixed"))
    kinds = [isinstance(each, NPUFSDPPrecision) for each in (half, brain)]
    context = brain.forward_context()
    return [*kinds, half.scaler._device, context.device, str(context.fast_dtype)]


def test_fsdp1s_precision_is_the_npus(tmp_path):
    assert with_npus(precision_of_fsdp, tmp_path / "run") == [True, True, "npu", "npu", "torch.bfloat16"]


def by_fabric(npu):
    import lightning

    from pangu_modules.ascend.fabric import NPUDDPFabricStrategy

    options = (
        {"accelerator": "npu", "strategy": NPUDDPFabricStrategy()} if npu else {"accelerator": "cpu", "strategy": "ddp"}
    )
    fabric = lightning.Fabric(devices=2, **options)
    fabric.launch()
    fabric.seed_everything(1, verbose=False)
    module = torch.nn.Linear(4, 2)
    module, optimizer = fabric.setup(module, torch.optim.AdamW(module.parameters(), lr=0.01))
    for step in range(3):
        x = torch.ones(3, 4) * (1 + step + fabric.global_rank)
        loss = module(x.to(fabric.device)).square().mean()
        fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    mean, total = (
        fabric.all_reduce(loss.detach().clone()),
        fabric.all_reduce(torch.tensor([3]).to(fabric.device), reduce_op="mean"),
    )
    weight = module.state_dict()["weight"].cpu().clone()
    return {"weight": weight, "mean": mean.cpu(), "total": total.cpu(), "where": fabric.device.type}


def test_fabric_on_two_npus_is_fabric_on_two_cpus(tmp_path):
    on_npus = with_npus(by_fabric, tmp_path / "npu", True, ranks=2)
    on_cpus = with_npus(by_fabric, tmp_path / "cpu", False, ranks=2, npus=0)
    assert [each.pop("where") for each in (*on_npus, *on_cpus)] == ["npu", "npu", "cpu", "cpu"]
    torch.testing.assert_close(on_npus, on_cpus, rtol=0, atol=0)


def sharded_by_fabric(npu):
    import lightning
    from lightning.fabric.strategies import ModelParallelStrategy
    from torch.distributed.fsdp import fully_shard

    from pangu_modules.ascend.fabric import NPUModelParallelFabricStrategy

    def shard(module, mesh):
        return fully_shard(module.to(fabric.device), mesh=mesh["data_parallel"], reshard_after_forward=False)

    kind = NPUModelParallelFabricStrategy if npu else ModelParallelStrategy
    strategy = kind(shard, data_parallel_size=2, tensor_parallel_size=1)
    fabric = lightning.Fabric(devices=2, accelerator="npu" if npu else "cpu", strategy=strategy)
    fabric.launch()
    fabric.seed_everything(1, verbose=False)
    module = fabric.setup(torch.nn.Linear(4, 2))
    optimizer = fabric.setup_optimizers(torch.optim.AdamW(module.parameters(), lr=0.01))
    loss = module(torch.ones(3, 4, device=fabric.device) * (1 + fabric.global_rank)).square().mean()
    fabric.backward(loss)
    optimizer.step()
    return {"weight": module.weight.to_local().detach().cpu().clone(), "mean": fabric.all_reduce(loss.detach()).cpu()}


def test_fabric_shards_over_two_npus_as_over_two_cpus(tmp_path):
    on_npus = with_npus(sharded_by_fabric, tmp_path / "npu", True, ranks=2)
    on_cpus = with_npus(sharded_by_fabric, tmp_path / "cpu", False, ranks=2, npus=0)
    torch.testing.assert_close(on_npus, on_cpus, rtol=0, atol=0)


def monitored(folder):
    from lightning.pytorch.callbacks import DeviceStatsMonitor
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(folder, name="", version="")
    fit(folder, callbacks=[DeviceStatsMonitor(cpu_stats=False)], **{**ONE, "logger": logger, "log_every_n_steps": 1})
    return (folder / "metrics.csv").read_text().splitlines()[0]


def test_device_statistics_are_logged(tmp_path):
    assert "allocated_bytes.all.current" in with_npus(monitored, tmp_path / "run", tmp_path / "log")


def around_a_block():
    from pangu_modules.training.randomness import unchanged_randomness

    torch.manual_seed(0)
    with unchanged_randomness(accelerator=True):
        torch.rand(5, device="npu")
    after = torch.rand(2, device="npu").cpu()
    torch.manual_seed(0)
    return [after, torch.rand(2, device="npu").cpu()]


def test_what_draws_beside_training_leaves_the_npus_random_numbers(tmp_path):
    after, without = with_npus(around_a_block, tmp_path / "run")
    assert torch.equal(after, without)
