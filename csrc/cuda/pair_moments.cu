// Statistics of donor, target and donor - target, both read once.
#include "partials.h"

namespace act {
namespace cuda {

namespace {

constexpr int ROWS = 4;  // of each matrix that a lane has in flight
constexpr int N = 4;     // channels of a lane; of 8, which is 16 bytes of 16-bit values, 15 sums each spill registers

template <class T>
__global__ void __launch_bounds__(THREADS, 3)
    pair_moments_kernel(View<T> donor, View<T> target, int64_t channels, const uint8_t* mask, Partials donor_partials,
                        Partials target_partials, Partials difference_partials, int64_t rows, int64_t run,
                        int64_t channel_blocks) {
    __shared__ CountedRows shared;
    __shared__ Meeting<N> meeting;
    const Tile tile(blockIdx.x, channel_blocks, N, rows, run);
    const Counted counted = count_rows(mask, tile, shared);
    const int64_t left = channels - tile.channel;

    Pack<T, N> d[ROWS], t[ROWS];
    const auto donor_value = [&](int u, int j) { return d[u][j]; };
    const auto target_value = [&](int u, int j) { return t[u][j]; };
    const auto difference_value = [&](int u, int j) { return d[u][j] - t[u][j]; };
    const WarpRows<ROWS> begin(0, counted, tile.warp);
    load_rows(donor, tile.start, tile.channel, left, begin, d);
    load_rows(target, tile.start, tile.channel, left, begin, t);
    const float share = share_of(min(counted.count, ROWS * WARPS));
    float donor_shift[N], target_shift[N], difference_shift[N], weight[ROWS];
    add_shares<ROWS>(donor_value, share, donor_shift);
    add_shares<ROWS>(target_value, share, target_shift);
    add_shares<ROWS>(difference_value, share, difference_shift);
    agree_on_shift<T>(tile, meeting, donor_shift);
    agree_on_shift<T>(tile, meeting, target_shift);
    agree_on_shift<T>(tile, meeting, difference_shift);
    Sums<N> donor_sums, target_sums, difference_sums;
    for (int first = 0; first < counted.count; first += ROWS * WARPS) {
        const WarpRows<ROWS> some(first, counted, tile.warp);
        load_rows(donor, tile.start, tile.channel, left, some, d);
        load_rows(target, tile.start, tile.channel, left, some, t);
        some.weights(weight);
        donor_sums.add(donor_value, weight, donor_shift);
        target_sums.add(target_value, weight, target_shift);
        difference_sums.add(difference_value, weight, difference_shift);
    }
    store_partial(donor_partials, tile, channels, counted.count, donor_shift, donor_sums, meeting);
    store_partial(target_partials, tile, channels, counted.count, target_shift, target_sums, meeting);
    store_partial(difference_partials, tile, channels, counted.count, difference_shift, difference_sums, meeting);
}

template <class T>
void run(const Matrix& donor, const Matrix& target, const uint8_t* mask, const Moments blocks[3], float* workspace,
         Place place) {
    const int64_t channels = donor.columns, channel_blocks = ceil_div(channels, WARP * N);
    const Plan plan = plan_runs(Name<T>::type, donor.rows, channel_blocks);
    Partials partials[3];
    for (int i = 0; i < 3; ++i) partials[i] = {workspace + i * channels, 3 * channels};
    launch("pair_moments", pair_moments_kernel<T>, channel_blocks * plan.splits, THREADS, place,
           view<T>(donor.data, donor.row_stride), view<T>(target.data, target.row_stride), channels, mask, partials[0],
           partials[1], partials[2], donor.rows, plan.run, channel_blocks);
    Parts parts;
    parts.add(partials[0], blocks[0], donor.data, donor.row_stride, channels);
    parts.add(partials[1], blocks[1], target.data, target.row_stride, channels);
    parts.add(partials[2], blocks[2], donor.data, donor.row_stride, channels, target.data, target.row_stride);
    merge_partials("pair_moments", Name<T>::type, parts, mask, donor.rows, plan, place);
}

}  // namespace

int64_t pair_moments_workspace(DType dtype, int64_t rows, int64_t columns) {
    return plan_runs(dtype, rows, ceil_div(columns, WARP * N)).splits * SUMS * 3 * columns;
}

void pair_moments(const Matrix& donor, const Matrix& target, const uint8_t* mask, const Moments blocks[3],
                  float* workspace, Place place) {
    const OnDevice on("pair_moments", place.device);
    with_format(donor.dtype, [&](auto format) { run<decltype(format)>(donor, target, mask, blocks, workspace, place); });
}

}  // namespace cuda
}  // namespace act
