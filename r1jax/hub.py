"""A name becomes local files. The only room that may reach out for them.

A name is a path, a Hub id ``org/name`` or ``org/name@revision``, or ``gs://bucket/path``. What is not on this machine is copied
into a cache once: ``HF_HOME`` for the Hub (which also heeds ``HF_TOKEN``, ``HF_ENDPOINT`` and ``HF_HUB_OFFLINE``), and
``~/.cache/r1jax`` for buckets, where copies of what has changed since stay until somebody removes them. Of the processes of a
host one copies, and the others wait for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import itertools
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

Choose = Callable[[list[str]], list[str]]
"""The files that there are -> those that are needed, both relative and with ``/``. Raises ValueError if they are not there."""

_HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(\S+))?", re.ASCII)
_SUFFIXES_OF_PATHS = (".gguf", ".safetensors", ".json", ".jsonl", ".parquet", ".py", ".txt")
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_OF_A_RUN = re.compile(r"(.*/)?(config\.json|model/[^/]+|checkpoints/\d+/(about\.json|digests-\d+-of-\d+))")
_BESIDE_WEIGHTS = (
    *("config.json", "generation_config.json", "model.safetensors.index.json", "chat_template.jinja", "chat_template.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer.model", "vocab.json", "merges.txt"),  # not read here, but by the engines that an export is for
)


def resolve(name: str, weights: bool = True) -> Path:
    """The local directory of a model, or its GGUF file. Of a run that was not here it holds no weights: see ``fetch_below``.

    Args:
      weights: False leaves safetensors files where they are, unless they are here.

    Raises:
      ValueError: there is no such model, or it cannot be fetched; one line that says what to do.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    folder, files = fetch(name, "model", model_files if weights else _files_beside)
    return folder / files[0] if len(files) == 1 and files[0].endswith(".gguf") else folder


def fetch(name: str, kind: Literal["model", "dataset"], choose: Choose) -> tuple[Path, list[str]]:
    """A local folder, and the files in it that ``choose`` took of all that ``name`` has. A name of one file is that file.

    Raises:
      ValueError: there is no such thing, ``choose`` refused, or it cannot be fetched; one line that says what to do.
    """
    try:
        return _fetch(name, kind, choose)
    except ValueError as e:
        raise ValueError(f"{name}: {e}") from e


def fetch_below(name: str, folder: str) -> Path:
    """A local directory with a part of a run, ``folder`` of it, that is called by the same path there.

    Raises:
      ValueError: there is none, or it cannot be fetched; one line that says what to do.
    """

    def choose(files: list[str]) -> list[str]:
        if found := [f for f in files if f.startswith(f"{folder}/")]:
            return found
        raise ValueError(f"has no {folder} any more; ask for another step")

    return fetch(name, "model", choose)[0]


def commit(path: Path) -> str | None:
    """The Hub commit that a path from ``resolve`` or ``fetch`` belongs to; None if it is not from the Hub."""
    for folder, name in itertools.pairwise(path.parts):
        if folder == "snapshots" and re.fullmatch("[0-9a-f]{40}", name):
            return name
    return None


def status() -> tuple[bool, str]:
    """Whether the Hub answers, and a line about it, the token and the cache."""
    import huggingface_hub
    from huggingface_hub import constants, errors, utils

    token = "a token is set" if huggingface_hub.get_token() else "no token: public repositories only"
    about = f"{token}, cache {constants.HF_HUB_CACHE}"
    if constants.HF_HUB_OFFLINE:
        return True, f"HF_HUB_OFFLINE is set: only what is in the cache {constants.HF_HUB_CACHE}"
    try:
        utils.get_session().head(constants.ENDPOINT, timeout=3)
    except errors.HTTPError as e:
        return False, f"{constants.ENDPOINT} does not answer ({_one_line(e)}), {about}"
    return True, f"{constants.ENDPOINT} answers, {about}"


@contextlib.contextmanager
def bucket_errors(name: str = "") -> Iterator[None]:
    """What goes wrong with a bucket in the block becomes a ValueError of one line."""
    named = f"{name}: " if name else ""
    try:
        yield
    except Exception as e:  # gcsfs, aiohttp and google-auth have no error in common
        raise ValueError(
            f"{named}{_one_line(e)}; check the name, the network, and the credentials (gcloud auth application-default login)"
        ) from e


def list_buckets_anew() -> None:
    """What lies in a bucket is asked each time: other processes, and libraries of this one, write there beside gcsfs."""
    from fsspec.config import conf

    conf.setdefault("gcs", {})["use_listings_cache"] = False


