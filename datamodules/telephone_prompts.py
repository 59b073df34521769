"""TelephonePrompts: what a telephone exchange says, in five languages; real speech of a Debian package each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

from datamodules.audio import AudioDataModule
from datamodules.audio_lists import Listed, listed_clips, numbered
from datamodules.audio_sets import AudioClips
from datamodules.layout import Layout, Split

#: Where the packages are installed.
DEBIAN_FOLDER: Final = Path("/usr/share/asterisk/sounds")
#: Language → folder of its one speaker, and number of prompts without ``silence``.
_LANGUAGES: Final = {
    "en": ("en_US_f_Allison", 558),
    "es": ("es_MX_f_Allison", 517),
    "fr": ("fr_CA_f_June", 551),
    "it": ("it_IT_m_Carlo", 589),
    "ru": ("ru_RU_f_IvrvoiceRU", 566),
}
#: Published as a file of no bytes.
_EMPTY: Final = "ru_RU_f_IvrvoiceRU/is.gsm"
_PACKAGES: Final = "asterisk-core-sounds-{en,es,fr,it,ru}-gsm"


def _split(folder: str, count: int) -> Split:
    # Not `silence`, which holds just that.
    return Split((f"{folder}/*", f"{folder}/[!s]*/*"), (count,))


_LAYOUT: Final = Layout(
    title="Telephone prompts",
    images=".",
    suffix=".gsm",
    labels=(),
    splits={language: _split(*found) for language, found in _LANGUAGES.items()},
    origin=f"Debian packages {_PACKAGES} (12.6 MB): `apt-get install`, or, without being root, "
    "`apt-get download` them and `dpkg -x` each into one folder",
    unit="clips",
)


class TelephonePrompts(AudioDataModule):
    """2,780 prompts, 131 minutes: real speech to pre-train on. The language, which is the speaker, is the class.

    Recorded at 8 kHz, so resampled clips are empty above 4 kHz. One more file, of the Russian package, is published
    without content and left out. Needs soundfile (extra ``audio``).

    Args:
        root: folder of the languages' folders, or the one packages were extracted to; None looks where they are
            installed.
        languages: those that are used.
        val_fraction: share of the prompts held out for validation and test.
        **common: see :class:`~datamodules.audio.AudioDataModule`.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "telephone_prompts"
    layout: ClassVar[Mapping[str, Layout]] = {"root": _LAYOUT}
    test_split = "val"
    default_val_fraction = 0.1

    def __init__(
        self,
        root: str | None = None,
        languages: tuple[str, ...] = tuple(_LANGUAGES),
        val_fraction: float = 0.1,
        **common: Any,
    ) -> None:
        extracted = Path(root).expanduser() / DEBIAN_FOLDER.relative_to("/") if root else DEBIAN_FOLDER
        super().__init__(
            root=str(extracted) if root is None or extracted.is_dir() else root,
            val_fraction=val_fraction,
            **common,
        )
        if not languages or not set(languages) <= set(_LANGUAGES):
            raise ValueError(f"languages must be some of {', '.join(_LANGUAGES)}, got {list(languages)}.")
        if not val_fraction:
            raise ValueError("val_fraction must be above 0: there are no prompts but those of training.")
        self.languages = self.classes = tuple(languages)  # type: ignore[misc]
        self.num_classes = len(languages)  # type: ignore[misc]

    def tree_splits(self, split: str) -> dict[str, tuple[str, ...]]:
        """One split of the layout for each language."""
        return {"root": self.languages}

    def read(self, split: str) -> AudioClips:
        """All prompts, by language."""
        clips: list[Listed] = []
        for language in self.languages:
            root, files = self.files(language)
            clips += [
                Listed(file, (language,)) for file in files if file != _EMPTY or (root / file).stat().st_size
            ]
        return listed_clips(root, clips, numbered(self.languages), root)
