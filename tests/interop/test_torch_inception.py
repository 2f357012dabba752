"""Inception with weights from PyTorch computes the features that PyTorch computes."""

import sys

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxdl.errors import UserError
from jaxdl.interop.torch_inception import inception_from_torch, load_inception
from jaxdl.models import Inception
from jaxdl.models.inception import network_input

# The least at which the last blocks see more than one row and one column, and as many of neither:
# of a single pixel, the maximum and the average are the same.
SIZE = (107, 139)


class TorchInception:
    """The network as pytorch-fid states it, functionally; its weights are drawn as they are met."""

    def __init__(self, torch):
        self.torch, self.functional = torch, torch.nn.functional
        self.state = {}
        self.generator = torch.Generator().manual_seed(0)

    def draw(self, *shape):
        return self.torch.randn(shape, generator=self.generator)

    def unit(self, x, name, width, size=(1, 1), *, stride=1, padding=(0, 0)):
        # Variances small enough for epsilon to count, of weights that have such variances.
        variance, fan_in = 0.01, x.shape[1] * size[0] * size[1]
        state = {
            "conv.weight": self.draw(width, x.shape[1], *size) * (2 * variance / fan_in) ** 0.5,
            "bn.weight": 1 + 0.2 * self.draw(width),
            "bn.bias": 0.1 * self.draw(width),
            "bn.running_mean": 0.01 * self.draw(width),
            "bn.running_var": variance * (1 + 0.2 * self.draw(width)).abs(),
        }
        self.state |= {f"{name}.{part}": tensor for part, tensor in state.items()}
        y = self.functional.conv2d(x, state["conv.weight"], stride=stride, padding=padding)
        y = self.functional.batch_norm(
            y, state["bn.running_mean"], state["bn.running_var"], state["bn.weight"],
            state["bn.bias"], eps=0.001,
        )  # fmt: skip
        return self.functional.relu(y)

    def average(self, x):
        pool = self.functional.avg_pool2d
        return pool(x, 3, stride=1, padding=1, count_include_pad=False)

    def halving_max(self, x):
        return self.functional.max_pool2d(x, 3, stride=2)

    def a(self, x, name, pooled):
        one = self.unit(x, f"{name}.branch1x1", 64)
        five = self.unit(x, f"{name}.branch5x5_1", 48)
        five = self.unit(five, f"{name}.branch5x5_2", 64, (5, 5), padding=(2, 2))
        three = self.unit(x, f"{name}.branch3x3dbl_1", 64)
        three = self.unit(three, f"{name}.branch3x3dbl_2", 96, (3, 3), padding=(1, 1))
        three = self.unit(three, f"{name}.branch3x3dbl_3", 96, (3, 3), padding=(1, 1))
        pool = self.unit(self.average(x), f"{name}.branch_pool", pooled)
        return self.torch.cat([one, five, three, pool], 1)

    def b(self, x, name):
        one = self.unit(x, f"{name}.branch3x3", 384, (3, 3), stride=2)
        three = self.unit(x, f"{name}.branch3x3dbl_1", 64)
        three = self.unit(three, f"{name}.branch3x3dbl_2", 96, (3, 3), padding=(1, 1))
        three = self.unit(three, f"{name}.branch3x3dbl_3", 96, (3, 3), stride=2)
        return self.torch.cat([one, three, self.halving_max(x)], 1)

    def c(self, x, name, narrow):
        row, column = {"size": (1, 7), "padding": (0, 3)}, {"size": (7, 1), "padding": (3, 0)}
        one = self.unit(x, f"{name}.branch1x1", 192)
        seven = self.unit(x, f"{name}.branch7x7_1", narrow)
        seven = self.unit(seven, f"{name}.branch7x7_2", narrow, **row)
        seven = self.unit(seven, f"{name}.branch7x7_3", 192, **column)
        twice = self.unit(x, f"{name}.branch7x7dbl_1", narrow)
        twice = self.unit(twice, f"{name}.branch7x7dbl_2", narrow, **column)
        twice = self.unit(twice, f"{name}.branch7x7dbl_3", narrow, **row)
        twice = self.unit(twice, f"{name}.branch7x7dbl_4", narrow, **column)
        twice = self.unit(twice, f"{name}.branch7x7dbl_5", 192, **row)
        pool = self.unit(self.average(x), f"{name}.branch_pool", 192)
        return self.torch.cat([one, seven, twice, pool], 1)

    def d(self, x, name):
        three = self.unit(x, f"{name}.branch3x3_1", 192)
        three = self.unit(three, f"{name}.branch3x3_2", 320, (3, 3), stride=2)
        seven = self.unit(x, f"{name}.branch7x7x3_1", 192)
        seven = self.unit(seven, f"{name}.branch7x7x3_2", 192, (1, 7), padding=(0, 3))
        seven = self.unit(seven, f"{name}.branch7x7x3_3", 192, (7, 1), padding=(3, 0))
        seven = self.unit(seven, f"{name}.branch7x7x3_4", 192, (3, 3), stride=2)
        return self.torch.cat([three, seven, self.halving_max(x)], 1)

    def e(self, x, name, pooled):
        row, column = {"size": (1, 3), "padding": (0, 1)}, {"size": (3, 1), "padding": (1, 0)}
        one = self.unit(x, f"{name}.branch1x1", 320)
        three = self.unit(x, f"{name}.branch3x3_1", 384)
        threes = [
            self.unit(three, f"{name}.branch3x3_2a", 384, **row),
            self.unit(three, f"{name}.branch3x3_2b", 384, **column),
        ]
        twice = self.unit(x, f"{name}.branch3x3dbl_1", 448)
        twice = self.unit(twice, f"{name}.branch3x3dbl_2", 384, (3, 3), padding=(1, 1))
        twices = [
            self.unit(twice, f"{name}.branch3x3dbl_3a", 384, **row),
            self.unit(twice, f"{name}.branch3x3dbl_3b", 384, **column),
        ]
        pool = self.unit(pooled, f"{name}.branch_pool", 192)
        return self.torch.cat([one, *threes, *twices, pool], 1)

    def features(self, images, size):
        x = self.torch.tensor(images).permute(0, 3, 1, 2)
        x = self.functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
        x = self.unit(2 * x - 1, "Conv2d_1a_3x3", 32, (3, 3), stride=2)
        x = self.unit(x, "Conv2d_2a_3x3", 32, (3, 3))
        x = self.unit(x, "Conv2d_2b_3x3", 64, (3, 3), padding=(1, 1))
        x = self.unit(self.halving_max(x), "Conv2d_3b_1x1", 80)
        x = self.unit(x, "Conv2d_4a_3x3", 192, (3, 3))
        x = self.halving_max(x)
        for name, pooled in {"Mixed_5b": 32, "Mixed_5c": 64, "Mixed_5d": 64}.items():
            x = self.a(x, name, pooled)
        x = self.b(x, "Mixed_6a")
        for name, narrow in zip("bcde", (128, 160, 160, 192), strict=True):
            x = self.c(x, f"Mixed_6{name}", narrow)
        x = self.d(x, "Mixed_7a")
        x = self.e(x, "Mixed_7b", self.average(x))
        x = self.e(x, "Mixed_7c", self.functional.max_pool2d(x, 3, stride=1, padding=1))
        assert min(x.shape[2:]) > 1
        self.state |= {"fc.weight": self.draw(1008, 2048), "fc.bias": self.draw(1008)}
        return x.mean((2, 3)).numpy()


