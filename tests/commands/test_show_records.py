import pytest
from running import refusal


# test_train.py tests that records are drawn as images.
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
