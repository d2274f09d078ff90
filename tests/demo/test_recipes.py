from rar_jax.demo.recipes import Model, fill_recipe, sample_recipe

MODEL = Model("my runs/rar", 7, None)


def test_values_are_quoted_and_flags_that_were_not_given_are_left_out():
    command, program = sample_recipe(MODEL, ["3", "5"], [3, 5, 3], 1, {"scan_order": "random"})
    flags, out = command.rsplit(" --out=", 1)
    assert flags == (
        "python -m rar_jax sample '--checkpoint=my runs/rar' --step=7 --classes=3,5 --num=3 --png=True --seed=1 "
        "--scan_order=random"
    )
    assert program.endswith(
        "generator = load('my runs/rar', step=7)\nimages = generator.generate([3, 5, 3], seed=1, scan_order='random')"
    )
    # Other images go into another folder, and the same ones into the same.
    outs = [sample_recipe(MODEL, ["3", "5"], [3, 5, 3], seed, {"scan_order": "random"})[0] for seed in (1, 2)]
    assert [each.endswith(f" --out={out}") for each in outs] == [True, False]


def test_a_filling_names_its_files():
    command, _ = fill_recipe(MODEL._replace(step=None), "4", 4, 2, 0, {})
    assert command == (
        "python -m rar_jax edit '--checkpoint=my runs/rar' --images=canvas.png --mask=mask.png --classes=4 "
        "--results=2 --seed=0"
    )