def close(a, b, tolerance=1e-4):
    """Demands max |a - b| <= tolerance * max |b|."""
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


def random_images(b, h, w, c):
    return np.random.default_rng(h).uniform(size=(b, h, w, c)).astype(np.float32)


def test_features_are_those_of_pytorch(tmp_path):
    torch = pytest.importorskip("torch")
    reference, images = TorchInception(torch), random_images(2, 40, 60, 3)
    images[1] *= 0.2
    expected = reference.features(images, SIZE)
    assert expected.std(0).mean() > 0.01 * expected.mean()  # images differ in what they give
    counted = {"Conv2d_1a_3x3.bn.num_batches_tracked": torch.tensor(7)}
    torch.save(reference.state | counted, tmp_path / "inception.pth")
    params = load_inception(tmp_path / "inception.pth")
    model = Inception(size=SIZE)
    features = jax.jit(lambda x: model.apply({"params": params}, x))(images)
    close(np.asarray(features), expected)


@pytest.mark.parametrize("size", [(8, 11), (320, 410)])
def test_images_are_resized_as_pytorch_does(size):
    torch = pytest.importorskip("torch")
    images = random_images(2, *size, 3)
    expected = torch.nn.functional.interpolate(
        torch.tensor(images).permute(0, 3, 1, 2), size=(299, 299), mode="bilinear",
        align_corners=False,
    ).permute(0, 2, 3, 1)  # fmt: skip
    x = network_input(jnp.asarray(images), (299, 299))
    np.testing.assert_allclose(x, 2 * expected.numpy() - 1, atol=2e-5)


def test_grey_images_are_repeated_and_others_refused():
    grey = jnp.asarray(random_images(2, 9, 8, 1))
    x = network_input(grey, (12, 15))
    assert x.shape == (2, 12, 15, 3)
    # Not to the last bit: products of one channel and of three are other programs.
    np.testing.assert_allclose(x, network_input(jnp.repeat(grey, 3, -1), (12, 15)), atol=1e-6)
    np.testing.assert_array_equal(x, jnp.repeat(x[..., :1], 3, -1))
    with pytest.raises(ValueError, match="1 or 3 channels, got 2"):
        network_input(jnp.zeros((2, 9, 8, 2)), (12, 15))


@pytest.fixture(scope="module")
def shapes():
    init = lambda: Inception().init(jax.random.key(0), jnp.zeros((1, 9, 8, 3)))  # noqa: E731
    return flax.traverse_util.flatten_dict(jax.eval_shape(init)["params"], sep=".")


