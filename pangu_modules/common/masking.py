"""Secrets in command lines and configurations: passwords, tokens and keys are replaced before they are written."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

MASK = "***"

# What a field's last words are when it holds a secret. `eos_token` and `max_new_tokens` of a language model hold none,
# and fields like `api_key_variable` name the environment variable that does.
_SECRET = (
    r"(?:passw(?:or)?d|passphrase|secret|credentials?|authorization"
    r"|(?:api|access|private|secret|wandb)[_-]?key|(?:hf|hub|auth|access|api|bearer|github|wandb)[_-]?token)"
)
_FIELD = rf"(?:(?:[\w.-]*[._-])?{_SECRET}|(?:[\w.-]*\.)?token)"
_VALUE = r"""(?:"[^"\n]*"|'[^'\n]*'|[^\s,}"'\]]+)"""
_NAMED = re.compile(rf"""((?<![\w.-]){_FIELD}["']?[ \t]*[:=][ \t]*)(?!null\b|None\b){_VALUE}""", re.IGNORECASE)
_OPTION = re.compile(rf"--{_FIELD}", re.IGNORECASE)
_ADDRESS = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/\s'\"]+@", re.IGNORECASE)  # user:password@ before a host
_HEADER = re.compile(r"\b(Bearer|Basic)\s+[\w.~+/=-]{8,}", re.IGNORECASE)
_KEY = re.compile(r"\b(?:hf_|sk-|ghp_|gho_|github_pat_|glpat-|xox[bp]-|AKIA)[\w-]{12,}")  # as their issuers begin them


def mask_secrets(text: str) -> str:
    """Return YAML or JSON, or a part of it, with ``***`` in place of what looks like a secret.

    Masked are the values of fields whose names end like ``password``, ``api_key`` or ``hf_token``, the user and
    password of an address, ``Bearer ...`` headers, and keys that begin as their issuers' do (``hf_``, ``sk-``, ...).
    """
    text = _ADDRESS.sub(rf"\g<1>{MASK}@", text)
    text = _HEADER.sub(rf"\g<1> {MASK}", text)
    text = _KEY.sub(MASK, text)
    return _NAMED.sub(rf"\g<1>{MASK}", text)


def mask_command(words: Sequence[str]) -> str:
    """Return a command line as one would type it, its secrets masked as by `mask_secrets`."""
    masked: list[str] = []
    value_follows = False
    for word in words:
        name, equals, _ = word.partition("=")
        is_secret = _OPTION.fullmatch(name) is not None
        if value_follows and not word.startswith("--"):
            masked.append(MASK)
        elif is_secret and equals:
            masked.append(f"{name}={MASK}")
        else:
            masked.append(mask_secrets(word))
        value_follows = is_secret and not equals
    return shlex.join(masked)


def holds_secret(text: str) -> bool:
    """Whether `mask_secrets` would change a text."""
    return mask_secrets(text) != text


def names_secret(field: str) -> bool:
    """Whether a field of this name holds a secret, e.g. ``api_key``."""
    return re.fullmatch(_FIELD, field, re.IGNORECASE) is not None
