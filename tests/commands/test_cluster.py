"""The commands of docs/cluster.md, by two processes: `pytest -m slow tests/commands/test_cluster.py`."""

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from diffusion.commands import records
from diffusion.storage import runs
from diffusion.training.logs.metrics import read_metrics

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "cluster.md").read_text()
STAND_INS = {
    "scontrol": '#!/bin/bash\nif [ "$1" = requeue ]; then echo "$2" >> requeued; exit; fi\n'
    "echo 127.0.0.1\necho 127.0.0.1\n",
    "srun": '#!/bin/bash\nfor node in $(seq "$SLURM_JOB_NUM_NODES"); do SLURM_NODEID=$((node - 1)) "$@" & done\n'
    # the time is nearly over: to all tasks, once the first step is in the record
    'if [ -n "$TIME_IS_OVER" ]; then until [ -s runs/*/metrics.jsonl ]; do sleep 0.05; done; kill $(jobs -p); fi\n'
    "code=0; for job in $(jobs -p); do wait \"$job\" || code=$?; done; exit $code\n",
}  # fmt: skip


@pytest.fixture
def shell(tmp_path):
    """Run a line of the page in an empty folder, on the processor."""
    for name in ("train.py", "sample.py", "configs"):
        os.symlink(ROOT / name, tmp_path / name)
    stand_ins = tmp_path / "bin"
    stand_ins.mkdir()
    for name, text in STAND_INS.items():
        (stand_ins / name).write_text(text)
        (stand_ins / name).chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "SLURM"))}
    environment |= {
        "PATH": os.pathsep.join((str(stand_ins), str(Path(sys.executable).parent), os.environ["PATH"])),
        "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "WANDB_MODE": "disabled",
    }  # fmt: skip

    def run(line, code=0, **more):
        done = subprocess.run(
            shlex.split(line), cwd=tmp_path, env=environment | more, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == code, f"{line}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        return done.stdout

    return run, tmp_path


@pytest.mark.slow
def test_the_commands_of_one_machine(shell):
    run, folder = shell
    lines = [line for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.M | re.S) for line in block.splitlines()]
    assert len(lines) == 3
    assert all(line.startswith("torchrun --standalone --nproc-per-node 2 ") for line in lines)
    train, evaluate, sample = lines
    run(train)
    (trained,) = (folder / "runs").iterdir()
    assert [row["step"] for row in read_metrics(trained / "metrics.jsonl") if "train/loss" in row] == [9, 19]
    assert (trained / runs.MODEL).is_file()

    assert run(evaluate).count("stored in") == 1, "one of them says what was found"
    (kept,) = (trained / "evaluations").glob("*.json")
    shared = records.read(kept)
    kept.unlink()
    run(evaluate.replace("torchrun --standalone --nproc-per-node 2 -m --", "python -m"))
    alone = records.read(kept)
    assert {**shared.estimate.to_dict(), "seconds": 0} == {**alone.estimate.to_dict(), "seconds": 0}

    run(sample)
    run(sample.replace("torchrun --standalone --nproc-per-node 2 --", "python").replace("shared.npz", "alone.npz"))
    with np.load(folder / "shared.npz") as ours, np.load(folder / "alone.npz") as theirs:
        assert np.array_equal(ours["images"], theirs["images"])


@pytest.mark.slow
def test_the_slurm_script(shell):
    run, folder = shell
    (script,) = re.findall(r"^```bash\n(#!/bin/bash\n#SBATCH.*?)^```", PAGE, re.M | re.S)
    (folder / "job.sh").write_text(script)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {
        "SLURM_JOB_NODELIST": "a[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_ID": "7",
        "RENDEZVOUS_PORT": str(port),
    }
    tiny = "network.width=8 network.depth=1 trainer.steps=120 trainer.batch_size=8 trainer.log_every=1"
    command = f"bash job.sh toy {tiny} evaluation.enabled=false sampling.steps=2 sampling.n=4"
    run(command, code=75, TIME_IS_OVER="1", **job)
    assert (folder / "requeued").read_text() == "7\n"
    (trained,) = (folder / "runs").iterdir()  # two machines of one process each, and one run
    assert not (trained / runs.MODEL).exists()

    run(command, **job)  # as SLURM does then
    assert (folder / "requeued").read_text() == "7\n", "a complete run is not started again"
    assert [path.name for path in (folder / "runs").iterdir()] == [trained.name]
    assert [row["step"] for row in read_metrics(trained / "metrics.jsonl") if "train/loss" in row] == list(range(120))

    run(f"{command} optimizer.lr=-1", code=2, **job)
    assert (folder / "requeued").read_text() == "7\n", "nor is a failure"
