# SPDX-License-Identifier: Apache-2.0
"""Builds the small open world of icons: drawings with names, by hundreds of hands, as WebDataset shards.

The npm package `@iconify/json` is the web here. One run renders it and writes
  - with `--world DIR`: every usable drawing, for training the tiny CLIP;
  - `data/{queries,memory,fusion}-*.tar.gz` and `data/LICENSES.md`: what the repository ships.

Every concept has one role, drawn from a hash of its name: *known* (the CLIP trains on it), *fusion* (the fusion trains
on it, the CLIP never saw it) or *unseen* (only the memory at inference holds it).
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from gzip import GzipFile
from pathlib import Path
from typing import Any

import click
import numpy as np
import resvg_py
from PIL import Image
from tqdm import tqdm

PACKAGE = "@iconify/json@2.2.535"
SIZE = 64
SALT = "reco-24"
SHARD_SAMPLES = 4000


def words(text: str) -> list[str]:
    """A list that stays readable in the source."""
    return text.split()


QUERY_SETS = {"twemoji": "emoji", "logos": "logos", "flagpack": "flags", "cryptocurrency-color": "tokens"}
# The same hand's monochrome edition of a query set would make the query's hand a known one.
QUERY_TWINS = {"cryptocurrency"}
EMOJI_SETS = words(
    """
    fluent-emoji-flat noto openmoji fluent-emoji emojione noto-v1 fxemoji emojione-v1 streamline-emojis twemoji
    fluent-emoji-high-contrast emojione-monotone
    """
)
BRAND_SETS = words(
    """
    thesvg-color devicon selfhst skill-icons logos gcp unjs thesvg simple-icons cib fa7-brands fa6-brands
    fa-brands bxl streamline-logos arcticons devicon-plain brandico entypo-social
    """
)
# File-type icons: a brand's logo where a brand has that name, a thing of its own otherwise.
FILE_SETS = words("vscode-icons material-icon-theme catppuccin file-icons")
FLAG_SETS = words("flag circle-flags cif flagpack")
TOKEN_SETS = words("token-branded token cryptocurrency-color cryptocurrency")
DOMAIN_OF_SET = {
    **dict.fromkeys(EMOJI_SETS, "emoji"),
    **dict.fromkeys(BRAND_SETS, "logos"),
    **dict.fromkeys(FLAG_SETS, "flags"),
    **dict.fromkeys(TOKEN_SETS, "tokens"),
}
# Who goes first when the shipped shards cannot hold every hand.
PREFERRED = [*EMOJI_SETS[:5], *BRAND_SETS[:4], *FLAG_SETS[:3], TOKEN_SETS[0], *EMOJI_SETS[5:9], *FILE_SETS[:3]]

STYLES = words(
    """
    outline outlined line linear bold broken duotone duo twotone filled fill flat color colored solid sharp
    rounded round light dark thin regular remix free ic baseline icon logo wordmark original plain background
    opened alt 1x1 4x3 1 2 3 10 12 16 20 24 28 32 48 256
    """
)
LOGO_STYLES = words("icon logo dark light wordmark original plain line color background alt 2020 horizontal vertical")
SKIN = re.compile(r"skin-tone|facing-right")
FLUENT_SKIN = re.compile(r"-(medium-light|medium-dark|light|medium|dark)$")
RENAMED_COUNTRIES = {
    "czech republic": "czechia",
    "macedonia": "north macedonia",
    "swaziland": "eswatini",
    "turkey": "turkiye",
    "hong kong": "hong kong sar china",
    "macau": "macao sar china",
    "great britain": "united kingdom",
    "burma": "myanmar burma",
    "myanmar": "myanmar burma",
    "palestine": "palestinian territories",
    "heard and mcdonald islands": "heard and mcdonald islands",
    "micronesia": "micronesia",
    "cote divoire": "cote divoire",
    "congo brazzaville": "congo brazzaville",
    "usa": "united states",
}

IconSet = dict[str, Any]


@dataclass(frozen=True)
class Icon:
    """One drawing: where it comes from, what it shows, who may train on it."""

    set: str
    name: str
    domain: str
    concept: str
    caption: str
    core: tuple[str, ...]
    group: str = ""
    licence: str = ""
    role: str = ""
    entity: bool = False
    train: str = "none"

    @property
    def key(self) -> str:
        """A file name without dots, since WebDataset splits keys at the first one."""
        key = f"{self.set}--{self.name}".replace(".", "-")
        return key if len(key) <= 80 else f"{key[:70]}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"

    def record(self) -> dict[str, object]:
        """What the sample's .json holds."""
        names = ("concept", "set", "domain", "role", "licence", "group", "entity", "train")
        return {name: getattr(self, name) for name in names}


