"""Layouts learnt from a probe: whatever shape a site gives, its statistics are those of the counted tokens."""

from __future__ import annotations

import re

import pytest
import torch
import transformers
from support import tiny_model
from torch import nn

import act
from act.taps.probed import Probed

HEADS = 4


class Doubled(nn.Module):
    """A language model in small: an embedding, then one part whose output comes in some shape of its own."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = transformers.PretrainedConfig(vocab_size=40, num_attention_heads=HEADS)
        self.embed_tokens = nn.Embedding(40, 8 * HEADS)
        self.part = part

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def forward(self, input_ids, use_cache=False, **_):
        return self.part(self.embed_tokens(input_ids))


class LengthFirst(nn.Linear):
    def forward(self, x):
        return super().forward(x.transpose(0, 1))


class Part(nn.Module):
    """``site`` reads what ``into`` makes of ``[batch, length, heads, 8]``."""

    def __init__(self, site: nn.Module, into) -> None:
        super().__init__()
        self.site, self.into = site, into

    def forward(self, x):
        return self.site(self.into(x.unflatten(-1, (HEADS, -1))))


class LayerNorm(nn.LayerNorm):
    """Returns contiguous output, whatever it is given."""

    def forward(self, x):
        return super().forward(x).contiguous()


class Routed(nn.Module):
    """Gives its site the tokens in an order of their own, as experts get them."""

    def __init__(self) -> None:
        super().__init__()
        self.site = nn.Linear(32, 16)

    def forward(self, x):
        rows = x.flatten(0, -2)
        return self.site(rows[rows[:, 0].argsort()])


class Router(nn.Linear):
    """A linear that returns its scores and, behind them, its product."""

    def forward(self, x):
        product = super().forward(x.flatten(0, -2))
        return product.softmax(-1), product


class WithoutScale(nn.Linear):
    """Returns its product, and a scale that there is not."""

    def forward(self, x):
        return super().forward(x), None


class Grouped(nn.Linear):
    """``[..., groups, C / groups]``, as of the grouped linears of DeepSeek V4."""

    def forward(self, x):
        return super().forward(x).unflatten(-1, (2, -1))


PARTS = {
    "plain": lambda: (Part(nn.Linear(32, 16), lambda x: x.flatten(-2)), "[batch, length, channels]"),
    "length first": lambda: (Part(LengthFirst(32, 16), lambda x: x.flatten(-2)), "[length, batch, channels]"),
    "flat": lambda: (Part(nn.Linear(32, 16), lambda x: x.flatten(0, 1).flatten(1)), "[batch * length, channels]"),
    "flat, length first": lambda: (
        Part(nn.Linear(32, 16), lambda x: x.transpose(0, 1).flatten(-2).flatten(0, 1)),
        "[length * batch, channels]",
    ),
    "heads": lambda: (Part(LayerNorm(8), lambda x: x), "[batch, length, 4, channels]"),
    "heads first": lambda: (Part(LayerNorm(8), lambda x: x.transpose(1, 2)), "[batch, 4, length, channels]"),
    "flat heads": lambda: (Part(LayerNorm(8), lambda x: x.reshape(-1, 8)), "[batch * length * 4, channels]"),
    "flat heads first": lambda: (
        Part(LayerNorm(8), lambda x: x.transpose(1, 2).reshape(-1, 8)),
        "[batch * 4 * length, channels]",
    ),
    "heads before the batch": lambda: (
        Part(LayerNorm(8), lambda x: x.permute(2, 0, 1, 3).flatten(0, 1)),
        "[4 * batch, length, channels]",
    ),
    "a tuple": lambda: (Part(Router(32, 16), lambda x: x.flatten(-2)), "[batch * length, channels]"),
    "a tensor and nothing": lambda: (Part(WithoutScale(32, 16), lambda x: x.flatten(-2)), "[batch, length, channels]"),
    "groups": lambda: (Part(Grouped(32, 16), lambda x: x.flatten(-2)), "[batch, length, 2, channels]"),
}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("part", PARTS)
def test_statistics_are_those_of_the_counted_tokens(part, fused):
    part, shape = PARTS[part]()
    model = Doubled(part)
    ids = torch.randint(0, 40, (HEADS, HEADS), generator=torch.Generator().manual_seed(0))  # batch = length = heads
    count_mask = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 0]], dtype=torch.bool)
    profile = act.profile(model, [{"input_ids": ids, "count_mask": count_mask}], fused=fused)
    (layout,) = profile.space.site("part.site").layouts
    assert str(layout) == shape
    site, x = part.site, model.embed_tokens(ids)[count_mask].detach()
    by_token = site.weight.shape == (8,)
    rows = (nn.LayerNorm.forward(site, x.view(-1, 8)) if by_token else nn.Linear.forward(site, x)).double()
    found = profile.site("part.site")
    assert (found.count == len(rows)).all()
    torch.testing.assert_close(found.mean, rows.mean(0).detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.var, rows.var(0, correction=0).detach(), rtol=1e-5, atol=1e-6)


class AlsoElsewhere(nn.Module):
    """A linear over tokens that is also called over other rows: before, and after."""

    def __init__(self, elsewhere) -> None:
        super().__init__()
        self.site, self.table, self.elsewhere = nn.Linear(32, 16), nn.Parameter(torch.randn(32, 32)), elsewhere

    def forward(self, x):
        before = self.site(self.elsewhere(self.table, x)).sum()
        return self.site(x) + before + self.site(self.elsewhere(self.table, x)).sum()


ELSEWHERE = {
    "a table": lambda table, x: table[:4],
    "a table for a text": lambda table, x: table[None, :4].expand(len(x), -1, -1),
    "positions": lambda table, x: table[None, : x.shape[1]],
    "distances": lambda table, x: table[None, : 2 * x.shape[1]],
    "distances first": lambda table, x: table[: 2 * x.shape[1], None].expand(-1, len(x), -1),
    "a text": lambda table, x: x.mean(1),
    "its first token": lambda table, x: x[:, :1],
}


@pytest.mark.parametrize("rows", ELSEWHERE)
def test_calls_over_other_rows_are_not_counted(rows):
    model = Doubled(AlsoElsewhere(ELSEWHERE[rows]))
    for batch, length in ((4, 4), (1, 4), (3, 5)):  # of some, outputs have the shape of those over tokens
        ids = torch.randint(0, 40, (batch, length), generator=torch.Generator().manual_seed(0))
        count_mask = torch.rand(batch, length, generator=torch.Generator().manual_seed(1)) < 0.7
        found = act.profile(model, [{"input_ids": ids, "count_mask": count_mask}]).site("part.site")
        expected = model.part.site(model.embed_tokens(ids)[count_mask]).double().detach()
        assert found.count.unique().tolist() == [len(expected)]
        torch.testing.assert_close(found.mean, expected.mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (lambda _, x: x[:, 1:], "not a row for each token"),
        (lambda _, x: x[x[..., 0] < x[..., 1]], "not a row for each token"),
    ],
)
def test_calls_over_some_of_the_tokens_are_not_dropped(rows, reason):
    model = Doubled(AlsoElsewhere(rows))
    assert reason in Probed.of(model, act.ChannelSpace.from_model(model)).unread["part.site"]


def test_a_type_that_cannot_be_measured_is_said_before_the_run():
    model = Doubled(AlsoElsewhere(ELSEWHERE["a table"])).double()
    with pytest.raises(act.ActError, match=r"torch\.float64"):
        act.profile(model, [{"input_ids": torch.ones(1, 4, dtype=torch.long)}])


def test_a_call_that_its_probe_showed_elsewhere_stays_there():
    model = Doubled(AlsoElsewhere(lambda table, x: x if x.shape[1] == 5 else table[:4]))
    with pytest.raises(act.ActError, match=r"site part.site gave \[2, 5, 16\] where its probe showed \[4, channels\]"):
        act.profile(model, [{"input_ids": torch.ones(2, 5, dtype=torch.long)}])


class Streams(nn.Module):
    """Runs its site on a stream and on two more, with positions from an embedding that returns these, too."""

    class Positions(nn.Embedding):
        def forward(self, x):
            ids = torch.arange(x.shape[1]).expand(x.shape[:2])
            return ids, super().forward(ids)

    def __init__(self) -> None:
        super().__init__()
        self.site, self.positions = nn.Linear(32, 16), self.Positions(50, 32)

    def forward(self, x):
        x = x + self.positions(x)[1]
        return torch.cat([self.site(x[:, None]), self.site(torch.stack([2 * x, x], 1))], 1)


def test_calls_whose_sizes_tell_them_apart_are_all_read():
    model = Doubled(Streams())
    ids = torch.randint(0, 40, (HEADS, HEADS), generator=torch.Generator().manual_seed(0))
    count_mask = torch.rand(HEADS, HEADS, generator=torch.Generator().manual_seed(0)) < 0.5
    profile = act.profile(model, [{"input_ids": ids, "count_mask": count_mask}])
    shapes = [str(layout) for layout in profile.space.site("part.site").layouts]
    assert shapes == ["[batch, 1, length, channels]", "[batch, 2, length, channels]"]
    rows = model(ids).transpose(1, 2)[count_mask].flatten(0, 1).detach().double()
    places = model.part.positions.weight.detach()[:HEADS].expand(HEADS, -1, -1)[count_mask].double()
    for name, expected in (("part.site", rows), ("part.positions", places)):
        found = profile.site(name)
        assert (found.count == len(expected)).all()
        torch.testing.assert_close(found.mean, expected.mean(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.var, expected.var(0, correction=0), rtol=1e-5, atol=1e-6)


class Convolved(nn.Module):
    """A convolution over tokens that pads both ends itself, or is given what is padded before."""

    def __init__(self, padding, before) -> None:
        super().__init__()
        self.site, self.before = nn.Conv1d(32, 16, 3, padding=padding, groups=4), before

    def forward(self, x):
        return self.site(nn.functional.pad(x.transpose(1, 2), (self.before, 0)))


@pytest.mark.parametrize(
    ("padding", "before", "first", "shape"),
    [
        (2, 0, 0, "[batch, channels, length + 2]"),
        (0, 3, 1, "[batch, channels, length + 1]"),
        (0, 2, 0, "[batch, channels, length]"),
        (1, 0, 0, "[batch, channels, length]"),
    ],
    ids=["cut after", "cut before", "padded before", "around"],
)
def test_columns_of_a_convolution_are_tokens(padding, before, first, shape):
    model = Doubled(Convolved(padding, before))
    ids = torch.randint(0, 40, (HEADS, HEADS), generator=torch.Generator().manual_seed(0))
    count_mask = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 0]], dtype=torch.bool)
    profile = act.profile(model, [{"input_ids": ids, "count_mask": count_mask}])
    (layout,) = profile.space.site("part.site").layouts
    assert str(layout) == shape and profile.space.site("part.site").kind == "conv"
    rows = model(ids)[..., first : first + HEADS].transpose(1, 2)[count_mask].detach().double()
    found = profile.site("part.site")
    assert (found.count == len(rows)).all()
    torch.testing.assert_close(found.mean, rows.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.var, rows.var(0, correction=0), rtol=1e-5, atol=1e-6)


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.site = nn.Linear(32, 16)

    def forward(self, x):
        return self.site(x[:, 0])


class Pair(nn.Module):
    """A norm that returns two tensors, neither of which is known to be its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.site = self.Norm(32)

    class Norm(nn.LayerNorm):
        def forward(self, x):
            return x, super().forward(x)

    def forward(self, x):
        return self.site(x)


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (Routed, "which row belongs to which token depends on the text"),
        (Pooled, r"its output is \[3, 16\] for 3 x 7 tokens, not a row for each token"),
        (Pair, "it returns 2 values, none of which is known to be its channels"),
    ],
)
def test_outputs_without_a_row_per_token_are_left_out_and_named(part, reason, caplog):
    profile = act.profile(Doubled(part()), [{"input_ids": torch.arange(16).view(4, 4)}])
    assert (profile.site("part.site").count == 0).all() and (profile.site("embed_tokens").count == 16).all()
    (message,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert message.startswith("part.site is not measured: ")
    assert re.search(reason, message)


def test_a_shape_that_the_probe_did_not_see_is_an_error():
    class Shrinking(nn.Linear):
        def forward(self, x):
            return super().forward(x if len(x) < 4 else x[:2])

    model = Doubled(Part(Shrinking(32, 16), lambda x: x.flatten(-2)))
    with pytest.raises(act.ActError, match=r"gave \[2, 4, 16\] for 4 x 4 tokens; expected \[batch, length, channels\]"):
        act.profile(model, [{"input_ids": torch.arange(16).view(4, 4)}])


def test_virtual_tokens_are_refused():
    class Prompted(Doubled):
        def forward(self, input_ids, **_):
            x = self.embed_tokens(input_ids)
            return self.part(torch.cat([x.new_zeros(len(x), 4, x.shape[-1]), x], dim=1))

    model = Prompted(nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32)))
    with pytest.raises(act.ActError, match="turns 7 tokens into 11 positions"):
        act.profile(model, [{"input_ids": torch.arange(16).view(4, 4)}])


