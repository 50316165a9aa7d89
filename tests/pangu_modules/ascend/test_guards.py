"""What would train elsewhere, in another precision, or hang is refused in a sentence; most of it Lightning lets pass.

Each message names the remedy. Without the guards of the first two tests Lightning 2.6 trains on the CPU, and in
float32, and says nothing.
"""

from __future__ import annotations

from functools import partial

import lightning
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from npu_ranks import with_npus
from npu_training import Regression, fit

import pangu_modules.ascend as ascend
from pangu_modules.ascend.guards import check_backend
from pangu_modules.ascend.precision import NPUFabricMixedPrecision


def refusal(run, **options):
    try:
        run(**options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def refusals(folder):
    """Return what each of these says; one process, as each takes seconds to start."""
    train = partial(refusal, fit, folder=folder, accelerator="npu", devices=1)
    on_npu = SingleDeviceStrategy("npu:0")
    return {
        "cpu": train(),
        "float32": train(strategy=on_npu, precision="bf16-mixed"),
        "plain ddp": train(strategy=DDPStrategy(process_group_backend="hccl"), devices=[0]),
        "double module": train(strategy="single_npu", module=partial(Regression, dtype=torch.float64)),
        "double precision": train(strategy="single_npu", precision="64-true"),
        "two devices": train(strategy="single_npu", devices=2),
        "missing device": train(strategy="single_npu", devices=[2]),
        "no accelerator": refusal(fit, folder=folder, strategy="single_npu"),
        "no accelerator ddp": refusal(fit, folder=folder, accelerator="cpu", strategy=ascend.NPUDDPStrategy()),
        "bad fork": in_a_bad_fork(train),
        "hook": refusal(ascend.NPUDDPStrategy, ddp_comm_hook=print),
        "fork": refusal(ascend.NPUDDPStrategy, start_method="fork"),
        "fabric cpu": refusal(lambda: lightning.Fabric(accelerator="npu", devices=1).launch()),
        "fabric double": refusal(fabric, module=torch.nn.Linear(2, 2).double()),
        "fabric double precision": refusal(fabric, module=torch.nn.Linear(2, 2), precision="64-true"),
        **{f"arguments {name}": refusal(ascend.trainer_arguments, given=given) for name, given in ARGUMENTS.items()},
    }


def in_a_bad_fork(train):
    before, torch.npu._is_in_bad_fork = torch.npu._is_in_bad_fork, lambda: True
    try:
        return train(strategy="single_npu")
    finally:
        torch.npu._is_in_bad_fork = before


def fabric(module, **options):
    options = {"accelerator": "npu", "devices": 1, "strategy": "single_npu", **options}
    fabric = lightning.Fabric(**options)
    fabric.launch()
    return fabric.setup(module)


ARGUMENTS = {
    name: {"accelerator": "npu", "devices": 2, **options}
    for name, options in {
        "fork": {"strategy": "ddp_fork"},
        "notebook": {"strategy": "ddp_notebook_find_unused_parameters_true"},
        "spawn": {"strategy": "ddp_spawn"},
        "fsdp": {"strategy": "fsdp"},
        "fsdp offload": {"strategy": "fsdp_cpu_offload"},
        "deepspeed": {"strategy": "deepspeed_stage_2"},
        "double": {"precision": 64},
        "engine": {"precision": "transformer-engine"},
    }.items()
}
SAID = {
    "cpu": 'would train on cpu, because Lightning knows no strategy of its own for NPUs: give strategy="single_npu"',
    "float32": "MixedPrecision works on cuda, so that an NPU would train in float32: give an NPU strategy",
    "plain ddp": 'DDPStrategy is for CUDA: give strategy="ddp_npu"',
    "double module": "parameters of double precision (4, the first is model.0.weight), which NPUs do not compute",
    "double precision": "DoublePrecision does not exist on NPUs: give precision= one of 32-true",
    "two devices": 'devices= names 2: give strategy="ddp_npu"',
    "missing device": "devices=[2]: there is no npu:2, this process sees 2 NPUs",
    "no accelerator": 'the strategy is for NPUs, and would train on cpu: give accelerator="npu" too',
    "no accelerator ddp": 'the strategy is for NPUs, and would train on cpu: give accelerator="npu" too',
    "bad fork": 'was forked from one that has used an NPU, and would hang: give strategy="ddp_npu"',
    "hook": "ddp_comm_hook: communication hooks of DDP need nccl; leave it out",
    "fork": "start_method='fork': a process forked or spawned from another hangs on an NPU",
    "fabric cpu": 'give strategy="single_npu"',
    "fabric double": "parameters of double precision (2, the first is weight)",
    "fabric double precision": "DoublePrecision does not exist on NPUs",
    "arguments fork": "strategy='ddp_fork': a process forked or spawned",
    "arguments notebook": "one device in a notebook with",
    "arguments spawn": "strategy='ddp_spawn'",
    "arguments fsdp": 'strategy=\'fsdp\' is for CUDA: give strategy="model_parallel_npu" (FSDP2) or "fsdp_npu"',
    "arguments fsdp offload": "strategy='fsdp_cpu_offload' is for CUDA",
    "arguments deepspeed": "strategy='deepspeed_stage_2' is for CUDA",
    "arguments double": "precision=64 does not exist on NPUs: give precision= one of 32-true, 16-mixed",
    "arguments engine": "precision='transformer-engine' does not exist on NPUs",
}


def test_what_is_not_for_npus_is_refused_in_a_sentence(tmp_path):
    said = with_npus(refusals, tmp_path / "said", tmp_path)
    assert set(said) == set(SAID)
    wrong = {name: text for name, text in said.items() if SAID[name] not in text}
    assert not wrong
    assert all("\n" not in text for text in said.values())


def plugins(folder):
    train = partial(fit, folder, accelerator="npu", devices=[1], max_epochs=1)
    trainers = {name: train(strategy="single_npu", precision=name) for name in ("32-true", "bf16-mixed", "16-mixed")}
    given = train(strategy="single_npu", plugins=[ascend.NPUMixedPrecision("bf16-mixed")])
    mixed, half = trainers["bf16-mixed"].precision_plugin, trainers["16-mixed"].precision_plugin
    on_fabric = fabric(torch.nn.Linear(2, 2), precision="16-mixed")
    return {
        "kinds": [type(plugin).__name__ for plugin in (mixed, half, given.precision_plugin)],
        "devices": [plugin.device for plugin in (mixed, half, given.precision_plugin)],
        "autocast": [mixed.autocast_context_manager().device, str(mixed.autocast_context_manager().fast_dtype)],
        "computed in": _computed_in(mixed),
        "scaler": [mixed.scaler is None, half.scaler.is_enabled(), half.scaler.state_dict()["scale"] < 65536],
        "root": str(trainers["32-true"].strategy.root_device),
        "fabric": [on_fabric.weight.device.type, isinstance(on_fabric._strategy.precision, NPUFabricMixedPrecision)],
        "own scaler kept": _own_scaler_is_kept(),
        "stats": ascend.NPUAccelerator().get_device_stats(torch.device("npu:0")),
    }


def _computed_in(plugin):
    with plugin.forward_context():
        return str(torch.nn.Linear(2, 2).to("npu")(torch.ones(1, 2, device="npu")).dtype)


def _own_scaler_is_kept():
    strategy = ascend.SingleNPUStrategy()
    scaler = torch.amp.GradScaler("npu", init_scale=8.0)
    strategy.precision_plugin = MixedPrecision("16-mixed", "cuda", scaler)
    return strategy.precision_plugin.scaler is scaler


def test_precision_by_name_is_for_the_npu_with_a_scaler_where_it_needs_one(tmp_path):
    assert with_npus(plugins, tmp_path / "plugins", tmp_path) == {
        "kinds": ["NPUMixedPrecision"] * 3,
        "devices": ["npu"] * 3,
        "autocast": ["npu", "torch.bfloat16"],
        "computed in": "torch.bfloat16",
        "scaler": [True, True, True],  # with the first scale float16 overflows: it is halved, and steps are skipped
        "root": "npu:1",
        "fabric": ["npu", True],
        "own scaler kept": True,
        "stats": {"allocated_bytes.all.current": 0},
    }


def over_gloo():
    return refusal(check_backend)


def test_processes_connected_by_gloo_are_refused(tmp_path):
    said = with_npus(over_gloo, tmp_path / "gloo", ranks=2, npus=0)
    assert all("connected by gloo" in text and 'process_group_backend="hccl"' in text for text in said)


def completed(given):
    arguments = ascend.trainer_arguments(given)
    return {
        name: value if isinstance(value, str | int) or value is None else type(value).__name__
        for name, value in arguments.items()
    }


@pytest.mark.parametrize(
    ("given", "npus", "strategy"),
    [
        ({}, 1, "single_npu"),
        ({}, 2, "ddp_npu"),
        ({"accelerator": "auto", "devices": 1}, 2, "single_npu"),
        ({"accelerator": "npu", "devices": 1, "num_nodes": 2}, 2, "ddp_npu"),
        ({"accelerator": "npu", "strategy": "ddp"}, 2, "ddp_npu"),
        ({"strategy": "ddp_find_unused_parameters_true"}, 2, "ddp_npu_find_unused_parameters_true"),
        ({"strategy": "model_parallel_npu"}, 2, "model_parallel_npu"),
    ],
)
def test_arguments_are_completed_where_there_is_an_npu(tmp_path, given, npus, strategy):
    said = with_npus(completed, tmp_path / "said", given, npus=npus)
    assert (said["accelerator"], said["strategy"]) == ("NPUAccelerator", strategy)


def test_arguments_stay_as_they_are_without_an_npu():
    assert ascend.trainer_arguments({"max_epochs": 1}) == {"max_epochs": 1}
    assert ascend.trainer_arguments({"accelerator": "cpu", "strategy": "ddp_fork"})["strategy"] == "ddp_fork"


def with_a_strategy_of_ones_own():
    from lightning.pytorch.strategies import ModelParallelStrategy

    given = {"accelerator": "npu", "strategy": ModelParallelStrategy(), "precision": "bf16-mixed"}
    arguments = ascend.trainer_arguments(given)
    (plugin,) = arguments["plugins"]
    return ["precision" in arguments, type(plugin).__name__, plugin.precision]


def test_mixed_precision_is_the_npus_under_a_strategy_of_ones_own(tmp_path):
    assert with_npus(with_a_strategy_of_ones_own, tmp_path / "run") == [False, "NPUMixedPrecision", "bf16-mixed"]


def forked(folder):
    return refusal(fit, folder=folder, accelerator="npu", devices=2, strategy="ddp_fork")


def test_lightnings_own_forking_ends_with_a_sentence(tmp_path):
    assert 'DDPStrategy is for CUDA: give strategy="ddp_npu"' in with_npus(forked, tmp_path / "run", tmp_path)