@dataclass
class Source:
    """The unpacked npm package."""

    root: Path
    collections: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.collections = json.loads((self.root / "collections.json").read_text())

    def load(self, name: str) -> IconSet:
        """One set, with its drawings, aliases and categories."""
        data: IconSet = json.loads((self.root / "json" / f"{name}.json").read_text())
        return data

    def licence(self, name: str) -> str:
        """The set's SPDX licence."""
        return str(self.collections[name]["license"].get("spdx", ""))

    def usable(self, coloured_only: bool) -> list[str]:
        """Sets whose licence allows use and derivation."""
        sets = [s for s in self.collections if not re.search(r"NC|GPL|ND", self.licence(s)) and s not in QUERY_TWINS]
        return sorted(s for s in sets if not coloured_only or self.collections[s].get("palette"))


def squash(name: str) -> str:
    """Letters and digits only, so that `visual-studio-code` and `visualstudiocode` are one name."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def strip_styles(name: str, styles: Iterable[str]) -> str:
    """Drops trailing style words, but never the whole name."""
    words = name.split("-")
    while len(words) > 1 and words[-1] in styles:
        words.pop()
    return "-".join(words)


def visible(data: IconSet) -> list[str]:
    """Names of a set's drawings, without those it has retired."""
    return sorted(name for name, icon in data["icons"].items() if not icon.get("hidden"))


def groups(data: IconSet) -> dict[str, str]:
    """Icon name to the set's own category."""
    return {name: group for group, names in data.get("categories", {}).items() for name in names}


class Names:
    """Brings the hands' different names for one thing together."""

    def __init__(self, source: Source) -> None:
        sets = {name: source.load(name) for name in EMOJI_SETS}
        self.emoji = self._emoji(sets)
        self.countries = self._countries(sets["twemoji"])
        self.country_names = {squash(name): name for name in self.countries.values()}
        self.emoji_groups = groups(sets["twemoji"])
        self.brands = self._brands(source)

    @staticmethod
    def _emoji(sets: dict[str, IconSet]) -> dict[str, str]:
        """Squashed name of any hand to the reference's name, through code points and aliases."""
        reference = {code.replace("-fe0f", ""): name for code, name in sets["twemoji"]["chars"].items()}
        result = {squash(name): name for name in visible(sets["twemoji"])}
        for data in sets.values():
            for code, name in data.get("chars", {}).items():
                result.setdefault(squash(name), reference.get(code.replace("-fe0f", ""), name))
        for data in sets.values():
            for alias, target in data.get("aliases", {}).items():
                parent = target["parent"]
                result.setdefault(squash(alias), result.get(squash(parent), parent))
        return result

    @staticmethod
    def _countries(twemoji: IconSet) -> dict[str, str]:
        """ISO code to country name, read off the regional indicators of the flag emoji."""
        result = {"gb-eng": "england", "gb-sct": "scotland", "gb-wls": "wales", "gb-nir": "northern ireland"}
        for code, name in twemoji["chars"].items():
            points = [int(point, 16) - 0x1F1E6 for point in code.split("-")]
            if len(points) == 2 and all(0 <= point < 26 for point in points) and name.startswith("flag-"):
                result["".join(chr(97 + point) for point in points)] = name[5:].replace("-", " ")
        return result

    @staticmethod
    def _brands(source: Source) -> dict[str, str]:
        """Squashed brand name to its best spelling: the one with most hyphens."""
        result: dict[str, str] = {}
        for set_name in ["logos", "thesvg-color", "selfhst", "devicon", "skill-icons", "simple-icons"]:
            for name in visible(source.load(set_name)):
                brand = strip_styles(name, LOGO_STYLES)
                old = result.setdefault(squash(brand), brand)
                result[squash(brand)] = max(old, brand, key=lambda spelling: spelling.count("-"))
        return result

    def country(self, name: str) -> str | None:
        """A country's reference name from an ISO code or another spelling."""
        if name in self.countries:
            return self.countries[name]
        words = name.replace("-", " ")
        words = RENAMED_COUNTRIES.get(words, words)
        return self.country_names.get(squash(words))


