import pytest

from rar_jax.errors import UserError
from rar_jax.performance import table
from rar_jax.performance.programs import DoesNotFitError


def analysis(config, topology):
    """Stands in for `aot.analyse`: without rematerialisation RAR-B needs too much memory, and RAR-XXL never fits."""
    remat = config.train.remat
    if config.name == "rar_xxl":
        raise DoesNotFitError(20, 16)
    needed = {"none": 200.0, "dots": 47.0, "block": 31.0}[remat]
    step = {"none": 1.0, "dots": 367.0, "block": 369.0}[remat]
    return {
        "memory": {"total, GB": needed, "available, GB": 141.0, "devices": 8},
        "roofline": {"kernels, launches, collectives, ms": step, "utilisation, at most, %": 28.4},
    }


def test_the_fastest_variant_that_fits_is_shown(monkeypatch):
    monkeypatch.setattr(table, "analyse", analysis)
    lines = [table.markdown(row) for row in table.rows(["h200:8"])]
    assert len(lines) == 4
    assert lines[0] == "| rar_b | h200:8 | data 1, fsdp 8 | dots | 256 | 47.0 of 141 | 367 | 28 |"
    assert lines[3] == "| rar_xxl | h200:8 |  | does not fit |  |  |  |  |"
    assert table.HEADER.count("|") == 2 * lines[0].count("|")


def test_an_unknown_topology_is_refused():
    with pytest.raises(UserError, match="topology='h200:3' is not in the table, which has h200:8, "):
        next(table.rows(["h200:3"]))
