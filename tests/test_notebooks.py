"""The notebooks run from top to bottom, at their fast size, and are kept as they are meant to be."""

import re
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
COLAB = "https://colab.research.google.com/github/online-grads/online_grads/blob/main/notebooks/"

notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 4


@notebooks
def test_runs_and_draws(path, tmp_path, monkeypatch):
    monkeypatch.setenv("ONLINE_GRADS_FAST", "1")
    # this checkout, so that nothing is ever installed
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(path, as_version=4)
    place = {"metadata": {"path": str(tmp_path)}}
    # a cell that raises makes it raise
    nbclient.NotebookClient(notebook, kernel_name="python3", timeout=120, resources=place).execute()
    kinds = {kind for cell in code(notebook) for output in cell.outputs for kind in output.get("data", {})}
    assert "image/png" in kinds


@notebooks
def test_is_kept_bare(path):
    text = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert all(not cell.metadata for cell in notebook.cells)
    assert all(not cell.outputs and cell.execution_count is None for cell in code(notebook))
    assert text == nbformat.writes(notebook) + "\n"


@notebooks
def test_opens_in_colab_and_installs_what_is_missing(path):
    title, install = nbformat.read(path, as_version=4).cells[:2]
    assert title.source.startswith("# ")
    assert re.findall(r"\]\((https://colab[^)]*/github/[^)]*)\)", title.source) == [COLAB + path.name]
    installing = [line for line in install.source.splitlines() if "pip install" in line]
    assert installing
    # a dependency could replace the JAX that is there
    assert all(" --no-deps " in line and "jax" not in line for line in installing)


@notebooks
def test_links_lead_to_files(path):
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"\]\((\d\d_\w+\.ipynb)\)", text):
        assert (path.parent / name).is_file()
    for name in re.findall(r"online_grads/blob/main/([\w./]+)\)", text):
        assert (ROOT / name).is_file()


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]