def flag_icon(icon: Icon, name: str, names: Names) -> Icon | None:
    """A flag by ISO code or country name; bare region codes say nothing and are dropped."""
    country = names.country(name)
    if country is None and re.fullmatch(r"[a-z]{2}(-[a-z0-9]{1,3})?", name):
        return None
    words = country or name.replace("-", " ")
    concept = f"flag of {words}"
    return replace(icon, domain="flags", concept=concept, caption=concept, core=tuple(words.split()), group="")


def emoji_icon(icon: Icon, data: IconSet, names: Names, group: str) -> Icon | None:
    """An emoji without skin tones; flags join the flags, a set's own extras the other icons.

    Firefox's names run their words together: they serve where they are known and say nothing otherwise.
    """
    name = icon.name
    if SKIN.search(name) or (FLUENT_SKIN.search(name) and FLUENT_SKIN.sub("", name) in data["icons"]):
        return None
    flag = re.match(r"flag-(?:for-)?(?:flag-)?(.+)", name)
    if flag and names.country(flag[1]):
        return flag_icon(icon, flag[1], names)
    if group == "Flags" and names.country(name):
        return flag_icon(icon, name, names)
    own = re.sub(r"-[1-9]$", "", name) if icon.set == "streamline-emojis" else name
    reference = names.emoji.get(squash(own))
    if icon.set == "fxemoji" and not reference:
        return None
    own = reference or own if icon.set == "fxemoji" else own
    concept = (reference or own).replace("-", " ")
    caption = concept if squash(own) == squash(concept) else own.replace("-", " ")
    domain = "other" if group.startswith("Extras") else "emoji"
    group = names.emoji_groups.get(reference or "", "")
    return replace(icon, domain=domain, concept=concept, caption=caption, core=tuple(concept.split()), group=group)


def brand_icon(icon: Icon, data: IconSet, names: Names) -> Icon | None:
    """A brand's logo; editions for dark and light pages repeat the default one."""
    base = re.sub(r"-(light|dark)$", "", icon.name)
    if base != icon.name and base in data["icons"]:
        return None
    brand = strip_styles(icon.name, LOGO_STYLES)
    words = names.brands.get(squash(brand), brand).replace("-", " ")
    concept, caption = f"{words} logo", f"{brand.replace('-', ' ')} logo"
    if squash(caption) == squash(concept):
        caption = concept
    return replace(icon, domain="logos", concept=concept, caption=caption, core=tuple(words.split()))


def file_icon(icon: Icon, data: IconSet, names: Names) -> Icon | None:
    """A file type's icon: a brand's logo where there is such a brand."""
    name = re.sub(r"^file-type-|^light-", "", re.sub(r"^file-type-", "", icon.name))
    name = strip_styles(name, STYLES)
    if "folder" not in icon.name and squash(name) in names.brands:
        return brand_icon(replace(icon, name=name), {"icons": {}}, names)
    return plain_icon(icon, name)


def token_icon(icon: Icon) -> Icon:
    """A crypto token, named by its symbol."""
    words = strip_styles(icon.name, ["background"]).replace("-", " ")
    concept = f"{words} token"
    return replace(icon, concept=concept, caption=concept, core=tuple(words.split()))


def plain_icon(icon: Icon, name: str) -> Icon:
    """Any other icon: its name's words without style."""
    words = strip_styles(name, STYLES).replace("-", " ")
    return replace(icon, domain="other", concept=words, caption=words, core=tuple(words.split()))


