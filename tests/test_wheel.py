"""What is installed from a wheel, without the repository: weights and configurations are there, and are found."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from diffusion.config import available_configs

ROOT = Path(__file__).parents[1]
NAMES = (
    "from diffusion.storage import runs; from diffusion.config import available_configs, load_config; "
    "print(*sorted(path.name for path in runs.PRETRAINED.iterdir())); print(*available_configs()); "
    "load_config('digits'); print(runs.resolve_model('pretrained:digits'), runs.resolve_classifier('digits'))"
)


@pytest.mark.slow
def test_a_wheel_holds_the_weights_and_the_configurations(tmp_path):
    if shutil.which("uv") is None:
        pytest.skip("wheels are built by uv, which is not here")
    build = ["uv", "build", "--wheel", "--out-dir", tmp_path / "wheel", ROOT]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:  # what installing does, without what it depends on
        archive.extractall(tmp_path / "installed")
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", NAMES], cwd=tmp_path / "elsewhere", capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")}, check=True,
    )  # fmt: skip
    weights, configs, found = done.stdout.splitlines()
    assert weights.split() == sorted(path.name for path in (ROOT / "diffusion" / "pretrained").iterdir())
    assert configs.split() == available_configs()
    assert all(path.startswith(str(tmp_path / "installed")) for path in found.split())
    python = (path.relative_to(ROOT) for path in (ROOT / "diffusion").rglob("*.py"))
    assert not [path for path in python if not (tmp_path / "installed" / path).is_file()]
