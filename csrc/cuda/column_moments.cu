// Statistics of every channel of one matrix, read once.
#include "partials.h"

namespace act {
namespace cuda {

namespace {

constexpr int ROWS = 4;  // that a lane has in flight

template <class T>
constexpr int CHANNELS = 16 / int(sizeof(T));  // of a lane

template <class T>
__global__ void __launch_bounds__(THREADS)
    column_moments_kernel(View<T> x, int64_t channels, const uint8_t* mask, Partials partials, int64_t rows, int64_t run,
                          int64_t channel_blocks) {
    constexpr int N = CHANNELS<T>;
    __shared__ CountedRows shared;
    __shared__ Meeting<N> meeting;
    const Tile tile(blockIdx.x, channel_blocks, N, rows, run);
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

template <class T>
void run(const Matrix& x, const uint8_t* mask, Moments moments, float* workspace, Place place) {
    const int64_t channel_blocks = ceil_div(x.columns, WARP * CHANNELS<T>);
    const Plan plan = plan_runs(Name<T>::type, x.rows, channel_blocks);
    const Partials partials{workspace, x.columns};
    launch("column_moments", column_moments_kernel<T>, channel_blocks * plan.splits, THREADS, place,
           view<T>(x.data, x.row_stride), x.columns, mask, partials, x.rows, plan.run, channel_blocks);
    Parts parts;
    parts.add(partials, moments, x.data, x.row_stride, x.columns);
    merge_partials("column_moments", Name<T>::type, parts, mask, x.rows, plan, place);
}

}  // namespace

int64_t column_moments_workspace(DType dtype, int64_t rows, int64_t columns) {
    const int64_t lane = dtype == DType::float32 ? CHANNELS<float> : CHANNELS<bfloat16>;
    return plan_runs(dtype, rows, ceil_div(columns, WARP * lane)).splits * SUMS * columns;
}

void column_moments(const Matrix& x, const uint8_t* mask, Moments moments, float* workspace, Place place) {
    const OnDevice on("column_moments", place.device);
    with_format(x.dtype, [&](auto format) { run<decltype(format)>(x, mask, moments, workspace, place); });
}

}  // namespace cuda
}  // namespace act
