"""CausalLM: the LightningModule of language models - pretraining, fine-tuning, perplexity, generation, export."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pangu_modules.common import registry
from pangu_modules.common.batches import IGNORE_INDEX
from pangu_modules.common.config import PLAIN_NAME, caller_only
from pangu_modules.common.files import check_new
from pangu_modules.common.names import check_source
from pangu_modules.llm.export.exported import GENERATION_FILE
from pangu_modules.llm.export.options import ExportOptions
from pangu_modules.llm.generation.engine import GenerationEngine
from pangu_modules.llm.lora import LoRAConfig, LoRAPlan, merge_adapters
from pangu_modules.llm.losses import labels_of, per_sequence_loss
from pangu_modules.llm.models.loading import load_causal_lm, new_causal_lm, plain_config, stored_dtype
from pangu_modules.llm.models.names import EMBEDDED_PACKAGES
from pangu_modules.llm.models.perplexity import MeanLoss
from pangu_modules.llm.requests import requested_objectives
from pangu_modules.llm.text_checks import check_positions, check_same_tokens, find_tokenizer
from pangu_modules.llm.tokenizers import stored_files, tokenizer_files, tokenizer_from_files
from pangu_modules.training.module import PanguModule
from pangu_modules.training.objectives import Batch, Objective, Outputs
from pangu_modules.training.structure import Plan, find_plan


class CausalLM(PanguModule):
    """Any transformers causal LM, in ``self.model``; plans of structure act on that.

    A batch holds ``input_ids`` (batch, seq), and may hold ``attention_mask`` (batch, seq; 0 at padding), ``labels``
    (batch, seq; -100 where there is no target), ``sample_weight`` (batch,) and ``domain`` (batch,). The objective it
    starts with, ``language_modelling``, is the mean next-token cross-entropy of each sequence.

    Checkpoints hold the model's configuration and its text files (tokenizer, chat template, generation settings), so
    that they load without the folder or hub the model came from; models with remote code are the exception.

    Args:
        config: the configuration, or its plain data.
        tokenizer: name of the tokenizer the data are made with; it must be the model's, if that has one.
        default_tokenizer: name of the tokenizer for a model from scratch, where nothing else names one.
        files: text files that come with the model, as stored in checkpoints.
        dtype: type that the model's weights were stored in where they came from, as stored in checkpoints.

    Raises:
        ValueError: the model cannot be found or built, its tokenizer is not the data's, or the data's has more tokens
            than the model.
    """

    class Config(PanguModule.Config):
        """What to load or build, and how to train it."""

        model: str | None = Field(
            None,
            description="Hub id, folder, .gguf file, or 'smollm2' (embedded); empty: from scratch.",
            json_schema_extra=caller_only(),
        )
        architecture: str | None = Field(None, description="transformers' model type of a model from scratch: 'llama'.")
        model_args: dict[str, Any] = Field(
            {}, description="Fields of that architecture's configuration, e.g. hidden_size; others have its defaults."
        )
        tokenizer: str | None = Field(
            None,
            description="Hub id or folder of the tokenizer; empty: the model's own, otherwise the data's.",
            json_schema_extra=caller_only(),
        )
        attn_implementation: str = Field(
            "sdpa",
            description="Attention kernel of transformers: sdpa, eager, ...; 'owner/name' runs the hub's code.",
            json_schema_extra=PLAIN_NAME,
        )
        gradient_checkpointing: bool = Field(False, description="Recompute activations in the backward pass.")
        lora: LoRAConfig | None = Field(
            None, description="Train low-rank adapters and freeze all else; empty: train all."
        )
        generation: GenerationEngine.Config = Field(
            GenerationEngine.Config(), description="How `predict` continues the prompts."
        )
        trust_remote_code: bool = Field(
            False, description="Run Python code that comes with the model.", json_schema_extra=caller_only(False)
        )

        @model_validator(mode="after")
        def _check_source(self) -> Self:
            if (self.model is None) == (self.architecture is None):
                got = f"got {self.model!r} and {self.architecture!r}"
                raise ValueError(f"give either model or architecture, with its model_args; {got}")
            if self.model is not None and self.model_args:
                raise ValueError("model_args build a model from scratch: leave model empty and name its architecture")
            return self

    config: Config
    export_formats: ClassVar[tuple[str, ...]] = registry.names("export format")
    export_options: ClassVar[tuple[str, ...]] = ("dtype", "layout")
    free_fields: ClassVar[tuple[str, ...]] = (
        "generation",
        "attn_implementation",
        "gradient_checkpointing",
        "trust_remote_code",
    )
    caller_arguments: ClassVar[tuple[str, ...]] = ("tokenizer",)

    def __init__(
        self,
        config: Config | Mapping[str, Any],
        *,
        tokenizer: str | None = None,
        default_tokenizer: str | None = None,
        files: Mapping[str, str] | None = None,
        dtype: str | None = None,
    ) -> None:
        if not isinstance(config, Mapping):
            check_names(config)
        trusted = not isinstance(config, Mapping) and config.trust_remote_code
        taken = None if files is None else stored_files(files, trust_remote_code=trusted)
        given = {"tokenizer": tokenizer, "default_tokenizer": default_tokenizer, "files": taken, "dtype": dtype}
        super().__init__(config, **{name: value for name, value in given.items() if value is not None})
        self.objectives["language_modelling"] = Objective(language_modelling_loss)
        self.objectives |= requested_objectives(self.model.config)
        self._evaluated = MeanLoss()

    @classmethod
    def stored_config(cls, stored: Mapping[str, Any], given: Mapping[str, Any] | None = None) -> Any:
        """Return the configuration that a checkpoint holds; where a model's code is outside it, the caller must agree.

        Raises:
            ValueError: the model comes with Python code, and ``trust_remote_code`` is not among what is given.
        """
        fields = dict(given or {})
        if stored.get("architecture") is None and stored.get("model") is not None:
            if not fields.get("trust_remote_code"):
                raise ValueError(
                    f"the checkpoint's model is built by Python code at {stored['model']!r}, and a checkpoint does not "
                    "say what is run: if you trust that code, pass trust_remote_code=True (on the command line "
                    "--module.trust_remote_code true)"
                )
            fields.setdefault("model", stored["model"])
        return super().stored_config(stored, fields)

    # Building.

    def build_model(self) -> nn.Module:
        """Return the base model in training mode; under ``torch.device("meta")`` from the configuration alone."""
        config = self.config
        on_meta = torch.get_default_device().type == "meta"
        if config.architecture is not None:
            kernel = config.attn_implementation
            model = new_causal_lm(config.architecture, config.model_args, attn_implementation=kernel)
        else:
            model = load_causal_lm(
                str(config.model),
                attn_implementation=config.attn_implementation,
                from_config_only=on_meta,
                trust_remote_code=config.trust_remote_code,
            )
        self._spent = self._model_as_plain_data(model.config)
        if not on_meta:
            self._take_files(model)
        if config.gradient_checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None)  # its new name in transformers 5
            (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})  # type: ignore[operator]
        return model

    def fields_spent_by_building(self) -> dict[str, Any]:
        """Return the fields to store: the configuration that was loaded in place of the place it came from."""
        return {**super().fields_spent_by_building(), **self._spent}

    def initial_plans(self) -> Sequence[Plan]:
        """Return the plan of the adapters, if the configuration asks for them, and of layers that differ in size.

        Raises:
            ValueError: the structure already holds adapters of another shape.
        """
        asked, present = self.config.lora, find_plan(self.config.structure, "lora")
        if asked is not None and isinstance(present, LoRAPlan) and present.lora != asked:
            raise ValueError(
                f"lora asks for {asked}, but init_checkpoint holds adapters of another shape ({present.lora}): "
                "give the same lora, leave it empty to go on with them, or merge them first with merge_lora()"
            )
        plans = [] if asked is None else [LoRAPlan(lora=asked)]
        pruned = getattr(self.model.config, "layer_shapes", None) and not self.config.trust_remote_code
        if pruned and not any(
            plan.kind == "shape" for plan in self.config.structure
        ):  # loaded from a pruned model's GGUF file
            plans.insert(0, registry.load("plan", "shape").of(self.model, source="gguf"))
        return tuple(plans)

    def _model_as_plain_data(self, model_config: Any) -> dict[str, Any]:
        if self.config.trust_remote_code:  # its class is known to its own folder alone
            return {}
        architecture, model_args = plain_config(model_config)
        return {"model": None, "architecture": architecture, "model_args": model_args}

    # Text.

    def _take_files(self, model: Any) -> None:
        """Take generation settings from the files of a checkpoint, or collect the files for checkpoints to come."""
        from transformers import GenerationConfig

        if "files" in self.runtime:
            settings = self.runtime["files"].get(GENERATION_FILE)
            if settings is not None:
                model.generation_config = GenerationConfig.from_dict(json.loads(settings))
            return
        files = {GENERATION_FILE: model.generation_config.to_json_string()}
        tokenizer = find_tokenizer(self.config, self.runtime, model.config.vocab_size)
        if tokenizer is not None:
            files |= tokenizer_files(tokenizer)
        name, trusted = self.config.model, self.config.trust_remote_code
        stored = "float32" if name is None else stored_dtype(name, trust_remote_code=trusted)
        self.runtime = {"files": files, "dtype": stored}

    @property
    def loaded_dtype(self) -> str:
        """The type that the weights were stored in where the model came from, in which exports write them."""
        return str(self.runtime.get("dtype", "float32"))

    @cached_property
    def tokenizer(self) -> Any:
        """The transformers tokenizer, or None for a model of bare token ids."""
        files = {name: text for name, text in self.runtime.get("files", {}).items() if name != GENERATION_FILE}
        return tokenizer_from_files(files, trust_remote_code=self.config.trust_remote_code) if files else None

    def check_text(self, tokenizer: Any, sequence_length: int) -> None:
        """Refuse text that this model cannot read; datamodules ask when they are set up for it.

        Raises:
            ValueError: its tokenizer is not the model's, or its sequences are longer than the model's positions.
        """
        check_same_tokens(self.tokenizer, tokenizer)
        check_positions(self.model, sequence_length)

    # Training and evaluation.

    def compute_outputs(self, batch: Batch) -> Outputs:
        """Return ``logits`` (batch, seq, vocabulary), in the type of the computation."""
        input_ids = batch["input_ids"]
        # Without a cache transformers looks at the positions' values, which meta tensors do not have.
        output = self.model(
            input_ids=input_ids, attention_mask=batch.get("attention_mask"), use_cache=input_ids.is_meta
        )
        router_loss = getattr(output, "aux_loss", None)
        return {"logits": output.logits} | ({} if router_loss is None else {"router_loss": router_loss})

    def on_validation_epoch_start(self) -> None:
        """Start the sums of an evaluation."""
        self._evaluated = MeanLoss(exchange_on=self.device)

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add the batch's losses, weighted by their numbers of targets."""
        losses = language_modelling_loss(self, batch, self.compute_outputs(batch))
        self._evaluated.update(losses, labels_of(batch))

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log ``val/loss`` and ``val/perplexity`` over all targets of the set."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log ``test/loss`` and ``test/perplexity`` over all targets of the set."""
        self._log_evaluation("test")

    def _log_evaluation(self, stage: str) -> None:
        loss = self._evaluated.compute()
        perplexity = math.exp(loss) if loss < 700 else math.inf
        self.log_dict({f"{stage}/loss": loss, f"{stage}/perplexity": perplexity}, prog_bar=True, sync_dist=True)

    # Generation and export.

    def generation_engine(self) -> GenerationEngine:
        """Return the engine of ``config.generation``, for this model as it is now."""
        engine: GenerationEngine = self.config.generation.build(model=self.model, tokenizer=self.tokenizer)
        return engine

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """Continue the prompts of a batch; one dictionary (text, token_ids, finish_reason) for each."""
        return [asdict(completion) for completion in self.generation_engine().generate(prompts_of(batch))]

    def prediction_rows(self, batch: Batch, outputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return a row for each prompt of a batch: ``prompt`` (token ids without a tokenizer) and its completion."""
        decode = (lambda ids: ids) if self.tokenizer is None else self.tokenizer.decode
        return [{"prompt": decode(ids), **output} for ids, output in zip(prompts_of(batch), outputs, strict=True)]

    def continue_texts(self, prompts: Sequence[str]) -> list[dict[str, Any]]:
        """Return rows, as `prediction_rows`, for texts of one's own; raises as `GenerationEngine.generate`."""
        completions = self.generation_engine().generate(list(prompts))
        return [{"prompt": prompt, **asdict(written)} for prompt, written in zip(prompts, completions, strict=True)]

    def export(
        self,
        folder: str | Path,
        kind: str = "transformers",
        *,
        dtype: str | None = None,
        layout: str | None = None,
    ) -> None:
        """Write the model in one of `export_formats`: a plain transformers folder, a GGUF file inside `folder`, ...

        Args:
            folder: to write to.
            kind: the format.
            dtype: of the weights: float32, float16 or bfloat16; None: the type that the model was loaded from.
            layout: of a pruned model's transformers folder: uniform, padded or per_layer; None: its plan's.

        Raises:
            ValueError: the kind or an option is unknown, or the model does not fit it.
            FileExistsError: something is in the folder already.
        """
        check_new(folder, "export")
        registry.load("export format", kind)(self, folder, ExportOptions(dtype=dtype, layout=layout))

    def merge_lora(self) -> None:
        """Add the LoRA adapters to the weights and forget them; all parameters are trainable again.

        Raises:
            ValueError: there are no adapters.
        """
        merge_adapters(self.model)
        self.config = self.config.derive(lora=None)
        self.replace_structure([plan for plan in self.config.structure if plan.kind != "lora"])

    # Planning.

    def example_batch(self, batch_size: int, sequence_length: int = 512) -> dict[str, Tensor]:
        """Return a batch of the right shapes on the model's device, meta included."""
        device = next(self.model.parameters()).device
        return {"input_ids": torch.zeros(batch_size, sequence_length, dtype=torch.long, device=device)}

    def active_parameters(self) -> int:
        """Return the parameters that one token uses: of a mixture's experts, only those it is sent to."""
        config = self.model.config
        experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None) or 1
        share = getattr(config, "num_experts_per_tok", None) or 1
        counts = {name: parameter.numel() for name, parameter in self.model.named_parameters()}
        inside = sum(count for name, count in counts.items() if ".experts." in name)
        return sum(counts.values()) - inside + inside * share // experts

    def plan_on_hardware(self, hardware: str, layout: str) -> list[dict[str, Any]]:
        """Return a row per parallel layout with the throughput this model can have on a card; it needs no storage.

        Args:
            hardware: name of a card, or a YAML file that describes one.
            layout: ``key=value,...``; empty or ``auto`` for the fastest layouts of one node.

        Raises:
            UsageError: an unknown card or layout, one that the model does not fit, or layers of unequal sizes.
        """
        from pangu_modules.simulator.throughput import plan_model

        return plan_model(self.model, hardware, layout)


