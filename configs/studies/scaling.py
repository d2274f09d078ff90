"""Figure 4 of the paper: four sizes, with the ratios of RAR-B, RAR-L, RAR-XL and RAR-XXL."""

from rar_jax.schema import config_beside
from rar_jax.studies.plan import Row, Study

# Width, depth and hidden width of the MLP: those of the paper divided by 32, 8 and 32.
SIZES = {"B / 32": (24, 3, 96), "L / 32": (32, 3, 128), "XL / 32": (40, 4, 160), "XXL / 32": (44, 5, 192)}
PAPER = {"B / 32": 1.95, "L / 32": 1.70, "XL / 32": 1.50, "XXL / 32": 1.48}


def get_study():
    base = config_beside(__file__, "../digits_long.py")
    base.eval.update(score_every=1780, score_images=500)
    rows = [
        Row(label, {"model.width": width, "model.depth": depth, "model.mlp_width": mlp_width}, paper=PAPER[label])
        for label, (width, depth, mlp_width) in SIZES.items()
    ]
    return Study(
        base,
        rows,
        title="Sizes of the network on the digits (Figure 4 of the paper; Table 4 has the FIDs)",
        seeds=3,
    )
