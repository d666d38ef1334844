// Statistics of donor, target and donor - target, both read once; and of what a swapped output adds to these.
#include "partials.h"

namespace act {
namespace cuda {

namespace {

constexpr int ROWS = 4;  // of each matrix that a lane has in flight

// Channels of a lane; of 8, which is 16 bytes of 16-bit values, 15 sums each spill registers, and of 4 so do 25.
__host__ __device__ constexpr int lane_channels(bool swapped) { return swapped ? 2 : 4; }
__host__ __device__ constexpr int block_count(bool swapped) { return swapped ? 5 : 3; }

template <class T>
struct Outputs {
    View<T> donor, target, swapped;
};

// Called by all threads of a block. The partials of the blocks lie side by side.
template <class T, bool SWAPPED>
__device__ void measure_pair(const Outputs<T>& outputs, int64_t channels, const uint8_t* mask, Partials partials,
                             int64_t rows, int64_t run, int64_t channel_blocks) {
    constexpr int N = lane_channels(SWAPPED), BLOCKS = block_count(SWAPPED);
    __shared__ CountedRows shared;
    __shared__ Meeting<N> meeting;
    const Tile tile(blockIdx.x, channel_blocks, N, rows, run);
    const Counted counted = count_rows(mask, tile, shared);
    const int64_t left = channels - tile.channel;

    Pack<T, N> d[ROWS], t[ROWS], s[ROWS];
    const auto load = [&](const WarpRows<ROWS>& some) {
        load_rows(outputs.donor, tile.start, tile.channel, left, some, d);
        load_rows(outputs.target, tile.start, tile.channel, left, some, t);
        if constexpr (SWAPPED) load_rows(outputs.swapped, tile.start, tile.channel, left, some, s);
    };
    const auto values = [&](int block) {
        return [&, block](int u, int j) {
            switch (block) {
                case 0: return d[u][j];
                case 1: return t[u][j];
                case 2: return d[u][j] - t[u][j];
                case 3: return s[u][j] - t[u][j];
                default: return (s[u][j] - t[u][j]) * (d[u][j] - t[u][j]);
            }
        };
    };
    load(WarpRows<ROWS>(0, counted, tile.warp));
    const float share = share_of(min(counted.count, ROWS * WARPS));
    float shift[BLOCKS][N], weight[ROWS];
#pragma unroll
    for (int block = 0; block < BLOCKS; ++block) add_shares<ROWS>(values(block), share, shift[block]);
#pragma unroll
    for (int block = 0; block < BLOCKS; ++block) {
        if (block < 4) agree_on_shift<T>(tile, meeting, shift[block]);
        else agree_on_shift<float>(tile, meeting, shift[block]);  // products have more bits than T
    }
    Sums<N> sums[BLOCKS];
    for (int first = 0; first < counted.count; first += ROWS * WARPS) {
        const WarpRows<ROWS> some(first, counted, tile.warp);
        load(some);
        some.weights(weight);
#pragma unroll
        for (int block = 0; block < BLOCKS; ++block) sums[block].add(values(block), weight, shift[block]);
    }
#pragma unroll
    for (int block = 0; block < BLOCKS; ++block) {
        const Partials its{partials.data + block * channels, partials.plane};
        store_partial(its, tile, channels, counted.count, shift[block], sums[block], meeting);
    }
}

template <class T>
__global__ void __launch_bounds__(THREADS, 3)
    pair_moments_kernel(Outputs<T> outputs, int64_t channels, const uint8_t* mask, Partials partials, int64_t rows,
                        int64_t run, int64_t channel_blocks) {
    measure_pair<T, false>(outputs, channels, mask, partials, rows, run, channel_blocks);
}

template <class T>
__global__ void __launch_bounds__(THREADS, 3)
    swapped_pair_moments_kernel(Outputs<T> outputs, int64_t channels, const uint8_t* mask, Partials partials, int64_t rows,
                                int64_t run, int64_t channel_blocks) {
    measure_pair<T, true>(outputs, channels, mask, partials, rows, run, channel_blocks);
}

int64_t channel_blocks_of(int64_t channels, bool swapped) { return ceil_div(channels, WARP * lane_channels(swapped)); }

// Products are float32, whatever they are of.
Plan plan_of(DType dtype, int64_t rows, int64_t channels, bool swapped) {
    return plan_runs(swapped ? DType::float32 : dtype, rows, channel_blocks_of(channels, swapped));
}

template <class T>
void run(const Pair& pair, const uint8_t* mask, float* workspace, Place place) {
    const Matrix &donor = pair.donor, &target = pair.target, &swapped = pair.swapped;
    const int64_t channels = donor.columns, channel_blocks = channel_blocks_of(channels, swapped.data);
    const Plan plan = plan_of(Name<T>::type, donor.rows, channels, swapped.data);
    const Partials partials{workspace, block_count(swapped.data) * channels};
    const Outputs<T> outputs{view<T>(donor.data, donor.row_stride), view<T>(target.data, target.row_stride),
                             view<T>(swapped.data, swapped.row_stride)};
    launch("pair_moments", swapped.data ? swapped_pair_moments_kernel<T> : pair_moments_kernel<T>,
           channel_blocks * plan.splits, THREADS, place, outputs, channels, mask, partials, donor.rows, plan.run,
           channel_blocks);
    Parts parts;
    const auto add = [&](int block, const Matrix& x, const Matrix& less, const Matrix& factor) {
        parts.add({workspace + block * channels, partials.plane}, pair.blocks[block], x.data, x.row_stride, channels,
                  less.data, less.row_stride, factor.data, factor.row_stride);
    };
    const Matrix none{};
    add(0, donor, none, none);
    add(1, target, none, none);
    add(2, donor, target, none);
    if (swapped.data) {
        add(3, swapped, target, none);
        add(4, swapped, target, donor);
    }
    merge_partials("pair_moments", Name<T>::type, parts, mask, donor.rows, plan, place);
}

}  // namespace

int64_t pair_moments_workspace(DType dtype, int64_t rows, int64_t columns, bool swapped) {
    return plan_of(dtype, rows, columns, swapped).splits * SUMS * block_count(swapped) * columns;
}

void pair_moments(const Pair& pair, const uint8_t* mask, float* workspace, Place place) {
    const OnDevice on("pair_moments", place.device);
    with_format(pair.donor.dtype, [&](auto format) { run<decltype(format)>(pair, mask, workspace, place); });
}

}  // namespace cuda
}  // namespace act
