"""evaluate: the same figure whether it was measured, found, or continued after a kill; damage is told or repaired."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_configs import digits_arguments, toy_config

from diffusion.commands import records
from diffusion.commands.app import command
from diffusion.commands.dispatch import main
from diffusion.commands.evaluate import measuring
from diffusion.commands.evaluate.evaluate import methods_of
from diffusion.commands.subjects import images_of, load_images_of, load_subject, rows_of
from diffusion.commands.train.train import train
from diffusion.config import dump_config
from diffusion.data import named_sets
from diffusion.errors import UserError
from diffusion.models.build import DataFacts, build_denoiser
from diffusion.models.load import FACTS, DiffusionModel
from diffusion.numerics.random import fixed_subset
from diffusion.storage.tensor_files import save_model

# Lightning's own: it uses a deprecated class of PyTorch (tests/training/tiny_training.py has the same mark).
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")

ROOT = Path(__file__).parents[2]
RUN = Path("runs/digits-0001")
ELBO = ("evaluate", "digits-0001", "--method", "elbo", "--draws", "4", "--images", "20", "--batch-size", "6")
ROWS = fixed_subset(360, 20)  # those that `--images 20` takes of the digits' test split
OFFLINE = ("--wandb", "offline")
OFF = ("--wandb", "off")


def kept():
    (path,) = (RUN / "evaluations").glob("*.json")
    return path


def test_what_training_measured_is_found_by_evaluate_and_compare(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ("evaluation.images=8", "evaluation.tolerance=1e-4", "evaluation.elbo_draws=2")
    argv = digits_arguments(tmp_path, "trainer.steps=2", *options)
    assert command(train, argv) == 0
    capsys.readouterr()
    folder = RUN / records.FOLDER
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert sorted(path.name.split("-")[0] for path in before) == ["elbo", "ode"]
    written = json.loads((RUN / "evaluation.json").read_text())["estimates"]
    assert len(written["ELBO"]["terms_bits_per_dim"]["curve"]) > 2, "also the means of terms that are lists"
    monkeypatch.setattr(measuring, "_chunk", lambda *_: pytest.fail("measured again"))
    for name, asked in [("PF-ODE", []), ("ELBO", ["--method", "elbo", "--draws", "2"])]:
        assert command(main, ["evaluate", "digits-0001", "--images", "8", *asked, *OFF]) == 0
        out = capsys.readouterr().out
        assert "(cached)" in out
        assert f"{written[name]['bits_per_dim']:.4f}" in out
    assert command(main, ["compare", "digits-0001", "--no-baselines", *OFF]) == 0
    out = capsys.readouterr().out
    assert all(f"{entry['bits_per_dim']:.4f}" in out for entry in written.values())
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_what_was_measured_is_found_and_equal_to_the_bit(diffusion_command, monkeypatch):
    code, out, _ = diffusion_command(*ELBO, *OFF)
    assert code == 0
    first = kept().read_bytes()
    assert "cached" not in out
    figure = json.loads(first)["estimate"]["bits_per_dim"]
    assert f"{figure:.4f}" in out
    assert [path.name for path in (RUN / "evaluations").iterdir()] == [kept().name], "the parts are gone"

    with monkeypatch.context() as patch:
        patch.setattr(measuring, "_chunk", lambda *_: pytest.fail("measured again"))
        code, out, _ = diffusion_command(*ELBO, *OFF)
        assert (code, "cached" in out, f"{figure:.4f}" in out) == (0, True, True)
        # how it is computed is no part of the question
        assert "cached" in diffusion_command(*ELBO, *OFF, "--device", "cpu")[1]
    code, out, _ = diffusion_command(*ELBO, *OFF, "--again")
    assert (code, "cached" in out) == (0, False)
    again = json.loads(kept().read_text())
    for key in ("log_prob", "std_error", "bits_per_dim", "interval_95", "error_budget", "terms_bits_per_dim"):
        assert again["estimate"][key] == json.loads(first)["estimate"][key], key


def test_the_values_are_those_of_the_model(diffusion_command):
    assert diffusion_command(*ELBO, *OFF)[0] == 0
    evaluation = records.read(kept())
    subject = load_subject("digits-0001", "runs")
    images, identity = images_of(load_images_of(subject), "test", 20)
    direct = subject.model.log_likelihood(images, method="elbo", evaluations=4, batch_size=20, indices=ROWS)
    torch.testing.assert_close(evaluation.estimate.log_prob, direct.log_prob, rtol=1e-5, atol=1e-4)
    assert evaluation.protocol.data == identity
    assert evaluation.estimate.indices.tolist() == rows_of(identity).tolist() == ROWS.tolist()
    assert evaluation.model == {"run": "digits-0001", "family": "diffusion", "parameters": 2801, "data": "digits"}
    torch.testing.assert_close(evaluation.estimate.terms["prior"], direct.terms["prior"], rtol=1e-6, atol=1e-6)
    for name, term in direct.terms.items():
        expected = -term.double().mean(0) / direct.nats_per_bit_per_dim
        torch.testing.assert_close(torch.tensor(evaluation.terms[name]).double(), expected, rtol=1e-4, atol=1e-5)


def test_another_question_is_another_file(diffusion_command):
    changes = ((), "--seed 1", "--draws 5", "--images 19", "--split train", "--option bins=7")
    for count, change in enumerate(changes, 1):
        assert "cached" not in diffusion_command(*ELBO, *OFF, *(change.split() if change else ()))[1], change
        assert len(list((RUN / "evaluations").glob("*.json"))) == count


def test_other_weights_are_another_question(diffusion_command):
    assert diffusion_command(*ELBO, *OFF)[0] == 0
    shutil.copy("runs/digits-0002/model.safetensors", RUN / "model.safetensors")
    assert "cached" not in diffusion_command(*ELBO, *OFF)[1]


KILLED = """
import os, signal, sys
from diffusion.commands.app import command
from diffusion.commands.evaluate import measuring
from diffusion.commands.dispatch import main
write, count = measuring.records.write_part, 0
def write_part(folder, estimate):
    global count
    write(folder, estimate)
    count += 1
    if count == 2:
        os.kill(os.getpid(), signal.SIGKILL)
