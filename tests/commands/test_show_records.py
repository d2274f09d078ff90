import pytest
from running import refusal


# That records become pictures is seen in test_train.py, at the end of the way from images to a run.
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokenizer=digits"], "name a folder of records with --records"),
        (["--records=nothing", "--output=out", "--tokenizer=digits"], "--output=out must be a .png file"),
        (["--records=nothing", "--tokenizer=digits", "--image_size=8"], "nothing"),
    ],
)
def test_mistakes_with_show_records(arguments, message):
    assert message in refusal("show_records", *arguments)
