"""Uni4Eye++'s dynamic head: its arithmetic, what it changes, where its sources come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.test_uni4eye import ENCODER, batch_of, built, turns_of
from zoo.methods.medical.uni4eye import Uni4Eye
from zoo.nn.dynamic_head import DynamicHead


def images(source: list[int]) -> dict[str, Tensor]:
    return {**batch_of(2), "source": torch.tensor(source)}


def test_every_item_has_a_layer_of_its_own_from_its_tokens_and_source() -> None:
    torch.manual_seed(0)
    head, tokens, patches = DynamicHead(4), torch.randn(3, 5, 6), torch.randn(3, 4, 8)
    source = torch.tensor([0, 6, 3])
    mixed = head(patches, *head.weights(tokens, source))
    kernel = head.controller.weight[..., 0]
    for b in range(3):
        known = torch.cat((tokens[b].clamp(min=0).mean(1), torch.eye(7)[source[b]]))
        numbers = kernel @ known + head.controller.bias
        # a convolution over patches, as the release has it
        one = F.conv1d(patches[b : b + 1], numbers[:16].view(4, 4, 1), numbers[16:])[0]
        torch.testing.assert_close(mixed[b], one)


def test_a_head_that_passes_patches_on_leaves_the_network_as_it_was() -> None:
    plain, mixing = built(), built(dynamic_head="plain")
    found = mixing.student.load_state_dict(plain.student.state_dict(), strict=False)
    assert found.missing_keys == ["dynamic.controller.weight", "dynamic.controller.bias"]
    assert not found.unexpected_keys
    head: Any = mixing.student.dynamic
    with torch.no_grad():
        head.controller.weight.zero_()
        head.controller.bias.copy_(torch.cat((torch.eye(16).flatten(), torch.zeros(16))))
    batch = plain.masked(images([0, 6]))
    for name, loss in plain.losses(batch).items():
        torch.testing.assert_close(mixing.losses(batch)[name], loss)
    # in the other mode the decoder's blocks see values above 0 alone
    released = built(dynamic_head="released")
    released.student.load_state_dict(mixing.student.state_dict())
    branch, seen = plain.student.intensity, []
    released.student.intensity.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    losses = released.losses(batch)
    assert seen[0].min() == 0
    assert losses["intensity_2d"] != plain.losses(batch)["intensity_2d"]
    assert torch.equal(losses["gradient_2d"], plain.losses(batch)["gradient_2d"])
    x, masks = released.network_input(batch), batch["masks"]
    with torch.no_grad():
        from zoo.nn.masking_clusters import seen_and_hidden

        places, table = seen_and_hidden(masks)[0], plain.student.decoder_pos2
        placed = branch.placed(plain.student.backbone.encode(x, places), places, table)
        decoded = plain.student.decoder_norm(branch(placed.relu())[:, 1:])
        torch.testing.assert_close(
            released.student(x, masks, True, batch["source"])["intensity"], branch.heads["2"](decoded)
        )


def test_only_images_and_their_intensities_are_mixed_and_sources_matter() -> None:
    method = built(dynamic_head="released", background="zero")
    for axes in (2, 3):
        method.zero_grad()
        batch = method.masked({**batch_of(axes), "source": torch.tensor([1, 4])})
        sum(method.losses(batch).values()).backward()  # type: ignore[union-attr]
        gradient = method.student.dynamic.controller.weight.grad  # type: ignore[union-attr]
        if axes == 3:
            assert gradient is None
            continue
        assert gradient is not None
        columns = gradient[:, -7:, 0].abs().sum(0) > 0
        assert columns.tolist() == [False, True, False, False, True, False, False]
        other = method.losses({**batch, "source": torch.tensor([1, 5])})
        assert other["intensity_2d"] != method.losses(batch)["intensity_2d"]
        assert other["gradient_2d"] == method.losses(batch)["gradient_2d"]
        assert method.reconstruct(batch)["reconstructed"].isfinite().all()


def test_only_masked_patches_count_with_the_head() -> None:
    method = built(dynamic_head="released")
    batch = method.masked(images([2, 2]))
    x, mask = method.network_input(batch), batch["masks"].mask
    everywhere = method.student(x, batch["masks"], True, batch["source"])["intensity"]
    errors = (everywhere - method.targets(batch, x)["intensity"]).square().mean(2)
    torch.testing.assert_close(method.losses(batch)["intensity_2d"], (errors * mask).sum() / mask.sum())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "needs the data source of each of 2 items, and got none: batches must hold source"),
        ([1], r"got shape \[1\]"),
        ([0, 7], r"source holds \[7\], and the dynamic head knows 0..6"),
        ([-1, 0], r"source holds \[-1\]"),
    ],
)
def test_sources_that_are_missing_or_unknown(source: list[int] | None, message: str) -> None:
    method = built(dynamic_head="released")
    with pytest.raises(ValueError, match=message):
        method.losses(batch_of(2) if source is None else images(source))


def test_heads_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="dynamic_head='on': expected one of none, released, plain"):
        built(dynamic_head="on")
    with pytest.raises(ValueError, match="num_sources=0 at least 1"):
        built(dynamic_head="released", num_sources=0)
    with pytest.raises(ValueError, match="mixes patches of images: set img_size"):
        Uni4Eye("unified_vit_small", {**ENCODER, "img_size": None}, dynamic_head="released")


def test_batches_of_images_name_their_sources(tmp_path: Path) -> None:
    data = turns_of(tmp_path)
    data.prepare_data()
    data.setup("fit")
    batches = list(data.train_dataloader())
    for source in (None, 3, "label"):
        data.source = source
        volume, image = (data.on_after_batch_transfer(dict(batches[i]), 0) for i in (0, -1))
        assert "source" not in volume
        if source is None:
            assert "source" not in image
        else:
            wanted = batches[-1]["label"] if source == "label" else torch.full((2,), 3)
            assert torch.equal(image["source"], wanted)
    with pytest.raises(ValueError, match="source='class': expected a number from 0, label"):
        type(data)(data.parts["images"], data.parts["volumes"], "class")
