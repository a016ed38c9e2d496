"""The notebook runs from top to bottom, its assertions hold, and it is kept without output."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOK = Path(__file__).parent.parent / "examples" / "notebook.ipynb"


def test_notebook(tmp_path, monkeypatch):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) == 6 and not any(cell.outputs or cell.execution_count for cell in code)
    for cell in code:
        cell.source = cell.source.replace("STEPS = 20_000", "STEPS = 1").replace("Path.cwd()", f"Path({str(NOTEBOOK)!r})")
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parent.parent))
    client = nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    assert (tmp_path / "strip.png").stat().st_size > 5000 and (tmp_path / "read_out.png").stat().st_size > 5000
    pictures = [output for cell in code for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 2
