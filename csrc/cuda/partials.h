// What the ops that measure share: float32 sums of short runs of rows, and their float64 merge in a fixed order.
//
// Stage 1 is the op's own kernel. A block of threads sums one run, at most MAX_RUN rows of some channels, around a shift
// close to its mean, and writes a partial [7, channels]: rows counted, the shift, the sums of deviations, of their
// squares, of absolute values, the largest of these, and the number of values > 0. Stage 2, merge_partials, merges the
// runs of each channel into its moments by Chan's formula. Where a run holds a NaN, an infinity or values whose squares
// leave the range of float32, where its mean is far from the shift, or where one value outweighs the others, its sums show
// it, and stage 2 reads that run again in float64: the common case pays nothing for the exception. Every order of addition
// depends on shapes alone, and there are no atomics.
//
// In stage 1 each warp takes a row at a time and each lane N neighbouring channels of it; a lane's sums stay in its
// registers until the run ends.
#pragma once

#include "device.h"

namespace act {
namespace cuda {

constexpr int SUMS = 7;         // rows of a partial
constexpr int MIN_RUN = 128;    // shorter ones would write almost as much as they read
constexpr int MAX_RUN = 1024;   // rows of 16-bit values summed in float32
constexpr int MAX_RUN_FLOAT32 = 256;  // sums of equal values, which 16 bits keep exact, round with a bias that grows
constexpr int MERGE_LANES = 16; // runs that are merged side by side
constexpr float TINY = 1e-10f;  // squares of smaller values could underflow float32
constexpr float SURE = 1e-27f;  // from such a sum of squares on, none that counts has underflowed
constexpr float NEAR = 0.75f;   // share of a run's squares that may cancel: its mean is near the shift
constexpr float DOMINANT = 64;  // times the mean size of a run: a larger value outweighs the others

// Fills the memory channels of an H200; the same for all GPUs, so that they give the same bits. Only tests change it.
inline int64_t programs = 512;

struct Plan {
    int64_t run, splits;  // rows of a run, and runs
};

// The longest runs that fill the GPU.
inline Plan plan_runs(DType dtype, int64_t rows, int64_t channel_blocks) {
    const int64_t longest = dtype == DType::float32 ? MAX_RUN_FLOAT32 : MAX_RUN;
    const int64_t wanted = ceil_div(programs, channel_blocks);
    int64_t run = ceil_div(ceil_div(rows, wanted), 32) * 32;
    run = run < MIN_RUN ? MIN_RUN : run > longest ? longest : run;
    return {run, ceil_div(rows, run)};
}

// The runs of segments of rows, which the GPU alone knows: rows offsets[e] to offsets[e + 1] are those of segment e. Run k
// of segment e has the number first(e) + k, whatever the segments before it hold, so some numbers stay unused. Offsets that
// leave the matrix are cut: then the result means nothing, but nothing outside is read or written.
struct SegmentRuns {
    const int64_t* offsets;
    int segments, rows, run;

    __host__ __device__ int64_t most() const { return int64_t(rows / run) + segments; }
    __device__ int offset(int segment) const {
        const int64_t row = offsets[segment];
        return row < 0 ? 0 : row < rows ? int(row) : rows;
    }
    __device__ int first(int segment) const { return offset(segment) / run + segment; }
};

// The partials of one matrix, [splits, 7, plane]; null: it is not measured.
struct Partials {
    float* data;
    int64_t plane;

    __host__ __device__ explicit operator bool() const { return data != nullptr; }
};

// One run of rows and one block of channels, from the number of a block of threads.
struct Tile {
    int64_t split, start, channel;  // its first row; the first channel of this lane
    int length;                     // rows
    int lane, warp;

