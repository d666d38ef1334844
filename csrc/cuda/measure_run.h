// The partial of one run of rows of one matrix, whose lanes load 16 bytes at a time.
#pragma once

#include "partials.h"

namespace act {
namespace cuda {

template <class T>
constexpr int CHANNELS = 16 / int(sizeof(T));  // of a lane

// Blocks of threads that the channels of a matrix take.
inline int64_t channel_blocks(DType dtype, int64_t columns) {
    return ceil_div(columns, WARP * (dtype == DType::float32 ? CHANNELS<float> : CHANNELS<bfloat16>));
}

// Called by all threads of a block.
template <class T>
__device__ void measure_run(const View<T>& x, int64_t channels, const uint8_t* mask, Partials partials, const Tile& tile) {
    constexpr int N = CHANNELS<T>, ROWS = 4;  // rows that a lane has in flight
    __shared__ CountedRows shared;
    __shared__ Meeting<N> meeting;
    const Counted counted = count_rows(mask, tile, shared);
    const int64_t left = channels - tile.channel;

    Pack<T, N> pack[ROWS];
    const auto value = [&](int u, int j) { return pack[u][j]; };
    float shift[N], weight[ROWS];
    load_rows(x, tile.start, tile.channel, left, WarpRows<ROWS>(0, counted, tile.warp), pack);
    add_shares<ROWS>(value, share_of(min(counted.count, ROWS * WARPS)), shift);
    agree_on_shift<T>(tile, meeting, shift);
    Sums<N> sums;
    for (int first = 0; first < counted.count; first += ROWS * WARPS) {
        const WarpRows<ROWS> some(first, counted, tile.warp);
        load_rows(x, tile.start, tile.channel, left, some, pack);
        some.weights(weight);
        sums.add(value, weight, shift);
    }
    store_partial(partials, tile, channels, counted.count, shift, sums, meeting);
}

}  // namespace cuda
}  // namespace act
