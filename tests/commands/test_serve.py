import sys

from running import refusal


def test_without_gradio_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    message = 'the page needs Gradio: install it with pip install -e ".[demo]"'
    assert message in refusal("serve", "--checkpoint=runs/digits")


def test_a_model_must_be_named():
    assert "name a model with --checkpoint=RUN" in refusal("serve")
