"""ModelShape: the sizes of a dense or sparse decoder that decide its costs; no weights, no modules."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from pangu_modules.common.config import Config


class ModelShape(Config):
    """Sizes of a decoder with SwiGLU MLPs and (grouped-query) attention. Paper symbols in parentheses."""

    renamed = {
        "top_k": "num_experts_per_tok",
        "expert_intermediate": "moe_intermediate_size",
        "shared_intermediate": "shared_expert_intermediate_size",
        "dense_intermediate": "intermediate_size",
    }

    name: str = Field("model", description="Name in tables.")
    num_layers: PositiveInt = Field(description="Decoder layers.")
    hidden_size: PositiveInt = Field(description="Width of the residual stream (h).")
    num_heads: PositiveInt = Field(description="Query heads.")
    num_kv_heads: PositiveInt = Field(description="Key/value heads.")
    head_dim: PositiveInt = Field(description="Width of a head.")
    vocab_size: PositiveInt = Field(description="Tokens of the vocabulary.")
    num_experts: NonNegativeInt = Field(0, description="Routed experts per sparse layer (N); 0: a dense model.")
    num_experts_per_tok: NonNegativeInt = Field(0, description="Routed experts per token (K).")
    num_groups: PositiveInt = Field(1, description="Groups with K/M picks each (M); 1 is an ordinary top-K router.")
    moe_intermediate_size: NonNegativeInt = Field(0, description="Width of a routed expert (I).")
    shared_expert_intermediate_size: NonNegativeInt = Field(0, description="Width of the shared expert; 0: none.")
    dense_layers: NonNegativeInt = Field(0, description="Layers of a sparse model that have a dense MLP.")
    intermediate_size: NonNegativeInt = Field(0, description="Width of the MLP of dense layers.")
    tied_embeddings: bool = Field(False, description="Whether input and output embeddings are one matrix.")
    attention_bias: Literal["none", "qkv", "all"] = Field("none", description="Projections of attention with biases.")
    router_scale: bool = Field(False, description="Whether the router has a learned number per expert.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} must be divisible by num_kv_heads {self.num_kv_heads}")
        if not self.num_experts:
            if not self.intermediate_size:
                raise ValueError("intermediate_size must be positive in a model without experts (num_experts 0)")
            return self
        if self.num_experts % self.num_groups or self.num_experts_per_tok % self.num_groups:
            raise ValueError(
                f"num_experts (N) {self.num_experts} and num_experts_per_tok (K) {self.num_experts_per_tok} must be "
                f"divisible by num_groups (M) {self.num_groups}"
            )
        if not 0 < self.num_experts_per_tok <= self.num_experts or not self.moe_intermediate_size:
            raise ValueError(
                "a sparse model needs 0 < num_experts_per_tok <= num_experts and moe_intermediate_size > 0"
            )
        if self.dense_layers > self.num_layers or (self.dense_layers and not self.intermediate_size):
            raise ValueError("dense_layers: at most num_layers, and they need intermediate_size > 0")
        return self

    @property
    def sparse_layers(self) -> int:
        """Layers with routed experts; none in a dense model."""
        return self.num_layers - self.dense_layers if self.num_experts else 0

    @property
    def attention_parameters(self) -> int:
        """Parameters of one layer's attention, with biases."""
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        biases = {"none": 0, "qkv": queries + 2 * keys, "all": queries + 2 * keys + self.hidden_size}
        return 2 * self.hidden_size * (queries + keys) + biases[self.attention_bias]

    @property
    def expert_parameters(self) -> int:
        """Weights of one routed expert's three matrices: gate, up and down."""
        return 3 * self.hidden_size * self.moe_intermediate_size

    @property
    def shared_parameters(self) -> int:
        """Weights of one layer's shared expert: three matrices too."""
        return 3 * self.hidden_size * self.shared_expert_intermediate_size

    @property
    def dense_parameters(self) -> int:
        """Weights of one dense layer's MLP: three matrices too."""
        return 3 * self.hidden_size * self.intermediate_size

    @property
    def embedding_parameters(self) -> int:
        """Weights of input and output embeddings: one matrix where they are tied, else two."""
        return self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2)

    def parameters(self, *, active: bool = False) -> int:
        """Return all parameters, or with `active` those that one token uses (both embeddings counted)."""
        router = self.num_experts * (self.hidden_size + self.router_scale)
        routed = (self.num_experts_per_tok if active else self.num_experts) * self.expert_parameters
        sparse = self.sparse_layers * (routed + router + self.shared_parameters)
        dense = (self.num_layers - self.sparse_layers) * self.dense_parameters
        norms = (2 * self.num_layers + 1) * self.hidden_size
        return self.num_layers * self.attention_parameters + sparse + dense + norms + self.embedding_parameters


