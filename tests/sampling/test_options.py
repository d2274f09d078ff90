import pytest

from rar_jax.errors import UserError
from rar_jax.models.sizes import ModelConfig
from rar_jax.sampling.options import Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scan_order": "zigzag"}, "scan_order='zigzag' must be one of row_major, .*, random"),
        ({"guidance": "square"}, "guidance='square' must be one of pow_cosine, cosine, linear, constant, none"),
        ({"guidance_scale": -3.0}, "guidance_scale=-3.0 must be at least 0"),
        ({"guidance_power": 0.0}, "guidance_power=0.0 must be above 0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": -1}, "top_k=-1 must be at least 0"),
        ({"top_p": 0.0}, "top_p=0.0 must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p=1.5"),
    ],
)
def test_refused(options, message):
    with pytest.raises(UserError, match=message):
        Options(**options)


def test_an_order_that_the_grid_does_not_admit():
    model = ModelConfig(
        grid_side=3,
        codebook_size=4,
        num_classes=2,
        width=4,
        depth=1,
        num_heads=1,
        mlp_width=4,
        dropout=0.0,
        attention_dropout=0.0,
    )
    with pytest.raises(UserError, match="spiral_in"):
        Options(scan_order="spiral_in").traced(model, seed=0)