    __device__ Tile(int64_t block, int64_t channel_blocks, int lane_channels, int64_t rows, int64_t run) {
        lane = threadIdx.x % WARP;
        warp = threadIdx.x / WARP;
        split = block / channel_blocks;
        start = split * run;
        length = int(rows - start < run ? rows - start : run);
        channel = (block % channel_blocks) * (WARP * lane_channels) + lane * lane_channels;
    }
};

// Which rows of a run count: a list of them, and a flag of each; unused without a mask.
struct CountedRows {
    uint16_t list[MAX_RUN];
    uint8_t flag[MAX_RUN];
    int by_warp[WARPS];
};

struct Counted {
    const CountedRows* rows;  // null: all rows count
    int count;

    __device__ int row(int index) const { return rows ? rows->list[index] : index; }
    __device__ bool includes(int row) const { return !rows || rows->flag[row]; }
};

// Called by all threads of a block.
__device__ inline Counted count_rows(const uint8_t* mask, const Tile& tile, CountedRows& shared) {
    if (!mask) return {nullptr, tile.length};
    mask += tile.start;
    unsigned flags = 0;  // of rows threadIdx.x + THREADS * i: all loads in flight together
#pragma unroll
    for (int i = 0; i < MAX_RUN / THREADS; ++i) {
        const int row = int(threadIdx.x) + THREADS * i;
        if (row < tile.length && mask[row]) flags |= 1u << i;
    }
    int count = 0;
    for (int i = 0; i * THREADS < tile.length; ++i) {
        const bool counted = flags >> i & 1;
        const unsigned vote = __ballot_sync(ALL_LANES, counted);
        if (tile.lane == 0) shared.by_warp[tile.warp] = __popc(vote);
        __syncthreads();
        int place = count + __popc(vote & ((1u << tile.lane) - 1));
        for (int w = 0; w < WARPS; ++w) {
            if (w < tile.warp) place += shared.by_warp[w];
            count += shared.by_warp[w];
        }
        const int row = int(threadIdx.x) + THREADS * i;
        if (counted) shared.list[place] = uint16_t(row);
        shared.flag[row] = counted;
        __syncthreads();
    }
    return {&shared, count};
}

// Sums of the N channels of a lane.
template <int N>
struct Sums {
    float total[N], square[N], absolute[N], largest[N], positive[N];

    __device__ Sums() {
#pragma unroll
        for (int j = 0; j < N; ++j) total[j] = square[j] = absolute[j] = largest[j] = positive[j] = 0;
    }

    // Adds ROWS rows as a tree. counted[u] is 1, or 0 for a row of which value(u, j) is 0.
    template <int ROWS, class Value>
    __device__ void add(const Value& value, const float (&counted)[ROWS], const float (&shift)[N]) {
#pragma unroll
        for (int j = 0; j < N; ++j) {
            float deviations = 0, squares = 0, sizes = 0, above = 0;
#pragma unroll
            for (int u = 0; u < ROWS; ++u) {
                const float x = value(u, j), deviation = fmaf(counted[u], -shift[j], x);
                deviations += deviation;
                squares = fmaf(deviation, deviation, squares);
                sizes += fabsf(x);
                largest[j] = fmaxf(largest[j], fabsf(x));
                above += x > 0 ? 1.0f : 0.0f;
            }
            total[j] += deviations;
            square[j] += squares;
            absolute[j] += sizes;
            positive[j] += above;
        }
    }
};

// Where the warps of a block meet: [.., WARPS, slots], a slot for each of a block's channels.
template <int N>
struct Meeting {
    static constexpr int CHANNELS = WARP * N, SLOTS = CHANNELS + WARP;
    float value[5][WARPS][SLOTS];

