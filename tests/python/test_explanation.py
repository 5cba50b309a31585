# SPDX-License-Identifier: Apache-2.0
"""What an explanation says, and what it looks like as text, JSON, HTML and a figure."""

from __future__ import annotations

import io
import json
import pickle
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import reco
from reco.cli import main
from reco.datasets import Sample, read_samples
from reco.embedding import add_samples
from reco.pictures import find_pictures, thumbnail

ROOT = Path(__file__).parents[2]
CLIP = ROOT / "examples/icons/clip"
DATA = ROOT / "examples/icons/data"


@pytest.fixture(scope="module")
def clip() -> reco.Clip:
    return reco.Clip.load(CLIP)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawings of the first twenty concepts as files, with captions beside them."""
    folder = tmp_path_factory.mktemp("pictures")
    drawn = list(read_samples(sorted(DATA.glob("memory-*"))[0]))
    concepts = list(dict.fromkeys(s.metadata["concept"] for s in drawn))[:20]
    for sample in drawn:
        if sample.metadata["concept"] in concepts:
            (folder / f"{sample.key}.webp").write_bytes(sample.image)
            (folder / f"{sample.key}.txt").write_text(sample.caption)
    return folder


@pytest.fixture(scope="module")
def samples(folder: Path) -> list[Sample]:
    return list(read_samples(folder))


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory, clip: reco.Clip, folder: Path) -> reco.Memory:
    memory = reco.Memory.create(tmp_path_factory.mktemp("m") / "icons.reco", dim=clip.dim, encoder=clip.fingerprint)
    add_samples(memory, clip, read_samples(folder), progress=False)
    return memory


def model_of(clip: reco.Clip, memory: reco.Memory, k: int = 5, **config: Any) -> reco.Model:
    return reco.Model(clip, memory, reco.Fusion.create(reco.FusionConfig(dim=clip.dim, k=k, **config), seed=1), k=k)


@pytest.fixture(scope="module")
def model(clip: reco.Clip, memory: reco.Memory) -> reco.Model:
    return reco.Model(clip, memory, reco.Fusion.mean(clip.dim, 4, 10, 4, 10), k=5)


def test_it_says_what_the_model_does(model: reco.Model, samples: list[Sample]) -> None:
    names = sorted({s.caption for s in samples})
    image = samples[3].image
    e = model.explain(image, classes=names, templates=["{}", "an icon of {}"])
    found = model.memory.search(model.clip.encode_images([image]), k=5)
    assert e.keys == found.keys[0] and e.captions == found.captions[0]
    assert e.metadata == found.metadata[0]
    np.testing.assert_allclose(e.scores, found.scores[0], atol=1e-6)
    np.testing.assert_allclose(e.attention.sum(), 1, atol=1e-5)
    np.testing.assert_allclose(e.refined, model.encode_images([image])[0], atol=1e-6)
    np.testing.assert_allclose(e.original, model.clip.encode_images([image])[0], atol=1e-6)
    for encoder, image_side, scores in ((model.clip, e.original, e.before), (model, e.refined, e.after)):
        classifier = reco.zero_shot(encoder, names, ["{}", "an icon of {}"])
        np.testing.assert_allclose(scores, classifier.embeddings @ image_side, atol=1e-5)
    assert e.confidence is None and e.gate == pytest.approx(4)  # a mean does not judge
    assert e.moved == pytest.approx(float(e.original @ e.refined))
    best = e.ranking()[0]
    assert best[0] == names[int(e.after.argmax())] and best[2] == pytest.approx(float(e.after.max()))
    assert e.answers == (names[int(e.before.argmax())], best[0])
    said = f"CLIP says {e.answers[0]}, reco says {best[0]}"
    assert samples[3].key in repr(e) and said in repr(e)
    assert model.explain(image).answers is None


def test_classes_may_be_an_array(model: reco.Model, samples: list[Sample]) -> None:
    names = ["bear", "lion"]
    array = model.explain(samples[0].image, classes=np.array(names))
    assert array.to_dict() == model.explain(samples[0].image, classes=names).to_dict()
    assert all(type(name) is str for name in array.classnames)
    assert model.explain(samples[0].image, classes=np.array([])).classnames == []


def test_a_text(model: reco.Model, samples: list[Sample]) -> None:
    e = model.explain(text=samples[3].caption, classes=["bear", "lion"])
    assert e.modality == "text" and e.query == e.captions[0] == samples[3].caption and e.picture is None
    assert samples[3].caption in e.to_html()
    e.plot().savefig(io.BytesIO(), format="png")


def test_methods_and_modes(clip: reco.Clip, memory: reco.Memory, samples: list[Sample]) -> None:
    """A gate has a confidence; both sides of a neighbour are one neighbour with their attention together."""
    assert model_of(clip, memory).explain(samples[0].image).confidence is not None
    both = model_of(clip, memory, method="transformer", fuse="both").explain(samples[0].image)
    assert len(set(both.keys)) == len(both.keys) == len(both.attention) == 5
    found = memory.search(both.original[None], k=5)
    own = memory.search(both.original[None], k=5, modality="image")
    assert both.keys == found.keys[0] == own.keys[0]
    assert 0 < both.attention.sum() < 1  # the rest is the query's own


def test_fewer_pairs_than_asked_for(tmp_path: Path, clip: reco.Clip, samples: list[Sample]) -> None:
    memory = reco.Memory.create(tmp_path / "m", dim=clip.dim)
    model = reco.Model(clip, memory, reco.Fusion.mean(clip.dim), k=5)
    empty = model.explain(samples[0].image)
    assert empty.keys == [] and empty.moved == pytest.approx(1, abs=1e-5)
    assert "nothing" in empty.to_html()
    empty.plot()
    embedding = clip.encode_images([samples[0].image])
    memory.add(embedding, embedding, ["a"])
    lone = model.explain(samples[0].image)
    assert (lone.keys, lone.captions, lone.metadata) == (["a"], [""], [{}])
    assert "no picture at hand" in lone.to_html() and "(no caption)" in lone.to_html()


@pytest.mark.parametrize("kind", ["path", "str", "bytes", "array", "pil"])
def test_every_kind_of_image(model: reco.Model, samples: list[Sample], kind: str) -> None:
    file = Path(samples[2].image)
    kinds: dict[str, Any] = {"path": file, "str": str(file), "bytes": file.read_bytes()}
    kinds |= {"array": reco.read_image(file), "pil": Image.open(file)}
    e = model.explain(kinds[kind])
    assert e.keys[0] == samples[2].key
    assert e.query == (str(file) if kind in ("path", "str") else "")
    assert e.picture is not None and max(Image.open(io.BytesIO(e.picture)).size) <= 128


def test_wrong_use(model: reco.Model, tmp_path: Path) -> None:
    for arguments in ({}, {"image": "a.png", "text": "b"}):
        with pytest.raises(reco.Error, match="expected an image or a text, and not both"):
            model.explain(**arguments)
    with pytest.raises(reco.Error, match=r"absent\.png"):
        model.explain(tmp_path / "absent.png")


class Page(HTMLParser):
    """Tags that are open, addresses that are used."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [str(value) for name, value in attrs if name in ("src", "href", "data")]
        self.scripts += tag == "script"
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_stands_alone(model: reco.Model, samples: list[Sample], tmp_path: Path) -> None:
    e = model.explain(samples[0].image, classes=["<b>bear</b>", "lion"])
    e.save_html(tmp_path / "why.html")
    page = Page()
    page.feed((tmp_path / "why.html").read_text("utf-8"))
    assert page.open == [] and page.scripts == 0
    assert len(page.addresses) == 6 and all(a.startswith("data:image/webp;base64,") for a in page.addresses)
    assert "&lt;b&gt;bear&lt;/b&gt;" in e.to_html() and "<b>bear" not in e.to_html()
    assert e._repr_html_() in e.to_html()
    assert f"<h1>What reco looked up for {Path(samples[0].image).name}</h1>" in e.to_html()
    assert "<h1>" not in e._repr_html_()  # a notebook has its own


