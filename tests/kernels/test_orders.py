"""Mean, variance and mean of absolute values are exact to 1e-6, in whatever order and however distributed rows come."""

from __future__ import annotations

import pytest
import torch

from act_kernels import empty_moments, ops
from act_kernels.statistics import COUNT, NONFINITE
from kernels.interpreter import INTERPRETED
from kernels.oracle import ISAS, paired
from kernels.orders import CHANNELS, ORDERS, errors, measure

pytestmark = pytest.mark.usefixtures("backend")
DTYPES = [torch.float32, torch.bfloat16]
PROMISE = 1e-6


def every_order(rows: int, dtype: torch.dtype) -> torch.Tensor:
    """All orders side by side."""
    return torch.cat([order(rows).expand(rows, CHANNELS) for order in ORDERS.values()], 1).to(dtype)


@pytest.mark.skipif(
    INTERPRETED, reason="channels do not share their fate there: see the test of all orders side by side"
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_column_moments(order, dtype):
    for rows in (300, 2048):
        found = measure(order, rows, dtype)
        assert max(found.values()) <= PROMISE, (rows, found)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_orders_side_by_side_give_the_same_bits_on_any_number_of_threads(dtype):
    x = every_order(300 if INTERPRETED else 1030, dtype)
    threads, blocks = torch.get_num_threads(), []
    for count in (1,) if INTERPRETED else (1, 3):
        torch.set_num_threads(count)
        blocks.append(empty_moments(x.shape[1]))
        ops.column_moments(x, blocks[-1])
    torch.set_num_threads(threads)
    assert max(errors(blocks[0], x).values()) <= PROMISE
    assert torch.equal(blocks[0], blocks[-1])


def test_calls_in_a_row():
    x = torch.cat([ORDERS["many outliers first"](300), ORDERS["normal"](300), ORDERS["drift"](300)])
    block = empty_moments(CHANNELS)
    for rows in x.split([1, 130, 200, 569]):
        ops.column_moments(rows, block)
    assert max(errors(block, x).values()) <= PROMISE


@pytest.mark.parametrize(
    "order", ["many outliers first"] if INTERPRETED else ["many outliers first", "ascending", "Cauchy"]
)
@pytest.mark.parametrize("dtype", DTYPES[:1] if INTERPRETED else DTYPES, ids=str)
def test_every_op_that_measures(order, dtype):
    rows = 80 if INTERPRETED else 600
    x = torch.cat([ORDERS[order](rows)] * 2, 1).to(dtype)
    y = ORDERS["normal"](rows).repeat(1, 2).to(dtype)
    blocks, pair = empty_moments(2 * CHANNELS, 6), empty_moments(2 * CHANNELS, 3)
    swapped, swapped_pair = x.flip(1), empty_moments(2 * CHANNELS, 5)
    product = ops.gated_mlp(x, y, "relu", gate_moments=blocks[0], up_moments=blocks[1], product_moments=blocks[2])
    norm = ops.add_norm(y, x, y[0].contiguous(), eps=1e-6, x_moments=blocks[3], norm_moments=blocks[4])[1]
    heads = x.view(1, rows, 1, -1).transpose(1, 2)
    table = torch.ones(1, rows, 2 * CHANNELS, dtype=dtype)
    ops.rotary(heads, heads, table, table, q_moments=blocks[5])
    ops.pair_moments(x, y, pair)
    ops.pair_moments(x, y, swapped_pair, swapped=swapped)
    measured = (x, y, product, y, norm, x, *paired(x, y), *paired(x, y, swapped))
    for block, values in zip([*blocks, *pair, *swapped_pair], measured, strict=True):
        assert max(errors(block, values).values()) <= PROMISE


@pytest.mark.parametrize("order", ["squares that vanish", "constant"] if INTERPRETED else ORDERS)
@pytest.mark.parametrize("dtype", DTYPES[1:] if INTERPRETED else DTYPES, ids=str)
def test_products_of_a_pair_in_every_order(order, dtype):
    """Also products that are tiny, too large for float32, or all alike in rows of few bits."""
    rows = 100 if INTERPRETED else 300
    donor = ORDERS[order](rows).expand(rows, CHANNELS).to(dtype)
    target, pair = torch.zeros_like(donor), empty_moments(CHANNELS, 5)
    for swapped in (donor, torch.full_like(donor, 1e-12), torch.full_like(donor, 3.3)):
        pair.zero_()
        ops.pair_moments(donor, target, pair, swapped=swapped)
        for block, values in zip(pair, paired(donor, target, swapped), strict=True):
            assert max(errors(block, values).values()) <= PROMISE


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_too_large_for_float32_is_not_finite_in_its_block_of_a_pair_alone(dtype):
    rows = 80 if INTERPRETED else 200
    donor, target = ORDERS["normal"](rows).to(dtype), ORDERS["normal"](rows).to(dtype)
    swapped = target.flip(0)
    donor[-50, 1], target[-50, 1] = 3e38, -3e38
    donor[20, 2], swapped[20, 2] = 1e25, -1e25
    pair, swapped_pair = empty_moments(CHANNELS, 3), empty_moments(CHANNELS, 5)
    ops.pair_moments(donor, target, pair)
    assert pair[:, NONFINITE, 1].tolist() == [0, 0, 1] and pair[2, COUNT].tolist() == [rows, rows - 1, rows]
    ops.pair_moments(donor, target, swapped_pair, swapped=swapped)
    assert swapped_pair[:, NONFINITE].sum(1).tolist() == [0, 0, 1, 0, 2]
    measured = (*paired(donor, target), *paired(donor, target, swapped))
    for block, values in zip((*pair, *swapped_pair), measured, strict=True):
        assert max(errors(block, values).values()) <= PROMISE


def test_the_common_case_is_not_summed_twice(backend):
    """Rows of one kind keep their first shift: the bits do not change where an outlier among others moves it."""
    if backend not in ISAS:
        pytest.skip("the native kernels alone re-centre tiles of channels together")
    x, alone, beside = ORDERS["normal"](2048), empty_moments(CHANNELS), empty_moments(CHANNELS + 1)
    ops.column_moments(x, alone)
    ops.column_moments(torch.cat([x, ORDERS["many outliers first"](2048)[:, :1]], 1), beside)
    assert not torch.equal(alone, beside[:, :CHANNELS])
    torch.testing.assert_close(alone, beside[:, :CHANNELS], rtol=1e-6, atol=1e-6)