def read_object(name: str) -> tuple[bytes, int] | None:
    """The content of ``gs://bucket/path`` and its generation, a number that each write of it raises; None if there is none."""
    bucket, path = name.removeprefix("gs://").split("/", 1)
    try:
        headers, content = _buckets().call("GET", "b/{}/o/{}", bucket, path, alt="media")
    except FileNotFoundError:
        return None
    return content, int(headers["X-Goog-Generation"])


def write_object(name: str, content: bytes, generation: int) -> int:
    """Replaces the object with this generation, 0 for none, and returns the new one.

    Raises:
      FileExistsError: it has another generation by now.
    """
    bucket, path = name.removeprefix("gs://").split("/", 1)
    fs = _buckets()
    place = fs.base.replace("/storage/v1/", "/upload/storage/v1/") + "b/{}/o"
    query = {"uploadType": "media", "name": path, "ifGenerationMatch": str(generation)}
    return int(fs.call("POST", place, bucket, data=content, json_out=True, **query)["generation"])


def delete_object(name: str, generation: int) -> None:
    """Removes the object if it has this generation; else it stays."""
    bucket, path = name.removeprefix("gs://").split("/", 1)
    with contextlib.suppress(FileNotFoundError, FileExistsError):
        _buckets().call("DELETE", "b/{}/o/{}", bucket, path, ifGenerationMatch=str(generation))


def _buckets():
    import fsspec

    return fsspec.filesystem("gs")


def model_files(files: list[str]) -> list[str]:
    """Of a repository's files those that make up the model: safetensors with what is beside them, else its one GGUF file; of a
    run directory what tells which model and checkpoints it has.

    Raises:
      ValueError: it has neither, or several GGUF files.
    """
    if any(f.endswith("model/model.json") for f in files):  # a run directory
        unfinished = {f.rpartition("/")[0] for f in files} - {f.removesuffix("/about.json") for f in files}
        about = [f for f in files if _OF_A_RUN.fullmatch(f) and "exports" not in f.split("/")]
        return [f for f in about if "checkpoints" not in f.split("/") or f.rpartition("/")[0] not in unfinished]
    if weights := [f for f in files if _WEIGHTS.fullmatch(f)]:
        return [f for f in files if f in _BESIDE_WEIGHTS] + weights
    ggufs = [f for f in files if f.endswith(".gguf")]
    if len(ggufs) > 1:
        raise ValueError(f"has several GGUF files ({_some(ggufs)}); download one of them and give its path")
    if not ggufs:
        raise ValueError(f"has no model.safetensors and no .gguf file; other weights are not read (it has {_some(files)})")
    return ggufs


def _files_beside(files: list[str]) -> list[str]:
    return [f for f in model_files(files) if not _WEIGHTS.fullmatch(f)]


def _fetch(name: str, kind: str, choose: Choose) -> tuple[Path, list[str]]:
    path = Path(name).expanduser()
    if path.is_dir():
        return path, choose(_below(path))
    if path.exists():
        return path.parent, [path.name]
    if name.startswith("gs://"):
        return _from_bucket(name, choose)
    if "://" in name:
        raise ValueError("only gs:// names are fetched; copy the files to this machine and give their path")
    match = _HUB_NAME.fullmatch(name)
    if not match or name.endswith(_SUFFIXES_OF_PATHS):
        where = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise ValueError(f"no such file or directory{where}; a name on the Hub is org/name or org/name@revision")
    return _from_hub(match[1], match[2], kind, choose)


def _from_hub(repo: str, revision: str | None, kind: str, choose: Choose) -> tuple[Path, list[str]]:
    import huggingface_hub
    from huggingface_hub import constants, errors, utils

    api, cache = huggingface_hub.HfApi(), Path(constants.HF_HUB_CACHE).expanduser()
    folder = f"{kind}s--{repo.replace('/', '--')}"
    with _alone(cache / ".locks" / f"r1jax--{folder}.lock", repo):
        try:
            at = api.resolve_revision(repo, repo_type=kind, revision=revision)
            snapshot = cache / folder / "snapshots" / at.resolved
            try:
                tree = huggingface_hub.get_cached_repo_tree(repo, repo_type=kind, revision=at)
                files = sorted(f.path for f in tree)
            except errors.CachedRepoTreeNotFoundError:
                try:
                    files = sorted(api.list_repo_files(repo, repo_type=kind, revision=at.resolved))
                except (errors.OfflineModeIsEnabled, errors.HTTPError):
                    if not snapshot.is_dir():
                        raise
                    files = _below(snapshot)  # what another program put into the cache
            wanted = choose(files)
            if missing := [f for f in wanted if not (snapshot / f).is_file()]:
                if not sys.stderr.isatty() or sys.stderr is not sys.__stderr__:  # bars in another's display become lines
                    utils.disable_progress_bars()
                print(f"{repo}: fetching {_some(missing)} to {snapshot}", file=sys.stderr, flush=True)
                patterns = [glob.escape(f) for f in wanted]
                huggingface_hub.snapshot_download(repo, repo_type=kind, revision=at, allow_patterns=patterns)
            return snapshot, wanted
        except errors.GatedRepoError as e:
            page = f"{constants.ENDPOINT}/{'datasets/' * (kind == 'dataset')}{repo}"
            raise ValueError(f"gated; accept its terms at {page} and set HF_TOKEN to a token of that account") from e
        except errors.RepositoryNotFoundError as e:
            raise ValueError(f"no such path here, no such {kind} on the Hub; check the name, or if private set HF_TOKEN") from e
        except errors.RevisionNotFoundError as e:
            raise ValueError(f"{repo} has no revision {revision!r}; give a branch, a tag or a commit") from e
        except (errors.RevisionResolutionError, errors.XetDownloadError, errors.HTTPError, OSError) as e:
            raise ValueError(_no_path(repo) + _why(e, cache)) from e