def describe(icon: Icon, data: IconSet, names: Names, group: str) -> Icon | None:
    """Gives a drawing its concept and caption, or None where it only repeats another."""
    if icon.set in EMOJI_SETS:
        return emoji_icon(icon, data, names, group)
    if icon.set in BRAND_SETS:
        return brand_icon(icon, data, names)
    if icon.set in FILE_SETS:
        described = file_icon(icon, data, names)
        return described and replace(described, name=icon.name)
    if icon.set in FLAG_SETS:
        return flag_icon(icon, strip_styles(icon.name, ["1x1", "4x3"]), names)
    return token_icon(icon) if icon.set in TOKEN_SETS else plain_icon(icon, icon.name)


def describe_set(source: Source, set_name: str, names: Names, per_hand: int = 2) -> list[Icon]:
    """A set's drawings, at most `per_hand` of one concept: sizes and styles of one hand are no new evidence."""
    data, count = source.load(set_name), defaultdict[str, int](int)
    by_name, result = groups(data), []
    for name in sorted(visible(data), key=lambda name: preference(set_name, name)):
        icon = Icon(set_name, name, DOMAIN_OF_SET.get(set_name, "other"), "", "", (), licence=source.licence(set_name))
        described = describe(icon, data, names, by_name.get(name, ""))
        if described and described.concept and count[described.concept] < per_hand:
            count[described.concept] += 1
            result.append(described)
    return sorted(result, key=lambda icon: icon.name)


def preference(set_name: str, name: str) -> tuple[int, int, str]:
    """Which of one hand's editions to keep: the mark rather than the wordmark, the wide flag, the largest size."""
    rank = 0
    if set_name == "logos":
        rank = 0 if name.endswith("-icon") else 1
    elif name.endswith(("-wordmark", "-1x1", "-background", "-plain", "-line")):
        rank = 1
    size = re.search(r"-(\d+)$", name)
    return rank, -int(size[1]) if size else 0, name


def draw_role(core: tuple[str, ...], domain: str) -> str:
    """Known, fusion or unseen; a profession's woman and man share the role of the profession."""
    words = [word for word in core if word not in {"man", "woman", "person", "men", "women", "people"}]
    name = " ".join(words or core)
    digest = hashlib.sha256(f"{SALT}:{name}".encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    return "known" if share < 0.5 else "fusion" if share < 0.75 else "unseen"


def find_entities(icons: list[Icon], coloured: set[str]) -> set[str]:
    """Concepts of the query sets that another hand, of the same domain, drew in colour."""
    queried = {(icon.concept, icon.domain) for icon in icons if icon.set in QUERY_SETS}
    others = {(i.concept, i.domain) for i in icons if i.set not in QUERY_SETS and i.set in coloured}
    domains = set(QUERY_SETS.values())
    return {concept for concept, domain in queried & others if domain in domains}


class Containment:
    """Says whether a name contains one of the given concepts as a sequence of words."""

    def __init__(self, icons: Iterable[Icon]) -> None:
        cores = {(icon.core, icon.domain == "tokens") for icon in icons}
        self.words = {core for core, token in cores if not token and len("".join(core)) > 2}
        self.tokens = {core for core, token in cores if token}
        self.longest = max((len(core) for core in self.words | self.tokens), default=0)

    def hit(self, icon: Icon) -> bool:
        """Symbols of tokens are looked for among tokens only: as words they would mean anything."""
        names = (icon.core, tuple(re.split(r"[-\s]+", icon.name)), tuple(icon.caption.split()))
        grams = {gram for name in names for gram in self._grams(name)}
        return bool(grams & self.words) or (icon.domain == "tokens" and bool(grams & self.tokens))

    def _grams(self, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        for start in range(len(words)):
            for end in range(start + 1, min(len(words), start + self.longest) + 1):
                yield words[start:end]


def assign_roles(icons: list[Icon], entities: set[str]) -> list[Icon]:
    """Roles for all, then who may train on what: a name that contains an unseen concept is for nobody."""
    icons = [replace(i, role=draw_role(i.core, i.domain), entity=i.concept in entities) for i in icons]
    unseen = Containment(i for i in icons if i.entity and i.role == "unseen")
    fusion = Containment(i for i in icons if i.entity and i.role == "fusion")
    return [replace(icon, train=allowed_training(icon, unseen, fusion)) for icon in icons]


def allowed_training(icon: Icon, unseen: Containment, fusion: Containment) -> str:
    """`clip`: CLIP and fusion may train on it; `fusion`: the fusion only; `none`: neither."""
    if icon.set in QUERY_SETS or icon.role == "unseen" or unseen.hit(icon):
        return "none"
    return "fusion" if icon.role == "fusion" or fusion.hit(icon) else "clip"


def drop_entangled(icons: list[Icon]) -> list[Icon]:
    """Takes classes out whose own name contains a class of a stricter role: they could not be trained as their role."""
    best: dict[str, int] = defaultdict(int)
    rank = {"none": 0, "fusion": 1, "clip": 2}
    for icon in icons:
        if icon.set not in QUERY_SETS:
            best[icon.concept] = max(best[icon.concept], rank[icon.train])
    due = {"unseen": 0, "fusion": 1, "known": 2}
    return [replace(icon, entity=icon.entity and best[icon.concept] >= due[icon.role]) for icon in icons]


def render(job: tuple[str, str]) -> tuple[str, bytes]:
    """Draws one SVG on white; drawings that leave nothing visible come back empty."""
    key, svg = job
    try:
        png = resvg_py.svg_to_bytes(svg, background="#ffffff", skip_system_fonts=True, width=SIZE, height=SIZE)
        image = Image.open(io.BytesIO(png)).convert("RGB")
    except (ValueError, OSError):
        return key, b""
    if np.asarray(image).std() < 4:
        return key, b""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=True, quality=100, method=4)
    return key, buffer.getvalue()


def svg_of(data: IconSet, icon: Icon) -> str:
    """A square SVG; monochrome drawings get a dark colour that the icon's key decides."""
    body = data["icons"][icon.name]
    left, top = body.get("left", data.get("left", 0)), body.get("top", data.get("top", 0))
    width, height = body.get("width", data.get("width", 16)), body.get("height", data.get("height", 16))
    red, green, blue = (value % 160 for value in hashlib.sha256(icon.key.encode()).digest()[:3])
    colour = f"#{red:02x}{green:02x}{blue:02x}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{SIZE}" height="{SIZE}" viewBox="{left} {top} {width} {height}" color="{colour}">{body["body"]}</svg>'
    )


