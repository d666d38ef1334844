// target[row] += strength * (donor[row] - target[row]) for the listed rows, in place.
#include "../kernels.h"
#include "vectors.h"

namespace act {
namespace ACT_ISA {

// Stepping from the nearer end keeps strength 1 exact and its neighbourhood accurate.
template <class Value, class Strength>
static inline Value blend(Value target, Value donor, Strength strength) {
    const Value step = donor - target;
    return strength < Strength(0.5) ? target + strength * step : donor - (1 - strength) * step;
}

// Of single values: again in float64 where a step overflows.
static inline float blend_one(float target, float donor, double strength) {
    const float blended = blend(target, donor, float(strength));
    return blended - blended == 0 ? blended : float(blend(double(target), double(donor), strength));
}

template <class T>
static inline void blend_into(T& target, T donor, double strength) {
    narrow(blend_one(widen(target), widen(donor), strength), target);
}

// One row of neighbouring values.
template <class T>
static void blend_row(T* target, const T* donor, int64_t width, double strength) {
    typedef Format<T> F;
    typedef typename F::Bits Bits;
    constexpr int GROUP = F::PARTS * LANES;
    if (strength == 1) {
        std::memcpy(static_cast<void*>(target), donor, sizeof(T) * width);
        return;
    }
    int64_t column = 0;
    for (; column + GROUP <= width; column += GROUP) {
        Floats to[F::PARTS], from[F::PARTS];
        F::split(load<Bits>(target + column), to);
        F::split(load<Bits>(donor + column), from);
        Ints overflow = {};
        each<F::PARTS>([&](auto p) ACT_INLINE {
            to[p] = blend(to[p], from[p], float(strength));
            overflow |= infinite(to[p]);
        });
        if (!any(overflow)) store(target + column, F::join(to));
        else for (int i = 0; i < GROUP; ++i) blend_into(target[column + i], donor[column + i], strength);
    }
    for (; column < width; ++column) blend_into(target[column], donor[column], strength);
}

template <class T>
static void run(const Blend& b, int threads) {
    T* const target = static_cast<T*>(b.target.data);
    const T* const donor = static_cast<const T*>(b.donor.data);
    if (b.count * b.target.columns < 32768) threads = 1;
    if (b.target.column_stride == 1 && b.donor.column_stride == 1 && b.target.columns > 1) {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t k = 0; k < b.count; ++k)
            blend_row(target + b.rows[k] * b.target.row_stride,
                      donor + (b.gathered ? k : b.rows[k]) * b.donor.row_stride, b.target.columns, b.strength);
        return;
    }
    // Walk the dimension with the smaller stride innermost: columns of an embedding come as rows of its transpose.
    const bool rows_inside = b.target.row_stride < b.target.column_stride;
    const int64_t outer = rows_inside ? b.target.columns : b.count, inner = rows_inside ? b.count : b.target.columns;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t o = 0; o < outer; ++o) {
        for (int64_t i = 0; i < inner; ++i) {
            const int64_t k = rows_inside ? i : o, row = b.rows[k], column = rows_inside ? o : i;
            T& to = target[row * b.target.row_stride + column * b.target.column_stride];
            const T from = donor[(b.gathered ? k : row) * b.donor.row_stride + column * b.donor.column_stride];
            if (b.strength == 1) to = from;
            else blend_into(to, from, b.strength);
        }
    }
}

void blend_rows(const Blend& b, int threads) {
    with_format(b.target.dtype, [&](auto format) { run<decltype(format)>(b, threads); });
}

}  // namespace ACT_ISA
}  // namespace act
