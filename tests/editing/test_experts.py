"""Experts move like any other channels: packed in memory, and on disk however their tensors are stored."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import transformers
from command_line import act_profile, succeed
from safetensors.torch import load_file, save_file
from support import chosen, state
from tiny_families import pair_of
from transformers import conversion_mapping
from transformers.core_model_loading import LinearToConv3d, WeightConverter
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import act
from act.editing.donor import Donor
from act.editing.folders import patch_folder, patch_of_folders, transfer_folders
from act.editing.pieces import Layout, cut, gathered, halved, joined, stacked, turned
from act.editing.stored import StoredModel, fingerprints
from act.editing.weight_files import RenamedWeights
from act.models.channels import ChannelSpace
from act.models.fingerprint import fingerprint
from act.models.sites import ParameterSlice
from act.ranking.channel_set import ChannelSet

FAMILIES = [
    "mixtral",
    "qwen3_moe",
    "deepseek_v3",
    "gpt_oss",
    "granitemoe",
    "olmoe",
    "dbrx",
    "llama4_text",
    "nemotron_h",
    "mistral_large4_text",  # no causal language model
]
SINGLE = "model.safetensors"


def loaded(folder: Path) -> torch.nn.Module:
    (kind,) = transformers.AutoConfig.from_pretrained(folder).architectures
    return getattr(transformers, kind).from_pretrained(folder, dtype="auto").eval()


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: x for path in sorted(folder.glob("*.safetensors")) for name, x in load_file(path).items()}


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def saved(folder: Path, family: str, **options) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A donor and a target, in folders and as they are loaded from these."""
    for model, name in zip(pair_of(family), ("donor", "target"), strict=True):
        model.save_pretrained(folder / name, **(options if name == "target" else {}))
    return loaded(folder / "donor"), loaded(folder / "target")


