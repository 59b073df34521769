"""The model card of an exported network, in the form of the Hugging Face hub."""

from __future__ import annotations

from typing import Any

import yaml

from zoo.registry import method_card

_TAGS = {
    "image": "image-feature-extraction",
    "spectrogram": "audio-classification",
    "signal": "feature-extraction",
    "volume": "image-segmentation",
    "video": "video-classification",
}


def readme(card: dict[str, Any]) -> str:
    """Markdown with a YAML head; says what the files hold and how they are read."""
    name = card["method"] or card["class"].rpartition(".")[2]
    known = method_card(card["method"]) if card["method"] else None
    task = known.task if known else ""
    tag = "image-segmentation" if "segmentation" in task else _TAGS[card["input"]["name"]]
    head = {"library_name": "selfzoo", "pipeline_tag": tag, "tags": ["selfzoo", name]}
    benchmark = card["kept"].get("benchmark", {})
    cls = card["class"].rpartition(".")[2]
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False).strip(),
        "---",
        "",
        f"# {name}: {card['network']}, {card['part']}",
        "",
        *([f"{known.title} ({known.paper.venue} {known.paper.year}, {known.paper.url})."] if known else []),
        f"Backbone: `{card['hyper_parameters'].get('backbone', '?')}`. "
        + (f"Trained on: `{benchmark['name']}`. " if benchmark.get("name") else "")
        + f"Takes {card['input']['is']}; gives {', '.join(card['outputs'])}.",
        "",
    ]
    if classes := benchmark.get("classes"):
        shown = ", ".join(map(str, classes[:30])) + (", ..." if len(classes) > 30 else "")
        lines += [f"Classes ({len(classes)}): {shown}.", ""]
    if card["part"] == "whole":
        lines += [
            "```python",
            f"from zoo import {cls}" if known else f"from {card['class'].rpartition('.')[0]} import {cls}",
            "",
            f'method = {cls}.from_pretrained("hf-hub:owner/name")  # or this folder',
            "method.predict(...)",
            "```",
        ]
    else:
        lines += ["Start from it: `zoo fit ... --model.pretrained hf-hub:owner/name`."]
    versions = ", ".join(f"{k} {v}" for k, v in card["versions"].items())
    return "\n".join([*lines, "", f"Written with {versions}."]) + "\n"