def language_modelling_loss(module: CausalLM, batch: Batch, outputs: Outputs) -> Tensor:
    """Return each sequence's mean next-token cross-entropy, (batch,); 0 for one without targets."""
    return per_sequence_loss(outputs["logits"], labels_of(batch))


def check_names(config: CausalLM.Config) -> None:
    """Refuse misspelt names at once, also those that would be looked up much later.

    Raises:
        ValueError: a name is none of ours, no path here and no hub id.
    """
    for what, name in (("tokenizer", config.tokenizer), ("generation.assistant", config.generation.assistant)):
        if name is not None:
            check_source(name, what, EMBEDDED_PACKAGES)


def prompts_of(batch: Batch) -> list[list[int]]:
    """Return the prompts of a batch: the tokens before the first label, or all of them where labels leave none.

    Padding, which the attention mask hides, is on the right.
    """
    prompts = []
    mask = batch.get("attention_mask")
    for row, input_ids in enumerate(batch["input_ids"].tolist()):
        length = len(input_ids) if mask is None else int(mask[row].sum())
        labels = batch["labels"][row].tolist() if "labels" in batch else input_ids
        start = next((position for position, label in enumerate(labels) if label != IGNORE_INDEX), length)
        prompts.append(input_ids[: start or length])
    return prompts
