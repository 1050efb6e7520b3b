"""The shell completes what the commands accept, without starting Python."""

import shutil
import subprocess

import pytest
from terminal_width import fits

import diffusion
from diffusion.commands.app import command
from diffusion.commands.completion.completion import script
from diffusion.commands.dispatch import COMMANDS, main
from diffusion.config.files import KEYS, available_configs
from diffusion.storage.runs import shipped_models

ASK = 'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _diffusion; printf "%s\\n" "${COMPREPLY[@]}"'


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_options_keys_and_runs(tmp_path):
    (tmp_path / "runs" / "mine-0001").mkdir(parents=True)
    (tmp_path / "complete.bash").write_text(script(COMMANDS))
    diffusion_, uv = ("python3", "-m", "diffusion"), ("uv", "run")
    asked = {
        (*diffusion_, ""): set(COMMANDS),
        (*diffusion_, "tr"): {"train", "tradeoff", "train-classifier", "train-features"},
        (*uv, "python", "-m", "diffusion", "evaluate", "--t"): {"--tolerance", "--target-error"},
        (*uv, "train.py", "trainer."): {f"{key}=" for key in KEYS if key.startswith("trainer.")},
        ("python", "train.py", "--config", ""): set(available_configs()),
        ("./sample.py", "--guidance"): {"--guidance", "--guidance-interval"},
        ("python", "sample.py", "--run", ""): {"pretrained:", "mine-0001"},
        ("python", "sample.py", "--run", "pretrained", ":"): {name.partition(":")[2] for name in shipped_models()},
        (*diffusion_, "compare", "mi"): {"mine-0001"},
        ("python", "other.py", "x"): set(),
    }
    text = "source complete.bash\nask() { " + ASK + '; echo "--"; }\n'
    text += "\n".join("ask " + " ".join(f"'{word}'" for word in words) for words in asked)
    done = subprocess.run(["bash", "-c", text], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    answers = [set(part.split()) for part in done.stdout.split("--\n")][: len(asked)]
    assert dict(zip(asked, answers, strict=True)) == asked


def test_a_shell_that_is_not_known_is_refused(capsys):
    assert command(main, ["completion", "fish"]) == 2
    assert capsys.readouterr().err == "error: completion: found 'fish'; accepted: bash, zsh\n"
    assert command(main, ["completion", "zsh"]) == 0
    assert "bashcompinit" in capsys.readouterr().out


def test_without_a_command_the_next_one_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")
    assert command(main, []) == 0
    out = capsys.readouterr().out
    assert "to begin:\n  uv run python -m diffusion sample" in out, "as it was typed"
    assert fits(out)
    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH")
    assert command(main, []) == 0
    assert "to begin:\n  python -m diffusion sample" in capsys.readouterr().out
    (tmp_path / "runs" / "mine-0001").mkdir(parents=True)
    (tmp_path / "runs" / "mine-0001" / "model.safetensors").touch()
    assert command(main, []) == 0
    assert "python -m diffusion evaluate runs/mine-0001" in capsys.readouterr().out
    assert command(main, ["--version"]) == 0
    assert capsys.readouterr().out == f"diffusion {diffusion.__version__}\n"
