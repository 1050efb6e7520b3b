"""The documentation is true: its Python runs, its links lead somewhere, its commands are understood."""

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import yaml
from PIL import Image

import diffusion
from diffusion.commands.app import command
from diffusion.commands.dispatch import COMMANDS, Command, main
from diffusion.commands.sample.arguments import parse_sample_arguments
from diffusion.config import available_configs, parse_train_arguments

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TUTORIALS = ("your-images", "conditional", "comparing")
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{i}")
    for page in PAGES
    for i, block in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S))
]
PARSERS = {"train": parse_train_arguments, "sample": parse_sample_arguments} | {
    name: found.parse for name, found in COMMANDS.items() if isinstance(found, Command)
}
# Of a line of the shell, what follows the name of a program, up to the next command.
_COMMAND = re.compile(r"(?:python|uv run)(?: python)? (?:(train|sample)\.py|-m diffusion ([a-z-]+))(.*)")


@pytest.mark.parametrize("block", BLOCKS)
def test_python_of_the_documentation_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "documentation", "exec"), {"__name__": "documentation"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link


def test_configurations_named_in_the_documentation_exist():
    named = [name for page in PAGES for name in re.findall(r"--config (\w[\w.-]*)", page.read_text())]
    assert named
    for name in named:
        assert name.removesuffix(".yaml") in available_configs()


def test_the_version_has_one_home():
    named = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.M)[1] == named


def commands_of(text):
    """The commands of a page's blocks of code: (name, arguments)."""
    blocks = re.findall(r"^```(?:bash|sh)\n(.*?)^```", text, re.M | re.S) + re.findall(r"^    \S.*$", text, re.M)
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        if found := _COMMAND.search(line):
            name = next(filter(None, found.groups()[:2]))
            words = shlex.split(found[3], comments=True)
            ends = [i for i, word in enumerate(words) if word in ("&&", "||", "|", "&", ">") or word.endswith(";")]
            yield name, words[: ends[0]] if ends else words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_the_documentation_are_understood(page):
    for name, words in commands_of(page.read_text()):
        words = [word.replace("$split", "train") for word in words]
        # a model that has to be there, what a reader fills in, a variable
        if name in PARSERS and not {"--from", "..."} & set(words) and "$" not in "".join(words):
            with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
                PARSERS[name](words)


def test_commands_of_the_documentation_quote_their_lists():
    """In zsh, the shell of a Mac, `key=[8]` is a pattern that matches no file."""
    for page in (*PAGES, *(ROOT / "diffusion" / "pretrained").glob("*.md")):
        for line in page.read_text().splitlines():
            assert not (_COMMAND.search(line) and re.search(r"(?<!\S)[\w.]+=\[", line)), f"{page.name}: {line}"


def test_pictures_are_shown_somewhere():
    links = ((page, link) for page in PAGES for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()))
    shown = {(page.parent / link).resolve() for page, link in links}
    assert set((ROOT / "docs" / "images").rglob("*.*")) - shown == set()


