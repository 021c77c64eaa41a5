"""`trl-selfdistill report RUN_DIR`: what the teacher said, as one HTML file."""

import argparse
from pathlib import Path

from trl_selfdistill.cli.errors import UserError, as_user_errors


def main(argv: list[str]) -> int:
    """Write the report, and say where it is."""
    parser = argparse.ArgumentParser(
        prog="trl-selfdistill report",
        description="Writes one HTML file that shows what the teacher said of each recorded token. It loads nothing.",
    )
    parser.add_argument("run", nargs="+", type=Path, help="the output_dir of a run; two are shown side by side")
    parser.add_argument("--output", type=Path, help="the file; default: report.html in the first folder")
    parser.add_argument("--png", action="store_true", help="also pictures, in a folder beside the file")
    options = parser.parse_args(argv)
    if len(options.run) > 2:
        raise UserError("a report shows one run or two: trl-selfdistill report RUN_A RUN_B")
    file = options.output or options.run[0] / "report.html"
    with as_user_errors():
        from trl_selfdistill.record.report import write_report

        size = write_report(options.run, file)
        print(f"{file} ({size / 1e6:.2f} MB)")
        if options.png:
            from trl_selfdistill.record.report_png import write_pictures

            for picture in write_pictures(options.run, file.with_suffix("")):
                print(picture)
    return 0
