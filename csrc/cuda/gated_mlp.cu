// activation(gate) * up in one pass, with the statistics of gate, up and the product.
#include "activations.h"
#include "partials.h"

namespace act {
namespace cuda {

namespace {

constexpr int ROWS = 4;  // of each input that a lane has in flight
constexpr int N = 4;     // channels of a lane; of 8, which is 16 bytes of 16-bit values, 15 sums each spill registers

// The product of a lane's values, rounded after the activation and after the product.
template <class T>
__device__ void multiply(Activation activation, const Pack<T, N>& gate, const Pack<T, N>& up, Pack<T, N>& product) {
    float values[N];
#pragma unroll
    for (int j = 0; j < N; ++j) values[j] = gate[j];
    activate<N>(activation, values);
#pragma unroll
    for (int j = 0; j < N; ++j) values[j] = rounded<T>(values[j]) * up[j];
    product.round(values);
}

template <class T>
__global__ void __launch_bounds__(THREADS, 3)
    gated_mlp_kernel(View<T> gate, View<T> up, View<T> product, int64_t channels, Activation activation,
                     const uint8_t* mask, Partials gate_partials, Partials up_partials, Partials product_partials,
                     int64_t rows, int64_t run, int64_t channel_blocks) {
    __shared__ CountedRows shared;
    __shared__ Meeting<N> meeting;
    const Tile tile(blockIdx.x, channel_blocks, N, rows, run);
    const Counted counted = count_rows(mask, tile, shared);
    const int64_t left = channels - tile.channel;

    Pack<T, N> g[ROWS], u[ROWS], p[ROWS];
    const auto gate_value = [&](int row, int j) { return g[row][j]; };
    const auto up_value = [&](int row, int j) { return u[row][j]; };
    const auto product_value = [&](int row, int j) { return p[row][j]; };
    const WarpRows<ROWS> begin(0, counted, tile.warp);
    load_rows(gate, tile.start, tile.channel, left, begin, g);
    load_rows(up, tile.start, tile.channel, left, begin, u);
#pragma unroll
    for (int row = 0; row < ROWS; ++row) multiply(activation, g[row], u[row], p[row]);
    const float share = share_of(min(counted.count, ROWS * WARPS));
    float gate_shift[N], up_shift[N], product_shift[N], weight[ROWS];
    add_shares<ROWS>(gate_value, share, gate_shift);
    add_shares<ROWS>(up_value, share, up_shift);
    add_shares<ROWS>(product_value, share, product_shift);
    agree_on_shift<T>(tile, meeting, gate_shift);
    agree_on_shift<T>(tile, meeting, up_shift);
    agree_on_shift<T>(tile, meeting, product_shift);
    Sums<N> gate_sums, up_sums, product_sums;
    for (int first = 0; first < tile.length; first += ROWS * WARPS) {
        WarpRows<ROWS> some(first, tile.length, tile.warp);
        load_rows(gate, tile.start, tile.channel, left, some, g);
        load_rows(up, tile.start, tile.channel, left, some, u);
#pragma unroll
        for (int row = 0; row < ROWS; ++row) {
            multiply(activation, g[row], u[row], p[row]);
            store_row(product, tile.start + some(row), tile.channel, left, some.inside[row], p[row]);
            if (some.leave_out(row, counted)) g[row].clear(), u[row].clear(), p[row].clear();
        }
        some.weights(weight);
        if (gate_partials) gate_sums.add(gate_value, weight, gate_shift);
        if (up_partials) up_sums.add(up_value, weight, up_shift);
        if (product_partials) product_sums.add(product_value, weight, product_shift);
    }
    if (gate_partials) store_partial(gate_partials, tile, channels, counted.count, gate_shift, gate_sums, meeting);
    if (up_partials) store_partial(up_partials, tile, channels, counted.count, up_shift, up_sums, meeting);
    if (product_partials)
        store_partial(product_partials, tile, channels, counted.count, product_shift, product_sums, meeting);
}

template <class T>
void run(const GatedMlp& op, const uint8_t* mask, float* workspace, Place place) {
    const int64_t rows = op.gate.rows, channels = op.gate.columns, channel_blocks = ceil_div(channels, WARP * N);
    const Plan plan = plan_runs(Name<T>::type, rows, channel_blocks);
    PartialsOf partials(workspace, 3 * channels);
    const Partials gate = partials.next(op.gate_moments, channels), up = partials.next(op.up_moments, channels);
    const Partials product = partials.next(op.product_moments, channels);
    launch("gated_mlp", gated_mlp_kernel<T>, channel_blocks * plan.splits, THREADS, place,
           view<T>(op.gate.data, op.gate.row_stride), view<T>(op.up.data, op.up.row_stride), view<T>(op.product, channels),
           channels, op.activation, mask, gate, up, product, rows, plan.run, channel_blocks);
    Parts parts;
    parts.add(gate, op.gate_moments, op.gate.data, op.gate.row_stride, channels);
    parts.add(up, op.up_moments, op.up.data, op.up.row_stride, channels);
    parts.add(product, op.product_moments, op.product, channels, channels);
    merge_partials("gated_mlp", Name<T>::type, parts, mask, rows, plan, place);
}

}  // namespace

int64_t gated_mlp_workspace(DType dtype, int64_t rows, int64_t columns) {
    return plan_runs(dtype, rows, ceil_div(columns, WARP * N)).splits * SUMS * 3 * columns;
}

void gated_mlp(const GatedMlp& op, const uint8_t* mask, float* workspace, Place place) {
    const OnDevice on("gated_mlp", place.device);
    with_format(op.gate.dtype, [&](auto format) { run<decltype(format)>(op, mask, workspace, place); });
}

}  // namespace cuda
}  // namespace act
