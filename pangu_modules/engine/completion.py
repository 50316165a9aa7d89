"""``pangu completion bash|zsh``: a shell script that completes recipes, commands and options, without starting Python.

The options come from each recipe's own parser, so the script is written once, and again when recipes have changed.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence

from pangu_modules.engine.request import COMMANDS, OPTIONS, Program

SHELLS = ("bash", "zsh")
WORDS = ("list", "compare", "completion")
USAGE = """usage: pangu completion bash|zsh

Print a script that completes recipes, commands and options (about ten seconds):
  bash: pangu completion bash > ~/.local/share/bash-completion/completions/pangu
  zsh:  pangu completion zsh > ~/.pangu_completion; echo 'source ~/.pangu_completion' >> ~/.zshrc"""
SCRIPT = """# Completion of pangu in bash and zsh, written by: pangu completion
{zsh}_pangu() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} name=${{COMP_WORDS[1]}} command=${{COMP_WORDS[2]}} words=
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    words={names}
  elif [ "$name" = completion ]; then
    words={shells}
  elif [ "$name" = compare ] || [ "$name" = list ]; then
    return
  elif [ "$COMP_CWORD" -eq 2 ]; then
    words={commands}
  elif [ "${{current#-}}" != "$current" ]; then
    case $command in
{of_commands}
      *) return ;;
    esac
    case $name in
{of_recipes}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _pangu pangu
"""


def main(arguments: Sequence[str], recipe_options: Callable[[], Mapping[str, Sequence[str]]]) -> None:
    """Print the script for a shell; exits with code 2 for any but `SHELLS`.

    Args:
        arguments: the words after ``pangu completion``.
        recipe_options: returns the options of every recipe, by its name; asked once the words are right.
    """
    if list(arguments) in (["--help"], ["-h"]):
        print(USAGE)
        return
    if len(arguments) != 1 or arguments[0] not in SHELLS:
        given = f"got {shlex.join(arguments)!r}" if arguments else "none is given"
        print(f"error: completion: name one shell, {' or '.join(SHELLS)}; {given}\n{USAGE}", file=sys.stderr)
        raise SystemExit(2)
    print(script(arguments[0], recipe_options()), end="")


def script(shell: str, recipes: Mapping[str, Sequence[str]]) -> str:
    """Return the script for a shell.

    Args:
        shell: one of `SHELLS`.
        recipes: name -> the options of its configuration, which all its commands have.
    """
    of_commands = {command: ["--help", *OPTIONS[command]] for command in COMMANDS}
    return SCRIPT.format(
        zsh="autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else "",
        names=_quoted([*recipes, *WORDS]),
        shells=_quoted(SHELLS),
        commands=_quoted([*COMMANDS, "--help"]),
        of_commands="\n".join(f"      {name}) words={_quoted(options)} ;;" for name, options in of_commands.items()),
        of_recipes="\n".join(
            f'      {name}) words="$words "{_quoted(options)} ;;' for name, options in recipes.items()
        ),
    )


def configuration_options(recipe: object, program: Program) -> list[str]:
    """Return the options that a recipe's configuration gives to its commands."""
    from pangu_modules.engine.parser import build_parser, known_options

    parser = build_parser(recipe, "validate", set(), program)  # type: ignore[arg-type]
    own = {"-h", *OPTIONS["validate"], "--help", "--print_shtab"}
    return [option for option in known_options(parser) if option.startswith("--") and option not in own]


def _quoted(words: Sequence[str]) -> str:
    return "'" + " ".join(words) + "'"
