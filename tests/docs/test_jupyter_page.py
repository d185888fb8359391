"""docs/howto/jupyter.md: its blocks are the cells of a notebook."""

from __future__ import annotations

import os

import pytest
from folders import ROOT
from test_readme import blocks

pytest.importorskip("ipykernel")
pytest.importorskip("nbclient")

PAGE = ROOT / "docs" / "howto" / "jupyter.md"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_page_is_a_notebook(tmp_path, monkeypatch):
    """In a kernel, cell by cell; the first two twice, as one does. It says who holds the turn."""
    import nbformat
    from nbclient import NotebookClient

    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    cells = [block for _, _, block in blocks(PAGE)]
    cells = [*cells[:2], *cells]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(each) for each in cells])
    NotebookClient(
        notebook, timeout=60, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    shown = [str(each.outputs) for each in notebook.cells]
    assert "'9.0'" in shown[4]  # the sum, of two times ten values
    assert "has written" in shown[6]
    assert "(1, 0.0), (2, 0.1), (3, 0.2)" in shown[8]
