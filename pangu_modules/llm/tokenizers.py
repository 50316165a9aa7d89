"""Tokenizers as plain text, so that checkpoints carry them, and whether two tokenizers are one."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pangu_modules.common.files import safe_name
from pangu_modules.llm.models.conversion import MODEL_FILE
from pangu_modules.llm.models.messages import in_one_line, quiet_transformers

MODEL_FILES = ("config.json", "model.safetensors.index.json")
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".so")
"""Names that a text file of a checkpoint cannot have: they are the model's own, or read as weights or code."""

BINARY = "data:application/octet-stream;base64,"
"""What stands before the content of a file that is no text (a SentencePiece model), as in a data URL."""

PROBES = (
    "The river runs past the old mill, and the miller counts his sacks: 7, 42, 2023, 650841823.",
    "  two  spaces,\ttabs,\n\n\nlines \r\n and an end ",
    "I'll say we'RE not DON'T, it's 1,234.56 USD (50%)!? ... -- e-mail@host.org/path#x_1",
    "def f(x):\n    return [x**2 for _ in range(10)]  # \\n",
    "Zwölf Boxkämpfer jagen Viktor quer über den Sylter Deich; Å é ñ ﬁ ½ ² e\u0301",
    "数学和科学,盘古模型 2025 年。 Привет, мир! שלום مرحبا नमस्ते 한국어 日本語カナ 🙂👩‍👩‍👧",
)
"""Texts that tokenizers of different kinds cut differently: numbers, spaces, contractions, code, scripts."""

AS_WRITTEN = "tokenization_as_written"
AS_WRITTEN_CODE = '''"""The tokenizer exactly as tokenizer.json describes it, where code of the folder is trusted."""

from transformers import PreTrainedTokenizerFast


class TokenizerAsWritten(PreTrainedTokenizerFast):
    """No changes of its own."""
'''


def tokenizer_files(tokenizer: Any) -> dict[str, str]:
    """Return the files of a transformers tokenizer, name -> text; what is no text is in base64 behind `BINARY`."""
    several = isinstance(tokenizer.chat_template, dict) and len(tokenizer.chat_template) > 1
    with tempfile.TemporaryDirectory() as folder:
        # Several chat templates would be files in a folder of their own; in the configuration they are one file.
        tokenizer.save_pretrained(folder, save_jinja_files=not several)
        _repair_auto_map(Path(folder) / "tokenizer_config.json")
        return {path.name: _as_text(path.read_bytes()) for path in sorted(Path(folder).iterdir()) if path.is_file()}


def _repair_auto_map(file: Path) -> None:
    """Write the class of a tokenizer with its own code as transformers reads it: as a pair (slow, fast)."""
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    name = settings.get("auto_map", {}).get("AutoTokenizer")
    if isinstance(name, str):
        settings["auto_map"]["AutoTokenizer"] = [name, None]
        file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def tokenizer_from_files(files: Mapping[str, str], *, trust_remote_code: bool = False) -> Any:
    """Return the transformers tokenizer that `tokenizer_files` described.

    A chat template is a program too; transformers runs it in jinja2's sandbox, which gives it no files and no imports.
    """
    from transformers import AutoTokenizer

    with tokenizer_folder(files) as folder:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)


def write_files(files: Mapping[str, str], folder: Path) -> None:
    """Write a model's text files into a folder that this process made.

    Raises:
        ValueError: a name leads out of the folder, or belongs to a file that is there already.
    """
    for name, text in files.items():
        path = folder / safe_name(name, "the checkpoint")
        if path.exists():
            raise ValueError(f"the checkpoint holds a text file {name!r}, which is a name of the model's own files")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(file_content(text))


def stored_files(files: Mapping[str, str], *, trust_remote_code: bool) -> dict[str, str]:
    """Return the text files of a checkpoint as far as they may count: they name no code and no other files.

    Args:
        files: name -> text.
        trust_remote_code: whether the caller, not the checkpoint, has allowed the model's own Python code.

    Raises:
        ValueError: a name is a path or one of the model's own files, or the code of a tokenizer is not trusted.
    """
    for name in files:
        safe_name(name, "the checkpoint")
        if name in MODEL_FILES or name.endswith(WEIGHTS):
            raise ValueError(f"the checkpoint holds a text file {name!r}, which is a name of the model's own files")
        if name.endswith(".py") and not trust_remote_code:
            raise ValueError(
                f"the checkpoint's tokenizer brings Python code ({name}), and a checkpoint does not say what is run: "
                "if you trust it, pass trust_remote_code=True (on the command line --module.trust_remote_code true)"
            )
    return {
        name: _without_places(text, trust_remote_code) if name.endswith("_config.json") else text
        for name, text in files.items()
    }