def render_all(source: Source, icons: list[Icon], workers: int) -> dict[str, bytes]:
    """Key to WebP for all that can be drawn."""
    loaded = {name: source.load(name) for name in sorted({icon.set for icon in icons})}
    jobs = ((icon.key, svg_of(loaded[icon.set], icon)) for icon in icons)
    with ProcessPoolExecutor(workers) as pool:
        drawn = pool.map(render, jobs, chunksize=64)
        return {key: webp for key, webp in tqdm(drawn, total=len(icons), desc="render", mininterval=2) if webp}


def pixels(webp: bytes) -> np.ndarray:
    """The drawing as numbers."""
    return np.asarray(Image.open(io.BytesIO(webp)).convert("RGB"), dtype=np.int16)


def copies_of_queries(icons: list[Icon], images: dict[str, bytes]) -> set[str]:
    """Keys of drawings that repeat a query of their concept pixel by pixel: official logos pass from set to set."""
    queries: dict[str, list[np.ndarray]] = defaultdict(list)
    for icon in icons:
        if icon.set in QUERY_SETS:
            queries[icon.concept].append(pixels(images[icon.key]))
    rest = (icon for icon in icons if icon.set not in QUERY_SETS and icon.concept in queries)
    return {icon.key for icon in rest if _repeats(pixels(images[icon.key]), queries[icon.concept])}


def _repeats(image: np.ndarray, queries: list[np.ndarray]) -> bool:
    return any(float(np.abs(image - query).mean()) < 2.0 for query in queries)


def one_per(icons: Iterable[Icon], key: Callable[[Icon], object]) -> list[Icon]:
    """The first icon for each value of `key`."""
    first: dict[object, Icon] = {}
    for icon in icons:
        first.setdefault(key(icon), icon)
    return list(first.values())


