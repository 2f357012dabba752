"""Weights carried from PyTorch compute what PyTorch computes, and come back bit for bit."""

import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.errors import UserError
from jaxdl.interop import torch as interop
from jaxdl.interop.safetensors import check_parameters, flatten, load_arrays
from jaxdl.losses import softmax_cross_entropy
from jaxdl.metrics import Mean
from jaxdl.models import MLP, ReferenceCNN
from jaxdl.train import Aux, TrainState, make_train_step
from jaxdl.train.optim import adam

CASES = {  # sizes are pairwise distinct, so that no wrong order of axes can pass
    "three": {"image_size": (8, 12), "widths": (5, 6, 7), "hidden": 11, "channels": 3},
    "two": {"image_size": (6, 10), "widths": (4, 9), "hidden": 8, "channels": 1},
    "one": {"image_size": (5, 3), "widths": (7,), "hidden": 6, "channels": 2},
    "four": {"image_size": (16, 8), "widths": (3, 4, 5, 6), "hidden": 9, "channels": 2},
}
CLASSES = 10


def close(a, b, tolerance=1e-5):
    """Demands max |a - b| <= tolerance * max |b|."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


def random_state(image_size, widths, hidden, channels, seed=0):
    """Makes the state dict of the CNN, in PyTorch's shapes, without PyTorch."""
    rng = np.random.default_rng(seed)
    shapes, before = {}, channels
    for i, width in enumerate(widths, start=1):
        shapes |= {f"conv{i}.weight": (width, before, 3, 3), f"conv{i}.bias": (width,)}
        before = width
    pixels = np.prod([side // 2 ** (len(widths) - 1) for side in image_size])
    shapes |= {"fc1.weight": (hidden, int(pixels) * before), "fc1.bias": (hidden,)}
    shapes |= {"fc2.weight": (CLASSES, hidden), "fc2.bias": (CLASSES,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def torch_network(case, *, dropout=0.0):
    torch = pytest.importorskip("torch")
    from benchmarks.torch_reference import TorchCNN

    torch.manual_seed(1)
    return torch, TorchCNN(CLASSES, dropout=dropout, **CASES[case])


def jaxdl_network(case):
    sizes = CASES[case]
    return ReferenceCNN(
        classes=CLASSES, widths=sizes["widths"], hidden=sizes["hidden"], dropout=0.0
    )


def examples(case, b, seed=2):
    rng = np.random.default_rng(seed)
    shape = (b, *CASES[case]["image_size"], CASES[case]["channels"])
    images, labels = rng.normal(size=shape), rng.integers(0, CLASSES, b)
    return jnp.asarray(images, jnp.float32), jnp.asarray(labels, jnp.int32)


def to_torch(torch, images, labels):
    return torch.tensor(np.asarray(images)).permute(0, 3, 1, 2), torch.tensor(np.asarray(labels))


def classification_loss(model):
    def loss(params, model_state, batch, key, *, train):
        logits = model.apply({"params": params}, batch["image"], train=train)
        mean = Mean.of(softmax_cross_entropy(logits, batch["label"]))
        return mean, Aux({"loss": mean}, model_state)

    return loss


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_are_those_of_pytorch(case):
    torch, network = torch_network(case)
    params = interop.reference_cnn_from_torch(
        network.state_dict(), image_size=CASES[case]["image_size"]
    )
    images, labels = examples(case, 6)
    torch_images, torch_labels = to_torch(torch, images, labels)
    logits = network(torch_images)
    torch.nn.functional.cross_entropy(logits, torch_labels.long()).backward()

    def objective(params):
        logits = jaxdl_network(case).apply({"params": params}, images, train=True)
        return softmax_cross_entropy(logits, labels).mean(), logits

    gradients, ours = jax.jit(jax.grad(objective, has_aux=True))(params)
    close(ours, logits.detach().numpy())
    carried = interop.reference_cnn_to_torch(gradients, image_size=CASES[case]["image_size"])
    assert list(carried) == [name for name, _ in network.named_parameters()]
    for name, parameter in network.named_parameters():
        close(carried[name], parameter.grad.numpy())


def test_twenty_steps_of_adam_with_coupled_decay_follow_pytorch():
    case = "three"
    torch, network = torch_network(case)
    from benchmarks.torch_reference import make_step

    size = CASES[case]["image_size"]
    optimizer = torch.optim.Adam(network.parameters(), 1e-3, weight_decay=1e-4)
    torch_step = make_step(network, optimizer)
    params = interop.reference_cnn_from_torch(network.state_dict(), image_size=size)
    tx = adam(1e-3, decay=1e-4)
    state = TrainState.create(lambda key: (params, {}), tx, jax.random.key(0))
    step = jax.jit(make_train_step(classification_loss(jaxdl_network(case)), tx))
    start = params
    for number in range(20):
        images, labels = examples(case, 16, seed=number)
        torch_images, torch_labels = to_torch(torch, images, labels)
        expected = torch_step(torch_images, torch_labels.long())
        state, metrics = step(state, {"image": images, "label": labels})
        assert metrics["loss"].compute() == pytest.approx(expected.item(), rel=1e-5)
    ours = interop.reference_cnn_to_torch(state.params, image_size=size)
    before = interop.reference_cnn_to_torch(start, image_size=size)
    for name, parameter in network.named_parameters():
        close(ours[name], parameter.detach().numpy())
        assert np.abs(ours[name] - before[name]).max() > 5e-3  # it has moved


def test_the_mlp_computes_what_pytorch_computes():
    torch = pytest.importorskip("torch")
    torch.manual_seed(3)
    widths = (7, 11, 9, 5)
    pairs = itertools.pairwise(widths)
    layers = torch.nn.ModuleDict(
        {f"fc{i}": torch.nn.Linear(a, b) for i, (a, b) in enumerate(pairs, start=1)}
    )
    x = torch.randn(4, 7)
    expected = layers["fc3"](torch.tanh(layers["fc2"](torch.tanh(layers["fc1"](x)))))
    params = interop.mlp_from_torch(layers.state_dict())
    model = MLP(classes=5, widths=(11, 9), activation="tanh")
    logits = model.apply({"params": params}, jnp.asarray(x.numpy()), train=False)
    close(logits, expected.detach().numpy())
    back = interop.mlp_to_torch(params, tensors=True)
    assert layers.load_state_dict(back).missing_keys == []


@pytest.mark.parametrize("case", CASES)
def test_a_round_trip_is_exact(case):
    state = random_state(**CASES[case])
    size = CASES[case]["image_size"]
    params = interop.reference_cnn_from_torch(state, image_size=size)
    x = jax.ShapeDtypeStruct((1, *size, CASES[case]["channels"]), jnp.float32)
    check_parameters(flatten(params), jaxdl_network(case), x, where="here")
    back = interop.reference_cnn_to_torch(jax.tree.map(jnp.asarray, params), image_size=size)
    assert list(back) == list(state)
    for name, array in state.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].dtype == np.float32
        assert back[name].flags.c_contiguous


def test_round_trips_of_the_layers_are_exact():
    rng = np.random.default_rng(4)
    weight = rng.normal(size=(5, 4, 3, 2))
    np.testing.assert_array_equal(interop.conv_weight(interop.conv_kernel(weight)), weight)
    assert interop.conv_kernel(weight)[2, 1, 3, 4] == weight[4, 3, 2, 1]
    for image in (None, (2, 5, 3)):
        weight = rng.normal(size=(7, 30))
        kernel = interop.dense_kernel(weight, image=image)
        np.testing.assert_array_equal(interop.dense_weight(kernel, image=image), weight)
    x = rng.normal(size=(2, 5, 3))  # h w c
    np.testing.assert_allclose(x.ravel() @ kernel, weight @ x.transpose(2, 0, 1).ravel())


def test_tensors_go_back_into_their_module():
    torch, network = torch_network("three")
    size = CASES["three"]["image_size"]
    params = interop.reference_cnn_from_torch(network.state_dict(), image_size=size)
    back = interop.reference_cnn_to_torch(params, image_size=size, tensors=True)
    network.load_state_dict(back)
    assert all(isinstance(tensor, torch.Tensor) for tensor in back.values())


def test_nothing_is_shared_with_the_module():
    """Else training it further would change parameters that JAX takes to be constant."""
    torch, network = torch_network("one")
    size = CASES["one"]["image_size"]
    params = interop.reference_cnn_from_torch(network.state_dict(), image_size=size)
    before = jax.tree.map(np.copy, params)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    jax.tree.map(np.testing.assert_array_equal, params, before)
    state = interop.reference_cnn_to_torch(params, image_size=size, tensors=True)
    for tensor in state.values():
        tensor.add_(1)
    jax.tree.map(np.testing.assert_array_equal, params, before)


def test_half_precision_is_widened():
    torch = pytest.importorskip("torch")
    state = random_state(**CASES["one"])
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        tensors = {name: torch.from_numpy(a).to(dtype) for name, a in state.items()}
        params = interop.reference_cnn_from_torch(tensors, image_size=(5, 3))
        assert params["conv1"]["bias"].dtype == np.float32
        expected = tensors["conv1.bias"].float().numpy()
        np.testing.assert_array_equal(params["conv1"]["bias"], expected)


def test_a_state_dict_in_a_safetensors_file(tmp_path):
    pytest.importorskip("torch")
    from safetensors.torch import save_file

    _, network = torch_network("two")
    save_file(network.state_dict(), tmp_path / "cnn.safetensors")
    size = CASES["two"]["image_size"]
    read = interop.reference_cnn_from_torch(
        load_arrays(tmp_path / "cnn.safetensors"), image_size=size
    )
    direct = interop.reference_cnn_from_torch(network.state_dict(), image_size=size)
    assert flatten(read).keys() == flatten(direct).keys()
    jax.tree.map(np.testing.assert_array_equal, read, direct)


MISTAKES = {
    "conv2.weight is missing": lambda s: s.pop("conv2.weight"),
    "conv1.weight is missing": lambda s: [s.pop(n) for n in list(s) if n.startswith("conv")],
    "fc2.bias is missing": lambda s: s.pop("fc2.bias"),
    "conv1.num_batches is unknown": lambda s: s.update({"conv1.num_batches": np.zeros(())}),
    r"conv3.weight has shape \[7, 5, 3, 3\], expected \[any, 6, 3, 3\]": (
        lambda s: s.update({"conv3.weight": np.zeros((7, 5, 3, 3))})
    ),
    r"conv1.weight has shape \[5, 3, 5, 5\]": (
        lambda s: s.update({"conv1.weight": np.zeros((5, 3, 5, 5))})
    ),
    r"conv1.bias has shape \[5, 1\], expected \[5\]": (
        lambda s: s.update({"conv1.bias": np.zeros((5, 1))})
    ),
    r"fc1.weight has shape \[11, 40\], expected \[any, 42\]": (
        lambda s: s.update({"fc1.weight": np.zeros((11, 40))})
    ),
    r"fc2.weight has shape \[10, 12\], expected \[any, 11\]": (
        lambda s: s.update({"fc2.weight": np.zeros((10, 12))})
    ),
    "fc1.bias is of type int64": lambda s: s.update({"fc1.bias": np.zeros(11, np.int64)}),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_state_dict_that_does_not_fit_is_refused(message):
    state = random_state(**CASES["three"])
    MISTAKES[message](state)
    with pytest.raises(UserError, match=message):
        interop.reference_cnn_from_torch(state, image_size=(8, 12))


def test_parameters_that_do_not_fit_are_refused():
    params = interop.reference_cnn_from_torch(random_state(**CASES["three"]), image_size=(8, 12))
    with pytest.raises(UserError, match=r"fc1.kernel has shape \[42, 11\], expected \[28, any\]"):
        interop.reference_cnn_to_torch(params, image_size=(8, 8))
    with pytest.raises(UserError, match=r"fc3\.bias is unknown"):
        interop.reference_cnn_to_torch(
            {**params, "fc3": {"bias": np.zeros(2, np.float32)}}, image_size=(8, 12)
        )
    del params["conv1"]["bias"]
    with pytest.raises(UserError, match=r"conv1\.bias is missing"):
        interop.reference_cnn_to_torch(params, image_size=(8, 12))


def test_an_image_that_does_not_halve_is_refused():
    state = random_state(**CASES["three"])
    with pytest.raises(UserError, match=r"10x12 do not halve evenly 2 times.*multiples of 4"):
        interop.reference_cnn_from_torch(state, image_size=(10, 12))


def test_an_mlp_that_does_not_fit_is_refused():
    state = {"fc1.weight": np.zeros((3, 2)), "fc1.bias": np.zeros(3), "fc2.weight": np.ones((4, 5))}
    with pytest.raises(UserError, match=r"fc2.weight has shape \[4, 5\], expected \[any, 3\]"):
        interop.mlp_from_torch(state)


def test_pytorch_is_not_imported_unless_tensors_are_wanted(monkeypatch):
    code = "import sys, jaxdl.interop.torch; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    params = interop.reference_cnn_from_torch(random_state(**CASES["one"]), image_size=(5, 3))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"pip install 'jaxdl\[reference\]'"):
        interop.reference_cnn_to_torch(params, image_size=(5, 3), tensors=True)
