"""Checks what the built sdist and wheel contain: `archives.py FOLDER`, from the repository root.

The wheel holds the files of the package and its own metadata, and no tests. The sdist holds what pyproject.toml names.
Both hold the licence and the mark that the package has types.
"""

import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

PACKAGE = "trl_selfdistill"
JUNK = ("__pycache__", ".pyc", ".venv", ".egg-info", ".DS_Store")
ADDED = {"PKG-INFO", ".gitignore"}
"""What hatchling adds to an sdist."""


def package_files() -> set[str]:
    paths = [path for path in Path(PACKAGE).rglob("*") if path.is_file()]
    return {path.as_posix() for path in paths if not any(mark in path.as_posix() for mark in JUNK)}


def wheel_mistakes(names: set[str]) -> list[str]:
    metadata = {name for name in names if name.partition("/")[0].endswith(".dist-info")}
    found, expected = names - metadata, package_files()
    wrong = [f"wheel: {name} is missing" for name in sorted(expected - found)]
    wrong += [f"wheel: {name} does not belong there" for name in sorted(found - expected)]
    if not any(name.endswith("/LICENSE") for name in metadata):
        wrong.append("wheel: the licence is missing")
    return wrong


def sdist_mistakes(names: set[str]) -> list[str]:
    targets = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    named = set(targets["sdist"]["only-include"])
    inside = {name.partition("/")[2] for name in names}
    tops = {name.partition("/")[0] for name in inside}
    wrong = [f"sdist: {name} is missing" for name in sorted((named - tops) | (package_files() - inside))]
    wrong += [f"sdist: {name} does not belong there" for name in sorted(tops - named - ADDED)]
    wrong += [f"sdist: {name} does not belong there" for name in sorted(inside) if any(mark in name for mark in JUNK)]
    return wrong


def main(folder: Path) -> None:
    """Print that all is well, or end the process with a line per mistake."""
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        wrong = wheel_mistakes(set(archive.namelist()))
    with tarfile.open(sdist) as archive:
        wrong += sdist_mistakes({member.name for member in archive.getmembers() if not member.isdir()})
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"{wheel.name} and {sdist.name} hold what they should, and nothing else")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
