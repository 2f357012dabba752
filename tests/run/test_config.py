import inspect
from pathlib import Path

import pytest

from experiments import language_modeling
from experiments.image_classification import PRESETS, Config
from jaxdl.errors import UserError
from jaxdl.run.cli import from_json
from jaxdl.run.config import identity, to_json


@pytest.mark.parametrize("cls", [Config, language_modeling.Config])
def test_every_option_is_explained(cls):
    with_help = "".join(inspect.getsource(base) for base in cls.__mro__[:-1])
    for name in cls.__dataclass_fields__:
        line = next(x for x in with_help.splitlines() if x.startswith(f"    {name}: "))
        assert with_help.partition(f"{line}\n")[2].lstrip().startswith('"""'), name


def test_a_config_comes_back_from_its_json_with_its_types():
    config = Config(widths=(3, 5), folder=Path("a/b"), clip_norm=0.5, keep=3)
    assert from_json(Config, to_json(config)) == config
    assert identity(config).items() < to_json(config).items()
    assert not {"keep", "mesh", "workdir", "data_dir"} & identity(config).keys()


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_makes_its_optimiser_and_comes_back_from_its_json(preset):
    config = PRESETS[preset]
    _, schedule = config.optimiser(steps=100)
    assert 0 < schedule(0) <= config.learning_rate
    assert from_json(Config, to_json(config)) == config


def test_a_config_that_cannot_be_meant_is_refused_in_python_too():
    with pytest.raises(UserError, match="--image-size must be above 0, got 0"):
        Config(image_size=0)
