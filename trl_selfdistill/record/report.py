"""The report of a run, or of two: one HTML file that loads nothing from elsewhere, and pictures."""

from pathlib import Path

from trl_selfdistill.record.report_data import Run, as_script, read_run, report_data

HERE = Path(__file__).parent
LARGEST = 5_000_000
EXTRA = "The report needs {name}, which is not installed: pip install 'trl-selfdistill[report]'"


def write_report(folders: list[Path], file: Path) -> int:
    """Write the report of the runs in `folders` to `file`; its size in bytes.

    Raises `ValueError` for a folder without records, `ImportError` where jinja2 is missing.
    """
    page = page_of([read_run(folder) for folder in folders]).encode()
    if len(page) > LARGEST:
        raise ValueError(
            f"The report would have {len(page) / 1e6:.1f} MB: prompts and contexts are that long. Move a part of "
            "the files in token_signals to another place, or record fewer completions (log_token_signals)."
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(page)
    return len(page)


def page_of(runs: list[Run]) -> str:
    """The whole HTML page. What comes from a run is escaped: the title by the template, all else by `as_script`."""
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise ImportError(EXTRA.format(name="jinja2")) from error
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined)
    title = " and ".join(dict.fromkeys(run.name for run in runs))
    subject = "What the teacher said" if any(run.asks_teacher for run in runs) else "What the algorithm did"
    page = environment.get_template("report.html")
    return page.render(title=title, subject=subject, data=as_script(report_data(runs)))