def shape_of(config: Any, name: str = "model") -> ModelShape:
    """Return the shape that a transformers configuration describes.

    Args:
        config: an object with transformers' field names, of a decoder with gated MLPs; of a model for text and images
            the decoder's part is taken.
        name: name in tables.

    Raises:
        ValueError: the configuration lacks a size, or describes latent attention, which is not modelled.
    """
    if hasattr(config, "get_text_config"):
        config = config.get_text_config(decoder=True)
    if getattr(config, "kv_lora_rank", None):
        raise ValueError(f"{name}: multi-head latent attention (kv_lora_rank) is not modelled")
    heads = _first(config, name, "num_attention_heads")
    hidden = _first(config, name, "hidden_size")
    layers = _first(config, name, "num_hidden_layers")
    experts = _first(config, name, "num_experts", "num_local_experts", "n_routed_experts", default=0)
    sizes = _expert_sizes(config, name, layers, experts) if experts else {}
    dense_width = _first(config, name, "intermediate_size", default=0 if experts else None)
    return ModelShape(
        name=name,
        num_layers=layers,
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=_first(config, name, "num_key_value_heads", default=heads),
        head_dim=_first(config, name, "head_dim", default=hidden // heads),
        vocab_size=_first(config, name, "vocab_size"),
        intermediate_size=dense_width,
        tied_embeddings=bool(getattr(config, "tie_word_embeddings", False)),
        attention_bias="all" if getattr(config, "attention_bias", False) else "none",
        **sizes,
    )


def _expert_sizes(config: Any, name: str, layers: int, experts: int) -> dict[str, Any]:
    width = _first(config, name, "moe_intermediate_size", "intermediate_size")
    copies = _first(config, name, "n_shared_experts", default=0)
    shared = _first(config, name, "shared_expert_intermediate_size", default=width * copies)
    grouped = getattr(config, "router", "moge") == "moge"  # the baselines of PanguProMoEConfig route without groups
    return {
        "num_experts": experts,
        "num_experts_per_tok": _first(config, name, "num_experts_per_tok"),
        "num_groups": _first(config, name, "num_groups", default=1) if grouped else 1,
        "moe_intermediate_size": width,
        "shared_expert_intermediate_size": shared,
        "dense_layers": _dense_layers(config, layers),
        "router_scale": bool(getattr(config, "router_scale", False)),
    }


def _dense_layers(config: Any, layers: int) -> int:
    """Count the layers that keep a dense MLP, as Qwen's and DeepSeek's configurations name them."""
    leading = set(range(getattr(config, "first_k_dense_replace", 0) or 0))
    listed = set(getattr(config, "mlp_only_layers", None) or ())
    step = getattr(config, "decoder_sparse_step", 1) or 1
    return len(leading | listed | {layer for layer in range(layers) if (layer + 1) % step})


def _first(config: Any, name: str, *fields: str, default: int | None = None) -> int:
    """Return the first of `fields` that the configuration gives a number for."""
    for field in fields:
        value = getattr(config, field, None)
        if value is not None:
            return int(value)
    if default is None:
        raise ValueError(f"{name}: the model's configuration gives no {' or '.join(fields)}")
    return default


PANGU_PRO_MOE = ModelShape(
    name="Pangu Pro MoE 72B-A16B",
    num_layers=48,
    hidden_size=5120,
    num_heads=40,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=153376,
    num_experts=64,
    num_experts_per_tok=8,
    num_groups=8,
    moe_intermediate_size=1344,
    shared_expert_intermediate_size=5376,
    attention_bias="all",
    router_scale=True,
)
# The paper does not say which dense models it compares with; these public shapes stand for them.
DENSE_72B = ModelShape(
    name="dense 72B (Qwen2.5-72B)",
    num_layers=80,
    hidden_size=8192,
    num_heads=64,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=152064,
    intermediate_size=29568,
    attention_bias="qkv",
)
DENSE_32B = ModelShape(
    name="dense 32B (Qwen2.5-32B)",
    num_layers=64,
    hidden_size=5120,
    num_heads=40,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=152064,
    intermediate_size=27648,
    attention_bias="qkv",
)
