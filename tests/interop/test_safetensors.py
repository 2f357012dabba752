"""A model's folder gives back what was saved, or says in one line what is wrong with it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxdl.errors import UserError
from jaxdl.interop.safetensors import load_arrays, load_model, save_model
from jaxdl.models import MLP, ReferenceCNN, ResidualCNN
from jaxdl.models.apply import initialise

MODELS = {
    "mlp": (MLP(classes=5, widths=(7, 6), activation="gelu", dropout=0.25), (4, 2, 3)),
    "cnn": (ReferenceCNN(classes=5, widths=(3, 4), hidden=6), (6, 8, 2)),
    "residual": (ResidualCNN(classes=5, widths=(4, 6), groups=2), (6, 8, 3)),
}


def random_params(model, input_shape):
    """Fills the model's parameters with distinct numbers; its own zeros would hide a mix-up."""
    x = jnp.zeros((1, *input_shape))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), jnp.float32), shapes)


@pytest.fixture
def folder(tmp_path):
    """Holds a sound model, for a test to spoil."""
    model, shape = MODELS["cnn"]
    save_model(tmp_path, model, random_params(model, shape), about={"input_shape": shape})
    return tmp_path


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_fields(folder, **changes):
    fields = json.loads((folder / "config.json").read_text())["config"]
    edit_config(folder, config={**fields, **changes})


def edit_arrays(folder, change):
    arrays = load_file(folder / "model.safetensors")
    change(arrays)
    save_file(arrays, folder / "model.safetensors")


@pytest.mark.parametrize("name", MODELS)
def test_a_round_trip_is_exact(name, tmp_path):
    model, shape = MODELS[name]
    params = random_params(model, shape)
    about = {"input_shape": shape, "classes": ["a", "b"], "mean": 0.1307}
    save_model(tmp_path / "new" / "folder", model, params, about=about)
    loaded = load_model(tmp_path / "new" / "folder")
    assert loaded.model == model
    assert loaded.about == {**about, "input_shape": list(shape)}
    assert jax.tree.structure(loaded.params) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.params)} == {np.dtype(np.float32)}


def test_the_compute_type_is_not_part_of_a_model(tmp_path):
    model = MLP(classes=3, widths=(4,), dtype=jnp.bfloat16)
    save_model(tmp_path, model, random_params(model, (5,)))
    assert load_model(tmp_path).model == MLP(classes=3, widths=(4,))


def test_running_statistics_are_part_of_a_model_and_the_devices_are_not(tmp_path):
    shape = (4, 4, 2)
    model = ResidualCNN(classes=3, widths=(4,), norm="batch", axis_name="data")
    params, model_state = initialise(model, jax.random.key(0), jnp.zeros((1, *shape)))
    model_state = jax.tree.map(lambda x: x + 0.5, model_state)
    about = {"input_shape": shape}
    save_model(tmp_path, model, params, model_state=model_state, about=about)
    loaded = load_model(tmp_path)
    assert loaded.model == model.clone(axis_name=None)
    jax.tree.map(np.testing.assert_array_equal, (loaded.params, loaded.model_state),
                 (params, model_state))  # fmt: skip
    edit_arrays(tmp_path, lambda arrays: arrays.pop("batch_stats.norm.var"))
    with pytest.raises(UserError, match=r"batch_stats.norm.var is absent there"):
        load_model(tmp_path)


def test_half_precision_is_read_as_float32(tmp_path):
    model = MLP(classes=3, widths=(4,), param_dtype=jnp.bfloat16)
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), random_params(model, (5,)))
    save_model(tmp_path, model, params, about={"input_shape": (5,)})
    loaded = load_model(tmp_path).params["fc1"]["kernel"]
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, np.asarray(params["fc1"]["kernel"], np.float32))


def test_a_model_that_json_cannot_say_leaves_the_folder_as_it_was(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = MLP(classes=3, widths=(4,))
    with pytest.raises(TypeError):
        save_model(folder, model, random_params(model, (5,)), about={"classes": {1, 2}})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_save_that_breaks_off_leaves_no_config_of_another_model(folder, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr("jaxdl.interop.safetensors.save_file", full)
    model = MLP(classes=3, widths=(4,))
    with pytest.raises(OSError, match="no space left"):
        save_model(folder, model, random_params(model, (5,)))
    with pytest.raises(UserError, match="no model was exported here"):
        load_model(folder)


def truncate(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


MISTAKES = {
    "config.json is missing": lambda f: (f / "config.json").unlink(),
    "model.safetensors is missing": lambda f: (f / "model.safetensors").unlink(),
    "model.safetensors cannot be read": lambda f: truncate(f / "model.safetensors", -3),
    "model.safetensors cannot be read: .*header": lambda f: truncate(f / "model.safetensors", 5),
    "config.json cannot be read": lambda f: truncate(f / "config.json", -3),
    "config.json has no 'model'": lambda f: (f / "config.json").write_text("[]"),
    "config.json has no 'config'": lambda f: edit_config(f, config=None),
    "holds a ResNet50; jaxdl has MLP, ": lambda f: edit_config(f, model="ResNet50"),
    "holds a numpy": lambda f: edit_config(f, model="numpy"),
    "unexpected keyword argument 'depth'": lambda f: edit_fields(f, depth=4),
    "missing a? ?1? ?required .*'classes'": lambda f: edit_config(f, config={}),
    r"conv2.bias is \(4,\) there, and \(9,\) in ReferenceCNN": (
        lambda f: edit_fields(f, widths=[3, 9])
    ),
    r"conv2.bias is absent there, and \(4,\) in ReferenceCNN": (
        lambda f: edit_arrays(f, lambda a: a.pop("conv2.bias"))
    ),
    r"fc9.bias is \(2,\) there, and absent": (
        lambda f: edit_arrays(f, lambda a: a.update({"fc9.bias": np.zeros(2, np.float32)}))
    ),
    "no ReferenceCNN like that: images of 5x8": (
        lambda f: edit_config(f, about={"input_shape": [5, 8, 2]})
    ),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_spoilt_folder_is_refused(message, folder):
    MISTAKES[message](folder)
    with pytest.raises(UserError, match=message):
        load_model(folder)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        load_model(tmp_path / "nowhere")


def test_the_arrays_of_any_file(tmp_path):
    arrays = {"layers.0.weight": np.arange(6, dtype=np.int32).reshape(2, 3)}
    save_file(arrays, tmp_path / "theirs.safetensors")
    read = load_arrays(tmp_path / "theirs.safetensors")
    np.testing.assert_array_equal(read["layers.0.weight"], arrays["layers.0.weight"])
    with pytest.raises(UserError, match="is missing, or no file"):
        load_arrays(tmp_path)


def test_a_type_that_numpy_does_not_know_is_told(tmp_path):
    header = json.dumps({"a": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    path = tmp_path / "eight.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\x00\x00")
    with pytest.raises(UserError, match=r"eight.safetensors cannot be read: .*float8"):
        load_arrays(path)
