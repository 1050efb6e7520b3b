"""Feature networks: the shipped ones are what they say, hashes see every change, Inception's kinds are told apart."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diffusion.data import load_images
from diffusion.errors import UserError
from diffusion.metrics import (
    ClassifierFeatures,
    GivenFeatures,
    InceptionFeatures,
    accuracy,
    extract,
    load_inception,
    torchvision_inception,
    train_classifier,
)
from diffusion.metrics.inception import _resize_tf1
from diffusion.storage import tensor_files
from diffusion.storage.runs import PRETRAINED


def images(n, shape=(1, 8, 8), levels=17, seed=0):
    return torch.randint(0, levels, (n, *shape), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def test_the_shipped_digits_network_is_as_good_as_it_says():
    data, path = load_images("digits"), PRETRAINED / "digits-features.safetensors"
    assert path.stat().st_size < 300_000
    about = json.loads(tensor_files.read(path, "feature network", "classifier")[1]["about"])
    assert about["train_sha256"] == data.provenance["train_sha256"], "the test images were not learned"
    found = accuracy(ClassifierFeatures.load(path), data.test, data.test_labels)
    assert found == pytest.approx(about["test_accuracy"], abs=1.5 / len(data.test))
    assert found > 0.98


def test_the_shipped_mnist_network_is_of_mnist():
    path = PRETRAINED / "mnist-features.safetensors"
    assert path.stat().st_size < 500_000
    network = ClassifierFeatures.load(path)
    assert (network.shape, network.levels) == ((1, 28, 28), 256)
    assert network(images(3, (1, 28, 28), 256)).shape == (3, 64)


def test_training_is_deterministic_and_learns():
    x = images(64)
    y = (x[:, 0, :, :4].sum((1, 2)) > x[:, 0, :, 4:].sum((1, 2))).long()

    def trained(steps, seed):
        torch.manual_seed(0)
        network = ClassifierFeatures((1, 8, 8), 17, 2, "halves")
        before = accuracy(network, x, y)
        train_classifier(network, x, y, steps=steps, batch_size=16, seed=seed)
        return network, before

    learned, before = trained(60, 1)
    assert before < 0.7 < accuracy(learned, x, y)
    first, again, other = (trained(5, seed)[0].digest() for seed in (1, 1, 2))
    assert first == again != other


def test_a_network_is_read_back_and_damage_is_seen(tmp_path):
    network = ClassifierFeatures((3, 9, 12), 256, 4, "mine", dims=5)
    network.save(tmp_path / "n.safetensors", {"data": "mine"})
    read = ClassifierFeatures.load(tmp_path / "n.safetensors")
    x = images(4, (3, 9, 12), 256)
    assert torch.equal(read(x), network.eval()(x))
    assert (read.digest(), read.name) == (network.digest(), "mine")
    with pytest.raises(UserError, match=r"a feature network file of this package is accepted"):
        ClassifierFeatures.load(PRETRAINED / "digits.safetensors")


def test_other_images_are_refused():
    network = ClassifierFeatures((1, 8, 8), 17, 10, "small")
    with pytest.raises(UserError, match=r"found images of \(3, 8, 8\); must be \(1, 8, 8\)"):
        network(images(2, (3, 8, 8)))
    with pytest.raises(UserError, match="found level 200; must be below 17"):
        network(torch.full((1, 1, 8, 8), 200, dtype=torch.uint8))


def test_the_hash_sees_weights_and_preprocessing():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    digests = {GivenFeatures(linear, "a").digest(), GivenFeatures(linear, "a", "in [0, 1]").digest()}
    assert GivenFeatures(linear, "a").digest() in digests
    with torch.no_grad():
        linear[1].weight[0, 0] += 1e-6
    digests.add(GivenFeatures(linear, "a").digest())
    assert len(digests) == 3


def test_features_do_not_depend_on_the_batch_and_dropout_is_off():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.drop = nn.BatchNorm1d(64), nn.Dropout()

        def forward(self, x):
            return self.drop(self.norm(x.flatten(1).float()))

    given, x, told = GivenFeatures(Net(), "net"), images(10), []
    whole = extract(given, x)
    parts = extract(given, x, batch_size=3, progress=lambda done, count: told.append((done, count)))
    assert torch.equal(whole, parts)
    assert told == [(3, 10), (6, 10), (9, 10), (10, 10)]
    torch.testing.assert_close(whole, x.flatten(1).float(), rtol=1e-4, atol=0)


def test_features_must_be_numbers():
    class Nan(nn.Module):
        def forward(self, x):
            return x.flatten(1).float() / 0.0

    with pytest.raises(UserError, match="'nan' returned values that are not finite"):
        extract(GivenFeatures(Nan(), "nan"), images(3))
    with pytest.raises(UserError, match="found none"):
        extract(GivenFeatures(nn.Flatten(), "flat"), images(0))


@pytest.fixture(scope="module")
def weights():
    """Random weights of both kinds."""
    from torchvision.models import inception_v3

    torch.manual_seed(0)
    state = inception_v3(weights=None, num_classes=1000, aux_logits=True, init_weights=False).state_dict()
    fid = {name: value for name, value in state.items() if not name.startswith("AuxLogits")}
    return state, {**fid, "fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}


def test_inception_knows_which_weights_it_has(weights, tmp_path):
    torch.save(weights[0], tmp_path / "a.pth")
    torch.save(weights[1], tmp_path / "b.pth")
    ours, of_fid = load_inception(tmp_path / "a.pth"), load_inception(tmp_path / "b.pth")
    assert (ours.name, of_fid.name) == ("inception-torchvision", "inception-fid")
    x = images(1, (3, 16, 20), 256)
    with torch.no_grad():
        a, b = ours(x), of_fid(x)
    assert a.shape == b.shape == (1, 2048)
    assert not torch.allclose(a, b, rtol=1e-3)
    # 17 levels are brought to the same pixels, grey images to three equal channels
    levels = images(1, (1, 6, 6))
    with torch.no_grad():
        grey = InceptionFeatures(weights[0], levels=17)(levels)
        expected = ours((levels.float() * 255 / 16).round().to(torch.uint8).expand(-1, 3, -1, -1))
    torch.testing.assert_close(grey, expected, rtol=0.05, atol=2e-3)


def test_pools_of_published_fids_leave_the_padding_out(weights):
    net = InceptionFeatures(weights[1]).net
    flat = torch.ones(1, 192, 9, 9)
    for kind, same in ((net, True), (InceptionFeatures(weights[0]).net, False)):
        pooled = kind.Mixed_5b._forward(flat)[-1]
        assert bool(torch.allclose(pooled, pooled[:, :, 4:5, 4:5].expand_as(pooled), atol=1e-6)) is same
    x = torch.randn(1, 2048, 5, 5, generator=torch.Generator().manual_seed(0))
    expected = net.Mixed_7c.branch_pool(F.max_pool2d(x, 3, 1, 1))
    assert torch.equal(net.Mixed_7c._forward(x)[-1], expected)


@pytest.mark.parametrize(("size", "side"), [(5, 12), (12, 5), (7, 7)])
def test_the_resize_is_tensorflow_ones(size, side):
    x = torch.randn(1, 1, size, size + 2, generator=torch.Generator().manual_seed(0))
    found = _resize_tf1(x, side)

    def weighed(place, count):
        low = min(int(place), count - 1)
        return [(low, 1 - (place - low)), (min(low + 1, count - 1), place - low)]

    for i in range(side):
        for j in range(side):
            rows, columns = weighed(i * size / side, size), weighed(j * (size + 2) / side, size + 2)
            expected = sum(float(x[0, 0, r, c]) * a * b for r, a in rows for c, b in columns)
            assert float(found[0, 0, i, j]) == pytest.approx(expected, abs=1e-5)


def test_weights_that_are_not_there_or_not_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"Inception weights are not at .*give --download") as error:
        torchvision_inception()
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="there is no file"):
        load_inception(tmp_path / "x.pth")
    torch.save({"fc.weight": print}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="no plain weights, or is damaged"):
        load_inception(tmp_path / "x.pth")
    torch.save({"fc.weight": torch.zeros(10, 3)}, tmp_path / "y.pth")
    with pytest.raises(UserError, match="weights of 10 classes"):
        load_inception(tmp_path / "y.pth")
    torch.save({"fc.weight": torch.zeros(1000, 3)}, tmp_path / "z.pth")
    with pytest.raises(UserError, match="not those of Inception v3"):
        load_inception(tmp_path / "z.pth")
