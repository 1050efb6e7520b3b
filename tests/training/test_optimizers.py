"""Muon against torch's own and the singular value decomposition, AdaX against its paper, and how both resume."""

import copy

import pytest
import torch
from torch import nn

from diffusion.config import OptimizerConfig, load_config
from diffusion.errors import UserError
from diffusion.training.optimizers import AdaX, Muon, apply_options, make_optimizer, orthogonalised, share_of_newest

OPTIONS = OptimizerConfig(name="muon", lr=1e-2, muon_lr=0.05, betas=(0.9, 0.99), weight_decay=0.1, warmup=0)


@pytest.fixture
def optimizer_of():
    """Makes optimisers, and keeps their schedules, which they refer to weakly."""
    made = []

    def make(model):
        made.append(make_optimizer(model, OPTIONS, 100))
        return made[-1]["optimizer"]

    return make


def step(model, optimizer, x):
    model(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.quick
@pytest.mark.parametrize("size", [(20, 20), (16, 90), (90, 16)])
def test_orthogonalised_keeps_the_singular_vectors_and_makes_the_values_about_one(size):
    torch.manual_seed(0)
    matrix = torch.randn(size, dtype=torch.float64)
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    found = u.T @ orthogonalised(1e3 * matrix) @ vt.T
    values = found.diagonal()
    torch.testing.assert_close(found, values.diag(), atol=1e-10, rtol=0)
    large = s > 0.05 * s.norm()  # the others need more iterations
    assert bool(((values[large] > 0.65) & (values[large] < 1.25)).all())


@pytest.mark.quick
def test_matrices_as_torchs_muon_and_the_rest_as_its_adamw(optimizer_of):
    """torch's works in bfloat16, hence the tolerance; the rest to the bit."""
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(32, 48), nn.Tanh(), nn.Linear(48, 24))
    theirs = copy.deepcopy(ours)
    matrices, rest = ([p for p in theirs.parameters() if (p.ndim > 1) == two] for two in (True, False))
    muon = torch.optim.Muon(matrices, lr=0.05, weight_decay=0.1, adjust_lr_fn="original")
    adamw = torch.optim.AdamW(rest, 1e-2, (0.9, 0.99), weight_decay=0.1)
    optimizer = optimizer_of(ours)
    start = copy.deepcopy(ours)
    x = torch.randn(64, 32)
    step(ours, optimizer, x)
    theirs(x).square().mean().backward()
    adamw.step()
    muon.step()
    for a, b, before in zip(ours.parameters(), theirs.parameters(), start.parameters(), strict=True):
        if a.ndim == 1:
            assert torch.equal(a, b)
        else:
            moved, expected = (a - before).detach(), (b - before).detach()
            assert float((moved - expected).norm() / expected.norm()) < 0.03
            assert float(expected.norm()) > 0.05


@pytest.mark.quick
def test_a_convolution_is_the_matrix_of_its_outputs_by_the_rest(optimizer_of):
    torch.manual_seed(0)
    conv, dense = nn.Conv2d(8, 20, 3, bias=False), nn.Linear(72, 20, bias=False)
    dense.weight.data = conv.weight.data.flatten(1).clone()
    gradient = torch.randn_like(dense.weight)
    conv.weight.grad, dense.weight.grad = gradient.view_as(conv.weight), gradient
    for layer in (conv, dense):
        optimizer_of(layer).step()
    assert torch.equal(conv.weight.flatten(1), dense.weight)


@pytest.mark.quick
def test_embeddings_and_narrow_weights_are_no_matrices(optimizer_of):
    model = nn.ModuleList([nn.Embedding(40, 40), nn.Linear(40, 3), nn.Conv2d(1, 40, 3), nn.Linear(40, 40)])
    optimizer = optimizer_of(model)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(model[3].weight)]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_what_is_saved_goes_on_to_the_bit(optimizer_of):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(32, 48), nn.Linear(48, 24)), torch.randn(64, 32)
    whole = optimizer_of(model)
    for _ in range(3):
        step(model, whole, x)
    again, saved = copy.deepcopy(model), copy.deepcopy(whole.state_dict())
    resumed = optimizer_of(again)
    resumed.load_state_dict(saved)
    for _ in range(3):
        step(model, whole, x)
        step(again, resumed, x)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_options_given_anew_reach_both_parts():
    made = make_optimizer(nn.Linear(32, 32), OPTIONS, 100)
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    apply_options(optimizer, schedule, OPTIONS.replace(lr=0.5, muon_lr=0.25, weight_decay=0.0, betas=(0.5, 0.6)))
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.5]
    assert optimizer.param_groups[1]["betas"] == (0.5, 0.6)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.0]


