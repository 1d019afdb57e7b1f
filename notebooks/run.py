"""Run the notebooks and store what they show, without what is written to stderr.

python notebooks/run.py [NOTEBOOK ...]
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent

for path in map(Path, sys.argv[1:] or sorted(HERE.glob("*.ipynb"))):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": HERE}}).execute()
    for cell in notebook.cells:
        cell.metadata.clear()  # when it was run
        cell.outputs = [each for each in cell.get("outputs", []) if each.get("name") != "stderr"]
        if cell.cell_type != "code":
            del cell["outputs"]
    nbformat.write(notebook, path)
    print(path.name)