@pytest.fixture
def state(shapes):
    """A state dict that fits, of ones, without PyTorch."""
    state = {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
    for name, leaf in shapes.items():
        layer, part = name.rsplit(".", 1)
        if part == "bias":
            parts = "weight", "bias", "running_mean", "running_var"
            state |= {f"{layer}.bn.{part}": leaf.shape for part in parts}
        else:
            h, w, c, o = leaf.shape
            state[f"{layer}.conv.weight"] = (o, c, h, w)
    return {name: np.broadcast_to(np.float32(1), shape) for name, shape in state.items()}


def test_the_network_has_the_parameters_of_its_design(shapes):
    """94 convolutions and, in place of two numbers a channel to learn, one."""
    kernels, biases = ([n for n in shapes if n.endswith(p)] for p in ("kernel", "bias"))
    assert len(kernels) == len(biases) == 94
    # torchvision's network of 27,161,264 parameters, without what classifies: a dense layer of
    # 1000 classes, and the auxiliary head of two convolutions and a dense layer.
    classifier = (2048 + 1) * 1000
    head = 768 * 128 + 2 * 128 + 25 * 128 * 768 + 2 * 768 + (768 + 1) * 1000
    channels = sum(shapes[name].size for name in biases)
    assert sum(shapes[name].size for name in shapes) + channels == 27_161_264 - classifier - head


def test_a_safetensors_file_takes_no_pytorch(state, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    path = tmp_path / "inception.safetensors"
    save_file({name: np.array(array) for name, array in state.items()}, path)
    params = load_inception(path)
    folded = 1 / np.sqrt(np.float32(1 + 1e-3))
    kernel = params["Mixed_7c"]["branch3x3_2a"]["kernel"]
    assert kernel.shape == (1, 3, 384, 384)
    np.testing.assert_allclose(kernel, folded, rtol=1e-6)
    np.testing.assert_allclose(params["Mixed_7c"]["branch_pool"]["bias"], 1 - folded, rtol=1e-3)


MISTAKES = {
    r"Conv2d_1a_3x3\.conv\.weight is missing": lambda s: s.clear(),
    r"Mixed_6c\.branch7x7_2\.bn\.running_var is missing": (
        lambda s: s.pop("Mixed_6c.branch7x7_2.bn.running_var")
    ),
    r"Mixed_6c\.branch7x7_2\.conv\.weight has shape \[160, 160, 7, 1\], expected \[160, 160, 1, 7\]": (  # noqa: E501
        lambda s: s.update({"Mixed_6c.branch7x7_2.conv.weight": np.zeros((160, 160, 7, 1))})
    ),
    r"fc\.weight is missing": lambda s: s.pop("fc.weight"),
    # torchvision's, with and without the head that it trains with.
    r"fc\.weight has shape \[1000, 2048\], expected \[1008, 2048\]": (
        lambda s: s.update({"fc.weight": np.zeros((1000, 2048))})
    ),
    r"AuxLogits\.fc\.bias is unknown": lambda s: s.update({"AuxLogits.fc.bias": np.zeros(1000)}),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_state_dict_that_does_not_fit_is_refused(state, message):
    MISTAKES[message](state)
    with pytest.raises(UserError, match=f"^the state dict: {message}$"):
        inception_from_torch(state)


def test_files_that_hold_no_such_network_are_refused_by_name(tmp_path):
    torch = pytest.importorskip("torch")
    for name in ("absent.pth", "absent.safetensors", "."):
        with pytest.raises(UserError, match=r"is missing, or no file$"):
            load_inception(tmp_path / name)
    path = tmp_path / "weights.pth"
    torch.save({"Conv2d_1a_3x3.conv.weight": torch.zeros(32, 3, 3, 3)}, path)
    whole = path.read_bytes()
    for damaged in (b"", b"no weights", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"weights\.pth is damaged, or no state dict"):
            load_inception(path)
    for other in ([1, 2], torch.zeros(3), {1: torch.zeros(3)}):
        torch.save(other, path)
        with pytest.raises(UserError, match=r"weights\.pth holds no state dict"):
            load_inception(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(UserError, match=r"weights\.pth: .*Conv2d_1a_3x3\.conv\.weight is missing"):
        load_inception(path)


def test_what_runs_code_when_it_is_read_is_refused(tmp_path):
    torch = pytest.importorskip("torch")

    class Harm:
        def __reduce__(self):
            return (tmp_path / "harm").touch, ()

    torch.save({"harm": Harm()}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="damaged, or no state dict"):
        load_inception(tmp_path / "weights.pth")
    assert not (tmp_path / "harm").exists()


def test_a_pth_file_takes_pytorch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "weights.pth").touch()
    with pytest.raises(UserError, match=r"weights\.pth .*pip install 'jaxdl\[reference\]'"):
        load_inception(tmp_path / "weights.pth")
