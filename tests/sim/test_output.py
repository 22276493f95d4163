"""Files are written whole or not at all, and folders are checked before work begins."""

import os

import pytest

from sim import output


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "data.txt"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        output.write_whole(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_replaces_the_old_file(tmp_path):
    path = tmp_path / "data.txt"
    path.write_text("old")
    assert output.write_whole(path, lambda temporary: temporary.write_text("new")) == path
    assert path.read_text() == "new"


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_refuses_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match=r"^out: .*folder"):
        output.prepare_folder(tmp_path)


def test_prepare_makes_folders(tmp_path):
    assert output.prepare_folder(tmp_path / "a" / "b").is_dir()
    assert list((tmp_path / "a" / "b").iterdir()) == []