def by_hand(donor, before: dict[str, torch.Tensor], channels: ChannelSet) -> dict[str, torch.Tensor]:
    """The weights ``before`` with the donor's values in the place of the chosen channels, one after the other."""
    result = {name: x.clone() for name, x in before.items()}
    for site, rows in channels.space.split(channels.index):
        for part in site.parameters:
            mask = torch.zeros_like(result[part.key], dtype=torch.bool)
            experts = mask.view(-1, part.rows, mask.shape[-1]) if part.rows else mask
            expert = mask if part.expert is None else experts[part.expert]
            start, step = (part.span[0], part.span[2]) if part.span else (0, 1)
            run = part.run or 1
            expert.index_fill_(part.dim, start + rows // run * step + rows % run, True)
            result[part.key][mask] = state(donor)[part.key][mask]
    return result


@pytest.mark.parametrize("family", [family for family in FAMILIES if family in CONFIG_MAPPING])
def test_channels_of_experts_move_to_the_bit_in_memory_and_on_disk(tmp_path, family):
    donor, target = saved(tmp_path, family, max_shard_size="40KB")
    space = ChannelSpace.from_model(target)
    channels, before = chosen(space, 0.05), state(target)
    assert any(site.expert is not None for site, _ in space.split(channels.index))
    donors = [Donor(tmp_path / "donor", channels, 1.0)]

    transfer_folders(donors, tmp_path / "target", tmp_path / "out")
    patch = act.transfer(donor, target, channels, 1.0)
    assert same(state(target), by_hand(donor, before, channels))
    assert same(state(loaded(tmp_path / "out")), state(target))
    own, out = tensors(tmp_path / "target"), tensors(tmp_path / "out")
    assert {name: (x.shape, x.dtype) for name, x in own.items()} == {n: (x.shape, x.dtype) for n, x in out.items()}
    files = [sorted(path.name for path in (tmp_path / name).glob("*.safetensors*")) for name in ("target", "out")]
    assert files[0] == files[1] and len(files[0]) > 2
    prints = [fingerprint(target), *fingerprints(StoredModel(tmp_path / "out").parameters(space))]
    assert prints == [patch.provenance.after] * 2

    patch_of_folders(donors, tmp_path / "target").save(tmp_path / "patch")
    made = act.Patch.load(tmp_path / "patch")
    assert (made.provenance.before, made.provenance.after) == (patch.provenance.before, patch.provenance.after)
    patch_folder(made, tmp_path / "target", tmp_path / "new")
    patch_folder(made, tmp_path / "new", tmp_path / "back", revert=True)
    assert same(tensors(tmp_path / "new"), out) and same(tensors(tmp_path / "back"), own)
    made.revert(target)
    assert same(state(target), before) and fingerprint(target) == made.provenance.before


def packed(folder: Path, model: torch.nn.Module) -> None:
    save_file(state(model), folder / SINGLE, metadata={"format": "pt"})


@pytest.mark.parametrize("side", ["donor", "target"])
def test_one_model_may_be_stored_packed_and_the_other_expert_by_expert(tmp_path, side):
    models = dict(zip(("donor", "target"), saved(tmp_path, "mixtral"), strict=True))
    packed(tmp_path / side, models[side])
    assert same(state(loaded(tmp_path / side)), state(models[side]))
    channels = chosen(ChannelSpace.from_model(models["target"]), 0.3)
    transfer_folders([Donor(tmp_path / "donor", channels, 0.4)], tmp_path / "target", tmp_path / "out")
    act.transfer(*models.values(), channels, 0.4)
    assert same(state(loaded(tmp_path / "out")), state(models["target"]))


def test_experts_in_a_wider_type_than_they_are_loaded_in(tmp_path):
    for model, name in zip(pair_of("mixtral"), ("donor", "target"), strict=True):
        model.bfloat16().save_pretrained(tmp_path / name)
        held = load_file(tmp_path / name / SINGLE)
        held = {key: x.float() + 1e-4 if ".w3." in key else x for key, x in held.items()}
        save_file(held, tmp_path / name / SINGLE, metadata={"format": "pt"})
    donor, target = (loaded(tmp_path / name) for name in ("donor", "target"))
    space = ChannelSpace.from_model(target)
    stored = StoredModel(tmp_path / "target").parameters(space)
    assert fingerprints(stored)[1] == fingerprint(target) != fingerprints(stored)[0] == fingerprint(stored)
    transfer_folders([Donor(tmp_path / "donor", chosen(space, 0.3), 0.4)], tmp_path / "target", tmp_path / "out")
    before, after = tensors(tmp_path / "target"), tensors(tmp_path / "out")
    assert {name: x.dtype for name, x in before.items()} == {name: x.dtype for name, x in after.items()}


def neurons(space: ChannelSpace, expert: int) -> ChannelSet:
    """Three neurons of one expert of the last layer of experts: rows of gate and up, columns of down."""
    *_, experts = (site.name.partition("[")[0] for site in space if site.expert is not None)
    gate, up, down = (space.site(f"{experts}[{expert}].{role}") for role in ("gate", "up", "down"))
    rows = torch.tensor([0, 2, 5])
    index = torch.cat([gate.offset + rows, up.offset + rows])
    return ChannelSet(space, index, torch.ones(len(index)), inputs={down.name: rows})


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_neurons_of_an_expert_are_its_rows_and_the_columns_that_read_them(tmp_path, family):
    donor, target = saved(tmp_path, family)
    channels, before = neurons(ChannelSpace.from_model(target), 3), state(target)
    transfer_folders([Donor(tmp_path / "donor", channels, 1.0)], tmp_path / "target", tmp_path / "out")
    patch = act.transfer(donor, target, channels, 1.0)
    now, theirs = state(target), state(donor)
    assert same(state(loaded(tmp_path / "out")), now)
    assert fingerprint(target) == patch.provenance.after
    changed = {name: (now[name] != x).nonzero() for name, x in before.items() if not torch.equal(now[name], x)}
    assert all(set(places[:, 0].tolist()) == {3} for places in changed.values())
    down = next(name for name in changed if name.endswith("down_proj"))
    columns = [0, 2, 5]
    inputs = (slice(None), columns) if family == "mixtral" else (columns, slice(None))
    assert torch.equal(now[down][3][inputs], theirs[down][3][inputs])
    assert changed[down][:, 2 if family == "mixtral" else 1].unique().tolist() == columns


def test_rows_may_not_cross_columns_of_the_same_expert():
    donor, target = pair_of("mixtral")
    space = ChannelSpace.from_model(target)
    columns = neurons(space, 3)
    (down,) = columns.inputs
    for expert, crosses in ((3, True), (2, False)):
        site = space.site(down.replace("[3]", f"[{expert}]"))
        rows = ChannelSet(space, torch.arange(site.offset, site.offset + 4), torch.zeros(4))
        donors = [Donor(donor, columns), Donor(donor, rows)]
        patches = []
        for each in donors:
            patches.append(act.transfer_many([each], target))
            patches[-1].revert(target)
        if crosses:
            with pytest.raises(
                act.ActError, match=r"rows of one donor cross columns of another in expert 3 of .*down_p"
            ):
                act.transfer_many(donors, target)
            with pytest.raises(act.ActError, match=r"rows of one patch cross columns of another in expert 3"):
                act.compose(patches)
        else:
            act.compose(patches).apply(target)
            both = state(target)
            act.compose(patches).revert(target)
            act.transfer_many(donors, target)
            assert same(state(target), both)


def test_several_donors_and_patches_meet_in_the_same_rows_of_an_expert():
    donor, target = pair_of("gpt_oss")
    channels, before = neurons(ChannelSpace.from_model(target), 1), state(target)
    patch = act.transfer_many([Donor(donor, channels, 0.5), Donor(donor, channels, 0.5)], target)
    assert patch.parameters == 3 and len(patch.changes) == 5
    patch.revert(target)
    once = act.transfer(donor, target, channels, 0.5)
    once.revert(target)
    assert sum(act.editing.patch.conflicts([once, once]).values()) == 15
    act.compose([once, once], "first").apply(target)
    once.revert(target)
    assert same(state(target), before)


def test_another_number_of_experts_is_one_sentence(tmp_path):
    donor, target = pair_of("qwen3_moe")
    config = copy.deepcopy(target.config)
    config.num_experts = 6
    other = transformers.AutoModelForCausalLM.from_config(config)
    channels = neurons(ChannelSpace.from_model(target), 1)
    with pytest.raises(act.ActError, match=r"experts.gate_up_proj has 6 experts in the donor, 4 in the target"):
        act.transfer(other, target, channels)
    patch = act.transfer(donor, target, channels)
    config.num_experts = config.num_experts_per_tok = 1
    other = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(
        act.ActError, match=r"for another model: it changes expert 1 of .*which this model does not have"
    ):
        patch.apply(other)


def missing(folder: Path, _) -> str:
    held = load_file(folder / SINGLE)
    del held["model.layers.1.block_sparse_moe.experts.2.w1.weight"]
    save_file(held, folder / SINGLE, metadata={"format": "pt"})
    return r"shapes differ: \(3, 32\) and \(4, 32\)"


def unknown(_, monkeypatch) -> str:
    whole = conversion_mapping.get_model_conversion_mapping

    def with_another_operation(model):
        found = whole(model)
        for each in found:
            if isinstance(each, WeightConverter):
                each.operations.append(LinearToConv3d(1, (1, 1, 1)))
        return found

    monkeypatch.setattr(conversion_mapping, "get_model_conversion_mapping", with_another_operation)
    return "the conversion LinearToConv3d is not known"


@pytest.mark.parametrize("lost", [missing, unknown], ids=lambda lost: lost.__name__)
def test_what_cannot_be_understood_is_said(tmp_path, monkeypatch, lost):
    _, target = saved(tmp_path, "mixtral")
    channels = chosen(ChannelSpace.from_model(target), 0.01)
    reason = lost(tmp_path / "target", monkeypatch)
    with pytest.raises(RenamedWeights, match=rf"target lacks .*experts.*: names on disk differ .* \({reason}\)"):
        transfer_folders([Donor(tmp_path / "donor", channels)], tmp_path / "target", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rows_of_experts_are_tuned_and_nothing_else():
    from act.editing.row_tuning import RowTuned, rows_to_train

    _, target = pair_of("gpt_oss")
    channels, before = neurons(ChannelSpace.from_model(target), 2), state(target)
    tuned = RowTuned(target, rows_to_train(channels))
    ids = torch.arange(40)[None]
    tuned(ids, torch.ones_like(ids)).logits.square().mean().backward()
    assert all(change.grad.abs().sum() > 0 for change in tuned.changes)
    with torch.no_grad():
        for change in tuned.changes:
            change.add_(1.0)
    tuned.write()
    expected = by_hand(copy.deepcopy(target), before, channels)
    (down,) = channels.inputs
    part = channels.space.site(down).inputs
    part.matrix(expected)[channels.inputs[down]] += 1
    assert same(state(target), expected)


def test_layouts_are_what_the_operations_make():
    generator = torch.Generator().manual_seed(0)
    stored = {f"{role}.{e}": torch.randn(4, 6, generator=generator) for role in ("gate", "up") for e in range(3)}
    stored["packed"] = torch.randn(3, 8, 6, generator=generator)
    whole = {name: Layout.whole(name, tuple(x.shape)) for name, x in stored.items()}

    def assembled(layout: Layout) -> torch.Tensor:
        result = torch.full(layout.shape, torch.nan)
        for piece in layout.pieces:
            held = tuple(slice(low, low + size) for low, size in zip(piece.start, piece.shape, strict=True))
            assert result[held].isnan().all()
            result[held] = piece.of(stored[piece.stored])
        return result

    gates, ups = ([whole[f"{role}.{e}"] for e in range(3)] for role in ("gate", "up"))
    both = joined([stacked(gates, 0), stacked(ups, 0)], 1)
    expected = torch.cat([torch.stack([stored[f"{role}.{e}"] for e in range(3)]) for role in ("gate", "up")], 1)
    assert torch.equal(assembled(both), expected)
    assert torch.equal(assembled(turned(both, 1, 2)), expected.transpose(1, 2))
    for part, wanted in zip(cut(turned(both, 1, 2), 4, 2), expected.transpose(1, 2).chunk(4, 2), strict=True):
        assert torch.equal(assembled(part), wanted)
    packed = stored["packed"]
    assert torch.equal(assembled(gathered(whole["packed"], 1)), torch.cat([packed[:, ::2], packed[:, 1::2]], 1))
    rows = torch.randn(24, 5, generator=generator)
    stored["rows"] = rows
    turned_rows = rows.view(3, 4, 2, 5).transpose(1, 2).reshape(24, 5)  # as transformers' PermuteForRope
    assert torch.equal(assembled(halved(Layout.whole("rows", (24, 5)), 3)), turned_rows)
    weights = {"w": expected}
    for expert in range(3):
        for part in (ParameterSlice("w", 0, expert, span=(4, 8, 1)), ParameterSlice("w", 0, expert, span=(0, 4, 2))):
            piece, local = both.holding(part)
            assert torch.equal(local.part_of(piece.of(stored[piece.stored])), part.matrix(weights))
        assert both.holding(ParameterSlice("w", 1, expert)) is None


def test_a_patch_of_experts_is_shown_by_parameter(tmp_path):
    donor, target = pair_of("mixtral")
    channels = neurons(ChannelSpace.from_model(target), 1)
    act.transfer(donor, target, channels).save(tmp_path / "patch")
    shown = succeed("patch", "show", tmp_path / "patch")["changes"]
    assert [(one["parameter"].rpartition(".")[2], one["dim"], one["expert"], one["rows"]) for one in shown] == [
        ("gate_up_proj", 0, 1, 3),
        ("gate_up_proj", 0, 1, 3),
        ("down_proj", 1, 1, 3),
    ]
    table = act_profile("patch", "show", tmp_path / "patch").stdout
    assert table.count("gate_up_proj") == table.count("down_proj") == 1