def test_what_the_documentation_writes_is_ignored_by_git():
    """Whoever follows a page in a clone finds it clean afterwards."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no clone")
    written = {"my_images/flower/000.png", "evaluations/digits", "comparison/comparison.html", "runs/digits-0001"}
    for page in PAGES:
        for name, words in commands_of(page.read_text()):
            written |= {words[i + 1] for i, word in enumerate(words[:-1]) if word == "--out"}
            if name in ("export", "convert") and len(words) > 1:
                written.add(words[1])
    named = [re.sub(r"/$", "/file", path) for path in sorted(written) if not path.isupper()]
    folders = [f"{path}/file" for path in named if not Path(path).suffix]
    asked = [path for path in named if Path(path).suffix] + folders
    done = subprocess.run(["git", "check-ignore", *asked], cwd=ROOT, capture_output=True, text=True)
    assert set(asked) - set(done.stdout.split()) == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", TUTORIALS)
def test_tutorials_run_as_they_stand(name, tmp_path):
    """All their Python and shell, in order, in one folder; `uv run` is this environment."""
    blocks = re.findall(r"^```(python|bash)\n(.*?)^```", (ROOT / "docs" / f"{name}.md").read_text(), re.M | re.S)
    assert {"bash"} <= {kind for kind, _ in blocks}
    uv = f'uv() {{ shift; case "$1" in *.py) local it="$1"; shift; python {ROOT}/"$it" "$@" ;; *) "$@" ;; esac; }}'
    lines = [uv, *(f"python - <<'END'\n{text}END" if kind == "python" else text for kind, text in blocks)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euxc", "\n".join(lines)], cwd=tmp_path, env={**os.environ, "PATH": path, "WANDB_MODE": "offline"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    assert list(tmp_path.glob("**/*.png"))


# What makes a command of a page short; later arguments replace earlier ones.
_SHORT = {
    "train": ["trainer.steps=2", "evaluation.enabled=false", "sampling.n=4", "logging.wandb=off"],
    "sample": ["--n", "2", "--steps", "3"],
    "evaluate": ["--images", "2", "--wandb", "off"],
    "tradeoff": ["--n", "8", "--budgets", "4", "--wandb", "off"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["data", "control", "choosing-a-sampler"])
def test_commands_of_other_tutorials_run(name, tmp_path, monkeypatch):
    """In order, in one folder, shortened, next to runs and images of the reader's; left out are `doctor`, which takes a
    minute, and benchmarks.
    """
    monkeypatch.chdir(tmp_path)
    for run in ("digits", "mine"):
        assert command(main, ["train", f"name={run}", "network.base_channels=16", *_SHORT["train"]]) == 0
    for image, size, shade in (("small", 4, 0), ("whole", 8, 0), ("mask", 8, 255)):
        Image.new("L", (size, size), shade).save(f"{image}.png")
    text = (ROOT / "docs" / f"{name}.md").read_text()
    text = re.sub(r"```py.*?```", "", text, flags=re.S)
    blocks = re.findall(r"^```bash\n([\s\S]*?)^```|^((?:    [a-z].*\n)+)", text, re.M)
    lines = [line.strip() for block in blocks for line in "".join(block).splitlines()]
    lines = [line for line in lines if not re.search("benchmarks/|diffusion doctor", line)]
    assert len(lines) > 3
    for line in lines:
        if found := [*commands_of(f"```sh\n{line}\n```")]:
            ((kind, words),) = found
            assert command(main, [kind, *words, *_SHORT.get(kind, [])]) == 0, line
        else:
            subprocess.run(["bash", "-euc", line], check=True)


def test_the_gallery_is_what_its_script_writes(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import gallery

    assert (ROOT / "docs" / "gallery.md").read_text() == gallery.page()
    assert {path.name for path in gallery.IMAGES.iterdir()} == {picture.name for picture in gallery.PICTURES}
    assert max(path.stat().st_size for path in gallery.IMAGES.iterdir()) < 200_000


def test_the_reference_has_every_public_name(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import hooks

    pages = dict(hooks.generated())
    for name in diffusion.__all__:
        value = getattr(diffusion, name)
        if not isinstance(value, types.ModuleType):
            assert f"::: diffusion.{name}\n" in pages["reference/diffusion.md"]
            continue
        page = pages[f"reference/{name}.md"]
        for member in getattr(value, "__all__", ()):
            if not isinstance(getattr(value, member), types.ModuleType):
                assert f"::: {value.__name__}.{member}\n" in page
    assert "--guidance-interval" in pages["reference/commands.md"]
    assert "trainer.steps" in pages["reference/keys.md"]


class _Site(yaml.SafeLoader):
    """mkdocs.yml, whose tags of Python objects do not matter here."""


_Site.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


def places(entries):
    """The pages of a navigation, from top to bottom."""
    for entry in entries:
        value = next(iter(entry.values())) if isinstance(entry, dict) else entry
        yield from [value] if isinstance(value, str) else places(value)


def test_every_page_has_a_place_on_the_site():
    site = list(places(yaml.load((ROOT / "mkdocs.yml").read_text(), _Site)["nav"]))
    own = {page.name for page in PAGES[1:]}
    assert own - set(site) == set(), "give it a place in the navigation of mkdocs.yml"
    assert {page for page in site if "/" not in page} - own == {"index.md"}
    assert len(site) == len(set(site))
