# SPDX-License-Identifier: Apache-2.0
"""benchmarks/scale.py: its fits say what they should, its runs are gone on with."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("milvus_lite")


@pytest.fixture
def scale(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("scale")


def test_a_power_law_is_carried_on(scale: Any) -> None:
    rows = [10**4, 10**5, 10**6]
    assert scale.carry_on(rows, [3 * n**0.5 for n in rows], 10**8) == pytest.approx((3e4, 3e4, 3e4))
    assert not np.isfinite(scale.carry_on(rows[:2], [1.0, 2.0], 10**8)[1])


def test_intervals_hold_what_they_say(scale: Any) -> None:
    """Of laws with noise: 95 % of new measurements lie inside."""
    random, inside, rows = np.random.default_rng(0), 0, [10**4, 10**5, 10**6, 10**7]
    for _ in range(400):
        values = [5 * n**0.7 * random.lognormal(0, 0.2) for n in rows]
        _, low, high = scale.carry_on(rows, values, 10**9)
        inside += low <= 5 * (10**9) ** 0.7 * random.lognormal(0, 0.2) <= high
    assert 0.92 < inside / 400 < 0.98


def test_a_network_adds_round_trips_and_bytes(scale: Any) -> None:
    assert scale.network_ms(2.0, 1.0) == pytest.approx(6 + (1 + 2 * 14) * 2048 * 8 / 1e6)
    assert scale.network_ms(0.0, 10.0, 256) == pytest.approx(256 * scale.network_ms(0.0, 10.0))


def test_the_choice_says_how_sure_it_is(scale: Any) -> None:
    """Intervals of both, and Milvus where it was measured."""
    noise = [1.1, 0.9, 1.05, 0.95]
    rows = [10**4, 10**5, 10**6, 10**7]
    results = [
        {"system": f"folder, {kind}", "rows": n, "one_ms": a * n**0.5 * e}
        for kind, a in (("exact", 1e-2), ("IVF", 1e-3))
        for n, e in zip(rows, noise, strict=True)
    ]
    results += [
        {"system": f"Milvus {name}", "rows": 10**5, "one_ms": ms} for name, ms in (("Lite", 160.0), ("server", 25.5))
    ]
    options = SimpleNamespace(index="IVF", gigabytes=64, round_trip_ms=0.5, gigabits=10.0)
    lines = scale.choice_table(results, [10**5, 10**9], options)
    head, small, large = (dict(enumerate(cell.strip() for cell in lines[i].strip("|").split("|"))) for i in (0, 2, 3))
    assert (head[6], small[6], large[6]) == ("Milvus, measured, ms", "25.5 (server)", "–")
    assert (small[7], large[7]) == ("a folder", "a cluster, or a folder on 2,731 GB")
    for cells, pairs, nodes in ((small, 10**5, 1), (large, 10**9, 43)):
        listed = scale.fitted(results, "folder, IVF", "one_ms", pairs)
        assert cells[3] == scale.interval(listed) and "to" in cells[2] and cells[4] == str(nodes)
        part = scale.fitted(results, "folder, IVF", "one_ms", pairs // nodes)
        value, low, high = (float(text) for text in re.findall(r"[\d.]+", cells[5]))
        assert low < value < high and value == pytest.approx(part[0] + scale.network_ms(0.5, 10.0), rel=5e-3)
        assert high - value == pytest.approx(part[2] - part[0], rel=2e-2)


def test_a_run_is_gone_on_with(
    scale: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scale.json"
    base = ["scale.py", "--out", str(out), "--folder", str(tmp_path), "--indexes", "IVF", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", [*base, "--rows", "600", "900", "1500", "--milvus-rows", "300"])
    monkeypatch.setattr(scale.Stopwatch, "often", lambda self, work: self.once(work))
    scale.main()
    results = json.loads(out.read_text())["results"]
    assert [(r["system"], r["rows"]) for r in results] == [
        *((system, rows) for rows in (600, 900, 1500) for system in ("folder, exact", "folder, IVF")),
        ("Milvus Lite", 300),
    ]
    assert all(r[name] > 0 for r in results for name in ("add_us", "one_ms", "batch_ms", "bytes"))
    first = capsys.readouterr().out
    assert "| folder, IVF | 1,500 |" in first and "| 1,000,000,000 |" in first
    monkeypatch.setattr(scale, "measure_folder", lambda *arguments: 1 / 0)
    monkeypatch.setattr(scale, "measure_milvus", lambda *arguments: 1 / 0)
    scale.main()
    assert capsys.readouterr().out == first


def test_what_an_import_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    cells = importlib.import_module("imports").measure(400).strip("| ").split(" | ")
    assert cells[0] == "400" and len(cells) == 4
    ours, theirs, clock = (float(cell.replace(",", "")) for cell in cells[1:])
    assert min(ours, theirs, clock) > 0