@pytest.mark.quick
def test_its_learning_rate_belongs_to_it():
    assert load_config("digits", ["optimizer.name=muon"]).optimizer.muon_lr == 0.02
    with pytest.raises(UserError, match=r"optimizer\.muon_lr"):
        load_config("digits", ["optimizer.muon_lr=0.1"])


def test_it_is_an_optimizer_of_torch():
    """Learning-rate schedules, closures and hooks work as with any other."""
    weight = nn.Parameter(torch.eye(20))
    optimizer = Muon([weight], [nn.Parameter(torch.zeros(2))], 0.1, 0.1)

    def closure():
        optimizer.zero_grad()
        loss = (weight - 2.0).square().mean()
        loss.backward()
        return loss

    first, second = (float(optimizer.step(closure).detach()) for _ in range(2))
    assert first > second > 0


@pytest.mark.quick
def test_adax_is_the_published_recursion():
    """v <- (1 + b) v + b g^2, v_hat = v / ((1 + b)^t - 1) in float64, with a beta at which 60 steps matter."""
    torch.manual_seed(0)
    beta1, beta2, lr, decay = 0.9, 0.05, 0.01, 0.1
    weight = nn.Parameter(torch.randn(7, dtype=torch.float64))
    x, mean, square = weight.detach().clone(), torch.zeros(7), torch.zeros(7, dtype=torch.float64)
    optimizer = AdaX([weight], lr, (beta1, beta2), decay, eps=0.0)
    for t in range(1, 61):
        gradient = torch.randn(7, dtype=torch.float64) * (1 + t % 5)
        weight.grad = gradient.clone()
        optimizer.step()
        mean = beta1 * mean + (1 - beta1) * gradient
        square = (1 + beta2) * square + beta2 * gradient**2
        x = x - lr * decay * x - lr * mean / (square / ((1 + beta2) ** t - 1)).sqrt()
        torch.testing.assert_close(weight.detach(), x, rtol=1e-11, atol=1e-12)


@pytest.mark.quick
def test_adax_begins_as_a_mean_and_freezes_without_an_overflow():
    assert share_of_newest(1, 1e-4) == pytest.approx(1.0, rel=1e-12)
    assert share_of_newest(100, 1e-7) == pytest.approx(1 / 100, rel=1e-4)  # a mean of all squares while beta t << 1
    assert share_of_newest(1e5, 1e-4) == pytest.approx(1e-4 / ((1 + 1e-4) ** 1e5 - 1), rel=1e-9)
    assert share_of_newest(1e8, 1e-4) == 0.0  # (1 + 1e-4)^(1e8) is no float64
    weight = nn.Parameter(torch.zeros(3))
    optimizer = AdaX([weight], 0.1)
    weight.grad = torch.tensor([0.0, 1.0, -2.0])
    optimizer.step()
    assert weight.tolist() == pytest.approx([0.0, -0.01, 0.01])  # (1 - beta1) lr sign(g); no step where g is 0
    optimizer.state[weight]["step"] = torch.tensor(1e8, dtype=torch.float64)
    before = optimizer.state[weight]["square"].clone()
    optimizer.step()
    assert torch.equal(optimizer.state[weight]["square"], before)


@pytest.mark.quick
def test_adax_by_its_options_and_what_is_saved_goes_on_to_the_bit():
    options = OptimizerConfig(name="adax", lr=1e-2, weight_decay=0.1, warmup=0)
    assert options.adax_beta == 1e-4
    torch.manual_seed(0)
    model, x = nn.Linear(8, 4), torch.randn(16, 8)
    made = make_optimizer(model, options, 100)
    whole = made["optimizer"]
    assert whole.param_groups[0]["betas"] == (0.9, 1e-4)
    for _ in range(3):
        step(model, whole, x)
    again = copy.deepcopy(model)
    other = make_optimizer(again, options, 100)
    other["optimizer"].load_state_dict(copy.deepcopy(whole.state_dict()))
    for _ in range(3):
        step(model, whole, x)
        step(again, other["optimizer"], x)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    apply_options(whole, made["lr_scheduler"]["scheduler"], options.replace(adax_beta=1e-3, betas=(0.8, 0.999)))
    assert whole.param_groups[0]["betas"] == (0.8, 1e-3)
    with pytest.raises(UserError, match=r"optimizer\.adax_beta"):
        OptimizerConfig(adax_beta=0.5)
