"""The TRL versions this package is tested on. Unknown ones are refused at import: TRL's private seams move."""

from importlib.metadata import version

from packaging.specifiers import SpecifierSet

SUPPORTED_TRL = ">=1.15,<1.17"


class UnsupportedTRLError(ImportError, ValueError):
    """The installed TRL is outside the tested range."""


def check_trl(installed: str | None = None) -> None:
    """Raise `UnsupportedTRLError` unless `installed` (default: the TRL that is installed) is in `SUPPORTED_TRL`."""
    installed = installed or version("trl")
    if not SpecifierSet(SUPPORTED_TRL).contains(installed, prereleases=True):
        raise UnsupportedTRLError(
            f"trl_selfdistill supports trl{SUPPORTED_TRL}, but trl {installed} is installed. "
            f'Install a supported version: pip install "trl{SUPPORTED_TRL}"'
        )
