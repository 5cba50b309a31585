# SPDX-License-Identifier: Apache-2.0
"""The notebooks run from a clean kernel, keep the outputs of their own sources, and show what they say."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples/notebooks"
NAMES = ("1_quick_start", "2_your_own_data", "3_inside_reco")

# What must hold at the end, asked for in the notebook's own kernel.
CHECKS = {
    "1_quick_start": """
assert len(set(ten)) == 10 and set(roles[ten]) == {"unseen"}
assert accuracy(after, roles == "fusion") > accuracy(before, roles == "fusion") + 30  # known to the memory alone
assert accuracy(after, ten) <= 10 < accuracy(taught, ten)  # nothing was known of the ten, some were learnt
assert taught[gone] == gone != forgot[gone] and forgot[gone] == after[gone]  # learnt, forgotten, as before
assert np.array_equal(forgot[ten[ten != gone]], taught[ten[ten != gone]])  # the other nine stayed
assert abs(accuracy(taught, others) - accuracy(after, others)) < 2
assert key not in memory and len(memory) == len(first)
assert np.array_equal(answers(model), after)  # all was forgotten at the end
assert np.mean(counts["one"]) >= 2 and np.mean(counts["up to five"]) > np.mean(counts["one"])
""",
    "2_your_own_data": """
for name, evaluation in again.items():
    assert evaluation.gain.intervals["acc1"][0] > 0, name  # better than CLIP, whatever the fusion
    assert evaluation.reco.metrics["acc1"] > found[name].reco.metrics["acc1"], name  # more pairs, more right
new = PARTS["new to CLIP,\\nto come"]
assert hits(found["gated, trained"], new).mean() == 0 < hits(again["gated, trained"], new).mean()
assert found["mean, tuned"].counts["classes"] == len(concepts) and len(memory) == len(remembered)
accuracies = [float(line["validation_accuracy"]) for line in curve]
best, chosen = max(accuracies), accuracies[fusions["gated, trained"].provenance["best_epoch"]]
held_out = len(set(concept_of)) // 10  # concepts, of one row at least
assert chosen >= best - (best * (1 - best) / held_out) ** 0.5  # as good as the best, as far as chance can tell
stored = reco.Fusion.load("fusion.safetensors")
assert evaluate(stored).reco.metrics == again["gated, trained"].reco.metrics
""",
    "3_inside_reco": """
assert all(values["gated"] > values["mean"] for values in by_share[1:])  # where captions are wrong, it knows better
confidence = [values.mean() for values in confidences]
assert confidence[0] > confidence[1] > 0.5 > confidence[2]
for name, out in made.items():
    assert np.all(out["attention"] >= 0) and np.all(out["attention"].sum(axis=1) < 1 + 1e-4), name
assert plain[0] < 5 and noise["mean"][0][0] > plain[0] + 30 and noise["gated"][0][0] > plain[0] + 30
assert noise["mean"][-1][1] < 5 and noise["gated"][-1][1] > plain[1] / 2  # all wrong: the mean falls, the gate holds
assert size["gated"][0][1] > plain[1] - 5 > size["mean"][0][1]  # next to no memory: likewise
assert size["gated"][-1] == noise["gated"][0] and size["mean"][-1] == noise["mean"][0]  # the whole memory, twice
""",
}


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """examples/notebooks/execute.py"""
    spec = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(name: str) -> Any:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def kinds(notebook: Any) -> list[list[tuple[str, ...]]]:
    """What sort of outputs each cell has."""
    cells = [cell.get("outputs", []) for cell in notebook.cells]
    return [[(o.output_type, *sorted(o.get("data", {}))) for o in outputs] for outputs in cells]


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_from_a_clean_kernel(tool: ModuleType, name: str) -> None:
    committed = read(name)
    asked = nbformat.from_dict(committed)
    asked.cells = [*asked.cells, nbformat.v4.new_code_cell(CHECKS[name])]
    before = sorted(FOLDER.iterdir())
    fresh = tool.execute(asked, ROOT / "tests")  # any folder of the repository will do
    assert kinds(fresh)[:-1] == kinds(committed)
    assert tool.local_paths(fresh) == []
    assert sorted(FOLDER.iterdir()) == before


@pytest.mark.parametrize("name", NAMES)
def test_committed_outputs_are_of_these_sources(tool: ModuleType, name: str) -> None:
    notebook = read(name)
    nbformat.validate(notebook)
    assert notebook.metadata["reco"]["sources"] == tool.digest(notebook), "run examples/notebooks/execute.py"
    assert tool.normalise(notebook) == notebook
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(
        output.output_type == "error" or output.get("name") == "stderr" for c in code for output in c.outputs
    )
    assert tool.local_paths(notebook) == []
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 1_000_000


@pytest.mark.parametrize("name", NAMES)
def test_results_stand_in_outputs_alone(name: str) -> None:
    prose = [cell.source for cell in read(name).cells if cell.cell_type == "markdown"]
    assert not re.search(r"\d\s*%|\d\.\d", "\n".join(prose))


def test_all_are_here(tool: ModuleType) -> None:
    assert [path.stem for path in tool.notebooks()] == list(NAMES)
    listed = re.findall(r"\]\((\w+)\.ipynb\)", (FOLDER / "README.md").read_text("utf-8"))
    assert listed == list(NAMES)


def test_the_explanation_is_displayed() -> None:
    pages = [o.data["text/html"] for c in read(NAMES[0]).cells for o in c.get("outputs", []) if "text/html" in str(o)]
    assert len(pages) == 1
    assert pages[0].count("data:image/webp;base64,") == 6  # the query and its five neighbours


def test_outputs_do_not_depend_on_the_run(tool: ModuleType) -> None:
    """Times, random names and front ends' marks are left behind; changed sources are noticed."""
    cell = nbformat.v4.new_code_cell("print('a')\nprint('b')\n1 + 1")
    cell.metadata = {"collapsed": True, "tags": ["x"]}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# T"), cell])
    first, second = (tool.execute(notebook, ROOT) for _ in range(2))
    assert nbformat.writes(first) == nbformat.writes(second)
    assert [o.get("text") or o.data["text/plain"] for o in first.cells[1].outputs] == ["a\nb\n", "2"]
    assert notebook.cells[1].outputs == []  # the given one stays
    first.cells[1].source += " "
    assert first.metadata["reco"]["sources"] != tool.digest(first)


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("written to /tmp/x/y.html", ["/tmp/x/y.html"]),
        ("<img src='/var/tmp/a.png'>", ["/var/tmp/a.png"]),
        ("mine.reco, 2.9 MiB; a/tmp/b, https://example.org/home/x, 3 /5", []),
    ],
)
def test_local_paths_are_found(tool: ModuleType, text: str, paths: list[str]) -> None:
    output = nbformat.v4.new_output("stream", text=text)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("", outputs=[output])])
    assert tool.local_paths(notebook) == paths
