"""IEMOCAP (Busso et al., LREC 2008): four emotions in acted dialogues, five sessions of two speakers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from datamodules.audio import AudioDataModule
from datamodules.audio_lists import Listed, listed_clips, numbered, read_text
from datamodules.audio_sets import AudioClips
from datamodules.layout import Layout, LayoutError, Split

#: Excitement counts as happiness; all other emotions are left out (as in SUPERB).
_MERGED: Final = {"neu": "neu", "hap": "hap", "exc": "hap", "ang": "ang", "sad": "sad"}
#: ``[6.2901 - 8.2357]<tab>Ses01F_impro01_F000<tab>neu<tab>[2.5000, 2.5000, 2.5000]``
_LINE: Final = re.compile(r"^\[[\d.]+ - [\d.]+\]\t(?P<name>\S+)\t(?P<emotion>\w+)\t", re.MULTILINE)


class IEMOCAP(AudioDataModule):
    """5,531 utterances; each session in turn is tested on, the other four are trained on.

    ``root`` is the folder ``IEMOCAP_full_release``: of every ``Session<n>`` the utterances in ``sentences/wav`` and
    the lists in ``dialog/EmoEvaluation`` are read. A fifth of the training utterances is held out for validation,
    with equal shares of the classes (SUPERB draws them without regard to classes).

    Args:
        fold: the session that is tested on, 1 to 5.
        **common: see :class:`~datamodules.audio.AudioDataModule`.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "iemocap"
    num_classes = 4
    classes: ClassVar[tuple[str, ...]] = ("neu", "hap", "ang", "sad")
    layout: ClassVar[Mapping[str, Layout]] = {
        "root": Layout(
            title="IEMOCAP",
            images=".",
            suffix=".wav",
            labels=(),
            splits={f"Session{n}": Split(f"Session{n}/sentences/wav/*/*") for n in range(1, 6)},
            origin="sail.usc.edu/iemocap (licence on request): IEMOCAP_full_release",
            unit="clips",
        )
    }
    default_val_fraction = 0.2

    def __init__(self, fold: int = 1, **common: Any) -> None:
        super().__init__(**common)
        if not 1 <= fold <= 5:
            raise ValueError(f"fold must lie in 1..5, got {fold}.")
        self.fold = fold

    def tree_splits(self, split: str) -> dict[str, tuple[str, ...]]:
        """The tested session, or the others."""
        sessions = [n for n in range(1, 6) if (n == self.fold) == (split == "test")]
        return {"root": tuple(f"Session{n}" for n in sessions)}

    def read(self, split: str) -> AudioClips:
        """The utterances of a split with one of the four emotions."""
        clips: list[Listed] = []
        for session in self.tree_splits(split)["root"]:
            root, files = self.files(session)
            lists = sorted((root / session / "dialog" / "EmoEvaluation").glob("*.txt"))
            emotion = {
                match["name"]: match["emotion"]
                for path in lists
                if not path.name.startswith(".")
                for match in _LINE.finditer(read_text(path, "emotions of a dialogue"))
            }
            names = {file.rpartition("/")[2].removesuffix(".wav"): file for file in files}
            if unknown := sorted(set(names) - set(emotion)):
                raise LayoutError(
                    f"{len(unknown)} of {len(names)} utterances of {root / session}, e.g. {unknown[0]}, are in none "
                    "of the lists in dialog/EmoEvaluation."
                )
            clips += [
                Listed(
                    names.get(name, f"{session}/sentences/wav/{name.rpartition('_')[0]}/{name}.wav"), (label,)
                )
                for name, label in sorted(
                    (name, _MERGED[found]) for name, found in emotion.items() if found in _MERGED
                )
            ]
        root, _ = self.files(self.tree_splits(split)["root"][0])
        return listed_clips(root, clips, numbered(self.classes), root, self.allow_partial)
