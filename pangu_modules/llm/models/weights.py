"""Weights that fit a model by name and shape: what its files lack, or have too much, is an error, never random.

transformers warns of such weights and goes on with random ones. Every model that is loaded here goes through
`load_fitting`, which takes off the prefixes that wrappers add, and refuses what still does not fit.
"""

from __future__ import annotations

import copy
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pangu_modules.common.weight_names import WRAPPED

INDEX_FILE = "model.safetensors.index.json"
EXPERT = re.compile(r"(?P<layer>.*\.experts)\.(?P<number>\d+)\.(?P<rest>.+)")


def load_fitting(
    load: Callable[..., tuple[Any, Mapping[str, Any]]],
    anew: Callable[[Any], Any],
    name: str,
    folder: str | None = None,
) -> Any:
    """Return the model that `load` reads, all of whose weights came from its files.

    Args:
        load: calls ``from_pretrained`` with ``output_loading_info=True`` and the arguments it is given.
        anew: returns a model with random weights for a configuration.
        name: of the model, for messages.
        folder: where its files are, if that is known; an expert that is missing is looked for there.

    Raises:
        ValueError: weights are missing, belong to no part of the model, or have another shape. A model may explain it
            better: its ``check_loaded_names(missing, unexpected)`` is asked first.
    """
    with _without_report():
        try:
            model, info = load(ignore_mismatched_sizes=True)
            renamed = bool(info["missing_keys"])  # the names may only have the prefixes of a wrapper
            if renamed:
                model, info = load(ignore_mismatched_sizes=True, key_mapping=dict(WRAPPED))
        except RuntimeError as error:  # transformers cannot stack experts of which a part is missing
            problems = _listed("experts missing", missing_experts(tensor_names(folder)))
            raise ValueError(_refusal(name, problems or [" ".join(str(error).split())])) from error
    if hasattr(model, "check_loaded_names"):
        model.check_loaded_names(set(info["missing_keys"]), set(info["unexpected_keys"]))
    problems = _problems(info)
    if problems:
        raise ValueError(_refusal(name, _listed("experts missing", missing_experts(tensor_names(folder))) + problems))
    return _renamed_copy(model, anew) if renamed else model


def _problems(info: Mapping[str, Any]) -> list[str]:
    shapes = [f"{key} {tuple(found)} instead of {tuple(own)}" for key, found, own in info["mismatched_keys"]]
    return [
        *_listed("missing", info["missing_keys"]),
        *_listed("in no part of the model", info["unexpected_keys"]),
        *_listed("of another shape", shapes),
    ]


def _refusal(name: str, problems: list[str]) -> str:
    return (
        f"model={name!r}: its weights do not fit its config.json: {'; '.join(problems)}. Give a complete model with "
        "its own config.json, without adapters or heads of another task"
    )


def _renamed_copy(model: Any, anew: Callable[[Any], Any]) -> Any:
    """Return the model in a new object: this one remembers its prefixes, and would write them when it is saved."""
    plain = anew(copy.deepcopy(model.config))
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    return plain


def missing_experts(names: Iterable[str]) -> list[str]:
    """Return the weights of experts that the other layers or experts lead one to expect, in a released layout.

    Args:
        names: of a checkpoint's tensors, one for each expert and projection: ``...mlp.experts.3.up_proj.weight``.
    """
    found: dict[tuple[str, str], set[int]] = defaultdict(set)
    for match in filter(None, map(EXPERT.fullmatch, names)):
        found[match["layer"], match["rest"]].add(int(match["number"]))
    count = 1 + max((max(numbers) for numbers in found.values()), default=-1)
    return [
        f"{layer}.{number}.{rest}"
        for (layer, rest), numbers in found.items()
        for number in range(count)
        if number not in numbers
    ]


def tensor_names(folder: str | None) -> list[str]:
    """Return the names of the tensors in a model's folder; none where it holds no safetensors."""
    from safetensors import safe_open

    if folder is None or not Path(folder).is_dir():
        return []
    index = Path(folder) / INDEX_FILE
    if index.is_file():
        return list(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}))
    names: list[str] = []
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            names += tensors.keys()
    return names


def _listed(title: str, names: Iterable[str]) -> list[str]:
    """Return ``title: a, b, c ... (17)``, or nothing where there are no names."""
    ordered = sorted(names)
    more = " ..." if len(ordered) > 3 else ""
    return [f"{title}: {', '.join(ordered[:3])}{more} ({len(ordered)})"] if ordered else []


@contextmanager
def _without_report() -> Iterator[None]:
    """Hide transformers' table of weights that do not fit: the error says it in one sentence."""
    from transformers.utils import logging

    shown = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(shown)
