"""The signatures of torch_npu's functions that the dispatch table calls, as the tested versions have them.

``python -m pangu_modules.ascend.ops.schemas`` compares them with the torch_npu that is installed, and exits with 2
where they differ; ``--write`` stores the installed ones in ``schemas.json``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pangu_modules.ascend.ops.table import OPERATORS
from pangu_modules.common.files import write_atomically

STORED = Path(__file__).with_name("schemas.json")


class Argument(NamedTuple):
    """An argument of a signature; the kind is torch's name of its type, such as ``Optional[Tensor]``."""

    name: str
    kind: str
    keyword_only: bool
    required: bool


Signatures = dict[str, list[list[Argument]]]


@lru_cache(maxsize=1)
def stored() -> Signatures:
    """Return the stored signatures: for each function those of its overloads."""
    functions = json.loads(STORED.read_text())["functions"]
    return {name: [[Argument(*row) for row in overload] for overload in found] for name, found in functions.items()}


def installed() -> Signatures:
    """Return the signatures of the torch_npu that is installed, without the overloads that write to given outputs.

    Raises:
        ImportError: torch_npu is missing or does not load.
    """
    importlib.import_module("torch_npu")
    found: Signatures = {}
    for symbol in sorted({operator.symbol for operator in OPERATORS.values()}):
        packet = getattr(torch.ops.npu, symbol, None)
        overloads = [] if packet is None else [getattr(packet, name)._schema for name in packet.overloads()]
        found[symbol] = [
            [
                Argument(given.name, str(given.type), given.kwarg_only, not given.has_default_value())
                for given in schema.arguments
            ]
            for schema in overloads
            if not any(given.is_out for given in schema.arguments)
        ]
    return found


def misfit(
    symbol: str, args: tuple[Any, ...], kwargs: dict[str, Any], signatures: Signatures | None = None
) -> str | None:
    """Return why a call does not fit any signature of a function, or None.

    Args:
        symbol: name of the function.
        args: its positional arguments.
        kwargs: its keyword arguments.
        signatures: what to look in; by default the stored ones.
    """
    overloads = (stored() if signatures is None else signatures).get(symbol) or []
    reasons = [_misfit(overload, args, kwargs) for overload in overloads]
    if not reasons:
        return f"there is no {symbol}"
    return None if None in reasons else f"{symbol}: {reasons[0]}"


def _misfit(signature: list[Argument], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    places = [argument for argument in signature if not argument.keyword_only]
    if len(args) > len(places):
        return f"{len(args)} positional arguments, and it takes {len(places)}"
    given = {argument.name: value for argument, value in zip(places, args, strict=False)}
    for name in kwargs:
        if name in given:
            return f"{name} is given twice"
    given |= kwargs
    known = {argument.name: argument for argument in signature}
    for name, value in given.items():
        if name not in known:
            return f"it has no argument {name}"
        if not fits(value, known[name].kind, name):
            return f"{name} is {known[name].kind}, not {type(value).__name__}"
    missing = [argument.name for argument in signature if argument.required and argument.name not in given]
    return f"{missing[0]} is missing" if missing else None


def fits(value: Any, kind: str, name: str = "") -> bool:
    """Return whether a value is of a kind; a torch.dtype is one of the integers that name types."""
    if kind.startswith("Optional["):
        return value is None or fits(value, kind[len("Optional[") : -1], name)
    if kind.startswith("List["):
        inner = kind[len("List[") : -1]
        return isinstance(value, (list, tuple)) and all(fits(item, inner) for item in value)
    if kind == "int":
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole or (name.endswith("dtype") and isinstance(value, torch.dtype))
    if kind == "float":
        return isinstance(value, (float, int)) and not isinstance(value, bool)
    kinds: dict[str, type] = {"Tensor": Tensor, "bool": bool, "str": str}
    return kind in kinds and isinstance(value, kinds[kind])


def differences(found: Signatures) -> list[str]:
    """Return a sentence for each function whose signature is not the stored one."""
    return [
        f"{symbol} is missing" if not found.get(symbol) else f"{symbol} has other arguments"
        for symbol, signature in stored().items()
        if found.get(symbol) != signature
    ]


def main(arguments: list[str] | None = None) -> int:
    """Compare or store; see the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--write", action="store_true", help="store the installed signatures")
    options = parser.parse_args(arguments)
    try:
        found = installed()
    except (ImportError, OSError, RuntimeError) as error:
        print(f"torch_npu does not load: {error}. It needs the torch of its own version, and CANN", file=sys.stderr)
        return 2
    version = sys.modules["torch_npu"].__version__
    if options.write:
        entries = {symbol: [[list(row) for row in overload] for overload in found[symbol]] for symbol in found}
        lines = ",\n".join(f"  {json.dumps(symbol)}: {json.dumps(entry)}" for symbol, entry in entries.items())
        text = f'{{"torch_npu": {json.dumps(version)}, "functions": {{\n{lines}\n}}}}\n'
        write_atomically(STORED, text)
        print(f"{len(found)} signatures of torch_npu {version} in {STORED}")
        return 0
    different = differences(found)
    for sentence in different:
        print(f"torch_npu {version}: {sentence}", file=sys.stderr)
    if not different:
        print(f"torch_npu {version} has all {len(found)} functions with the arguments that were tested")
    return 2 if different else 0


if __name__ == "__main__":
    raise SystemExit(main())
