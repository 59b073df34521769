"""Few recordings at usual lengths and sizes in the official layouts, made up: sounds, videos, volumes, signals."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.speed.input_trees import RNG, picture, save, write_csv, written

RATE = 16_000


# Sounds and videos.


def sound(path: Path, seconds: float, rate: int = RATE) -> None:
    """16-bit noise as the name's kind of file."""
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, RNG.normal(0, 0.05, round(seconds * rate)), rate)


def esc50(root: Path) -> Path:
    """5 s at 44.1 kHz, WAV."""
    rows: list[Sequence[object]] = [("filename", "fold", "target", "category", "esc10", "src_file", "take")]
    for fold in range(1, 6):
        for target in (0, 1):
            name = f"{fold}-1{target:05d}-A-{target}.wav"
            sound(root / "audio" / name, 5, 44_100)
            rows.append((name, fold, target, ("dog", "rooster")[target], True, 100000, "A"))
    write_csv(root / "meta/esc50.csv", rows)
    return root


def speech_commands(root: Path) -> Path:
    """1 s, WAV."""
    lists: tuple[list[str], list[str]] = ([], [])
    for word in ("yes", "no", "bed", "wow", "visual"):
        for number in range(4):
            path = f"{word}/0a7c2a{number}d_nohash_0.wav"
            sound(root / path, 1)
            if number >= 2:
                lists[number - 2].append(f"{path}\n")
    for name, listed in zip(("validation_list.txt", "testing_list.txt"), lists, strict=True):
        written(root / name, "".join(listed))
    sound(root / "_background_noise_/white_noise.wav", 10)
    return root


def librispeech(root: Path) -> Path:
    """12 s, FLAC."""
    subsets = (
        "train-clean-100",
        "train-clean-360",
        "train-other-500",
        "dev-clean",
        "dev-other",
        "test-clean",
        "test-other",
    )
    for label, subset in enumerate(subsets):
        for number in range(2):
            sound(root / subset / f"{84 + label}/121123/{84 + label}-121123-{number:04d}.flac", 12)
    return root


def libri_light(root: Path) -> Path:
    """Ten minutes, FLAC."""
    for label, archive in enumerate(("small", "medium", "large")):
        for number in range(2):
            sound(
                root / archive / f"{100 + label}/book_{number}_librivox_64kb_mp3/book_{number:02d}_64kb.flac",
                600,
            )
    return root


def telephone(root: Path) -> Path:
    """3 s of GSM at 8 kHz."""
    import soundfile

    voices = ("en_US_f_Allison", "es_MX_f_Allison", "fr_CA_f_June", "it_IT_m_Carlo", "ru_RU_f_IvrvoiceRU")
    for voice, number in itertools.product(voices, range(6)):
        path = root / voice / ("digits" if number % 2 else "") / f"vm-{number}.gsm"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, RNG.normal(0, 0.05, 24_000), 8000, format="RAW", subtype="GSM610")
    return root


def audioset(root: Path) -> Path:
    """10 s, WAV."""
    rows = [(n, {0: "/m/09x0r"}.get(n, f"/m/x{n:03d}"), f"Class {n}") for n in range(527)]
    write_csv(root / "class_labels_indices.csv", [("index", "mid", "display_name"), *rows])
    for part in ("balanced_train_segments", "unbalanced_train_segments", "eval_segments"):
        lines = ["# created", "# num_ytids=4", "# YTID, start, end, labels"]
        for number in range(4):
            sound(root / part / f"{part[0]}{number}_0.wav", 10)
            lines.append(f'{part[0]}{number}, 0.000, 10.000, "/m/09x0r"')
        written(root / f"{part}.csv", "\n".join(lines) + "\n")
    return root


def videos(root: Path, frames: int = 50) -> Path:
    """Clips of frames of 160 × 160 in PNG files, and their sound: lists of the fine-tuning sets."""
    for part in ("train", "test"):
        lines = []
        for number in range(4):
            name = f"{part}{number}"
            for index in range(1, frames + 1):
                save(picture(160, 160), root / f"faces/{name}/frame_det_00_{index:06d}.png")
            sound(root / f"sounds/{name}.wav", frames / 25)
            lines.append(f"faces/{name} sounds/{name}.wav {number % 2}\n")
        written(root / f"lists/{part}.csv", "".join(lines))
    return root


def voxceleb2(root: Path, frames: int = 100) -> Path:
    """MPEG-4 of 224 × 224, 25 a second."""
    import av

    for number in range(5):
        part, clip = ("dev", "test")[number // 4], f"id{number // 2:05d}/abc{number}/{number:05d}"
        path = root / f"{part}/mp4/{clip}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=25)
            stream.width = stream.height = 224
            stream.pix_fmt, stream.bit_rate = "yuv420p", 1_000_000
            for _ in range(frames):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(224, 224), format="rgb24")))
            container.mux(stream.encode())
        sound(root / f"{part}/wav/{clip}.wav", frames / 25)
    return root


