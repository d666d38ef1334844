// Residual sum, its norm, and the statistics of the addend and of the norm.
//
// A norm reduces rows, its statistics reduce columns, and the sums of whole rows would not fit into registers. So a block
// takes a run of rows of some channels, as in the other ops, twice: first it adds, and reduces its part of each row;
// then, when a small kernel has joined the parts of each row, it normalises.
#include "partials.h"

namespace act {
namespace cuda {

namespace {

constexpr int ROWS = 2;  // of each input that a lane has in flight

template <class T>
constexpr int CHANNELS = 16 / int(sizeof(T));  // of a lane

// What stages hand on for each row: [row][block of channels] of parts, then one scale, and for `layer` a mean.
struct RowSums {
    float* square;     // parts [rows, blocks]: sums of squares, or of squared deviations from `center`
    float* center;     // parts: their mean in float32; null unless the norm is centered
    float* deviation;  // parts: the sum of deviations from `center`
    float* scale;      // [rows]: 1 / sqrt(mean square + eps)
    float* near;       // [rows]: the mean in float32, null unless centered
    float* rest;       // [rows]: what the mean is more than `near`
};

RowSums row_sums(float* data, int64_t rows, int64_t blocks, bool centered) {
    const int64_t parts = rows * blocks;
    if (!centered) return {data, nullptr, nullptr, data + parts, nullptr, nullptr};
    float* const scale = data + 3 * parts;
    return {data, data + parts, data + 2 * parts, scale, scale + rows, scale + 2 * rows};
}

template <class T>
__global__ void __launch_bounds__(THREADS)
    add_kernel(View<T> x, View<T> residual, View<T> total, int64_t channels, const uint8_t* mask, Partials partials,
               RowSums row_sums, int64_t rows, int64_t run, int64_t channel_blocks) {
    constexpr int N = CHANNELS<T>;
    __shared__ CountedRows shared;
    __shared__ Meeting<N> meeting;
    const Tile tile(blockIdx.x, channel_blocks, N, rows, run);
    const Counted counted = count_rows(mask, tile, shared);
    const int64_t left = channels - tile.channel, block = blockIdx.x % channel_blocks;
    const int64_t block_left = left + tile.lane * N;  // channels from the first of the block on
    const float width = float(block_left < WARP * N ? block_left : WARP * N);

    Pack<T, N> a[ROWS], b[ROWS];
    const auto value = [&](int u, int j) { return a[u][j]; };
    float shift[N], weight[ROWS];
    if (partials) {
        load_rows(x, tile.start, tile.channel, left, WarpRows<ROWS>(0, counted, tile.warp), a);
        add_shares<ROWS>(value, share_of(min(counted.count, ROWS * WARPS)), shift);
        agree_on_shift<T>(tile, meeting, shift);
    }
    Sums<N> sums;
    for (int first = 0; first < tile.length; first += ROWS * WARPS) {
        WarpRows<ROWS> some(first, tile.length, tile.warp);
        load_rows(x, tile.start, tile.channel, left, some, a);
        if (residual.data) load_rows(residual, tile.start, tile.channel, left, some, b);
#pragma unroll
        for (int u = 0; u < ROWS; ++u) {
            const int64_t row = tile.start + some(u);
            float sum[N];
#pragma unroll
            for (int j = 0; j < N; ++j) sum[j] = a[u][j];
            if (residual.data) {
#pragma unroll
                for (int j = 0; j < N; ++j) sum[j] += b[u][j];
                b[u].round(sum);
                store_row(total, row, tile.channel, left, some.inside[u], b[u]);
#pragma unroll
                for (int j = 0; j < N; ++j) sum[j] = b[u][j];
            }
            float square = 0;
            if (row_sums.center) {
                float mean = 0, deviation = 0;
#pragma unroll
                for (int j = 0; j < N; ++j) mean += sum[j];  // 0 beyond the last channel
                mean = warp_sum(mean) / width;
#pragma unroll
                for (int j = 0; j < N; ++j) {
                    sum[j] = j < left ? sum[j] - mean : 0;
                    deviation += sum[j];
                }
                deviation = warp_sum(deviation);
                if (some.inside[u] && tile.lane == 0) {
                    row_sums.center[row * channel_blocks + block] = mean;
                    row_sums.deviation[row * channel_blocks + block] = deviation;
                }
            }
#pragma unroll
            for (int j = 0; j < N; ++j) square = fmaf(sum[j], sum[j], square);
            square = warp_sum(square);
            if (some.inside[u] && tile.lane == 0) row_sums.square[row * channel_blocks + block] = square;
            if (some.leave_out(u, counted)) a[u].clear();
        }
        some.weights(weight);
        if (partials) sums.add(value, weight, shift);
    }
    if (partials) store_partial(partials, tile, channels, counted.count, shift, sums, meeting);
}

// Joins the parts of a row, in float64; a warp each.
__global__ void __launch_bounds__(THREADS)
    row_scale_kernel(RowSums row_sums, int64_t channels, int block_channels, int64_t channel_blocks, double eps,
                     int64_t rows) {
    const int lane = threadIdx.x % WARP;
    const int64_t row = int64_t(blockIdx.x) * WARPS + threadIdx.x / WARP;
    if (row >= rows) return;  // all lanes of the warp
    const int64_t first = row * channel_blocks;
    double mean = 0, square = 0;
    if (row_sums.center) {
        for (int64_t part = lane; part < channel_blocks; part += WARP) {
            const int64_t left = channels - part * block_channels;
            const double width = double(left < block_channels ? left : block_channels);
            mean += double(row_sums.center[first + part]) * width + double(row_sums.deviation[first + part]);
        }
        mean = warp_sum(mean) / double(channels);
    }
    for (int64_t part = lane; part < channel_blocks; part += WARP) {
        square += double(row_sums.square[first + part]);
        if (row_sums.center) {
            const int64_t left = channels - part * block_channels;
            const double width = double(left < block_channels ? left : block_channels);
            const double offset = mean - double(row_sums.center[first + part]);
            square += offset * (offset * width - 2 * double(row_sums.deviation[first + part]));
        }
    }
    square = warp_sum(square);
    if (lane) return;
    row_sums.scale[row] = float(1 / sqrt(square / double(channels) + eps));
    if (row_sums.center) {
        row_sums.near[row] = float(mean);
        row_sums.rest[row] = float(mean - double(float(mean)));
    }
}

template <class T>
__global__ void __launch_bounds__(THREADS, 3)
    norm_kernel(View<T> total, View<T> norm, View<T> weights, View<T> biases, int64_t channels, NormStyle style,
                const uint8_t* mask, Partials partials, RowSums row_sums, int64_t rows, int64_t run,
                int64_t channel_blocks) {
    constexpr int N = CHANNELS<T>;
    __shared__ CountedRows shared;
    __shared__ Meeting<N> meeting;
    const Tile tile(blockIdx.x, channel_blocks, N, rows, run);
    const Counted counted = count_rows(mask, tile, shared);
    const int64_t left = channels - tile.channel;
    const int count = left < 0 ? 0 : left < N ? int(left) : N;
    Pack<T, N> scale, bias, x[ROWS];
    scale.load(weights.data + tile.channel, count);
    bias.clear();
    if (biases.data) bias.load(biases.data + tile.channel, count);

    // The rows of x, normalised.
    const auto normalise = [&](const WarpRows<ROWS>& some) {
#pragma unroll
        for (int u = 0; u < ROWS; ++u) {
            const int64_t row = tile.start + some(u);
            const float by = row_sums.scale[row];
            float values[N];
#pragma unroll
            for (int j = 0; j < N; ++j) values[j] = x[u][j];
            if (style == NormStyle::layer) {
                const float near = row_sums.near[row], rest = row_sums.rest[row];
#pragma unroll
                for (int j = 0; j < N; ++j) values[j] = (values[j] - near - rest) * by * scale[j] + bias[j];
            } else if (style == NormStyle::rms) {
#pragma unroll
                for (int j = 0; j < N; ++j) values[j] = rounded<T>(values[j] * by) * scale[j];
            } else {
                const float more = style == NormStyle::rms_one_plus ? 1.0f : 0.0f;
#pragma unroll
                for (int j = 0; j < N; ++j) values[j] = values[j] * by * (more + scale[j]);
            }
            x[u].round(values);
            if (!some.inside[u]) x[u].clear();
        }
    };
    const auto value = [&](int u, int j) { return x[u][j]; };
    float shift[N], one[ROWS];
    if (partials) {
        const WarpRows<ROWS> begin(0, counted, tile.warp);
        load_rows(total, tile.start, tile.channel, left, begin, x);
        normalise(begin);
        add_shares<ROWS>(value, share_of(min(counted.count, ROWS * WARPS)), shift);
        agree_on_shift<T>(tile, meeting, shift);
    }
    Sums<N> sums;
    for (int first = 0; first < tile.length; first += ROWS * WARPS) {
        WarpRows<ROWS> some(first, tile.length, tile.warp);
        load_rows(total, tile.start, tile.channel, left, some, x);
        normalise(some);
#pragma unroll
        for (int u = 0; u < ROWS; ++u) {
            store_row(norm, tile.start + some(u), tile.channel, left, some.inside[u], x[u]);
            if (some.leave_out(u, counted)) x[u].clear();
        }
        some.weights(one);
        if (partials) sums.add(value, one, shift);
    }
    if (partials) store_partial(partials, tile, channels, counted.count, shift, sums, meeting);
}

template <class T>
void run(const AddNorm& op, const uint8_t* mask, float* workspace, Place place) {
    constexpr int N = CHANNELS<T>;
    const int64_t rows = op.x.rows, channels = op.x.columns, channel_blocks = ceil_div(channels, WARP * N);
    const Plan plan = plan_runs(Name<T>::type, rows, channel_blocks);
    PartialsOf partials(workspace, 2 * channels);
    const Partials of_x = partials.next(op.x_moments, channels), of_norm = partials.next(op.norm_moments, channels);
    const RowSums sums = row_sums(workspace + plan.splits * SUMS * 2 * channels, rows, channel_blocks,
                                  op.style == NormStyle::layer);
    const View<T> x = view<T>(op.x.data, op.x.row_stride), total = view<T>(op.total, channels);
    launch("add_norm", add_kernel<T>, channel_blocks * plan.splits, THREADS, place, x,
           view<T>(op.residual.data, op.residual.row_stride), total, channels, mask, of_x, sums, rows, plan.run,
           channel_blocks);
    launch("add_norm", row_scale_kernel, ceil_div(rows, WARPS), THREADS, place, sums, channels, WARP * N, channel_blocks,
           double(op.eps), rows);
    launch("add_norm", norm_kernel<T>, channel_blocks * plan.splits, THREADS, place, op.residual.data ? total : x,
           view<T>(op.norm, channels), view<T>(op.weight, 0), view<T>(op.bias, 0), channels, op.style, mask, of_norm,
           sums, rows, plan.run, channel_blocks);
    Parts parts;
    parts.add(of_x, op.x_moments, op.x.data, op.x.row_stride, channels);
    parts.add(of_norm, op.norm_moments, op.norm, channels, channels);
    merge_partials("add_norm", Name<T>::type, parts, mask, rows, plan, place);
}

}  // namespace

int64_t add_norm_workspace(DType dtype, int64_t rows, int64_t columns) {
    const int64_t block = WARP * (dtype == DType::float32 ? CHANNELS<float> : CHANNELS<bfloat16>);
    const int64_t blocks = ceil_div(columns, block);
    return plan_runs(dtype, rows, blocks).splits * SUMS * 2 * columns + 3 * rows * (blocks + 1);
}

void add_norm(const AddNorm& op, const uint8_t* mask, float* workspace, Place place) {
    const OnDevice on("add_norm", place.device);
    with_format(op.x.dtype, [&](auto format) { run<decltype(format)>(op, mask, workspace, place); });
}

}  // namespace cuda
}  // namespace act
