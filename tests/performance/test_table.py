import json

import pytest

from rar_jax.errors import UserError
from rar_jax.performance import table
from rar_jax.performance.programs import DoesNotFitError


@pytest.fixture
def compiled(monkeypatch):
    """Replaces the compiler: RAR-L needs two microbatches or "block", and RAR-XXL never fits. Returns what it did."""
    done = []

    def analyse(config, topology):
        remat, accumulation = config.train.remat, config.train.accumulation
        done.append((config.name, remat, accumulation))
        if config.name == "rar_xxl":
            raise DoesNotFitError(20, 16)
        needed = {"dots": 150.0 if config.name == "rar_l" else 47.0, "block": 31.0}[remat] / accumulation
        return {
            "memory": {"total, GB": needed, "available, GB": 141.0, "devices": 8},
            "roofline": {
                "kernels, launches, collectives, ms": {"dots": 367.0, "block": 369.0}[remat] + accumulation,
                "utilisation, counted, %": 28.4,
            },
        }

    monkeypatch.setattr(table, "analyse", analyse)
    monkeypatch.setattr(table, "open_topology", lambda name: None)
    return done


def test_the_fastest_variant_that_fits_is_shown(compiled):
    lines = [table.markdown(row) for row in table.rows(["h200:8"])]
    assert len(lines) == 4
    assert lines[0] == "| rar_b | h200:8 | data 1, fsdp 8 | dots | 1 | 256 | 47.0 of 141 | 368 | 28 |"
    assert lines[1] == "| rar_l | h200:8 | data 1, fsdp 8 | dots | 2 | 128 | 75.0 of 141 | 369 | 28 |"
    assert lines[3] == "| rar_xxl | h200:8 |  | does not fit |  |  |  |  |  |"
    assert table.HEADER.count("|") == 2 * lines[0].count("|")
    assert [each for each in compiled if each[0] in ("rar_b", "rar_l")] == [
        ("rar_b", "dots", 1),
        ("rar_l", "dots", 1),
        ("rar_l", "dots", 2),
        ("rar_l", "block", 1),
    ]


def test_a_table_that_was_stopped_compiles_only_the_rest(compiled, tmp_path):
    path = str(tmp_path / "new" / "table.json")
    begun = table.rows(["h200:8"], path)
    first = [next(begun) for _ in range(2)]
    assert len(json.loads((tmp_path / "new" / "table.json").read_text())) == len(compiled) == 4
    compiled.clear()
    assert list(table.rows(["h200:8"], path))[:2] == first
    assert not [each for each in compiled if each[0] in ("rar_b", "rar_l")]


def test_a_missing_compiler_is_found_before_anything_is_compiled(compiled, monkeypatch):
    def open_topology(name):
        if name == "v5e:8x8":
            raise UserError("install it")

    monkeypatch.setattr(table, "open_topology", open_topology)
    with pytest.raises(UserError, match="install it"):
        next(table.rows(["h200:8", "v5e:8x8"]))
    assert not compiled


def test_an_unknown_topology_is_refused():
    with pytest.raises(UserError, match="topology='h200:3' is not in the table, which has h200:1, h200:8, "):
        next(table.rows(["h200:3"]))


@pytest.mark.parametrize("text", ["{}", "not JSON", '[{"size": "rar_b", "chips": "h200:8", "fits": true}]'])
def test_a_file_with_other_results_is_refused(tmp_path, text):
    (tmp_path / "analysis.json").write_text(text)
    with pytest.raises(UserError, match="does not hold variants of this table: name another file"):
        next(table.rows(["h200:8"], str(tmp_path / "analysis.json")))
