"""Pages whose figures come from raw numbers: what stands between `<!-- name -->` and `<!-- /name -->` is generated."""

import re


def filled(page: str, made: dict[str, str]) -> str:
    """The page with each mark's text replaced. Raises `ValueError` where page and numbers have other marks."""
    marks = re.findall(r"<!-- (?!/)(.+?) -->", page)
    if sorted(marks) != sorted(made):
        title = page.partition("\n")[0]
        raise ValueError(f"The page {title!r} has the marks {sorted(marks)}; the numbers make {sorted(made)}.")
    for name, text in made.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        page = f"{page.partition(start)[0]}{start}\n{text}\n{end}{page.partition(end)[2]}"
    return page
