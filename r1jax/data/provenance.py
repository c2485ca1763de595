"""``r1jax data provenance``: where rows come from, and which of them a language model signed.

A manifest is TOML or JSON:

    [default]                     # rows without a field ``source``
    source = "our own"
    licence = "CC0-1.0"

    [sources."openai/gsm8k"]      # rows whose ``source`` this is
    licence = "MIT"
    date = 2021-10-27             # YYYY, YYYY-MM or YYYY-MM-DD

What a row itself says (``source``, ``licence`` or ``license``, ``date``; or the same within ``provenance``, where an earlier
pass wrote it) goes before the manifest. What neither says is unknown, and counted.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1jax.config import ConfigError, data_commands
from r1jax.data import cleaning, words
from r1jax.data.self_naming import UNNAMED, named

FIELDS = ("source", "licence", "date")
UNKNOWN = "unknown"
NOTICE = (
    "That no row names a model proves nothing about where rows come from: such lines are easily filtered out, and what a model "
    "wrote without naming itself looks like any other text."
)
_SPELLINGS = {"license": "licence"}
_DATE = re.compile(r"\d{4}(-\d\d(-\d\d)?)?")


@dataclass(frozen=True)
class Manifest:
    """What is known of rows that do not say it themselves."""

    about: dict[str, str] | None
    """Path and digest."""
    default: dict[str, str]
    sources: dict[str, dict[str, str]]


def provenance(args: data_commands.DataProvenance) -> int:
    """Writes the rows with ``provenance``, a line per row in which a model names itself, and the counts.

    Raises:
      ConfigError: the user's mistakes.
    """
    with cleaning.open_output(args, prompts=False) as out:
        manifest = read_manifest(args.manifest or beside(out.rows.files))
        counts: dict[str, Counter[str]] = {field: Counter() for field in FIELDS}
        models: Counter[str] = Counter()
        found_in = unnamed = 0
        for where, row in out:
            known = origin(row, manifest)
            for field in FIELDS:
                counts[field][known[field]] += 1
            names, is_unnamed = self_namings(row)
            models.update(names.keys())
            found_in += bool(names)
            unnamed += is_unnamed
            if names:
                out.report({"row": where, "models": names})
            if not names or args.named == "flag":
                out.keep({**row, "provenance": known} | ({"names_model": sorted(names)} if names else {}))
        idle = sorted(manifest.sources.keys() - counts["source"].keys())
        out.summary = {
            **{f"{field}s": dict(counter.most_common()) for field, counter in counts.items()},
            "rows_that_name_a_model": found_in,
            "models": dict(models.most_common()),
            "rows_of_an_unnamed_model": unnamed,
            "notice": NOTICE,
            "manifest": manifest.about,
        }
        out.notes = [
            *(f"{field}s: {_listed(counter)}" for field, counter in counts.items()),
            *([f"the manifest's sources that no row names: {', '.join(idle)}"] if idle else []),
            f"{found_in:,} rows in which a model names itself ({'kept and flagged' if args.named == 'flag' else 'dropped'})"
            + (f": {_listed(models)}" if models else ""),
            f"{unnamed:,} rows in which a model speaks of itself as one and gives no name (kept)",
            NOTICE,
        ]
    return 0


def self_namings(row: dict) -> tuple[dict[str, dict[str, str]], bool]:
    """Family of models -> the field and the words in which one of them names itself; and whether an unnamed model speaks of
    itself, where none is named."""
    found: dict[str, dict[str, str]] = {}
    unnamed = False
    for field, text in words.texts({name: value for name, value in row.items() if name != "provenance"}):
        for family, said in named(text).items():
            found.setdefault(family, {"field": field, "said": said})
        unnamed = unnamed or UNNAMED.search(text) is not None
    return found, unnamed and not found


def origin(row: dict, manifest: Manifest) -> dict[str, str]:
    """``source``, ``licence`` and ``date`` of a row, each ``UNKNOWN`` if nobody says."""
    earlier = row.get("provenance")
    own: dict[str, str] = {}
    for part in (row, earlier if isinstance(earlier, dict) else {}):
        said = {_SPELLINGS.get(name, name): part.get(name) for name in (*_SPELLINGS, *FIELDS) if part.get(name)}
        own |= {field: _text(value) for field, value in said.items() if value != UNKNOWN}
    section = manifest.sources.get(own["source"], {}) if "source" in own else manifest.default
    return dict.fromkeys(FIELDS, UNKNOWN) | section | own


def beside(files: list[Path]) -> Path | None:
    """The manifest of some files: NAME.manifest.toml or .json of a single one, or manifest.toml or .json in their folder."""
    folder = files[0].parent
    names = [*([f"{files[0].stem}.manifest"] if len(files) == 1 else []), "manifest"]
    places = (folder / f"{name}{ending}" for name in names for ending in (".toml", ".json"))
    return next((place for place in places if place.is_file()), None)


def read_manifest(path: Path | None) -> Manifest:
    """None is an empty one.

    Raises:
      ConfigError: it cannot be read, or does not say what a manifest says.
    """
    if path is None:
        return Manifest(None, {}, {})
    try:
        content = path.expanduser().read_bytes()
        found = json.loads(content) if path.suffix == ".json" else tomllib.loads(content.decode())
    except OSError as e:
        raise ConfigError(f"cannot read {path}: {e.strerror}") from e
    except ValueError as e:
        raise ConfigError(f"{path} is not {'JSON' if path.suffix == '.json' else 'TOML'}: {e}") from e
    if not isinstance(found, dict) or found.keys() - {"default", "sources"} or not isinstance(found.get("sources", {}), dict):
        raise ConfigError(f"{path}: a manifest holds 'default' and 'sources' (see r1jax/data/README.md)")
    default = _section(path, "default", found.get("default", {}))
    sources = {
        name: {"source": name} | _section(path, f"sources.{name}", part) for name, part in found.get("sources", {}).items()
    }
    return Manifest({"path": str(path), "digest": hashlib.sha256(content).hexdigest()}, default, sources)


def _section(path: Path, place: str, part: Any) -> dict[str, str]:
    if not isinstance(part, dict):
        raise ConfigError(f"{path}: {place} is {part!r:.60}; it must be a table of {', '.join(FIELDS)}")
    part = {_SPELLINGS.get(name, name): _text(value) for name, value in part.items()}
    if odd := part.keys() - set(FIELDS):
        raise ConfigError(f"{path}: {place} has {min(odd)!r}; a section holds {', '.join(FIELDS)}")
    if "date" in part and not _DATE.fullmatch(part["date"]):
        raise ConfigError(f"{path}: {place}.date is {part['date']!r}; write YYYY, YYYY-MM or YYYY-MM-DD")
    return part


def _text(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime.date) else str(value)


def _listed(counter: Counter[str], most: int = 8) -> str:
    told = [f"{name} {count:,}" for name, count in counter.most_common(most)]
    return ", ".join(told) + (f" and {len(counter) - most} more" if len(counter) > most else "")
