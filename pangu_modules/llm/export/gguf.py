"""Writing a Llama as a GGUF file, for llama.cpp and what is built on it: in float32, or with tensors encoded."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from pangu_modules.common.files import atomic_file
from pangu_modules.llm.export.transformers import refuse_own_architecture, shape_differences, without_adapters
from pangu_modules.llm.tokenizers import tokenizer_folder

if TYPE_CHECKING:
    from pangu_modules.llm.causal_lm import CausalLM

# How a byte-level BPE cuts text before merging: tokenizers' own description -> llama.cpp's name.
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
PRE_TOKENIZERS = {
    ("ByteLevel",): "gpt-2",
    ("Digits", "ByteLevel"): "smollm",
    (LLAMA3_PATTERN, "ByteLevel"): "llama-bpe",
}


@dataclass(frozen=True)
class Encoding:
    """How a file stores tensors other than in float32.

    Args:
        file_type: GGUF's number for the file as a whole.
        encode: takes name in GGUF and float32 tensor, returns what is stored and its `GGMLQuantizationType`; bytes are
            uint8 of shape (rows, bytes of a row).
    """

    file_type: int
    encode: Callable[[str, np.ndarray], tuple[np.ndarray, Any]]


def export_gguf(module: CausalLM, folder: str | Path) -> None:
    """Write ``model-f32.gguf`` into the folder; see `write_gguf`."""
    write_gguf(module, Path(folder) / "model-f32.gguf")


def write_gguf(
    module: CausalLM, path: str | Path, *, pre_tokenizer: str | None = None, encoding: Encoding | None = None
) -> Path:
    """Write model, tokenizer and chat template into one GGUF file, which appears when it is complete.

    Args:
        module: a Llama with a byte-level BPE tokenizer; LoRA adapters are merged in a copy.
        path: of the file.
        pre_tokenizer: llama.cpp's name of how text is cut before merging; by default found from the tokenizer.
        encoding: how tensors are stored; by default all in float32.

    Returns:
        The path.

    Raises:
        ValueError: the model or its tokenizer is of another kind, or layers differ in size.
    """
    from gguf import GGUFWriter

    model: Any = without_adapters(module.model)
    refuse_own_architecture(model.config.model_type)
    if model.config.model_type != "llama":
        raise ValueError(f"export: GGUF is written for architecture 'llama', this model is {model.config.model_type!r}")
    differences = shape_differences(model)
    if differences:
        raise ValueError(f"export: a GGUF file needs layers of one size, and {differences[0]}")
    description = _bpe_description(module)
    with atomic_file(path) as temporary:
        writer = GGUFWriter(temporary, "llama")
        _add_shapes(writer, model.config)
        writer.add_file_type(0 if encoding is None else encoding.file_type)  # 0: all tensors in float32
        _add_tokenizer(writer, module, description, pre_tokenizer or pre_tokenizer_name(description))
        for name, tensor in gguf_tensors(model).items():
            stored, kind = (tensor, None) if encoding is None else encoding.encode(name, tensor)
            writer.add_tensor(name, stored, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return Path(path)


def gguf_tensors(model: Any) -> dict[str, np.ndarray]:
    """Return the weights by their names in GGUF, float32, with the rows of q and k in GGUF's order."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    config = model.config
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue  # readers take the embedding where there is no output matrix
        tensor = tensor.detach().float().cpu()
        if ".q_proj." in name:
            tensor = interleave_halves(tensor, config.num_attention_heads)
        elif ".k_proj." in name:
            tensor = interleave_halves(tensor, config.num_key_value_heads)
        tensors[str(names.get_name(name, try_suffixes=(".weight", ".bias")))] = tensor.numpy()
    return tensors


def interleave_halves(rows: Tensor, num_heads: int) -> Tensor:
    """Reorder each head's rows from (first half, second half) to pairs, for the rotary embedding of GGUF's Llama.

    transformers rotates component i with i + head_dim / 2, GGUF's Llama 2i with 2i + 1.

    Args:
        rows: (num_heads * head_dim, in_features), or (num_heads * head_dim,) for a bias.
        num_heads: number of heads.
    """
    return rows.unflatten(0, (num_heads, 2, -1)).transpose(1, 2).flatten(0, 2).contiguous()


def pre_tokenizer_name(description: dict[str, Any]) -> str:
    """Return llama.cpp's name of a tokenizer's way to cut text, from its ``tokenizer.json``.

    Raises:
        ValueError: the way has no name here.
    """
    outer = description["pre_tokenizer"] or {"type": "none"}
    steps = outer["pretokenizers"] if outer["type"] == "Sequence" else [outer]
    found = tuple(step["pattern"].get("Regex") if step["type"] == "Split" else step["type"] for step in steps)
    if found not in PRE_TOKENIZERS:
        raise ValueError(f"the tokenizer cuts text by {found}, whose name in llama.cpp must be given as pre_tokenizer")
    return PRE_TOKENIZERS[found]


def _bpe_description(module: CausalLM) -> dict[str, Any]:
    text = module.runtime.get("files", {}).get("tokenizer.json")
    description: dict[str, Any] = json.loads(text) if text is not None else {"model": {"type": "none"}, "decoder": None}
    kind, decoder = description["model"]["type"], (description["decoder"] or {"type": "none"})["type"]
    if (kind, decoder) != ("BPE", "ByteLevel"):
        raise ValueError(f"export: GGUF needs a byte-level BPE tokenizer, this one has model {kind}, decoder {decoder}")
    return description


def _add_shapes(writer: Any, config: Any) -> None:
    rope = config.rope_parameters
    if rope["rope_type"] != "default":
        raise ValueError(f"export: GGUF is written for plain rotary embeddings, not rope_type={rope['rope_type']!r}")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _add_tokenizer(writer: Any, module: CausalLM, description: dict[str, Any], pre_tokenizer: str) -> None:
    from gguf import SpecialVocab, TokenType

    model: Any = module.model
    tokenizer = module.tokenizer
    tokens = {number: token for token, number in description["model"]["vocab"].items()}
    added = {token["id"]: token for token in description["added_tokens"]}
    tokens |= {number: token["content"] for number, token in added.items()}
    names, types = [], []
    for number in range(model.config.vocab_size):
        special = number in added and added[number]["special"]
        kind = TokenType.CONTROL if special else TokenType.USER_DEFINED if number in added else TokenType.NORMAL
        names.append(tokens.get(number, f"[PAD{number}]"))
        types.append(kind if number in tokens else TokenType.UNUSED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer)
    writer.add_token_list(names)
    writer.add_token_types(types)
    writer.add_add_bos_token(tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id)
    # Merges, the numbers of special tokens, and the chat template.
    with tokenizer_folder(module.runtime["files"]) as folder:
        SpecialVocab(folder, load_merges=True, n_vocab=model.config.vocab_size).add_to_gguf(writer, quiet=True)
