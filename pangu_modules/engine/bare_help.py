"""The bare ``--help`` of a recipe, answered before anything heavy is imported.

A recipe's first import reaches this package before its classes; if the program is a recipe asked only for its bare
help (or given no command), the answer needs nothing but the recipe's docstring.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

COMMANDS = {
    "fit": "train, evaluate on the test set, write the report (resume with --ckpt_path last)",
    "validate": "evaluate a checkpoint on the validation set",
    "test": "evaluate a checkpoint on the test set",
    "predict": "write predictions of a checkpoint",
    "export": "write a checkpoint in the ecosystem's own format",
    "plan": "print parameters, FLOPs and memory without weights or data (--json for machines)",
}


def bare_help(program: str, description: str) -> str:
    """Return the help text that lists the commands."""
    lines = [f"usage: python {program} COMMAND [options]", "", description, "", "commands:"]
    lines += [f"  {name:<10}{text}" for name, text in COMMANDS.items()]
    return "\n".join([*lines, "", f"Every option with its default: python {program} fit --help"])


def answer_if_asked() -> None:
    """Print the bare help and exit, if this process is a recipe started with no command or only ``--help``."""
    if len(sys.argv) > 2 or (len(sys.argv) == 2 and sys.argv[1] not in ("-h", "--help")):
        return
    script = Path(sys.argv[0]) if sys.argv and sys.argv[0] else Path()
    if script.suffix != ".py" or not script.is_file():
        return
    source = script.read_text(encoding="utf-8", errors="replace")
    if "recipe.main()" not in source:
        return
    text = bare_help(sys.argv[0], ast.get_docstring(ast.parse(source)) or "")
    if len(sys.argv) == 2:
        print(text)
        sys.exit(0)
    print(f"{text}\n\nerror: no command given", file=sys.stderr)
    sys.exit(2)
