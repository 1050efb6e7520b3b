"""`python -m diffusion completion`: a script for bash (zsh reads it too) that completes the words of this package.

The words are read off each command's own `--help` when the script is made, so that completing starts no Python. Runs
are those in `runs/` at the time.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Mapping, Sequence

from ...config.files import KEYS, available_configs
from ...errors import UserError
from ...storage import runs

SHELLS = ("bash", "zsh")
USAGE = """usage: python -m diffusion completion bash|zsh

Print what completes commands, options, configuration keys and names of runs.
To have it in every shell:

  python -m diffusion completion bash >> ~/.bashrc      # or zsh, and ~/.zshrc"""
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z_-]*")
_SCRIPT = """\
_diffusion() {{
  local words=("${{COMP_WORDS[@]}}") at=$COMP_CWORD command="" first=1 found=""
  if [ "${{words[0]}} ${{words[1]}}" = "uv run" ]; then words=("${{words[@]:2}}"); at=$((at - 2)); fi
  case "${{words[0]}} ${{words[1]}} ${{words[2]}}" in
    train.py*|*/train.py*) command=train first=0 ;;
    sample.py*|*/sample.py*) command=sample first=0 ;;
    python*train.py*) command=train ;;
    python*sample.py*) command=sample ;;
    python*"-m diffusion") command="${{words[3]}}" first=3 ;;
    *) return ;;
  esac
  [ "$at" -lt "$first" ] && return
  local word="${{words[$at]}}" before="${{words[$((at - 1))]}}"
  [ "$word" = ":" ] && word="" before=":"
  if [ "$first" -eq 3 ] && [ "$at" -eq 3 ]; then
    found="{commands}"
  elif [ "$word" = "=" ] || [ "$before" = "=" ]; then
    return
  elif [ "$before" = ":" ]; then
    found="{models}"
  elif [ "$before" = "--config" ]; then
    found="{configs}"
  elif [[ "$before" == --from || "$before" == --run || "$before" == --guide || "$before" == --resume ]]; then
    found="pretrained: $(ls runs 2>/dev/null)"
  else
    case "$command" in
{cases}
    esac
    [[ "$word" == -* ]] || found="$found pretrained: $(ls runs 2>/dev/null)"
  fi
  COMPREPLY=($(compgen -W "$found" -- "$word"))
  case "${{COMPREPLY[0]}}" in *=|*:) compopt -o nospace 2>/dev/null ;; esac
  return 0
}}
complete -o default -o bashdefault -F _diffusion python python3 train.py sample.py
complete -p uv > /dev/null 2>&1 || complete -o default -o bashdefault -F _diffusion uv
"""


def run(argv: Sequence[str], commands: Mapping[str, Callable[[Sequence[str]], int]]) -> int:
    """Print the script; returns the exit code.

    Args:
        argv: The shell.
        commands: Every command by its name.
    """
    if list(argv) in (["-h"], ["--help"], []):
        print(USAGE)
        return 0
    if len(argv) > 1 or argv[0] not in SHELLS:
        raise UserError(f"completion: found '{' '.join(argv)}'; accepted: {', '.join(SHELLS)}")
    print(script(commands, argv[0]), end="")
    return 0


def script(commands: Mapping[str, Callable[[Sequence[str]], int]], shell: str = "bash") -> str:
    """The script for a shell."""
    words = {name: options_of(command) for name, command in commands.items() if name != "completion"}
    words["train"] += [f"{key}=" for key in KEYS]
    cases = "\n".join(f'      {name}) found="{" ".join(found)}" ;;' for name, found in words.items())
    text = _SCRIPT.format(
        commands=" ".join(commands), configs=" ".join(available_configs()), cases=cases,
        models=" ".join(name.partition(":")[2] for name in runs.shipped_models()),
    )  # fmt: skip
    return ("autoload -Uz bashcompinit && bashcompinit\n" if shell == "zsh" else "") + text


def options_of(command: Callable[[Sequence[str]], int]) -> list[str]:
    """The options that a command's `--help` names, each once."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        command(["--help"])
    return list(dict.fromkeys(_FLAG.findall(out.getvalue())))