def test_the_layout_survives_without_the_style_sheet(model: reco.Model, samples: list[Sample]) -> None:
    """Notebooks drop <style> from outputs that they do not trust, and keep style="...". Every neighbour has a bar."""
    e = model.explain(samples[0].image, classes=["bear", "lion"])
    bare = re.sub("<style>.*?</style>", "", e._repr_html_(), flags=re.DOTALL)
    assert bare.count('<li style="display:inline-block') == len(e.keys) == 5
    widths = [float(w) for w in re.findall(r'<div style="height:6px;[^"]*width:([\d.]+)%"></div>', bare)]
    assert len(widths) == 2 * 2 + 5
    np.testing.assert_allclose(widths[4:], 100 * e.attention, atol=0.06)


def test_long_texts_are_cut_where_they_are_shown(tmp_path: Path, clip: reco.Clip, samples: list[Sample]) -> None:
    """Alt texts are long, addresses are one long word; the whole of it stays at hand."""
    caption, address, query = (
        "a caption of many words " * 20,
        "https://example.org/" + "a/b" * 60,
        "a long question " * 20,
    )
    memory = reco.Memory.create(tmp_path / "m", dim=clip.dim)
    embeddings = clip.encode_images([s.image for s in samples[:2]])
    memory.add(embeddings, embeddings, ["a", "b"], [caption, address])
    e = reco.Model(clip, memory, reco.Fusion.mean(clip.dim)).explain(text=query)
    for text in (caption, address):
        assert f"<b>{text[:79]}…</b>" in e.to_html() and f'title="{text}"' in e.to_html()
    assert len(re.findall("<h1>(.*)</h1>", e.to_html())[0]) == 100
    titles = [axes.get_title().splitlines()[0] for axes in e.plot().axes if "similarity" in axes.get_title()]
    assert sorted(titles) == sorted(["a caption of many words…", "https://example.org/a/b…"])


