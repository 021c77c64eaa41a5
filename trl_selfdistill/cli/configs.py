"""The Accelerate configurations of the package: `trl-selfdistill configs [NAME]`."""

from pathlib import Path

from trl_selfdistill.cli.errors import UserError
from trl_selfdistill.context.inputs import did_you_mean

FOLDER = Path(__file__).parent / "accelerate_configs"


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def config_path(name: str) -> Path:
    """The file that `--accelerate_config NAME` means: a path, or the name of one of ours.

    Raises `UserError` where it is neither.
    """
    if Path(name).is_file():
        return Path(name)
    if name not in names():
        near = did_you_mean(name, names())
        raise UserError(f"--accelerate_config {name!r} is neither a file nor one of {', '.join(names())}.{near}")
    return FOLDER / f"{name}.yaml"


def purpose(path: Path) -> str:
    """The first line of a configuration's comment."""
    return path.read_text().partition("\n")[0].removeprefix("# ")


def main(argv: list[str]) -> int:
    """Print the path of the configuration `argv[0]`, or all names with what they are for."""
    if len(argv) > 1 or (argv and argv[0].startswith("-")):
        raise UserError("usage: trl-selfdistill configs [NAME]")
    if argv:
        print(config_path(argv[0]))
        return 0
    for name in names():
        print(f"{name:18} {purpose(FOLDER / f'{name}.yaml')}")
    return 0
