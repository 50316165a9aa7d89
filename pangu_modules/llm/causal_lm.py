"""CausalLM: the LightningModule of language models - pretraining, fine-tuning, perplexity, generation, export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pangu_modules.common import registry
from pangu_modules.common.config import PLAIN_NAME, caller_only
from pangu_modules.common.files import check_new
from pangu_modules.llm import building
from pangu_modules.llm.export.options import ExportOptions
from pangu_modules.llm.generation.engine import GenerationEngine
from pangu_modules.llm.generation.prompts import prompts_of, row_of
from pangu_modules.llm.lora import LoRAConfig, merge_adapters
from pangu_modules.llm.models.experts import active_parameters
from pangu_modules.llm.next_token import NextTokenModule
from pangu_modules.llm.packing import model_inputs
from pangu_modules.llm.requests import requested_objectives
from pangu_modules.llm.text_checks import check_positions, check_same_tokens
from pangu_modules.llm.text_files import collect_text, take_generation_settings, text_of_start, tokenizer_of
from pangu_modules.llm.tokenizers import stored_files
from pangu_modules.training.objectives import Batch, Outputs
from pangu_modules.training.structure import Plan

if TYPE_CHECKING:
    from pangu_modules.llm.evaluate.harness import Evaluation


class CausalLM(NextTokenModule):
    """Any transformers causal LM, in ``self.model``; plans of structure act on that.

    A batch holds ``input_ids`` (batch, seq), and may hold ``attention_mask`` (batch, seq; 0 at padding), ``labels``
    (batch, seq; -100 where there is no target), ``sample_weight`` (batch,), ``domain`` (batch,), and if its rows are
    packed ``position_ids`` (batch, seq; see `pangu_modules.llm.packing`). The objective it starts with,
    ``language_modelling``, is the mean next-token cross-entropy of each sequence.

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

    class Config(NextTokenModule.Config):
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
        loss_per: Literal["sequence", "token"] = Field(
            "sequence",
            description="What counts the same in the loss of an optimizer step: sequences, or target tokens.",
        )
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
            building.check_names(config)
        trusted = not isinstance(config, Mapping) and config.trust_remote_code
        taken = None if files is None else stored_files(files, trust_remote_code=trusted)
        given = {"tokenizer": tokenizer, "default_tokenizer": default_tokenizer, "files": taken, "dtype": dtype}
        super().__init__(config, **{name: value for name, value in given.items() if value is not None})
        self.objectives |= requested_objectives(self.model.config)
        self._predicting: GenerationEngine | None = None

    @classmethod
    def stored_config(cls, stored: Mapping[str, Any], given: Mapping[str, Any] | None = None) -> Any:
        """Return the configuration that a checkpoint holds; where a model's code is outside it, the caller must agree.

        Raises:
            ValueError: the model comes with Python code, and ``trust_remote_code`` is not among what is given.
        """
        return super().stored_config(stored, building.with_place_of_code(stored, given or {}))

    # Building.

    def build_model(self) -> nn.Module:
        """Return the base model in training mode; under ``torch.device("meta")`` from the configuration alone."""
        model = building.base_model(self.config)
        self._spent = building.model_as_plain_data(self.config, model)
        if torch.get_default_device().type != "meta":
            if "files" in self.runtime:
                take_generation_settings(model, self.runtime["files"])
            else:
                self.runtime = collect_text(self.config, self.runtime, model)
        if self.config.gradient_checkpointing:
            building.recompute_activations(model)
        return model

    def runtime_of_start(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """Return the text files of a checkpoint to start from, where nothing else names a tokenizer."""
        return text_of_start(self.config, self.runtime, stored)

    def fields_spent_by_building(self) -> dict[str, Any]:
        """Return the fields to store: the configuration that was loaded in place of the place it came from."""
        return {**super().fields_spent_by_building(), **self._spent}

    def initial_plans(self) -> Sequence[Plan]:
        """Return the plan of the adapters, if the configuration asks for them, and of layers that differ in size.

        Raises:
            ValueError: the structure already holds adapters of another shape.
        """
        return building.plans_asked_for(self.config, self.model)

    # Text.

    @property
    def loaded_dtype(self) -> str:
        """The type that the weights were stored in where the model came from, in which exports write them."""
        return str(self.runtime.get("dtype", "float32"))

    @cached_property
    def tokenizer(self) -> Any:
        """The transformers tokenizer, or None for a model of bare token ids."""
        return tokenizer_of(self.runtime, trust_remote_code=self.config.trust_remote_code)

    def check_text(self, tokenizer: Any, sequence_length: int) -> None:
        """Refuse text that this model cannot read; datamodules ask when they are set up for it.

        Raises:
            ValueError: its tokenizer is not the model's, or its sequences are longer than the model's positions.
        """
        check_same_tokens(self.tokenizer, tokenizer)
        check_positions(self.model, sequence_length)

    # Training.

    def compute_outputs(self, batch: Batch) -> Outputs:
        """Return ``logits`` (batch, seq, vocabulary), in the type of the computation."""
        input_ids = batch["input_ids"]
        # Without a cache transformers looks at the positions' values, which meta tensors do not have.
        output = self.model(**model_inputs(batch), use_cache=input_ids.is_meta)
        router_loss = getattr(output, "aux_loss", None)
        return {"logits": output.logits} | ({} if router_loss is None else {"router_loss": router_loss})

    # Generation and export.

    def generation_engine(self) -> GenerationEngine:
        """Return the engine of ``config.generation``, for this model as it is now."""
        engine: GenerationEngine = self.config.generation.build(model=self.model, tokenizer=self.tokenizer)
        return engine

    def on_predict_start(self) -> None:
        """Build the engine of all batches: it compares a drafter's tokens with the model's once."""
        self._predicting = self.generation_engine()

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """Continue the prompts of a batch; a dictionary (text, token_ids, finish_reason) for each of their samples."""
        rollouts = (self._predicting or self.generation_engine()).generate(prompts_of(batch))
        return [row_of(rollout) for rollout in rollouts]

    def on_predict_end(self) -> None:
        """Forget the engine: the model may be another by the next time."""
        self._predicting = None

    def prediction_rows(self, batch: Batch, outputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return a row for each sample of a prompt: ``prompt`` (token ids without a tokenizer) and its completion."""
        decode = (lambda ids: ids) if self.tokenizer is None else self.tokenizer.decode
        prompts, samples = prompts_of(batch), self.config.generation.samples
        return [{"prompt": decode(prompts[row // samples]), **output} for row, output in enumerate(outputs)]

    def continue_texts(self, prompts: Sequence[str]) -> list[dict[str, Any]]:
        """Return rows, as `prediction_rows`, for texts of one's own; raises as `GenerationEngine.generate`."""
        rollouts = self.generation_engine().generate(list(prompts))
        samples = self.config.generation.samples
        return [{"prompt": prompts[row // samples], **row_of(rollout)} for row, rollout in enumerate(rollouts)]

    @staticmethod
    def evaluation(**settings: Any) -> Evaluation:
        """Return tasks of lm-evaluation-harness, to be called with a module; `EvaluationConfig` has the settings."""
        from pangu_modules.llm.evaluate.harness import Evaluation, EvaluationConfig

        return Evaluation(EvaluationConfig(**settings))

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
        return active_parameters(self.model)

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
