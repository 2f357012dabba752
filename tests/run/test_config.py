import inspect
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from experiments import language_modeling
from experiments.image_classification import PRESETS, Config
from jaxdl.errors import UserError
from jaxdl.run.cli import from_json
from jaxdl.run.config import identity, to_json
from jaxdl.run.images import prepare

NAN = math.nan


@pytest.mark.parametrize("cls", [Config, language_modeling.Config])
def test_every_option_is_explained(cls):
    with_help = "".join(inspect.getsource(base) for base in cls.__mro__[:-1])
    for name in cls.__dataclass_fields__:
        line = next(x for x in with_help.splitlines() if x.startswith(f"    {name}: "))
        assert with_help.partition(f"{line}\n")[2].lstrip().startswith('"""'), name


def test_a_config_comes_back_from_its_json_with_its_types():
    config = Config(widths=(3, 5), dataset="folder", folder=Path("a/b"), clip_norm=0.5, keep=3)
    assert from_json(Config, to_json(config)) == config
    assert identity(config).items() < to_json(config).items()
    assert not {"keep", "mesh", "workdir", "data_dir", "eval_batch_size"} & identity(config).keys()


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_makes_its_optimiser_and_comes_back_from_its_json(preset):
    config = PRESETS[preset]
    _, schedule = config.optimiser(steps=100)
    assert 0 < schedule(0) <= config.learning_rate
    assert from_json(Config, to_json(config)) == config


def test_a_config_that_cannot_be_meant_is_refused_in_python_too():
    with pytest.raises(UserError, match="--image-size must be above 0, got 0"):
        Config(image_size=0)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rotation": 200.0}, "--rotation must lie in [0, 180], got 200.0"),
        ({"translate": 2.0}, "--translate must lie in [0, 1]"),
        ({"shear": 90.0}, "--shear must lie in [0, 90)"),
        ({"scale": 1.0}, "--scale must lie in [0, 1)"),
        ({"brightness": 2.0}, "--brightness must lie in [0, 1]"),
        ({"contrast": 1.5}, "--contrast must lie in [0, 1]"),
        ({"contrast": NAN}, "--contrast must lie in [0, 1]"),
        ({"crop_padding": 10**11}, "--crop-padding must lie in [0, 48]"),
        ({"crop_padding": -1}, "--crop-padding must lie in [0, 48]"),
        ({"mean": NAN}, "--mean must be finite"),
        ({"std": math.inf}, "--std must be above 0, and finite"),
        ({"workers": -1}, "--workers must not be negative"),
        ({"weight_decay": math.inf}, "--weight-decay must be 0 or more, and finite, got inf"),
        ({"save_minutes": math.inf}, "--save-minutes must be 0 or more, and finite"),
        ({"clip_norm": math.inf}, "--clip-norm must be above 0, and finite"),
        ({"folder": Path("a")}, "--folder needs --dataset folder beside it, got a"),
    ],
)
def test_options_out_of_range_and_data_that_would_not_be_read_are_refused(changes, told):
    with pytest.raises(UserError, match=re.escape(told)):
        Config(**changes)


def test_what_augmentations_take_at_most_is_taken():
    config = Config(rotation=180, translate=1, brightness=1, contrast=1, crop_padding=48)
    images, key = jnp.full((2, 48, 48, 1), 255, jnp.uint8), jax.random.key(0)
    assert jnp.isfinite(prepare(config, images, key)).all()
