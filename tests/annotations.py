"""How the tests check annotations."""

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep3119Exception

CONF = BeartypeConf(is_pep484_tower=True)  # an int will do where a float is wanted


def checked(function):
    """Checks annotations by beartype, where they can be checked.

    Not those of protocols that are not `runtime_checkable`, and not the fields of dataclasses:
    JAX rebuilds pytrees with placeholders in them.
    """
    try:
        return function if function.__name__ == "__init__" else beartype(conf=CONF)(function)
    except BeartypeDecorHintPep3119Exception:
        return function