def test_probe_sizes_divide_no_size_in_the_configuration():
    model = tiny_model("llama")
    model.config.some_heads, model.config.nested = 15, {"sizes": [14, 22]}
    recording = Probed.of(model, act.ChannelSpace.from_model(model)).recording
    assert recording.ids.shape == (13, 17)


def test_rotary_pairs_are_those_that_the_probe_saw_turned():
    model = tiny_model("llama")
    given = getattr(model.config, "rope_parameters", None) or {}  # transformers 4 has none
    model.config.rope_parameters = {**given, "partial_rotary_factor": 0.5}  # the model ignores it
    profile = act.profile(model, [{"input_ids": torch.arange(16).view(4, 4)}])
    attention = next(block for block in profile.space.blocks if hasattr(block, "rotary"))
    assert (attention.rotary, attention.rotary_dim) == ("half", 8)
    phi = tiny_model("phi")
    profile = act.profile(phi, [{"input_ids": torch.arange(16).view(4, 4)}])
    attention = next(block for block in profile.space.blocks if hasattr(block, "rotary"))
    assert (attention.rotary, attention.rotary_dim) == ("half", 4)


class Unprobed(Doubled):
    """Needs an input that no probe gives."""

    def forward(self, input_ids, scale, **_):
        return self.part(self.embed_tokens(input_ids) * scale)


