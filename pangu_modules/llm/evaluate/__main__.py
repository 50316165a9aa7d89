"""``python -m pangu_modules.llm.evaluate FOLDER --tasks ...``: tasks on an exported or released model, no recipe."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pangu_modules.common.errors import readable
from pangu_modules.common.files import check_new, write_atomically
from pangu_modules.llm.evaluate.settings import EvaluationConfig
from pangu_modules.llm.export.options import DTYPES

SETTINGS = {"tasks": str, "limit": int, "num_fewshot": int, "batch_size": int, "include_path": str}


def main(arguments: Sequence[str] | None = None) -> None:
    """Answer a command line; exits with code 2 and one sentence on a bad value."""
    given = vars(_parser().parse_args(arguments))
    try:
        results = evaluate_folder(**given)
    except ValidationError as error:
        _refuse(readable(error))
    except (ValueError, OSError) as error:
        _refuse(str(error))
    _print(results, given["output"])


def evaluate_folder(model: str, dtype: str = "float32", output: str | None = None, **settings: Any) -> dict[str, Any]:
    """Return the results of a model, which are also written to `output` if that is given.

    Args:
        model: a folder, a ``.gguf`` file, a hub id or ``smollm2``; Python code that comes with it is not run.
        dtype: of the weights in memory: float32, float16 or bfloat16.
        output: a new JSON file.
        settings: of `EvaluationConfig`; what is None has its default.

    Raises:
        ValueError: a setting, a task or the model cannot be used.
        FileExistsError: `output` is there already.
    """
    from pangu_modules.llm.evaluate.harness import Evaluation
    from pangu_modules.llm.models.loading import load_causal_lm
    from pangu_modules.llm.models.tokenizer_loading import load_tokenizer

    config = EvaluationConfig(**{name: value for name, value in settings.items() if value is not None})
    if output is not None:
        check_new(output, "--output")
    tokenizer = load_tokenizer(model)
    evaluation = Evaluation(config)
    results = {"model": model, "dtype": dtype, **evaluation.run(load_causal_lm(model, dtype=DTYPES[dtype]), tokenizer)}
    if output is not None:
        write_atomically(output, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    return results


def _parser() -> argparse.ArgumentParser:
    program = "python -m pangu_modules.llm.evaluate"
    parser = argparse.ArgumentParser(program, description=__doc__, allow_abbrev=False)
    parser.add_argument("model", help="Folder, .gguf file, hub id or 'smollm2'; code that comes with it is not run.")
    for name, kind in SETTINGS.items():
        field = EvaluationConfig.model_fields[name]
        parser.add_argument(f"--{name}", type=kind, required=field.is_required(), help=field.description)
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="Type of the weights in memory.")
    parser.add_argument("--output", help="New JSON file for the results (default: they are printed alone).")
    return parser


def _print(results: dict[str, Any], output: str | None) -> None:
    from pangu_modules.report.tables import terminal_table

    terminal_table(results["rows"], title=f"Tasks, {results['model']}")
    written = "give --output FILE.json to keep this" if output is None else f"evaluation  {Path(output)}"
    print(f"{written} ({results['seconds']:.1f} s)")


def _refuse(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
