"""Names of parametrised tests: the same in every process, which addresses of functions are not."""

import re


def named(value: object) -> str:
    """Writes a value as a test is named after it: a function by its name alone."""
    return re.sub(r"<function (\w+) at 0x\w+>", r"\1", str(value))
