import dataclasses

import pytest

from rar_jax.config import Config
from rar_jax.errors import UserError
from rar_jax.fields import check_fields, setting
from rar_jax.tokenizer_config import TokenizerConfig


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = setting(0.5, "A rate.", at_least=0, below=1)
    kind: str = setting("a", "A kind.", one_of=("a", "b"))


@dataclasses.dataclass(frozen=True)
class Outer:
    size: int = setting(3, "A size.", above=0, at_most=4)
    inner: Inner = setting(Inner(), "A section.")


def test_values_at_their_limits_are_allowed():
    check_fields(Outer(size=4, inner=Inner(rate=0.0, kind="b")))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (Outer(size=0), r"^config\.size=0 must be above 0 and at most 4$"),
        (Outer(size=5), r"^config\.size=5 must be"),
        (Outer(inner=Inner(rate=1.0)), r"^config\.inner\.rate=1\.0 must be at least 0 and below 1$"),
        (Outer(inner=Inner(rate=float("nan"))), r"^config\.inner\.rate=nan must be"),
        (Outer(inner=Inner(kind="c")), r"^config\.inner\.kind='c' must be one of a, b$"),
    ],
)
def test_a_value_outside_its_limits_is_named(section, message):
    with pytest.raises(UserError, match=message):
        check_fields(section, "config.")


def test_a_limit_that_does_not_exist_is_a_defect():
    with pytest.raises(TypeError, match="at_leats"):
        setting(1, "A size.", at_leats=0)


def fields_of(section, prefix=""):
    for field in dataclasses.fields(section):
        yield prefix + field.name, field
        if dataclasses.is_dataclass(field.type):
            yield from fields_of(field.type, f"{prefix}{field.name}.")


@pytest.mark.parametrize(("name", "field"), [*fields_of(Config), *fields_of(TokenizerConfig)])
def test_every_field_of_the_config_has_a_meaning(name, field):
    assert field.metadata["meaning"].endswith("."), name