def _no_path(repo: str) -> str:
    """What is wrong with a Hub name that looks like a path, for its first part is a directory here."""
    folder, _, name = repo.partition("/")
    return f"no such path, {folder}/ has no {name}; as a name on the Hub: " if Path(folder).is_dir() else ""


def _why(error: Exception, cache: Path) -> str:
    """Why the Hub's files are not here: it refused, could not be asked or may not be, or the disk did not take them."""
    from huggingface_hub import constants, errors

    if constants.HF_HUB_OFFLINE:
        return f"not all of it is in the cache {cache}, and HF_HUB_OFFLINE is set; unset it to fetch it once"
    cause = error
    while not isinstance(cause, errors.HTTPError) and cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, errors.HfHubHTTPError) and (code := cause.response.status_code) in (401, 403):
        return f"{constants.ENDPOINT} answers {code}; check the name, and whether HF_TOKEN is a token that may read it"
    if isinstance(cause, errors.HTTPError):
        return f"not here, and {constants.ENDPOINT} gives no answer ({_one_line(cause)}); check the network and HF_ENDPOINT"
    return f"cannot be fetched to {cache} ({_one_line(cause)}); make room, or set HF_HOME to another disk"


def _from_bucket(name: str, choose: Choose) -> tuple[Path, list[str]]:
    import fsspec

    try:
        bucket = fsspec.filesystem("gs")
    except ImportError as e:
        raise ValueError("reading buckets needs gcsfs; pip install 'r1jax[gs]'") from e
    root = name.removeprefix("gs://").rstrip("/")
    with bucket_errors():
        found = bucket.find(root, detail=True)
    if not found:
        raise ValueError("there is nothing in the bucket under this name")
    found = {path.lstrip("/"): info for path, info in found.items()}
    if root in found:
        root, _, file = root.rpartition("/")
        files = [file]
    else:
        files = choose(sorted(path.removeprefix(f"{root}/") for path in found))
    # A file's generation is another after each write, so what has changed is copied to another folder.
    versions = [(f, info["size"], info.get("generation")) for f in files for info in [found[f"{root}/{f}"]]]
    version = hashlib.sha256(json.dumps(versions).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "r1jax" / "gs"
    folder = cache / root.replace("/", "--") / version
    with _alone(folder.with_suffix(".lock"), name), bucket_errors():
        if not folder.is_dir():
            print(f"{name}: fetching {_some(files)} to {folder}", file=sys.stderr, flush=True)
            if any(path.is_dir() for path in folder.parent.iterdir()):
                print(f"{name}: {folder.parent} holds copies of other states and steps; remove them for room", file=sys.stderr)
            part = folder.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            for f in files:
                (part / f).parent.mkdir(parents=True, exist_ok=True)
            bucket.get([f"{root}/{f}" for f in files], [str(part / f) for f in files])
            part.replace(folder)
    return folder, files


@contextlib.contextmanager
def _alone(lock: Path, name: str) -> Iterator[None]:
    """Lets one process of a host in at a time; who waits says for whom. The kernel lets go when a process dies."""
    with contextlib.ExitStack() as stack:
        # A cache that can only be read, or whose disk has no locks, has to do without.
        with contextlib.suppress(OSError):
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(lock, "a+"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "another process"
                print(f"{name}: waiting for {holder}, which fetches it (lock: {lock})", file=sys.stderr, flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}\n")
            file.flush()
        yield


def _below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "no files"


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
