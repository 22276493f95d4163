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


def test_a_folder_that_is_only_asked_about_is_not_made(tmp_path):
    assert output.writable_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert output.writable_file(tmp_path / "c" / "d.json", "json") == tmp_path / "c" / "d.json"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "kept").mkdir()
    output.writable_folder(tmp_path / "kept" / "e")
    assert list(tmp_path.iterdir()) == [tmp_path / "kept"]
    output.write_json(tmp_path / "c" / "d.json", {})
    assert (tmp_path / "c" / "d.json").read_text() == "{}\n"


def test_a_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"^out: expected a folder that can be written, got .*file/a"):
        output.writable_folder(tmp_path / "file" / "a")
    with pytest.raises(ValueError, match=r"^json: expected a file in a folder that can be written"):
        output.writable_file(tmp_path / "file" / "a.json", "json")


def test_what_is_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"^out: expected a folder that can be written, got the file "):
        output.prepare_folder(tmp_path / "file")
    with pytest.raises(ValueError, match=r"got the folder '\.' \(an empty name means it, too\)$"):
        output.writable_file("", "json")
