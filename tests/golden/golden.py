"""What a fixed seed gives today, to hold a change of structure against: draws, losses, figures and records.

    python tests/golden/golden.py            how far this checkout is from what is kept, by entry; 0 where bits stayed
    python tests/golden/golden.py --write    keep what it gives now: only where a change is meant; the commit says which

Values are kept, not hashes: another processor rounds otherwise, and then only the size of a difference tells.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE.parent)]

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from tiny_configs import autoencoder_config, digits_config, toy_config  # noqa: E402

import diffusion  # noqa: E402

TENSORS, RECORDS = HERE / "golden.safetensors", HERE / "records.json"
LONGER = ("trainer.steps=20", "evaluation.enabled=false")
# Of the time and place of a record, not of what it says.
PASSING = ("seconds", "cpu_seconds", "date", "time", "version", "run", "sha256", "host", "torch", "diffusion")


def mixture() -> diffusion.denoisers.exact.GaussianMixture:
    means = torch.tensor([[1.0, 0.5], [-1.0, 0.25], [0.0, -1.5]])
    return diffusion.denoisers.exact.GaussianMixture(means, torch.tensor([0.3, 0.2, 0.5]), diffusion.schedules.VP())


def draws() -> dict[str, torch.Tensor]:
    """Four points and one digit by every sampler, in six steps."""
    digits, found = diffusion.load("pretrained:digits"), {}
    for name in diffusion.samplers.names():
        steps = {} if name == "adaptive-sde" else {"steps": 6, "grid": "log-snr"}
        found[f"points/{name}"] = diffusion.sample(mixture(), 4, sampler=name, seed=3, **steps)
        if name != "adaptive-sde":  # hundreds of evaluations
            found[f"digits/{name}"] = diffusion.sample(digits, 1, sampler=name, seed=3, **steps)
    found["digits/fitted"] = diffusion.sample(digits, 1, sampler="fitted", seed=3, steps=5)
    return found


def figures() -> dict[str, torch.Tensor]:
    """The log-probability of four digits by each estimator, and of points."""
    digits = diffusion.load("pretrained:digits")
    images = diffusion.data.load_images("digits").test[:4]
    found = {
        f"log_prob/{method}": diffusion.log_likelihood(digits, images, method=method, **options).log_prob
        for method, options in {
            "ode": {"tolerance": 1e-3},
            "elbo": {"evaluations": 4},
            "elbo-discrete": {"steps": 8},
            "immse": {"evaluations": 4},
        }.items()
    }
    found["log_density/ode"] = diffusion.log_density(mixture(), torch.tensor([[0.5, 0.5], [2.0, -1.0]])).log_prob
    return found


def losses(folder: Path) -> dict[str, torch.Tensor]:
    """Twenty training losses of each family."""
    from diffusion.training.fit import fit

    configs = {
        "toy": toy_config(folder / "toy", *LONGER),
        "digits": digits_config(folder / "digits", *LONGER),
        "vae": autoencoder_config("vae", folder / "vae", *LONGER),
        "eae": autoencoder_config("eae", folder / "eae", *LONGER),
    }
    found = {}
    for family, config in configs.items():
        fit(config)
        (log,) = (folder / family).glob("runs/*/metrics.jsonl")
        rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        found[f"losses/{family}"] = torch.tensor([row["train/loss"] for row in rows if "train/loss" in row])
    return found


def records(folder: Path) -> dict[str, object]:
    """What `sample.py` writes into a picture, and what `evaluate` keeps."""
    from PIL import Image

    picture = folder / "digits.png"
    sample = [sys.executable, str(ROOT / "sample.py"), "--run", "pretrained:digits", "--sampler", "ddim", "--steps"]
    subprocess.run([*sample, "3", "--n", "1", "--out", str(picture)], check=True, capture_output=True, cwd=folder)
    evaluate = [sys.executable, "-m", "diffusion", "evaluate", "pretrained:digits", "--method", "elbo", "--draws", "2"]
    more = ["--images", "3", "--wandb", "off"]
    subprocess.run([*evaluate, *more], check=True, capture_output=True, cwd=folder, env=_environment())
    (kept,) = folder.glob("**/evaluations/elbo-*.json")
    with Image.open(picture) as image:
        text = {key: _read(value) for key, value in image.text.items()}  # type: ignore[attr-defined]
    return {"picture": _without_passing(text), "evaluation": _without_passing(json.loads(kept.read_text("utf-8")))}


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}  # sums are in another order with more


def _read(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _without_passing(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_passing(entry) for key, entry in value.items() if key not in PASSING}
    return [_without_passing(entry) for entry in value] if isinstance(value, list) else value


def main() -> int:
    """Compare, or write."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        torch.set_num_threads(1)
        tensors = {**draws(), **figures(), **losses(folder)}
        plain = records(folder)
    if "--write" in sys.argv:
        save_file({key: value.detach().contiguous() for key, value in tensors.items()}, TENSORS)
        RECORDS.write_text(json.dumps(plain, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return 0
    kept, worst = load_file(TENSORS), 0.0
    for key, value in tensors.items():
        difference = float((value.double() - kept[key].double()).abs().max()) if key in kept else float("inf")
        worst = max(worst, difference)
        print(f"{key:32} {difference:.3g}")
    same = json.loads(RECORDS.read_text(encoding="utf-8")) == json.loads(json.dumps(plain))
    print(f"records {'the same' if same else 'differ'}; largest difference {worst:.3g}")
    return 0 if same and worst == 0.0 and kept.keys() == tensors.keys() else 1


if __name__ == "__main__":
    sys.exit(main())