# Volumes and signals.


def scan(shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Int16 Hounsfield units and uint8 classes."""
    volume, label = np.full(shape, -1000, np.int16), np.zeros(shape, np.uint8)
    body = tuple(slice(side // 10, -(side // 10)) for side in shape)
    volume[body] = RNG.integers(-60, 120, volume[body].shape)
    organ = tuple(slice(side // 4, side // 2) for side in shape)
    label[organ] = 6
    return volume, label


def btcv(root: Path, shape: Sequence[int] = (256, 256, 96)) -> Path:
    """256 × 256 × 96 voxels, nii.gz."""
    import nibabel as nib

    entries = []
    for number in (1, 2, 35):
        entry = {"image": f"imagesTr/img{number:04d}.nii.gz", "label": f"labelsTr/label{number:04d}.nii.gz"}
        for path, array in zip(entry.values(), scan(shape), strict=True):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.diag([-1.5, -1.5, 2.0, 1.0])), root / path)
        entries.append(entry)
    written(root / "dataset_0.json", json.dumps({"training": entries[:2], "validation": entries[2:]}))
    return root


def luna16(root: Path, shape: Sequence[int] = (512, 512, 96)) -> Path:
    """512 × 512 × 96 voxels, MetaImage."""
    for number in range(3):
        folder, name = root / f"subset{number % 2}", f"1.3.6.1.{number}"
        header = (
            "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n"
            "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\nElementSpacing = 0.75 0.75 2.0\n"
            f"DimSize = {' '.join(map(str, shape))}\nElementType = MET_SHORT\nElementDataFile = {name}.raw\n"
        )
        written(folder / f"{name}.mhd", header)
        written(folder / f"{name}.raw", scan(shape)[0].astype("<i2").tobytes(order="F"))
    return root


def octa500(root: Path) -> Path:
    """400 slices of 400 × 640, BMP, an eye."""
    from openpyxl import Workbook

    book = Workbook()
    book.worksheets[0].append(["ID", "Gender", "Disease"])
    for number, eye in enumerate((10001, 10002, 10003, 10181, 10182, 10201)):
        book.worksheets[0].append([eye, "F", ("NORMAL", "DR", "OTHERS")[number % 3]])
        for plane in range(1, 401):
            for modality in ("OCT", "OCTA"):
                path = root / f"OCTA_6mm/{modality}/{eye}/{plane}.bmp"
                save(RNG.integers(0, 256, (640, 400)).astype(np.uint8), path)
    book.save(root / "OCTA_6mm/Text labels.xlsx")
    return root


def signal_folders(root: Path) -> Path:
    """Segments of 60 s of four channels at 64 Hz, one array a participant."""
    rows: list[Sequence[object]] = [
        ("participant_id", "segment_path", "start_time", "split", "segment", "age")
    ]
    for person in range(14):
        written(root / "arrays/x", b"")
        np.save(root / f"arrays/p{person}.npy", RNG.normal(size=(4, 4, 3840)).astype(np.float32))
        split = "train" if person < 8 else "val" if person < 11 else "test"
        rows += [(f"p{person}", f"arrays/p{person}.npy", 100.0 * n, split, n, 20 + person) for n in range(4)]
    write_csv(root / "segments.csv", rows)
    return root


def packed_signals(root: Path) -> Path:
    """The same, compressed: an archive a participant."""
    signal_folders(root)
    for path in root.glob("arrays/*.npy"):
        np.savez_compressed(path.with_suffix(".npz"), signal=np.load(path))
    table = root / "segments.csv"
    table.write_text(table.read_text().replace(".npy", ".npz"))
    return root


def ptbxl(root: Path) -> Path:
    """Ten seconds of twelve leads at 100 Hz, WFDB."""
    import wfdb

    leads = ["I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6"]
    lines = ["ecg_id,patient_id,age,sex,height,recording_date,strat_fold,filename_lr,filename_hr"]
    for ecg in range(1, 31):
        place = root / f"records100/00000/{ecg:05d}_lr"
        place.parent.mkdir(parents=True, exist_ok=True)
        wfdb.wrsamp(
            place.name, fs=100, units=["mV"] * 12, sig_name=leads, p_signal=RNG.normal(0, 0.2, (1000, 12)),
            fmt=["16"] * 12, adc_gain=[1000.0] * 12, baseline=[0] * 12, write_dir=str(place.parent),
        )  # fmt: skip
        person, file = (ecg + 1) // 2, f"records100/00000/{ecg:05d}_lr"
        about = f"{ecg},{person}.0,60.0,{ecg % 2},,1990-01-{ecg:02d} 09:17:34,{person % 10 + 1}"
        lines.append(f"{about},{file},{file.replace('lr', 'hr')}")
    written(root / "ptbxl_database.csv", "\n".join(lines) + "\n")
    return root
