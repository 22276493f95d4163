"""Results on disk: an output folder that is known to be writable before anything is computed, and files written whole."""

import json
import math
import os
import platform
import tempfile
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ufm._check import require

if TYPE_CHECKING:
    import xarray as xr  # importing it takes half a second


def prepare_folder(out: str | Path) -> Path:
    """Create the folder if need be and make sure that files can be written in it.

    Raises:
        ValueError: the path is a file, cannot be created, or cannot be written.
    """
    folder = Path(out)
    require(not folder.is_file(), "out", "a folder that can be written", f"the file {str(folder)!r}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".writable-"):
            pass
    except OSError as error:
        require(False, "out", "a folder that can be written", f"{str(folder)!r} ({error.strerror})")
    return folder


def writable_folder(out: str | Path) -> Path:
    """Make sure that `prepare_folder` will succeed, and leave nothing behind: what comes next may yet be refused.

    Raises:
        ValueError: as `prepare_folder`.
    """
    folder = Path(out)
    absent = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        return prepare_folder(folder)
    finally:
        for path in absent:
            with suppress(OSError):  # it was not made, or another process has written in it
                path.rmdir()


def writable_file(path: str | Path, argument: str) -> Path:
    """Make sure that `write_whole` can write a file at `path`, and leave nothing behind.

    Raises:
        ValueError: the path is a folder, or its folder cannot be written; names `argument`.
    """
    file = Path(path)
    empty = " (an empty name means it, too)" if str(file) == "." else ""
    require("\0" not in str(file), argument, "a name without null bytes", repr(str(file)))
    require(not file.is_dir(), argument, "a file to write", f"the folder {str(file)!r}{empty}")
    try:
        writable_folder(_without_links(file).parent)
    except ValueError:
        require(False, argument, "a file in a folder that can be written", repr(str(file)))
    return file


def _without_links(path: Path) -> Path:
    """The file that a path names at last, through symbolic links."""
    return Path(os.path.realpath(path))


def write_json(path: Path, data: object) -> Path:
    """Write JSON, whole."""
    return write_whole(path, lambda temporary: temporary.write_text(json_text(data), encoding="utf-8"))


def json_text(data: object) -> str:
    """The text that `write_json` writes."""
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def finite_or_none(value: Any) -> Any:
    """A value for JSON, which has no NaN and no infinities: None stands for them."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary file beside `path`, then move it into place: readers never see half a file.

    The folder is made if need be. Where `path` is a symbolic link, it stays one, and the file that it names is written.
    """
    place = _without_links(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    # A name may be as long as the system allows: that of the temporary file, which is longer, has a part of it.
    handle, name = tempfile.mkstemp(dir=place.parent, prefix=f".{path.stem[:20]}-", suffix=path.suffix[:20])
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        temporary.replace(place)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def package_version() -> str:
    """The version of this package."""
    return version("ufm-steering")


def versions() -> dict[str, str]:
    """The versions of what computes results, by name."""
    return {
        "ufm-steering": package_version(),
        "jax": jax.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def settings(seed: int, **others: object) -> dict[str, object]:
    """The origin of a result: the seed, the versions, the device, and whatever else is given."""
    return {
        "version": package_version(),
        "seed": seed,
        "jax": jax.__version__,
        "numpy": np.__version__,
        "device": str(jax.devices()[0]),
        **others,
    }


def write_data(path: Path, data: "xr.DataTree", settings: dict[str, Any]) -> Path:
    """Write labelled data as netCDF, whole, with the settings that produced it as attributes."""
    labelled = data.copy()
    labelled.attrs.update({key: str(value) for key, value in settings.items()})
    return write_whole(path, lambda temporary: labelled.to_netcdf(temporary, engine="h5netcdf"))