def test_a_model_that_cannot_be_probed_is_not_guessed():
    ids = torch.arange(16).view(4, 4)
    plain, first = (Unprobed(PARTS[name]()[0]) for name in ("plain", "length first"))
    assert (act.profile(plain, [{"input_ids": ids[:3], "scale": torch.ones(())}]).count == 12).all()
    with pytest.raises(act.ActError, match="give batches of another number of sequences"):
        act.profile(first, [{"input_ids": ids, "scale": torch.ones(())}])
    with pytest.raises(act.ActError, match=r"gave \[4, 3, 16\] for 3 x 4 tokens"):
        act.profile(first, [{"input_ids": ids[:3], "scale": torch.ones(())}])


class Experts(nn.Module):
    """Experts that get the rows routed to them; those of a probe all go to the first."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(32, 16) for _ in range(2))

    def forward(self, x):
        rows = x.flatten(0, -2)
        second = torch.zeros(len(rows), dtype=torch.bool) if len(x) < 4 else torch.arange(len(rows)) % 3 == 0
        routed = zip(self.experts, (~second, second), strict=True)
        return [expert(rows[chosen]) for expert, chosen in routed if chosen.any()]


def test_an_expert_that_got_every_token_of_the_probe_is_left_out():
    profile = act.profile(Doubled(Experts()), [{"input_ids": torch.arange(16).view(4, 4)}])
    assert all((profile.site(f"part.experts.{number}").count == 0).all() for number in range(2))


def test_a_hook_of_the_user_on_the_head_is_called():
    model, batch = tiny_model("llama"), {"input_ids": torch.arange(12).view(3, 4)}
    before = act.profile(model, [batch]).site("lm_head").mean
    model.lm_head.register_forward_hook(lambda module, args, output: output * 2)
    torch.testing.assert_close(act.profile(model, [batch]).site("lm_head").mean, 2 * before)
