"""`convert`: the model as one file is the same model; with fewer bytes nearly so."""

import pytest
import torch

import diffusion


def test_the_file_is_the_model(diffusion_command, place):
    code, out, _ = diffusion_command("convert", "digits-0001", "one.safetensors")
    assert code == 0
    assert "one.safetensors" in out
    run, file = diffusion.load("runs/digits-0001"), diffusion.load("one.safetensors")
    assert torch.equal(run.sample(2), file.sample(2))
    assert (file.step, file.facts, file.config) == (run.step, run.facts, run.config)
    code, _, _ = diffusion_command("convert", "runs/digits-0001/checkpoints/last.ckpt", "two.safetensors")
    assert code == 0
    assert torch.equal(diffusion.load("two.safetensors").sample(2), run.sample(2))


@pytest.mark.parametrize(("bits", "share", "far"), [(16, 0.52, 5e-3), (8, 0.28, 3e-2)])
def test_fewer_bytes(bits, share, far, diffusion_command, place):
    assert diffusion_command("convert", "pretrained:digits", "small.safetensors", "--bits", str(bits))[0] == 0
    whole, small = diffusion.load("pretrained:digits"), diffusion.load("small.safetensors")
    stored = diffusion.models.load.runs.PRETRAINED / "digits.safetensors"
    assert (place / "small.safetensors").stat().st_size < share * stored.stat().st_size
    for name, weight in small.module.state_dict().items():
        expected = whole.module.state_dict()[name]
        assert weight.dtype == expected.dtype
        if bits == 16:
            torch.testing.assert_close(weight, expected, rtol=2**-11, atol=6e-8)
        elif weight.ndim > 1:
            most = expected.flatten(1).abs().amax(1) / 254
            assert bool(((weight - expected).flatten(1).abs().amax(1) <= most * 1.0001).all())
        else:
            assert torch.equal(weight, expected)
    assert float((small.sample(8) - whole.sample(8)).abs().mean()) < far


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("digits-0001", "model.bin"), "OUT: found model.bin; the name of a model file ends in .safetensors"),
        (("digits-0001", "runs/digits-0002/model.safetensors"), "model.safetensors is there already"),
        (("digits-0001", "/proc/x.safetensors"), "OUT: /proc/x.safetensors cannot be written"),
        (("digits-0003", "x.safetensors"), "digits-0003: there is no such run or model file. Did you mean"),
        (("digits-0001",), "OUT.safetensors"),
    ],
)
def test_what_is_refused(argv, message, diffusion_command, place):
    code, _, err = diffusion_command("convert", *argv)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
