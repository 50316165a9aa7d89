"""Loading a teacher by its name: a checkpoint that fit has written, or a model of the hub or in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pangu_modules.llm.text_checks import check_siblings
from pangu_modules.llm.tokenizers import difference


def load_teacher(name: str, module: Any, what: str) -> Any:
    """Return the teacher's transformers model, which has the student's tokens; it is frozen and in evaluation mode.

    Args:
        name: a ``.ckpt`` file, or a hub id, folder, ``.gguf`` file or embedded model.
        module: the student, a `CausalLM`.
        what: names whoever asks, in messages.

    Raises:
        ValueError: there is no such model, or its tokens are others; the first that differs is named.
    """
    from pangu_modules.llm.causal_lm import CausalLM
    from pangu_modules.llm.models.loading import load_causal_lm

    trust = bool(getattr(module.config, "trust_remote_code", False))
    if name.endswith(".ckpt"):
        if not Path(name).is_file():
            raise ValueError(f"{what}: teacher={name!r}: there is no such file")
        loaded = CausalLM.load_from_checkpoint(name, map_location="cpu", weights_only=True)
        if module.tokenizer is not None and loaded.tokenizer is not None:
            found = difference(module.tokenizer, loaded.tokenizer, with_special_tokens=True)
            if found is not None:
                raise ValueError(f"{what}: teacher {name!r} has other tokens than the model: {found}")
        teacher = loaded.model
    else:
        teacher = load_causal_lm(name, trust_remote_code=trust)
        check_siblings(
            f"{what}: teacher {name!r}", name, teacher, module.model, module.tokenizer, trust_remote_code=trust
        )
    return teacher.eval().requires_grad_(False)
