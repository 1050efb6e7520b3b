"""`evaluate --method ode,elbo`: both figures of one network, and a line that says that they are of two laws."""

from diffusion.commands import records

COMMON = ("evaluate", "digits-0001", "--images", "8", "--draws", "4", "--wandb", "off")


def test_both_are_measured_and_told_apart(diffusion_command, place):
    code, out, err = diffusion_command(*COMMON, "--method", "ode,elbo", "--tolerance", "1e-2")
    assert code == 0, err
    line = " ".join(out[out.index("two laws of one network") :].split())
    found = {}
    for path in (place / "runs" / "digits-0001" / records.FOLDER).glob("*.json"):
        evaluation = records.read(path)
        found[evaluation.protocol.method] = evaluation
    assert set(found) == {"ode", "elbo"}
    for method, law in (("ode", "flow"), ("elbo", "reverse SDE")):
        assert f"{found[method].estimate.mean().mean:.4f} of the {law} ({method})" in line
    apart = (found["ode"].estimate.bits_per_dim - found["elbo"].estimate.bits_per_dim).mean()
    assert f"apart by {float(apart):+.4f}" in line
    assert "neither figure checks the other" in line
    # each is the figure of the command that asks for it alone
    code, out, _ = diffusion_command(*COMMON, "--method", "elbo")
    assert (code, "(cached)" in out, "two laws" in out) == (0, True, False)
    code, out, _ = diffusion_command(*COMMON, "--method", "elbo,immse")
    assert (code, "two laws" in out) == (0, False)


def test_a_wrong_name_among_several_is_told_before_anything_is_measured(diffusion_command, place):
    code, out, err = diffusion_command(*COMMON, "--method", "ode,eblo")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "Did you mean 'elbo'" in err
    assert not (place / "runs" / "digits-0001" / records.FOLDER).exists()
