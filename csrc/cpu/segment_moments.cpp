// Statistics of every channel of every segment of rows of one matrix, bit for bit those of column_moments on its rows.
#include "moments.h"

namespace act {
namespace ACT_ISA {

static int64_t counted_rows(const Segments& op, const uint8_t* mask, int64_t segment) {
    const int64_t begin = op.offsets[segment], end = op.offsets[segment + 1];
    if (!mask) return end - begin;
    int64_t count = 0;
    for (int64_t row = begin; row < end; ++row) count += mask[row] != 0;
    return count;
}

// The part of the work from `first` to `last`. Work is counted in tiles of rows, segment by segment and tile by tile; a
// tile of channels belongs to the share in which it begins.
template <class T>
static void share(const Segments& op, const uint8_t* mask, int64_t first, int64_t last) {
    const int64_t tiles = (op.x.columns + TILE - 1) / TILE;
    int64_t before = 0;
    for (int64_t segment = 0; segment < op.count && before < last; ++segment) {
        const int64_t counted = counted_rows(op, mask, segment), begin = op.offsets[segment];
        if (!counted) continue;
        const auto tile_at = [&](int64_t work) {
            const int64_t tile = work <= before ? 0 : (work - before + counted - 1) / counted;
            return (tile < tiles ? tile : tiles) * TILE;
        };
        int64_t channel = tile_at(first), end = tile_at(last);
        if (end > op.x.columns) end = op.x.columns;
        before += counted * tiles;
        Matrix rows = op.x;
        rows.data = static_cast<T*>(op.x.data) + begin * op.x.row_stride;
        rows.rows = op.offsets[segment + 1] - begin;
        const Moments moments{op.moments.data + segment * op.segment_stride, op.moments.stride};
        for (; channel < end; channel += PANEL)
            measure<T>(rows, mask ? mask + begin : nullptr, moments, channel, end - channel < PANEL ? end - channel : PANEL);
    }
}

template <class T>
static void run(const Segments& op, const uint8_t* mask, int threads) {
    int64_t rows = 0;
    for (int64_t segment = 0; segment < op.count; ++segment) rows += counted_rows(op, mask, segment);
    const int64_t work = rows * ((op.x.columns + TILE - 1) / TILE);
    threads = useful_threads(rows * op.x.columns, threads);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int t = 0; t < threads; ++t) share<T>(op, mask, work * t / threads, work * (t + 1) / threads);
}

void segment_moments(const Segments& op, const uint8_t* mask, int threads) {
    with_format(op.x.dtype, [&](auto format) { run<decltype(format)>(op, mask, threads); });
}

}  // namespace ACT_ISA
}  // namespace act