def _without_places(text: str, trust_remote_code: bool) -> str:
    """Return a configuration's JSON without what names code or files elsewhere."""
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ValueError(f"the checkpoint's tokenizer or generation settings are no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"the checkpoint's tokenizer or generation settings are no mapping but {text[:40]!r}")
    places = [name for name in values if name.endswith("_file") or (name == "auto_map" and not trust_remote_code)]
    if not places:
        return text
    return json.dumps({name: value for name, value in values.items() if name not in places}, indent=2)


@contextmanager
def tokenizer_folder(files: Mapping[str, str]) -> Iterator[Path]:
    """Yield a temporary folder with these files, name -> text, for whoever reads a tokenizer from the disk."""
    with tempfile.TemporaryDirectory() as folder:
        write_files(files, Path(folder))
        yield Path(folder)


def file_content(text: str) -> bytes:
    """Return the content of a file that `tokenizer_files` returned."""
    return base64.b64decode(text.removeprefix(BINARY)) if text.startswith(BINARY) else text.encode("utf-8")


def _as_text(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return BINARY + base64.b64encode(content).decode("ascii")


# Whether two tokenizers are one.


def difference(one: Any, other: Any, *, with_special_tokens: bool = False) -> str | None:
    """Return the first thing in which two tokenizers differ, in words, or None where they mean the same by their ids.

    Tokens that only one of them has, behind all those of the other, are no difference: embeddings of one family are
    padded to different lengths, and fine-tuning adds tokens.

    Args:
        one: a transformers tokenizer.
        other: another one.
        with_special_tokens: also compare what they put before and behind a text, and the end of a text.
    """
    ours, theirs = ({number: token for token, number in each.get_vocab().items()} for each in (one, other))
    for number in range(min(max(ours, default=-1), max(theirs, default=-1)) + 1):
        if ours.get(number) != theirs.get(number):
            return f"token {number} is {ours.get(number)!r} in the one and {theirs.get(number)!r} in the other"
    for text in PROBES:
        cut, cut_too = (each(text, add_special_tokens=with_special_tokens)["input_ids"] for each in (one, other))
        if cut != cut_too:
            pairs = enumerate(zip_longest(cut, cut_too))
            place, found = next((place, pair) for place, pair in pairs if pair[0] != pair[1])
            return (
                f"they cut {text[:30]!r}... differently: its token {place} is {found[0]} in the one and {found[1]} in "
                "the other"
            )
    if with_special_tokens and one.eos_token_id != other.eos_token_id:
        return f"a text ends with token {one.eos_token_id} in the one and {other.eos_token_id} in the other"
    return None


def make_readable(tokenizer: Any, folder: Path, *, trust_remote_code: bool = False) -> None:
    """See to it that transformers reads from a model's folder the tokenizer that was written into it.

    For some kinds of models (Qwen2, Phi-3 ...) transformers takes its own class of tokenizer, whatever the folder
    says; where that cuts texts differently, the folder gets an ``auto_map``, with which it takes the file as written.

    Raises:
        ValueError: it would read another tokenizer all the same.
    """
    if not _has_model_type(folder):  # transformers takes the class that the folder names, as a checkpoint does
        return
    found = _difference_as_read(tokenizer, folder, trust_remote_code)
    if found is not None and (folder / "tokenizer.json").is_file():
        _keep_as_written(folder)
        found = _difference_as_read(tokenizer, folder, trust_remote_code)
    if found is not None:
        raise ValueError(
            f"export: transformers would read another tokenizer from the folder than the model was trained with "
            f"({found}): give the model a tokenizer of its own kind with module.tokenizer"
        )


def _has_model_type(folder: Path) -> bool:
    config = json.loads((folder / MODEL_FILE).read_text(encoding="utf-8"))
    return isinstance(config, dict) and "model_type" in config


def _difference_as_read(tokenizer: Any, folder: Path, trust_remote_code: bool) -> str | None:
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            read = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # whatever it is, the folder cannot be read
        return f"it cannot be read: {in_one_line(error)}"
    if len(read) != len(tokenizer):
        return f"{len(tokenizer)} tokens are written, {len(read)} are read"
    return difference(tokenizer, read, with_special_tokens=True)


def _keep_as_written(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "auto_map": {"AutoTokenizer": [None, f"{AS_WRITTEN}.TokenizerAsWritten"]},
    }
    file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / f"{AS_WRITTEN}.py").write_text(AS_WRITTEN_CODE, encoding="utf-8")
