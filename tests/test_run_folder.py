import pytest

from rar_jax.run_folder import check_folder, read_config, write_config


def test_config_round_trip(small_config, tmp_path):
    config = small_config()
    write_config(tmp_path / "new" / "run", config)
    assert read_config(tmp_path / "new" / "run") == config


def test_no_config_and_a_garbled_one(tmp_path):
    with pytest.raises(ValueError, match=r"no run in .*it has no config\.json"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: "):
        read_config(tmp_path)


@pytest.mark.parametrize("below", ["", "run", "a/b"])
def test_a_file_where_a_folder_should_be(tmp_path, below):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"--out=.*: .*file is a file, not a folder"):
        check_folder("out", tmp_path / "file" / below)
    check_folder("out", tmp_path / "not" / "there")
