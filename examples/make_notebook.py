"""Make the notebook of an example script, so that the two cannot disagree.

    python examples/make_notebook.py              # writes examples/rlrt_qlora.ipynb

The script is in the "percent" format: a line `# %%` begins a cell of code, `# %% [markdown]` one of text. A comment
that begins with `# %` is a command of the notebook, such as `%pip`, which a script cannot run.
"""

import re
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

SCRIPT = Path(__file__).with_name("rlrt_qlora.py")
_HEAD = re.compile(r"^# %%(?P<text> \[markdown\])?(?: tags=\[(?P<tags>[^]]*)\])?$", re.MULTILINE)
KERNEL = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}


def cells_of(script: str) -> list[nbformat.NotebookNode]:
    """The cells of a script in the percent format."""
    heads = list(_HEAD.finditer(script))
    ends = [head.start() for head in heads[1:]] + [len(script)]
    cells = []
    for number, (head, end) in enumerate(zip(heads, ends, strict=True)):
        body = script[head.end() : end].strip("\n")
        if head["text"]:
            body = re.sub(r"^# ?", "", body, flags=re.MULTILINE)
        else:
            body = re.sub(r"^# (%\w)", r"\1", body, flags=re.MULTILINE)
        tags = [tag.strip('" ') for tag in (head["tags"] or "").split(",") if tag]
        make = new_markdown_cell if head["text"] else new_code_cell
        cells.append(make(body, id=f"cell-{number}", metadata={"tags": tags} if tags else {}))
    return cells


def notebook_of(script: Path) -> str:
    """The notebook as text, without outputs."""
    notebook = new_notebook(cells=cells_of(script.read_text()), metadata=KERNEL)
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


if __name__ == "__main__":
    SCRIPT.with_suffix(".ipynb").write_text(notebook_of(SCRIPT))