    // Both by lane and by channel, the slots of a warp lie in different banks.
    __device__ static int slot(int lane, int j) { return j * (WARP + WARP / N) + lane; }
    __device__ static int slot(int channel) { return slot(channel / N, channel % N); }
};

// Makes `shift`, the add_shares of a warp, that of all warps, cut to the precision of T: deviations of 16-bit values and
// most of their sums are then exact. Called by all threads of a block.
template <class T, int N>
__device__ void agree_on_shift(const Tile& tile, Meeting<N>& meeting, float (&shift)[N]) {
    __syncthreads();
#pragma unroll
    for (int j = 0; j < N; ++j) meeting.value[0][tile.warp][meeting.slot(tile.lane, j)] = shift[j];
    __syncthreads();
#pragma unroll
    for (int j = 0; j < N; ++j) {
        shift[j] = 0;
#pragma unroll
        for (int w = 0; w < WARPS; ++w) shift[j] += meeting.value[0][w][meeting.slot(tile.lane, j)];
        shift[j] = rounded<T>(shift[j]);
        if (!(fabsf(shift[j]) <= 3.4e38f)) shift[j] = 0;  // NaN or infinite: such a run is read again
    }
}

// Joins the sums of all warps and writes the partial of this run; `channels`: of the matrix. Called by all threads.
template <int N>
__device__ void store_partial(Partials partials, const Tile& tile, int64_t channels, int count, const float (&shift)[N],
                              const Sums<N>& sums, Meeting<N>& meeting) {
    const int64_t first = tile.channel - tile.lane * N;  // of the block
    __syncthreads();
#pragma unroll
    for (int j = 0; j < N; ++j) {
        const int slot = meeting.slot(tile.lane, j);
        meeting.value[0][tile.warp][slot] = sums.total[j];
        meeting.value[1][tile.warp][slot] = sums.square[j];
        meeting.value[2][tile.warp][slot] = sums.absolute[j];
        meeting.value[3][tile.warp][slot] = sums.largest[j];
        meeting.value[4][tile.warp][slot] = sums.positive[j];
    }
    __syncthreads();
    float* const out = partials.data + tile.split * SUMS * partials.plane + first;
    for (int channel = threadIdx.x; channel < Meeting<N>::CHANNELS && first + channel < channels; channel += THREADS) {
        const int slot = meeting.slot(channel);
        out[channel] = float(count);
#pragma unroll
        for (int s = 0; s < 5; ++s) {
            float joined = meeting.value[s][0][slot];
#pragma unroll
            for (int w = 1; w < WARPS; ++w) {
                const float other = meeting.value[s][w][slot];
                joined = s == 3 ? fmaxf(joined, other) : joined + other;
            }
            out[(s + 2) * partials.plane + channel] = joined;
        }
    }
    if (tile.warp == 0) {
#pragma unroll
        for (int j = 0; j < N; ++j)
            if (first + tile.lane * N + j < channels) out[partials.plane + tile.lane * N + j] = shift[j];
    }
}

// The factor that makes the sum over the first rows of a run their mean.
__device__ inline float share_of(int rows) { return 1.0f / float(rows ? rows : 1); }

// The sums over ROWS rows of value(u, j) * share: what agree_on_shift takes.
template <int ROWS, int N, class Value>
__device__ void add_shares(const Value& value, float share, float (&sum)[N]) {
#pragma unroll
    for (int j = 0; j < N; ++j) {
        sum[j] = 0;
#pragma unroll
        for (int u = 0; u < ROWS; ++u) sum[j] += value(u, j) * share;  // multiplied first: the sum could overflow
    }
}

// The rows of a tile that a warp takes: of the run, or of the list of those that count.
template <int ROWS>
struct WarpRows {
    int row[ROWS];
    bool inside[ROWS];

