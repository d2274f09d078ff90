"""The README and the pages in docs/ name only files, commands and config fields that exist."""

import re

import pytest
from conftest import ROOT

from rar_jax.config import Config
from rar_jax.schema import field_paths
from rar_jax.tokenizer_config import TokenizerConfig

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# config.json and config.py are files, not fields.
FILE_ENDINGS = {"json", "py"}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def anchors(page):
    """Returns the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 160


def test_readme_links_to_every_page():
    text = (ROOT / "README.md").read_text()
    assert [page.name for page in PAGES[1:] if f"](docs/{page.name})" not in text] == []


@each_page
def test_links_and_images_exist(page):
    targets = re.findall(r"\]\(([^)]+)\)", page.read_text())
    broken = []
    for target in targets:
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


@each_page
def test_commands_exist(page):
    named = re.findall(r"python -m rar_jax ([a-z_]+)|TPU_COMMAND=([a-z_]+)", page.read_text())
    commands = {first or second for first, second in named}
    assert [name for name in sorted(commands) if not (ROOT / "rar_jax/commands" / f"{name}.py").exists()] == []


@each_page
def test_modules_that_are_run_exist(page):
    modules = re.findall(r"python -m (rar_jax\.[a-z_.]+)", page.read_text())
    assert [name for name in modules if not (ROOT / f"{name.replace('.', '/')}.py").exists()] == []


@each_page
def test_config_fields_exist(page):
    named = set(re.findall(r"(?<![\w.])config\.([a-z0-9_]+(?:\.[a-z0-9_]+)*)", page.read_text())) - FILE_ENDINGS
    assert sorted(named - {*field_paths(Config), *field_paths(TokenizerConfig)}) == []


@each_page
def test_files_of_the_project_exist(page):
    named = re.findall(r"(?<![\w./\-])((?:configs|launch|rar_jax|tests|docs)/[\w./\-]+)", page.read_text())
    # A sentence may end with a file's name.
    files = {name.rstrip(".") for name in named} - {"configs/NAME.py"}
    assert [name for name in sorted(files) if not (ROOT / name).exists()] == []
