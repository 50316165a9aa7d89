"""Training with experts spread over 2 and 4 processes is that of one process, and goes on on any number of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from gloo_ranks import run_ranks
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.utils.data import DataLoader, DistributedSampler, StackDataset

from pangu_modules.llm.causal_lm import CausalLM
from pangu_modules.llm.moge.auxiliary_loss import auxiliary_objective
from pangu_modules.llm.moge.parallel.experts import parallelize
from pangu_modules.llm.moge.parallel.strategy import ExpertParallelStrategy

MODEL: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts": 8,
    "num_groups": 4,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 8,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
}
BATCH, STEPS = 8, 2  # sequences of all processes together, and steps of an epoch
CLIP = 0.5


def module() -> CausalLM:
    torch.manual_seed(0 if not dist.is_initialized() else dist.get_rank())  # the first process's weights count
    optimizer: Any = {"lr": 0.01, "schedule": "constant", "warmup_share": 0.0}
    config = CausalLM.Config(architecture="PanguProMoE", model_args=MODEL, optimizer=optimizer)
    built: CausalLM = config.build().double()
    built.objectives["balance"] = auxiliary_objective(0.1)
    return built


def batches() -> DataLoader[Any]:
    """Return an epoch for one process, which gets its part of each batch."""
    world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    tokens = torch.randint(3, 32, (BATCH * STEPS, 6), generator=torch.Generator().manual_seed(0))
    data: Any = StackDataset(input_ids=tokens)
    return DataLoader(data, BATCH // world, sampler=DistributedSampler(data, world, rank, shuffle=False))


class Norms(Callback):
    """Keeps the norm of each step's gradient, before it is clipped."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.norms.append(float(get_total_norm([parameter.grad for parameter in pl_module.parameters()])))


def fit(strategy: Any, epochs: int, resume: Path | None = None) -> tuple[Trainer, CausalLM]:
    trainer = Trainer(
        strategy=strategy,
        accelerator="cpu",
        devices=dist.get_world_size() if dist.is_initialized() else 1,
        max_epochs=epochs,
        gradient_clip_val=CLIP,
        callbacks=[Norms()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trained = module()
    trainer.fit(trained, batches(), ckpt_path=resume, weights_only=True if resume else None)
    return trainer, trained


def whole(trained: CausalLM) -> dict[str, Tensor]:
    """Return the state dict with full tensors."""
    return {
        name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        for name, tensor in trained.state_dict().items()
    }


def two_ranks(folder: Path) -> dict[str, Any]:
    """Train an epoch, save it in both forms, and go on with the second epoch of a run of one process."""
    trainer, trained = fit(ExpertParallelStrategy(equal_tokens=True), 1)
    results: dict[str, Any] = {"first epoch": whole(trained)}
    results["parts"] = {name: tuple(tensor.to_local().shape) for name, tensor in trained.named_parameters()}  # type: ignore[operator]
    results["sampler"] = trainer.strategy.distributed_sampler_kwargs
    trainer.test(trained, batches(), verbose=False)  # of a model that is spread already
    trainer.save_checkpoint(folder / "two.ckpt")
    trainer, _ = fit(ExpertParallelStrategy(save_distributed_checkpoint=True), 1)
    trainer.save_checkpoint(folder / "two_parts.ckpt")
    results["from one"] = whole(fit(ExpertParallelStrategy(), 2, folder / "one.ckpt")[1])
    results["errors"] = [refusal(3, module()), refusal(None, BoringModel())]
    return results


def refusal(ep_size: int | None, refused: LightningModule) -> str:
    trainer = Trainer(strategy=ExpertParallelStrategy(ep_size), accelerator="cpu", devices=2, logger=False)
    with pytest.raises(ValueError, match=r"must|spreads") as error:
        trainer.fit(refused, batches())
    return str(error.value)


def four_ranks(folder: Path) -> dict[str, Any]:
    """Go on with the second epoch of both checkpoints of two processes."""
    in_pairs = ExpertParallelStrategy(ep_size=2)
    results = {"from two": whole(fit(in_pairs, 2, folder / "two.ckpt")[1])}
    strategy = ExpertParallelStrategy(save_distributed_checkpoint=True)
    return {**results, "from two's parts": whole(fit(strategy, 2, folder / "two_parts.ckpt")[1])}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """Train for two epochs on one, two and four processes, which take over from each other in between."""
    folder = tmp_path_factory.mktemp("runs")
    trainer, first = fit("auto", 1)
    trainer.save_checkpoint(folder / "one.ckpt")
    one = {"first epoch": whole(first), "from one": whole(fit("auto", 2, folder / "one.ckpt")[1])}
    one["norms"] = trainer.callbacks[0].norms  # type: ignore[attr-defined]
    two = run_ranks(two_ranks, 2, folder / "ranks2", folder)
    four = run_ranks(four_ranks, 4, folder / "ranks4", folder)
    one["from two"] = whole(fit("auto", 2, folder / "two.ckpt")[1])
    return {1: one, 2: two[0], 4: four[0]}


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        # Seen 3e-12 of weights that moved by 2e-2: where a gradient is near 0, AdamW divides its rounding by its size.
        torch.testing.assert_close(got[name], value, rtol=0, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


def test_training_is_that_of_one_process(runs: dict[int, dict[str, Any]]) -> None:
    assert min(runs[1]["norms"]) > CLIP  # clipping has something to do
    assert_same(runs[2]["first epoch"], runs[1]["first epoch"])


def test_each_process_holds_its_part_and_reads_its_data(runs: dict[int, dict[str, Any]]) -> None:
    parts = runs[2]["parts"]
    assert parts["model.model.layers.0.mlp.experts.gate_up_proj"] == (4, 16, 16)
    assert parts["model.model.layers.1.mlp.experts.down_proj"] == (4, 16, 8)
    assert parts["model.model.layers.0.self_attn.q_proj.weight"] == (8, 16)
    assert runs[2]["sampler"] == {"num_replicas": 2, "rank": 0}


@pytest.mark.parametrize(("world", "run"), [(1, "from two"), (2, "from one"), (4, "from two"), (4, "from two's parts")])
def test_checkpoints_go_on_on_any_number_of_processes(runs: dict[int, dict[str, Any]], world: int, run: str) -> None:
    assert_same(runs[world][run], runs[1]["from one"])


def test_refusals(runs: dict[int, dict[str, Any]]) -> None:
    size, no_model = runs[2]["errors"]
    assert size == "ep_size=3 must divide the number of processes, 2; allowed: 1, 2"
    assert "module.model" in no_model
    with pytest.raises(ValueError, match="ep_size"):
        ExpertParallelStrategy(ep_size=0)
    with pytest.raises(ValueError, match="no MoGEBlock in it"):
        parallelize(torch.nn.Linear(2, 2), mesh=None)  # type: ignore[arg-type]
