"""Where weights come from: a path, the Hugging Face hub, timm, or a URL with its checksum."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from zoo.checkpoints.download import download
from zoo.checkpoints.files import CheckpointError, WeightFile, read_weights

HUB_FILES = ("model.safetensors", "pytorch_model.bin", "model.pth", "model.pt")
OPTIONS = ("sha256", "network", "importer", "min_share")


@dataclasses.dataclass(frozen=True)
class Source:
    """A place of weights, and how to read them.

    Args:
        text: what the user wrote; :meth:`parse` reads it.
        location: the same without the options behind ``#``.
        sha256: checksum of a download in hexadecimal; its first eight digits or more.
        network: which network of the file, ``student`` or ``teacher``.
        importer: layout of the file, instead of recognising it.
        min_share: least share of the backbone that the file must fill.
    """

    text: str
    location: str
    sha256: str = ""
    network: str | None = None
    importer: str | None = None
    min_share: float | None = None

    @classmethod
    def parse(cls, text: str) -> Source:
        """Read ``location[#option=value&...]``.

        Raises:
            CheckpointError: an unknown option, or a value that does not fit.
        """
        location, _, fragment = text.partition("#")
        if not fragment or Path(text).exists():  # a path may hold a #
            return cls(text, text if Path(text).exists() else location)
        options: dict[str, Any] = dict(parse_qsl(fragment, keep_blank_values=True))
        unknown = [name for name in options if name not in OPTIONS]
        if unknown or not options:
            raise CheckpointError(
                f"{text}: what follows the # is no option of a source ({', '.join(unknown) or fragment}); there are "
                f"{', '.join(f'{name}=...' for name in OPTIONS)}, joined by &"
            )
        if not re.fullmatch(r"[0-9a-fA-F]{8,64}|", options.get("sha256", "")):
            raise CheckpointError(f"{text}: sha256 must be 8 to 64 hexadecimal digits")
        if "min_share" in options:
            options["min_share"] = _share(options["min_share"], text)
        return cls(text, location, **options)


def open_source(source: Source) -> WeightFile:
    """Fetch the weights, if need be, and read them safely.

    Raises:
        CheckpointError: they cannot be had, or not be read.
    """
    if source.location.startswith("timm:"):
        return _from_timm(source)
    return read_weights(fetch(source), source.location)


def fetch(source: Source) -> Path:
    """The file on this machine, downloaded if it is not here yet.

    Raises:
        CheckpointError: it cannot be had.
    """
    location = source.location
    if location.startswith("hf-hub:"):
        repository, _, file = location.removeprefix("hf-hub:").partition(":")
        name, _, revision = repository.partition("@")
        return hub_file(name, revision or None, file or None)
    if re.match(r"https?://", location):
        if not source.sha256:
            raise CheckpointError(
                f"{location}: a download needs its checksum: add #sha256=..., as its publisher states it or as "
                "`sha256sum` prints it for a copy that you trust"
            )
        return download(location, source.sha256, offline())
    if re.match(r"[a-z][a-z0-9+-]+:(?!\\)", location) and not Path(location).exists():
        raise CheckpointError(
            f"{location}: this is no source of weights; take a path, hf-hub:owner/name, timm:name.tag or https://..."
        )
    return Path(location).expanduser()


def offline() -> bool:
    """Whether nothing may be downloaded: ``SELFZOO_OFFLINE=1`` or ``HF_HUB_OFFLINE=1``."""
    from huggingface_hub import constants

    ours = os.environ.get("SELFZOO_OFFLINE", "").lower() not in ("", "0", "false", "no")
    return ours or constants.HF_HUB_OFFLINE


def hub_file(name: str, revision: str | None = None, file: str | None = None) -> Path:
    """A file of a repository on the Hugging Face hub, from its cache or downloaded into it.

    Args:
        name: ``owner/name``.
        revision: branch, tag or commit.
        file: name within the repository; by default the first of ``HUB_FILES`` that it has.

    Raises:
        CheckpointError: it cannot be had; says whether for want of a connection.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    local = offline()
    for candidate in [file] if file else HUB_FILES:
        try:
            return Path(hf_hub_download(name, candidate, revision=revision, local_files_only=local))
        except LocalEntryNotFoundError as error:
            if not local:
                raise CheckpointError(
                    f"hf-hub:{name}: the hub cannot be reached, and {candidate} is not in its cache here"
                ) from error
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise CheckpointError(f"hf-hub:{name}: {' '.join(str(error).split())}") from error
    where = "is not in the cache, and downloads are switched off (HF_HUB_OFFLINE, SELFZOO_OFFLINE)"
    wanted = file or " nor ".join(HUB_FILES)
    raise CheckpointError(
        f"hf-hub:{name}: {wanted} {where if local else 'is not in the repository: name its file'}"
    )


def _from_timm(source: Source) -> WeightFile:
    """timm's own reading of its weights: it knows which of them need converting."""
    import timm

    name = source.location.removeprefix("timm:")
    if not timm.is_model(name):
        raise CheckpointError(f"{source.location}: timm has no such model; `zoo list backbones` shows all")
    tagged = [name] if "." in name else []  # without a tag, timm has a default
    config = timm.get_pretrained_cfg(name) if set(tagged) <= set(timm.list_pretrained()) else None
    if config is None or not config.hf_hub_id:
        raise CheckpointError(
            f"{source.location}: timm has no such weights on the hub; see timm.list_pretrained()"
        )
    path = hub_file(config.hf_hub_id, None, config.hf_hub_filename or None)
    network = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(path)})
    return WeightFile(
        source.location, dict(network.state_dict()), {"architecture": name}, path.stat().st_size
    )


def _share(text: str, source: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise CheckpointError(f"{source}: min_share must be a number from 0 to 1, found {text!r}")
    return share