    __device__ WarpRows(int first, int end, int warp) {
#pragma unroll
        for (int u = 0; u < ROWS; ++u) {
            row[u] = first + u * WARPS + warp;
            inside[u] = row[u] < end;
            if (!inside[u]) row[u] = 0;
        }
    }
    __device__ WarpRows(int first, const Counted& counted, int warp) : WarpRows(first, counted.count, warp) {
#pragma unroll
        for (int u = 0; u < ROWS; ++u)
            if (inside[u]) row[u] = counted.row(row[u]);
    }
    __device__ int operator()(int u) const { return row[u]; }
    // Whether a row of the run does not count; then it has no weight, and its values must be cleared.
    __device__ bool leave_out(int u, const Counted& counted) {
        if (counted.includes(row[u])) return false;
        inside[u] = false;
        return true;
    }
    __device__ void weights(float (&weight)[ROWS]) const {
#pragma unroll
        for (int u = 0; u < ROWS; ++u) weight[u] = inside[u] ? 1.0f : 0.0f;
    }
};

// Stores a lane's channels of one row, if that is wanted.
template <class T, int N>
__device__ void store_row(const View<T>& x, int64_t row, int64_t channel, int64_t left, bool wanted,
                          const Pack<T, N>& pack) {
    if (!wanted) return;
    T* const to = x.data + row * x.row_stride + channel;
    if (x.aligned && left >= N) pack.store(to);
    else pack.store(to, left < 0 ? 0 : left < N ? int(left) : N);
}

// Loads the rows of a lane's channels; 0 for rows that are not inside. `left`: channels from `channel` on.
template <class T, int N, int ROWS>
__device__ void load_rows(const View<T>& x, int64_t start, int64_t channel, int64_t left, const WarpRows<ROWS>& rows,
                          Pack<T, N> (&to)[ROWS]) {
    const T* const from = x.data + start * x.row_stride + channel;
    if (x.aligned && left >= N) {  // the branch holds all loads, so that they are in flight together
#pragma unroll
        for (int u = 0; u < ROWS; ++u) {
            if (rows.inside[u]) to[u].load(from + rows.row[u] * x.row_stride);
            else to[u].clear();
        }
    } else {
        const int count = left < 0 ? 0 : left < N ? int(left) : N;
#pragma unroll
        for (int u = 0; u < ROWS; ++u) to[u].load(from + rows.row[u] * x.row_stride, rows.inside[u] ? count : 0);
    }
}

// A matrix that is measured, for stage 2. Values are those of x, less those of the subtrahend unless that is null; times
// those of the factor, less the subtrahend too, unless that is null.
struct Part {
    Partials partials;
    Moments moments;
    const void* x;
    int64_t row_stride;
    const void* subtrahend;
    int64_t subtrahend_row_stride;
    const void* factor;
    int64_t factor_row_stride;
    int64_t channels;
};

struct Parts {
    static constexpr int MOST = 5;
    Part part[MOST];
    int count = 0;
    int64_t widest = 0;

    void add(Partials partials, Moments moments, const void* x, int64_t row_stride, int64_t channels,
             const void* subtrahend = nullptr, int64_t subtrahend_row_stride = 0, const void* factor = nullptr,
             int64_t factor_row_stride = 0) {
        if (!moments.data || !channels) return;
        part[count++] = {partials,   moments, x,      row_stride,
                         subtrahend, subtrahend_row_stride, factor, factor_row_stride, channels};
        if (channels > widest) widest = channels;
    }
};

// Cuts the workspace into partials of several matrices that lie side by side.
class PartialsOf {
public:
    PartialsOf(float* data, int64_t plane) : data_(data), plane_(plane) {}
    Partials next(const Moments& moments, int64_t channels) {
        if (!moments.data) return {nullptr, 0};
        const Partials partials{data_, plane_};
        data_ += channels;
        return partials;
    }

private:
    float* data_;
    int64_t plane_;
};

// Queues stage 2. `type` is that of the matrices.
void merge_partials(const char* op, DType dtype, const Parts& parts, const uint8_t* mask, int64_t rows, Plan plan,
                    Place place);

// The same for all segments of one matrix; the moments of each begin `segment_stride` doubles after those before.
void merge_segments(const char* op, DType dtype, const Part& part, int64_t segment_stride, const uint8_t* mask,
                    SegmentRuns runs, Place place);

}  // namespace cuda
}  // namespace act
