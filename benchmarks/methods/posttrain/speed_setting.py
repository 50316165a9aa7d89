"""What the races of post-training share: a student, a teacher, and a cache of what one says of the other's samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.rollouts.taught import DistillationData
    from pangu_modules.llm.generation.records import Rollout
    from pangu_modules.llm.generation.store.shard_files import Shard

LR = 1e-4
PROMPTS = tuple(f"What is {number + 3} * {number + 7}? Explain each step." for number in range(8))

NUM_TOKENS, PROMPT, ANSWER = 18, 11, 24  # of sums: digits and marks, a prompt, an answer with thinking
ENDS = {"bos_token_id": 15, "eos_token_id": 16, "pad_token_id": 17}


@dataclass(frozen=True)
class Setting:
    """Two models in transformers folders, the student's with its tokenizer, and how samples of the student are made.

    Attributes:
        folder: where caches are written.
        student: folder of the model that is trained.
        teacher: folder of the model that it learns from.
        prompts: texts.
        new_tokens: of each sample, exactly.
        batch_size: samples of a step.
        top_k: likeliest tokens of the teacher that are kept.
    """

    folder: str
    student: str
    teacher: str
    prompts: tuple[str, ...] = PROMPTS
    new_tokens: int = 48
    batch_size: int = 4
    top_k: int = 32


def smollm2_setting(folder: Path, every: int) -> Setting:
    """Write SmolLM2-135M, the teacher, and a student of every second (third, ...) of its layers; return the setting."""
    from torch import nn

    from pangu_modules.llm.models.loading import load_causal_lm
    from pangu_modules.llm.models.tokenizer_loading import load_tokenizer

    model: Any = load_causal_lm("smollm2").eval()
    model.save_pretrained(folder / "teacher")
    kept = model.model.layers[::every]
    for number, layer in enumerate(kept):
        layer.self_attn.layer_idx = number
    model.model.layers = nn.ModuleList(kept)
    model.config.num_hidden_layers = len(kept)
    model.save_pretrained(folder / "student")
    load_tokenizer("smollm2").save_pretrained(folder / "student")
    return Setting(str(folder), str(folder / "student"), str(folder / "teacher"))


def sums_setting(folder: Path) -> Setting:
    """Write models of the sizes in recipes/posttrain_tiny.py, with random weights; return the setting."""
    from pangu_modules.llm.models.loading import new_causal_lm

    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 2, "max_position_embeddings": 64}
    widths = {"student": (64, 176), "teacher": (128, 352)}
    for name, (width, channels) in widths.items():
        sizes = {"vocab_size": NUM_TOKENS, "hidden_size": width, "intermediate_size": channels}
        model: Any = new_causal_lm("llama", {**heads, **sizes, **ENDS, "tie_word_embeddings": True})
        model.save_pretrained(folder / name)
    return Setting(str(folder), str(folder / "student"), str(folder / "teacher"), (), ANSWER, batch_size=64, top_k=8)


def random_samples(setting: Setting, count: int) -> list[Rollout]:
    """Return samples of random tokens, after prompts as long as those of sums."""
    import numpy as np

    from pangu_modules.llm.generation.records import Rollout

    generator = np.random.default_rng(0)
    mask, logprobs = (True,) * setting.new_tokens, (-1.0,) * setting.new_tokens
    rollouts = []
    for number in range(count):
        prompt, written = (
            tuple(generator.integers(0, min(ENDS.values()), length).tolist()) for length in (PROMPT, setting.new_tokens)
        )
        rollouts.append(Rollout("random", "length", prompt, written, mask, logprobs, key=f"task-{number}"))
    return rollouts


def sampled(setting: Setting) -> list[Rollout]:
    """Return a sample of the student after each prompt at temperature 1, with its log-probabilities."""
    import torch

    from pangu_modules.llm.generation.engine import GenerationEngine
    from pangu_modules.llm.generation.records import Rollout
    from pangu_modules.llm.models.loading import load_causal_lm
    from pangu_modules.llm.models.tokenizer_loading import load_tokenizer

    model: Any = load_causal_lm(setting.student).eval()
    tokenizer = load_tokenizer(setting.student)
    lengths = {"max_new_tokens": setting.new_tokens, "min_new_tokens": setting.new_tokens, "pad_token_id": 0}
    torch.manual_seed(0)
    rollouts = []
    engine = GenerationEngine.Config(batch_size=1).build(model=model)
    for number, prompt in enumerate(setting.prompts):
        ids = tokenizer(prompt)["input_ids"]
        whole = model.generate(torch.tensor([ids]), do_sample=True, temperature=1.0, top_k=0, **lengths)[0].tolist()
        written = tuple(whole[len(ids) :])
        logprobs = tuple(engine.score([whole])[0].logprobs[len(ids) - 1 :].tolist())
        mask = (True,) * len(written)
        text = tokenizer.decode(written)
        rollouts.append(Rollout(text, "length", tuple(ids), written, mask, logprobs, key=f"task-{number}"))
    return rollouts


def cached(setting: Setting, name: str, rollouts: Sequence[Rollout], top_k: int, precision: str = "float16") -> Shard:
    """Write samples and the teacher's scores of them under `name`; return the shard of the scores."""
    from pangu_modules.llm.generation.decoding.checks import vocabulary_of
    from pangu_modules.llm.generation.engine import GenerationEngine
    from pangu_modules.llm.generation.store.rollouts import RolloutStore
    from pangu_modules.llm.generation.store.score_rows import CachedScores
    from pangu_modules.llm.generation.weights_hash import weights_hash
    from pangu_modules.llm.models.loading import load_causal_lm

    teacher, student = (load_causal_lm(model).eval() for model in (setting.teacher, setting.student))
    identity = {"model": weights_hash(student)}
    prompts = {one.key: [{"role": "user", "content": one.key}] for one in rollouts}  # the tokens alone are read
    with RolloutStore(Path(setting.folder) / name / "rollouts", identity) as store:
        store.add(rollouts, prompts, number=0, seconds=0.0)
    engine = GenerationEngine.Config(batch_size=setting.batch_size).build(model=teacher)
    scores = engine.score([[*one.prompt_ids, *one.token_ids] for one in rollouts], top_k=top_k)
    made = [CachedScores.of(vars(one), own) for one, own in zip(rollouts, scores, strict=True)]
    return write_scores(Path(setting.folder) / name / "scores", made, vocabulary_of(teacher), precision, identity)


