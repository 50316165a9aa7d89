"""Fields of a configuration that a model's code reads without declaring them, such as ``head_dim`` of a Qwen2."""

from __future__ import annotations

import inspect
import re
from functools import cache

READ = re.compile(r"""\bconfig(?:\.get_text_config\(\))?(?:\.([a-z]\w+)|, ["']([a-z]\w+)["'])""")
"""``config.head_dim`` and ``getattr(config, "head_dim", None)``."""


@cache
def fields_read(model_type: str) -> frozenset[str]:
    """Return the names that the code of a causal LM of transformers, or of this library, reads from its configuration.

    The code counts with that of its base classes in other files (Qwen3-MoE takes parts of Llama), and with what all
    models share: rotary embeddings, masks and caches.
    """
    from transformers import (
        CONFIG_MAPPING,
        MODEL_FOR_CAUSAL_LM_MAPPING,
        cache_utils,
        masking_utils,
        modeling_rope_utils,
    )

    config_class = CONFIG_MAPPING[model_type]
    modules = {cache_utils, masking_utils, modeling_rope_utils, inspect.getmodule(config_class)}
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(config_class, None)
    classes = model_class if isinstance(model_class, tuple | list) else [model_class]
    for found in filter(None, classes):
        modules |= {inspect.getmodule(base) for base in found.__mro__ if ".models." in base.__module__ or base is found}
    sources = [inspect.getsource(module) for module in modules if module is not None]
    return frozenset(name for source in sources for match in READ.findall(source) for name in match if name)
