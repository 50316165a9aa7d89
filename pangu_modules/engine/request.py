"""What the command line asks for, as data: the commands with their options, the program's name, and the request."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from pangu_modules.engine.spec import RecipeSpec

COMMANDS = {
    "fit": "train, evaluate on the test set, write the report (resume with --ckpt_path last)",
    "validate": "evaluate a checkpoint on the validation set",
    "test": "evaluate a checkpoint on the test set",
    "predict": "write predictions of a checkpoint",
    "export": "write a checkpoint, or the data that a stage made, in the ecosystem's own format",
    "evaluate": "run tasks of lm-evaluation-harness on a language model's checkpoint",
    "plan": "print parameters, FLOPs and memory without weights or data (--json for machines)",
}
HELP = ("-h", "--help")

# Options beside the configuration, by command.
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "fit": {
        "--ckpt_path": {"type": str, "help": "Checkpoint to resume from: a path, or 'last' for the newest run's."},
    },
    "validate": {},
    "test": {},
    "predict": {
        "--output": {
            "type": str,
            "help": "File for the predictions: .csv, .jsonl or .pt (default: predictions.pt in the run).",
        },
        "--prompt": {
            "action": "append",
            "help": "A text that a language model continues, on the terminal; may be given repeatedly.",
        },
    },
    "export": {
        "--format": {"type": str, "help": "Export format, one of the module's (default: its first)."},
        "--output": {"type": str, "help": "Folder for the export (default: export/ in the run's folder)."},
        "--dtype": {"type": str, "help": "Type of the weights: float32, float16 or bfloat16 (default: as loaded)."},
        "--layout": {"type": str, "help": "Of a pruned model: uniform, padded or per_layer (default: its plan's)."},
        "--min_reward": {
            "type": float,
            "help": "Of generated answers: those with at least this reward (default: all).",
        },
    },
    "evaluate": {
        "--tasks": {"type": str, "help": "Tasks, groups or tags, comma-separated; * is any text: arc_easy,mmlu_*."},
        "--limit": {"type": int, "help": "Samples of each task (default: all)."},
        "--num_fewshot": {"type": int, "help": "Examples before each question (default: the task's own)."},
        "--batch_size": {"type": int, "help": "Sequences at once (default: 8)."},
        "--include_path": {"type": str, "help": "Folder of your own tasks (YAML); Python files they name are run."},
        "--output": {"type": str, "help": "JSON file for the results (default: evaluations/ in the run's folder)."},
    },
    "plan": {
        "--json": {"action": "store_true", "help": "Print one JSON object."},
        "--hardware": {"type": str, "help": "Estimate throughput on this card: a name, or a YAML file of a card."},
        "--layout": {"type": str, "help": "With --hardware: parallel layout and workload, key=value,... or 'auto'."},
    },
}
CHECKPOINT_HELP = "Checkpoint: a path, 'last' or 'best' of the newest run (default: last)."
for _command in ("validate", "test", "predict", "export", "evaluate"):
    OPTIONS[_command]["--ckpt_path"] = {"type": str, "default": "last", "help": CHECKPOINT_HELP}


@dataclass(frozen=True)
class Program:
    """How a recipe was started.

    Attributes:
        name: the recipe's name, that of its folder below ``runs/``.
        call: what a user types before the command: ``python recipes/scalenet_digits.py``; messages repeat it.
        title: the first line of the recipe's docstring.
        script: the recipe's own file, where that is the script running.
    """

    name: str
    call: str
    title: str
    script: Path | None = None

    @classmethod
    def of_script(cls) -> Self:
        """Describe the script that is running."""
        document = getattr(sys.modules.get("__main__"), "__doc__", None) or "A recipe."
        script = Path(sys.argv[0])
        call = shlex.join(["python", sys.argv[0]])
        return cls(name=script.stem, call=call, title=document.strip().splitlines()[0], script=script)

    def bare_help(self) -> str:
        """Return the help text that lists the commands."""
        lines = [f"usage: {self.call} COMMAND [options]", "", self.title, "", "commands:"]
        lines += [f"  {name:<10}{text}" for name, text in COMMANDS.items()]
        return "\n".join([*lines, "", f"Every option with its default: {self.call} fit --help"])


@dataclass(frozen=True)
class Request:
    """A parsed command line.

    Attributes:
        command: its first word.
        recipe: the recipe with all overrides.
        program: how the recipe was started.
        options: the command's own options.
        given: dotted names of all that the user has written, on the command line or in ``--config`` files.
    """

    command: str
    recipe: RecipeSpec
    program: Program
    options: dict[str, Any] = field(default_factory=dict)
    given: frozenset[str] = frozenset()
