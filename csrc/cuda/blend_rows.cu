// Rows of many matrices step towards those of others, in one launch.
#include "device.h"

namespace act {
namespace cuda {

namespace {

constexpr int LOADS = 4;  // packs of target and of donor that a thread has in flight

// The bits of `target + strength * (donor - target)`, from the nearer end: accurate near 1 as near 0, and 1 copies.
struct Step {
    double by;
    bool from_donor, copy;

    __device__ explicit Step(double strength)
        : by(strength >= 0.5 ? 1 - strength : strength), from_donor(strength >= 0.5), copy(strength == 1) {}
    __device__ float operator()(float target, float donor) const {
        const float start = from_donor ? donor : target, end = from_donor ? target : donor;
        const float blended = fmaf(float(by), end - start, start);
        if (fabsf(blended) < as_float(0x7f800000)) return blended;
        return float(double(start) + by * (double(end) - double(start)));  // a step that overflows float32
    }
};

// One tile of one entry in packs of 16 bytes: rows are aligned, and their values neighbours.
template <class T>
__device__ void blend_packs(const BlendEntry& entry, int64_t tile, const Step& step) {
    constexpr int N = 16 / int(sizeof(T));
    T* const target = reinterpret_cast<T*>(entry.target);
    const T* const donor = reinterpret_cast<const T*>(entry.donor);
    const int64_t* const rows = reinterpret_cast<const int64_t*>(entry.rows);
    const uint64_t in_row = entry.width / N, packs = entry.count * in_row;
    const uint64_t first = uint64_t(tile) * (BLEND_TILE / N);
    for (int begin = 0; begin < BLEND_TILE / N; begin += LOADS * THREADS) {
        Pack<T, N> old[LOADS], now[LOADS];
        T* to[LOADS];
#pragma unroll
        for (int i = 0; i < LOADS; ++i) {
            const int number = begin + i * THREADS + int(threadIdx.x);
            const uint64_t pack = first + number;
            to[i] = nullptr;
            if (number >= BLEND_TILE / N || pack >= packs) continue;
            const int64_t k = pack / in_row, column = int64_t(pack % in_row) * N, row = rows[k];
            to[i] = target + row * entry.target_row_stride + column;
            now[i].load(donor + (entry.gathered ? k : row) * entry.donor_row_stride + column);
            if (!step.copy) old[i].load(to[i]);
        }
#pragma unroll
        for (int i = 0; i < LOADS; ++i) {
            if (!to[i]) continue;
            if (!step.copy) {
                float blended[N];
#pragma unroll
                for (int j = 0; j < N; ++j) blended[j] = step(old[i][j], now[i][j]);
                now[i].round(blended);
            }
            now[i].store(to[i]);
        }
    }
}

// One tile of one entry, value by value: any strides. Threads lie along the dimension whose values are nearer in memory.
template <class T>
__device__ void blend_values(const BlendEntry& entry, int64_t tile, const Step& step) {
    typedef typename Format<T>::Bits Bits;
    Bits* const target = reinterpret_cast<Bits*>(entry.target);
    const Bits* const donor = reinterpret_cast<const Bits*>(entry.donor);
    const int64_t* const rows = reinterpret_cast<const int64_t*>(entry.rows);
    const bool along_rows = entry.target_row_stride < entry.target_column_stride;
    const uint64_t inner = along_rows ? entry.count : entry.width, values = entry.count * entry.width;
    for (int begin = 0; begin < BLEND_TILE; begin += LOADS * THREADS) {
        Bits old[LOADS], now[LOADS];
        Bits* to[LOADS];
#pragma unroll
        for (int i = 0; i < LOADS; ++i) {
            const uint64_t value = uint64_t(tile) * BLEND_TILE + begin + i * THREADS + threadIdx.x;
            to[i] = nullptr;
            if (value >= values) continue;
            const int64_t outer_place = value / inner, inner_place = value % inner;
            const int64_t k = along_rows ? inner_place : outer_place, column = along_rows ? outer_place : inner_place;
            const int64_t row = rows[k], donor_row = entry.gathered ? k : row;
            to[i] = target + row * entry.target_row_stride + column * entry.target_column_stride;
            now[i] = donor[donor_row * entry.donor_row_stride + column * entry.donor_column_stride];
            if (!step.copy) old[i] = *to[i];
        }
#pragma unroll
        for (int i = 0; i < LOADS; ++i) {
            if (!to[i]) continue;
            if (!step.copy) now[i] = Bits(Format<T>::narrow(step(Format<T>::widen(old[i]), Format<T>::widen(now[i]))));
            *to[i] = now[i];
        }
    }
}

// A block takes one tile; `first_tiles` [entries] says where those of each entry begin.
template <class T>
__global__ void __launch_bounds__(THREADS)
    blend_rows_kernel(const int64_t* first_tiles, const BlendEntry* table, int64_t entries) {
    int64_t index = -1;  // the last entry that begins at this tile or before
    for (int64_t begin = 0; begin < entries; begin += THREADS) {
        const int64_t e = begin + threadIdx.x;
        index += __syncthreads_count(e < entries && first_tiles[e] <= int64_t(blockIdx.x));
    }
    const BlendEntry entry = table[index];
    const int64_t tile = int64_t(blockIdx.x) - first_tiles[index];
    double strength;
    memcpy(&strength, &entry.strength, sizeof strength);
    const Step step(strength);
    constexpr int64_t N = 16 / int64_t(sizeof(T));
    const bool neighbours = entry.target_column_stride == 1 && entry.donor_column_stride == 1;
    const int64_t uneven = entry.target % 16 | entry.donor % 16 | entry.target_row_stride % N |
                           entry.donor_row_stride % N | entry.width % N;
    if (neighbours && !uneven) blend_packs<T>(entry, tile, step);
    else blend_values<T>(entry, tile, step);
}

}  // namespace

void blend_rows(DType dtype, const int64_t* first_tiles, const BlendEntry* table, int64_t entries, int64_t tiles,
                Place place) {
    const OnDevice on("blend_rows", place.device);
    with_format(dtype, [&](auto format) {
        launch("blend_rows", blend_rows_kernel<decltype(format)>, tiles, THREADS, place, first_tiles, table, entries);
    });
}

}  // namespace cuda
}  // namespace act