def choose_queries(icons: list[Icon]) -> list[Icon]:
    """One query drawing for each class, from its own domain's query set where that has one."""
    mine = [icon for icon in icons if icon.entity and icon.set in QUERY_SETS and icon.domain in QUERY_SETS.values()]
    mine.sort(key=lambda i: (QUERY_SETS[i.set] != i.domain, preference(i.set, i.name)))
    return one_per(mine, lambda icon: icon.concept)


def hand_order(icon: Icon) -> tuple[int, str, tuple[int, int, str]]:
    """Preferred hands first, the others by name."""
    rank = PREFERRED.index(icon.set) if icon.set in PREFERRED else len(PREFERRED)
    return rank, icon.set, preference(icon.set, icon.name)


def choose_memory(icons: list[Icon], per_concept: int) -> list[Icon]:
    """Other hands' drawings of the classes, at most one a hand and `per_concept` a class."""
    mine = sorted((i for i in icons if i.entity and i.set not in QUERY_SETS and i.domain != "other"), key=hand_order)
    count, result = defaultdict[str, int](int), []
    for icon in one_per(mine, lambda icon: (icon.concept, icon.set)):
        count[icon.concept] += 1
        if count[icon.concept] <= per_concept:
            result.append(icon)
    return result


def choose_fusion(icons: list[Icon], concepts: int, per_concept: int = 3, known_share: float = 0.4) -> list[Icon]:
    """Drawings of things that are no classes, by two hands or more, for training the fusion."""
    mine = sorted((i for i in icons if not i.entity and i.train != "none" and i.set not in QUERY_SETS), key=hand_order)
    hands: dict[tuple[str, str], list[Icon]] = defaultdict(list)
    for icon in one_per(mine, lambda icon: (icon.concept, icon.domain, icon.set)):
        hands[icon.concept, icon.domain].append(icon)
    several = [drawn[:per_concept] for drawn in hands.values() if len(drawn) > 1]
    several.sort(key=lambda drawn: hashlib.sha256(f"{SALT}:{drawn[0].concept}".encode()).digest())
    known = [drawn for drawn in several if drawn[0].train == "clip"][: int(concepts * known_share)]
    fresh = [drawn for drawn in several if drawn[0].role == "fusion"][: concepts - len(known)]
    return [icon for drawn in [*known, *fresh] for icon in drawn]


