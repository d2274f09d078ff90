from rar_jax.evaluation.intervals import mean_of
from rar_jax.evaluation.tables import table


def test_a_table_aligns_its_columns():
    lines = table([{"order": "random", "fid": mean_of([10.0, 14.0])}, {"order": "spread", "ratio": 1.25}])
    assert lines == ["order   fid      ratio", "random  12 ± 25", "spread           1.250"]


def test_large_numbers_have_no_exponent():
    assert table([{"step": mean_of([10235.0]), "frechet": mean_of([2300.0, 2334.0])}])[1] == "10,235  2,317 \u00b1 216"
