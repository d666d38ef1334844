"""Parameters that no module applies as a whole, against float64 products that are computed again beside the model."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from tiny_families import expert_families, families, tiny
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import act
from act.models.views import language_view

EVERY_COMMIT = "bamba deepseek_v4 gpt_oss inkling_text lfm3 mamba qwen3_5_text recurrent_gemma rwkv zaya"
LENGTHS = (11, 6, 9)


OLD = int(transformers.__version__.split(".")[0]) < 5
CONV_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


class Products(TorchFunctionMode):
    """Float64 rows ``[tokens * n, C]`` of what is computed with some parameters, by the address of their memory."""

    def __init__(self, parameters, biases, shape):
        super().__init__()
        self._parameters, self._biases = parameters, biases
        self._batch, self._length = shape
        self.rows = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.conv1d:
            given = {**dict(zip(CONV_ARGUMENTS, args, strict=False)), **kwargs}
            self._keep(given["weight"], lambda: self._columns(F.conv1d(**_double(given)), given.get("padding", 0)))
        elif func is F.linear:
            self._keep(args[1], lambda: F.linear(*_double(dict(enumerate(args))).values()))
        elif func in (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__):
            one, other = (x.detach().double() for x in args)
            added_later = self._biases.get(self._parameters.get(args[0].data_ptr()), torch.zeros(1))
            self._keep(args[0], lambda: (one @ other).transpose(1, 2) + added_later.double())
            self._keep(args[1], lambda: one @ other)
        return func(*args, **kwargs)

    def _columns(self, output, padding):
        padded = (padding if isinstance(padding, int) else padding[0]) > 0
        return (output[..., : self._length] if padded else output[..., -self._length :]).transpose(1, 2)

    def _keep(self, weight, product):
        name = self._parameters.get(weight.data_ptr()) if isinstance(weight, torch.Tensor) else None
        if name is not None:
            rows = product()
            if rows[..., 0].numel() % (self._batch * self._length) == 0:
                self.rows.setdefault(name, []).append(rows.reshape(self._batch, self._length, -1, rows.shape[-1]))


def _double(given):
    return {name: x.detach().double() if isinstance(x, torch.Tensor) else x for name, x in given.items()}


def pooled(rows, width):
    """Rows ``[R, C]`` with several channels in a row as further rows of one."""
    return rows.reshape(len(rows), width, -1).movedim(1, -1).reshape(-1, width)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=[] if name in EVERY_COMMIT.split() else [pytest.mark.slow, pytest.mark.thorough])
        for name in sorted({*families(), *expert_families()})
    ],
)
def test_what_is_computed_with_them(family, side):
    if family == "recurrent_gemma" and OLD:
        pytest.skip("it keeps the state of one batch for the next, whatever use_cache says")
    try:
        whole = tiny(family)
        copy.deepcopy(whole)(input_ids=torch.ones(1, 3, dtype=torch.int64), use_cache=False)  # some keep a state
        copied, model = copy.deepcopy(whole), language_view(whole)
    except Exception as error:
        pytest.skip(f"no tiny {family}: {type(error).__name__}: {str(error)[:100]}")
    space = act.ChannelSpace.from_model(model)
    scaling = [site for site in space if site.scales]
    linears = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    linears &= {site.scales for site in scaling}
    wanted = {
        site.parameters[0].name: site
        for site in space
        if site.parameters
        and not site.scales
        and (site.kind == "conv" or site.name == site.parameters[0].name or site.name in linears)
    }
    if not scaling and not any(site.kind == "conv" or site.module != site.name for site in wanted.values()):
        pytest.skip("every parameter is of a module that applies it")
    ids = torch.randint(10, 200, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(2))
    place = torch.arange(max(LENGTHS))
    mask = torch.stack([place < n if side == "right" else place >= max(LENGTHS) - n for n in LENGTHS])
    parameters = {model.get_parameter(name).data_ptr(): name for name in wanted}
    biases = {
        name: model.get_parameter(site.parameters[1].name) for name, site in wanted.items() if site.parameters[1:]
    }
    with torch.no_grad(), Products(parameters, biases, ids.shape) as seen:
        model(input_ids=ids, attention_mask=mask.long(), use_cache=False)
    batch = {"input_ids": ids, "attention_mask": mask.long(), "count_mask": mask}
    try:
        profile = act.profile(copied, [batch])
    except act.ActError as error:
        pytest.skip(str(error))
    compared = set()
    for name, calls in seen.rows.items():
        site = wanted[name]
        rows = torch.cat([call[mask].flatten(0, 1) for call in calls])
        for each in (site, *(one for one in scaling if one.scales == site.name)):
            expected, found = pooled(rows, each.width), profile.site(each.name)
            if not site.layouts and not found.count.any():
                continue
            assert int(found.count.min()) == int(found.count.max()) == len(expected), each.name
            largest = expected.abs().max()
            assert (found.mean - expected.mean(0)).abs().max() <= 1e-5 * largest, each.name
            assert (found.var - expected.var(0, correction=0)).abs().max() <= 1e-5 * largest**2, each.name
            assert (found.mean_abs - expected.abs().mean(0)).abs().max() <= 1e-5 * largest, each.name
            compared.add(each.name)
    assert {wanted[name].name for name in seen.rows if wanted[name].kind == "conv"} <= compared
    for site in scaling:
        assert bool((profile.site(site.name).count > 0).all()) == bool((profile.site(site.scales).count > 0).all())
