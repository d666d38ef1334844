// Rotary embedding of q and k, with the statistics of q, k and v as they came.
#include "partials.h"

namespace act {
namespace cuda {

namespace {

constexpr int ROWS = 2;  // that a lane has in flight, each with its partners and two table rows

template <class T>
constexpr int CHANNELS = 16 / int(sizeof(T));  // of a lane

// q, k or v: heads of `width` side by side. Without an `out` it is only measured.
template <class T>
struct Heads {
    View<T> x, out;
    int64_t channels, blocks;  // blocks of threads for each run
    Partials partials;
};

template <class T>
struct Angles {
    View<T> cos, sin;  // rows of `turned` values
    unsigned rows;     // of the tables: token r takes row r % rows
    int width, turned;
    bool interleaved, round_once;
    bool grouped;  // the N channels of a lane turn or pass together, and so do their partners
};

// x * cos + across * sin, where PyTorch rounds; no product is fused into the sum.
template <class T>
__host__ __device__ float turn(float x, float cos, float across, float sin, bool round_once) {
#ifdef __CUDA_ARCH__
    float along = __fmul_rn(x, cos), sideways = __fmul_rn(across, sin);
#else
    float along = x * cos, sideways = across * sin;
#endif
    if (!round_once) along = rounded<T>(along), sideways = rounded<T>(sideways);
#ifdef __CUDA_ARCH__
    return __fadd_rn(along, sideways);
#else
    return along + sideways;
#endif
}

// One row of a lane's channels, one by one: heads or halves that no pack of N fits.
template <class T, int N>
__device__ void turn_each(const T* x, const Angles<T>& angles, int64_t table_row, int64_t channel, int64_t left,
                          const Pack<T, N>& values, Pack<T, N>& turned) {
    float result[N];
    const int half = angles.turned / 2;
#pragma unroll
    for (int j = 0; j < N; ++j) {
        result[j] = values[j];
        const int lane = int(unsigned(channel + j) % unsigned(angles.width));
        if (j >= left || lane >= angles.turned) continue;
        const bool first = angles.interleaved ? lane % 2 == 0 : lane < half;
        const int distance = angles.interleaved ? 1 : half, partner = first ? distance : -distance;
        const float across = widen(x[channel + j + partner]);
        const float cos = widen(angles.cos.data[table_row * angles.cos.row_stride + lane]);
        const float sin = widen(angles.sin.data[table_row * angles.sin.row_stride + lane]);
        result[j] = turn<T>(values[j], cos, first ? -across : across, sin, angles.round_once);
    }
    turned.round(result);
}

template <class T>
__global__ void __launch_bounds__(THREADS, 3)
    rotary_kernel(Heads<T> q, Heads<T> k, Heads<T> v, Angles<T> angles, const uint8_t* mask, int64_t rows, int64_t run) {
    constexpr int N = CHANNELS<T>;
    __shared__ CountedRows shared;
    __shared__ Meeting<N> meeting;
    const int64_t blocks = q.blocks + k.blocks + v.blocks;
    int64_t block = blockIdx.x % blocks;
    Heads<T> heads = q;
    if (block >= q.blocks + k.blocks) heads = v, block -= q.blocks + k.blocks;
    else if (block >= q.blocks) heads = k, block -= q.blocks;
    const Tile tile(blockIdx.x / blocks * heads.blocks + block, heads.blocks, N, rows, run);
    const Counted counted = count_rows(mask, tile, shared);
    const int64_t left = heads.channels - tile.channel;

    Pack<T, N> x[ROWS];
    const auto value = [&](int u, int j) { return x[u][j]; };
    float shift[N], weight[ROWS];
    load_rows(heads.x, tile.start, tile.channel, left, WarpRows<ROWS>(0, counted, tile.warp), x);
    add_shares<ROWS>(value, share_of(min(counted.count, ROWS * WARPS)), shift);
    agree_on_shift<T>(tile, meeting, shift);

    const bool turns = heads.out.data != nullptr;
    const int lane = int(unsigned(tile.channel) % unsigned(angles.width)), half = angles.turned / 2;
    const bool first_half = lane < half, in_turned = lane < angles.turned && left > 0;
    const int partner = first_half ? half : -half;
    Sums<N> sums;
    for (int first = 0; first < tile.length; first += ROWS * WARPS) {
        WarpRows<ROWS> some(first, tile.length, tile.warp);
        if (!turns) {  // a row that does not count need not be loaded
#pragma unroll
            for (int u = 0; u < ROWS; ++u) some.leave_out(u, counted);
        }
        load_rows(heads.x, tile.start, tile.channel, left, some, x);
        if (turns) {
            Pack<T, N> turned[ROWS];
            if (!angles.grouped) {
#pragma unroll
                for (int u = 0; u < ROWS; ++u) {
                    const int64_t row = tile.start + some(u);
                    if (some.inside[u])
                        turn_each(heads.x.data + row * heads.x.row_stride, angles, unsigned(row) % angles.rows, tile.channel, left,
                                  x[u], turned[u]);
                }
            } else if (in_turned) {
                Pack<T, N> other[ROWS], cos[ROWS], sin[ROWS];
                if (!angles.interleaved) load_rows(heads.x, tile.start, tile.channel + partner, N, some, other);
#pragma unroll
                for (int u = 0; u < ROWS; ++u) {
                    const int64_t row = unsigned(tile.start + some(u)) % angles.rows;
                    const T* const cos_at = angles.cos.data + row * angles.cos.row_stride + lane;
                    const T* const sin_at = angles.sin.data + row * angles.sin.row_stride + lane;
                    if (angles.cos.aligned) cos[u].load(cos_at);
                    else cos[u].load(cos_at, N);
                    if (angles.sin.aligned) sin[u].load(sin_at);
                    else sin[u].load(sin_at, N);
                }
#pragma unroll
                for (int u = 0; u < ROWS; ++u) {
                    float result[N];
#pragma unroll
                    for (int j = 0; j < N; ++j) {
                        const float across = angles.interleaved ? (j % 2 ? x[u][j - 1] : -x[u][j + 1])
                                                                : (first_half ? -other[u][j] : other[u][j]);
                        result[j] = turn<T>(x[u][j], cos[u][j], across, sin[u][j], angles.round_once);
                    }
                    turned[u].round(result);
                }
            } else {
#pragma unroll
                for (int u = 0; u < ROWS; ++u) turned[u] = x[u];
            }
#pragma unroll
            for (int u = 0; u < ROWS; ++u) {
                store_row(heads.out, tile.start + some(u), tile.channel, left, some.inside[u], turned[u]);
                if (some.leave_out(u, counted)) x[u].clear();
            }
        }
        some.weights(weight);
        if (heads.partials) sums.add(value, weight, shift);
    }
    if (heads.partials) store_partial(heads.partials, tile, heads.channels, counted.count, shift, sums, meeting);
}

template <class T>
Heads<T> heads_of(const Rotary::Heads& heads, PartialsOf& partials) {
    const int64_t channels = heads.x.data ? heads.x.columns : 0;
    return {view<T>(heads.x.data, heads.x.row_stride), view<T>(heads.out, channels), channels,
            ceil_div(channels, WARP * CHANNELS<T>), partials.next(heads.moments, channels)};
}

template <class T>
void run(const Rotary& op, const uint8_t* mask, float* workspace, Place place) {
    constexpr int N = CHANNELS<T>;
    const int64_t rows = op.q.x.rows;
    if (rows > INT32_MAX || op.q.x.columns > INT32_MAX || op.k.x.columns > INT32_MAX)
        throw std::invalid_argument("rotary: more than 2^31 tokens or channels");
    PartialsOf partials(workspace, op.q.x.columns + op.k.x.columns + (op.v.x.data ? op.v.x.columns : 0));
    const Heads<T> q = heads_of<T>(op.q, partials), k = heads_of<T>(op.k, partials), v = heads_of<T>(op.v, partials);
    const bool grouped = op.width % N == 0 && op.turned % N == 0 && (op.interleaved || op.turned / 2 % N == 0);
    const Angles<T> angles{view<T>(op.cos, op.turned), view<T>(op.sin, op.turned), unsigned(op.length * op.tables),
                           int(op.width),              int(op.turned),             op.interleaved,
                           op.round_once,              grouped};
    const int64_t blocks = q.blocks + k.blocks + v.blocks;
    const Plan plan = plan_runs(Name<T>::type, rows, blocks);
    launch("rotary", rotary_kernel<T>, blocks * plan.splits, THREADS, place, q, k, v, angles, mask, rows, plan.run);
    Parts parts;
    parts.add(q.partials, op.q.moments, op.q.x.data, op.q.x.row_stride, q.channels);
    parts.add(k.partials, op.k.moments, op.k.x.data, op.k.x.row_stride, k.channels);
    parts.add(v.partials, op.v.moments, op.v.x.data, op.v.x.row_stride, v.channels);
    merge_partials("rotary", Name<T>::type, parts, mask, rows, plan, place);
}

}  // namespace

int64_t rotary_workspace(DType dtype, int64_t rows, int64_t q_columns, int64_t k_columns, int64_t v_columns) {
    const int64_t block = WARP * (dtype == DType::float32 ? CHANNELS<float> : CHANNELS<bfloat16>);
    const int64_t blocks = ceil_div(q_columns, block) + ceil_div(k_columns, block) + ceil_div(v_columns, block);
    return plan_runs(dtype, rows, blocks).splits * SUMS * (q_columns + k_columns + v_columns);
}

void rotary(const Rotary& op, const uint8_t* mask, float* workspace, Place place) {
    const OnDevice on("rotary", place.device);
    with_format(op.q.x.dtype, [&](auto format) { run<decltype(format)>(op, mask, workspace, place); });
}

}  // namespace cuda
}  // namespace act