def test_hostile_words_stay_words(tmp_path: Path, clip: reco.Clip, samples: list[Sample]) -> None:
    script = '<script>alert("x")</script>'
    memory = reco.Memory.create(tmp_path / "m", dim=clip.dim)
    embedding = clip.encode_images([samples[0].image])
    memory.add(embedding, embedding, [script], [script], [{"image_path": script}])
    html = reco.Model(clip, memory, reco.Fusion.mean(clip.dim)).explain(text=script, classes=[script]).to_html()
    assert "<script" not in html and "&lt;script" in html


def test_json_and_pickle(model: reco.Model, samples: list[Sample]) -> None:
    e = model.explain(samples[0].image, classes=["bear", "lion"])
    facts = json.loads(e.to_json())
    assert facts == e.to_dict() and facts["neighbors"][0]["key"] == e.keys[0]
    assert [c["name"] for c in facts["classes"]] == ["bear", "lion"]
    assert "original" not in facts and len(e.to_dict(embeddings=True)["refined"]) == model.clip.dim
    again = pickle.loads(pickle.dumps(e))
    assert again.to_dict(embeddings=True) == e.to_dict(embeddings=True) and again.to_html() == e.to_html()


def test_the_figure_shows_every_picture(model: reco.Model, samples: list[Sample]) -> None:
    figure = model.explain(samples[0].image, classes=["bear", "lion"]).plot()
    assert sum(len(axes.images) for axes in figure.axes) == 6  # the query and five neighbours
    assert any(label.get_text() == "bear" for axes in figure.axes for label in axes.get_yticklabels())
    found = model.explain(samples[0].image, classes=["bear", "lion"])
    assert found.answers
    assert figure.axes[0].get_title() == "CLIP: {}\nreco: {}".format(*found.answers)
    assert figure.axes[0].get_xlabel() == f"gate {found.gate:.2f}"


def test_pictures_are_found_where_they_lie(tmp_path: Path, samples: list[Sample]) -> None:
    shard = sorted(DATA.glob("queries-*"))[0]
    inside = [s.metadata["image_path"] for s in list(read_samples(shard))[:3]]
    (tmp_path / "broken.png").write_bytes(b"no picture")
    paths = [*inside, str(samples[0].image), "", "/absent/x.png", str(tmp_path / "broken.png"), "a\0b", str(tmp_path)]
    paths += ["https://example.org/x.png", f"{shard}/absent.webp", "x" * 5000]
    found = find_pictures([{"image_path": path} for path in paths] + [None, {}])
    assert [picture is not None for picture in found] == [True] * 4 + [False] * 10
    whole = np.zeros((300, 100, 3), np.uint8)
    assert Image.open(io.BytesIO(thumbnail(whole, 60))).size == (20, 60)


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_command(tmp_path: Path, model: reco.Model, samples: list[Sample]) -> None:
    model.fusion.save(tmp_path / "f.safetensors")
    assert isinstance(model.memory, reco.Memory)
    path = model.memory.info()["path"]
    where = ("--model", CLIP, "--memory", path, "--fusion", tmp_path / "f.safetensors", "--k", 5)
    (tmp_path / "names.txt").write_text("bear\n\n lion \n")
    out, png = tmp_path / "out.html", tmp_path / "out.png"
    asked = ("--classes", tmp_path / "names.txt", "--class", "fox", "--html", out, "--plot", png, "--json")
    result = run("explain", samples[0].image, *where, *asked)
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert [c["name"] for c in facts["classes"]] == ["fox", "bear", "lion"]
    assert facts["neighbors"][0]["key"] == samples[0].key
    assert out.read_text("utf-8").count("data:image/webp") == 6 and Image.open(png).size[0] > 300
    assert samples[3].caption in run("explain", samples[3].caption, *where).output
    for wrong in (("absent.png",), ("bear", "--classes", tmp_path / "absent"), ("bear", "--html", tmp_path / "a/b")):
        result = run("explain", *wrong, *where)
        assert result.exit_code == 1 and re.fullmatch(r"Error: \[[a-z_.]+\] .+\n", result.stderr), result.output
