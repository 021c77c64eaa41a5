"""`python -m trl_selfdistill` is `trl-selfdistill`."""

from trl_selfdistill.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
