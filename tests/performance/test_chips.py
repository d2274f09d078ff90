from rar_jax.performance.chips import CHIPS


def test_data_sheets_use_the_same_units():
    """The ratios of a chip's rates have the same order of magnitude: links in one direction, dense products."""
    for name, chip in CHIPS.items():
        assert 100 < chip.flop_rate / chip.bandwidth < 600, name
        assert 500 < chip.flop_rate / chip.link_rate < 3000, name