def add_file(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """One member, with nothing in it that differs from run to run."""
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = len(content), 0, 0o644
    archive.addfile(info, io.BytesIO(content))


def write_shard(path: Path, icons: list[Icon], images: dict[str, bytes]) -> None:
    """A gzipped tar: plain tar pads each sample with three kilobytes."""
    with (
        path.open("wb") as raw,
        GzipFile("", "wb", 9, raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for icon in icons:
            record = json.dumps(icon.record(), ensure_ascii=False)
            add_file(archive, f"{icon.key}.json", record.encode())
            add_file(archive, f"{icon.key}.txt", icon.caption.encode())
            add_file(archive, f"{icon.key}.webp", images[icon.key])


def write_shards(folder: Path, name: str, icons: list[Icon], images: dict[str, bytes]) -> int:
    """Shards `name-00000.tar.gz` and on, in an order that mixes domains and roles; returns their bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{name}-*.tar.gz"):
        old.unlink()
    icons = sorted(icons, key=lambda icon: hashlib.sha256(icon.key.encode()).digest())
    total = 0
    for number, start in enumerate(range(0, len(icons), SHARD_SAMPLES)):
        path = folder / f"{name}-{number:05d}.tar.gz"
        write_shard(path, icons[start : start + SHARD_SAMPLES], images)
        total += path.stat().st_size
    return total


def write_licences(path: Path, source: Source, used: Iterable[Icon]) -> None:
    """Every set that the shipped shards draw on, with its author and licence."""
    count: dict[str, int] = defaultdict(int)
    for icon in used:
        count[icon.set] += 1
    lines = [
        "# Icon sets in these shards",
        "",
        f"From the npm package `{PACKAGE}`. Each drawing stays under its set's licence, which its `.json` names.",
        "Logos and flags may be protected as trademarks or insignia too: they serve identification here, nothing else.",
        "",
        "| set | title | author | licence | url | drawings |",
        "|---|---|---|---|---|---|",
    ]
    for name in sorted(count):
        info = source.collections[name]
        author, licence = info["author"], info["license"]
        url = licence.get("url") or author.get("url", "")
        title = f"{licence['title']} ({licence.get('spdx', '')})"
        lines.append(f"| {name} | {info['name']} | {author['name']} | {title} | {url} | {count[name]} |")
    path.write_text("\n".join(lines) + "\n")


def fetch_package(cache: Path) -> Path:
    """Downloads and unpacks the npm package once."""
    folder = cache / "package"
    if not (folder / "collections.json").exists():
        cache.mkdir(parents=True, exist_ok=True)
        packed = subprocess.run(["npm", "pack", PACKAGE], cwd=cache, check=True, capture_output=True, text=True)
        with tarfile.open(cache / packed.stdout.split()[-1]) as archive:
            archive.extractall(cache, filter="data")
    return folder


def open_world(source: Source, coloured_only: bool) -> list[Icon]:
    """All drawings with concept, role and leave to train; classes and roles come from the coloured sets alone."""
    names, coloured = Names(source), set(source.usable(True))
    icons = [icon for name in source.usable(coloured_only) for icon in describe_set(source, name, names)]
    entities = find_entities(icons, coloured)
    return drop_entangled(assign_roles(one_per(icons, lambda icon: icon.key), entities))


def without_copies(icons: list[Icon], images: dict[str, bytes]) -> list[Icon]:
    """What was drawn, less copies of queries, and classes anew: a class needs another hand's own drawing."""
    drawn = [icon for icon in icons if icon.key in images]
    copies = copies_of_queries(drawn, images)
    drawn = [icon for icon in drawn if icon.key not in copies]
    click.echo(f"{len(icons)} icons, {len(icons) - len(drawn) - len(copies)} blank, {len(copies)} copies of queries")
    return drawn


def report(name: str, icons: list[Icon], size: int) -> None:
    """Counts by domain and role."""
    count: dict[tuple[str, str], int] = defaultdict(int)
    for icon in icons:
        count[icon.domain, icon.role] += 1
    table = ", ".join(f"{domain}/{role} {number}" for (domain, role), number in sorted(count.items()))
    click.echo(f"{name}: {len(icons)} samples, {size / 1e6:.1f} MB: {table}")


@click.command()
@click.option("--package", type=click.Path(path_type=Path), help="Unpacked npm package; fetched if not given.")
@click.option("--cache", type=click.Path(path_type=Path), default=Path(".cache/icons"), help="Where to fetch it to.")
@click.option("--world", type=click.Path(path_type=Path), help="Also write every drawing, in shards, into this folder.")
@click.option("--coloured-only/--all-sets", default=True, help="Sets for the world; the CLIP trains on coloured ones.")
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).parent / "data", help="Shipped shards.")
@click.option("--per-concept", default=5, help="Memory drawings of a class at most.")
@click.option("--fusion-concepts", default=1500, help="Concepts in the fusion shards.")
@click.option("--workers", default=2, help="Rendering processes.")
def main(
    package: Path | None,
    cache: Path,
    world: Path | None,
    coloured_only: bool,
    out: Path,
    per_concept: int,
    fusion_concepts: int,
    workers: int,
) -> None:
    """Renders the icon world and writes the shipped shards."""
    source = Source(package or fetch_package(cache))
    icons = open_world(source, coloured_only)
    images = render_all(source, icons, workers)
    icons = without_copies(icons, images)
    icons = drop_entangled(assign_roles(icons, find_entities(icons, set(source.usable(True)))))
    if world:
        report("world", icons, write_shards(world, "world", icons, images))
    coloured = set(source.usable(True))
    kept = [icon for icon in icons if icon.set in coloured]
    parts = {
        "queries": choose_queries(kept),
        "memory": choose_memory(kept, per_concept),
        "fusion": choose_fusion(kept, fusion_concepts),
    }
    for name, chosen in parts.items():
        report(name, chosen, write_shards(out, name, chosen, images))
    write_licences(out / "LICENSES.md", source, [icon for chosen in parts.values() for icon in chosen])


if __name__ == "__main__":
    main()