measuring.records.write_part = write_part
sys.exit(command(main, sys.argv[1:]))
"""


@pytest.mark.parametrize("by", ["interrupt", pytest.param("kill", marks=pytest.mark.slow)])
def test_an_evaluation_that_was_cut_off_goes_on_where_it_was_to_the_same_bits(diffusion_command, monkeypatch, by):
    ode = ("evaluate", "digits-0001", "--images", "20", "--tolerance", "1e-1", "--batch-size", "6", *OFF)
    if by == "kill":
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", KILLED, *ode], env=environment, capture_output=True, timeout=120)
        assert done.returncode == -signal.SIGKILL, done.stderr
    else:
        write = records.write_part

        def write_part(folder, estimate):
            write(folder, estimate)
            if int(estimate.indices[0]) == ROWS[6]:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(records, "write_part", write_part)
            assert diffusion_command(*ode)[0] == 130
    parts = sorted((RUN / "evaluations").glob("*/*.part"))
    assert [path.stem for path in parts] == [f"{ROWS[i]:08d}-{ROWS[i + 5]:08d}" for i in (0, 6)]
    assert not list((RUN / "evaluations").glob("*.json"))
    measured = []
    chunk = measuring._chunk

    def counted(model, images, rows, *more):
        measured.extend(rows.tolist())
        return chunk(model, images, rows, *more)

    monkeypatch.setattr(measuring, "_chunk", counted)
    assert diffusion_command(*ode)[0] == 0
    assert measured[:8] == ROWS[12:].tolist(), "what was done is not done again"
    assert set(measured[8:]) <= set(ROWS.tolist()), "the rest is of the error budget"
    assert [path.name for path in (RUN / "evaluations").iterdir()] == [kept().name], "the parts are gone"
    resumed = json.loads(kept().read_text())["estimate"]
    assert diffusion_command(*ode, "--again")[0] == 0
    whole = json.loads(kept().read_text())["estimate"]
    assert {**resumed, "seconds": 0} == {**whole, "seconds": 0}


def test_damaged_or_foreign_parts_are_measured_again(diffusion_command):
    assert diffusion_command(*ELBO, *OFF)[0] == 0
    good = json.loads(kept().read_text())["estimate"]
    parts = kept().with_suffix("")
    kept().unlink()
    parts.mkdir()
    (parts / "00000000-00000005.part").write_bytes(b"PK not a part")
    torch.save({"summary": "{}", "tensors": {}, "terms": {}}, parts / "00000006-00000011.part")
    torch.save([1, 2], parts / "00000012-00000017.part")
    code, _, err = diffusion_command(*ELBO, *OFF)
    assert (code, err) == (0, "")
    assert {**json.loads(kept().read_text())["estimate"], "seconds": 0} == {**good, "seconds": 0}


DAMAGES = (
    (lambda text: text[: len(text) // 2], "not an evaluation"),
    (lambda text: "[]", "not an evaluation"),
    (lambda text: "[" * 100_000, "not an evaluation"),
    (lambda text: text.replace('"seed": 0', '"seed": 5', 1), "its protocol is that of"),
    (lambda text: text.replace('"bits_per_dim": ', '"bits_per_dim": 1', 1), "mean"),
    (lambda text: text.replace('"lower bound"', '"wonderful"'), "wonderful"),
    (
        lambda text: text.replace(f'"indices": [\n   {ROWS[0]}', f'"indices": [\n   {ROWS[1]}'),
        "20 images are announced",
    ),
)


def test_a_damaged_record_is_one_line_and_again_replaces_it(diffusion_command):
    assert diffusion_command(*ELBO, *OFF)[0] == 0
    text = kept().read_text()
    for damage, word in DAMAGES:
        assert damage(text) != text
        kept().write_text(damage(text))
        with pytest.raises(UserError) as error:
            records.read(kept())
        assert word in str(error.value)
        assert "\n" not in str(error.value)
        assert kept().name in str(error.value)
    for argv in (ELBO, ("compare", "digits-0001", "--no-baselines")):
        code, _, err = diffusion_command(*argv, *OFF)
        assert (code, err.count("\n")) == (2, 1)
    assert diffusion_command(*ELBO, *OFF, "--again")[0] == 0
    assert records.read(kept())


def test_the_interval_of_one_image_is_unknown_and_no_number(diffusion_command):
    code, out, err = diffusion_command(*ELBO, "--images", "1", *OFF)
    assert (code, err) == (0, "")
    assert "nan" not in out.lower()
    assert re.search(r"total error, including their choice: +unknown", out), out


@pytest.mark.parametrize("more", [(), ("--target-error", "0.5")])
def test_a_run_that_takes_no_figures_is_told_before_it_is_measured(diffusion_command, monkeypatch, more):
    (RUN / "evaluations").write_text("")  # in the way of the folder
    monkeypatch.setattr(DiffusionModel, "log_likelihood", None)
    code, out, err = diffusion_command(*ELBO, *more, *OFF)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert re.search(r"digits-0001/evaluations: results cannot be stored there \(.*\)$", err.strip()), err


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (("--method", "eblo"), "Did you mean 'elbo'?"),
        (("--method", "../elbo"), "--method"),
        (("--method", "iwae"), "a model of family 'diffusion' has ode, elbo"),
        (("--probes", "3"), "probes: not an option of elbo_continuous"),
        (("--images", "361"), "has 360"),
        (("--device", "gpu"), "device"),
        (("--ood", "mnits"), "Did you mean 'mnist'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_what_cannot_be_measured_is_one_line_and_leaves_nothing(diffusion_command, argv, word):
    code, _, err = diffusion_command(*ELBO[:2], "--method", "elbo", "--images", "5", "--draws", "1", *OFF, *argv)
    assert code == 2
    assert err.count("\n") == 1
    assert word in err
    if "--ood" not in argv:
        assert not (RUN / "evaluations").exists()


def test_a_method_of_another_family_is_answered_with_its_own():
    assert methods_of("iwae,elbo", "vae") == ["iwae", "elbo"]
    with pytest.raises(UserError, match="found 'ode'; a model of family 'vae' has iwae, ais, elbo: it decodes codes"):
        methods_of("ode", "vae")


def test_changed_data_are_refused(diffusion_command, monkeypatch):
    from diffusion.data import named_sets

    raw = named_sets.load_digits()
    raw.images[0] = 16 - raw.images[0]
    monkeypatch.setattr(named_sets, "load_digits", lambda size=None: raw)
    code, _, err = diffusion_command(*ELBO, *OFF)
    assert code == 2
    assert "have changed since its training" in err


def test_a_toy_is_measured_beside_its_true_density(place, diffusion_command, tmp_path):
    config = toy_config(tmp_path)
    facts = DataFacts(config.data.name, (2,), None, 0)
    state = build_denoiser(config, facts).state_dict()
    save_model(tmp_path / "toy.safetensors", state, dump_config(config), {FACTS: facts.to_json()})
    argv = ("evaluate", "toy.safetensors", "--images", "20", "--tolerance", "1e-2", *OFF)
    code, out, _ = diffusion_command(*argv)
    assert code == 0
    for words in ("20 fresh points", "PF-ODE", "true density", "error, solver:", "KL(truth || model)"):
        assert words in out, words
    for more in (("--method", "ode"), ("--target-error", "0.1")):
        code, _, err = diffusion_command(*argv, *more)
        assert (code, err.count("\n")) == (2, 1)
        assert more[0] in err
    assert "drawn anew" in diffusion_command("compare", "toy.safetensors", "--no-baselines", *OFF)[2]


def test_points_under_a_configuration_of_images_are_refused(place, diffusion_command):
    """A file whose facts and configuration disagree, as nothing here writes it."""
    config = toy_config(place)
    facts = DataFacts(config.data.name, (2,), None, 0)
    state = build_denoiser(config, facts).state_dict()
    mixed = config.replace(data=config.data.replace(name="digits"))
    save_model(place / "mixed.safetensors", state, dump_config(mixed), {FACTS: facts.to_json()})
    code, out, err = diffusion_command("evaluate", "mixed.safetensors", "--images", "5", *OFF)
    assert (code, out) == (2, "")
    assert err == "error: mixed: is a model of points, and its data.name is 'digits', which are images\n"


def test_pictures_and_the_summary_in_wandb(diffusion_command):
    code, out, _ = diffusion_command(*ELBO, *OFFLINE, "--ranked")
    assert code == 0
    with Image.open(kept().with_name(f"{kept().stem}-ranked.png")) as picture:
        assert picture.size[0] == 10 * 64 + 9 * 2
    assert "standard error, test set" in out
    (record,) = (RUN / "evaluations").glob("*/wandb/offline-run-*/*.wandb")
    content = record.read_bytes()
    for word in (
        b"eval/bits_per_dim",
        b"eval/bits_per_dim_low",
        b"eval/nfe",
        b"digits-0001",
        b"likelihood/digits-test",
    ):
        assert word in content, word
    (table,) = record.parent.glob("files/media/table/likelihood/digits-test*.json")
    rows = json.loads(table.read_text())
    assert rows["columns"] == ["index", "bits_per_dim"]
    assert [row[0] for row in rows["data"]] == ROWS.tolist()
    values = records.read(kept()).estimate.bits_per_dim
    assert [row[1] for row in rows["data"]] == pytest.approx(values.tolist())
    assert "W&B run" not in diffusion_command(*ELBO, *OFFLINE)[1], "once is enough"


def test_data_that_are_elsewhere_are_named_by_data(tmp_path, monkeypatch, diffusion_command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(named_sets, "answers", lambda *_: False)
    code, _, err = diffusion_command("evaluate", "pretrained:mnist-class", "--method", "elbo", "--wandb", "off")
    assert (code, err.count("\n")) == (2, 1)
    assert re.match(r"error: mnist-class: .*data has no mnist and its servers do not answer; --data PATH says", err)
    code, _, err = diffusion_command("evaluate", "pretrained:mnist-class", "data.root=elsewhere")
    assert (code, err.count("\n")) == (2, 1)
    assert "data.root is a key of train.py; here it is --data elsewhere" in err