def write_scores(
    folder: Path, scores: Sequence[Any], vocabulary: int, precision: str = "float16", rollouts: Any = None
) -> Shard:
    """Write scores as a store of one shard."""
    from pangu_modules.llm.generation.store.score_rows import Packing, packed_row, score_table
    from pangu_modules.llm.generation.store.scores import ScoreStore

    packing = Packing(vocabulary, precision)
    identity = {"top_k": scores[0].top_ids.shape[1], "vocabulary": vocabulary, "teacher": "", "rollouts": rollouts}
    table = score_table([packed_row(one, packing) for one in scores], precision)
    with ScoreStore(folder, identity) as store:
        return store.append(table, 0, {"tokens": sum(len(one.logprobs) for one in scores)})


def data_of(setting: Setting, name: str) -> DistillationData:
    """Return the datamodule of a cache that was written under `name`; nothing is left out or held out."""
    from datamodules.rollouts.taught import DistillationData

    folder = Path(setting.folder) / name
    config = DistillationData.Config(
        rollouts=str(folder / "rollouts"),
        scores=str(folder / "scores"),
        filters={"keep_truncated": True, "max_repeat_4gram": 1.0},
        batch_size=setting.batch_size,
        test_share=0.0,
    )
    data: DistillationData = config.build()
    return data


def student_module(setting: Setting) -> Any:
    """Return the student as a module, whose loss is the mean over tokens."""
    from pangu_modules import CausalLM, OptimizerConfig

    optimizer = OptimizerConfig(lr=LR, weight_decay=0.0, schedule="constant", warmup_share=0.0)
    return CausalLM.Config(model=setting.student, loss_per="token", optimizer=optimizer).build()
