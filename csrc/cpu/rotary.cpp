// x * cos + rotate(x) * sin for the heads of q and k, and the statistics of q, k and v while a few rows are in cache.
#include "measured.h"

namespace act {
namespace ACT_ISA {

// Whole heads of one matrix: what one thread turns and measures.
struct Part {
    const Rotary::Heads* heads;
    int64_t first, channels;
};

template <class T>
static inline float rounded(float x) {
    T narrowed;
    narrow(x, narrowed);
    return widen(narrowed);
}

// One value: `partner` is what rotate(x) has in its place.
template <class T, bool ROUND_ONCE>
static inline void turn_value(float x, float partner, T cos, T sin, T& out) {
    const float straight = x * widen(cos), crossed = partner * widen(sin);
    narrow(ROUND_ONCE ? straight + crossed : rounded<T>(straight) + rounded<T>(crossed), out);
}

// One vector of values.
template <class T, bool ROUND_ONCE>
static inline void turn_vector(const T* x, const T* partner, float sign, const T* cos, const T* sin, T* out) {
    typedef Format<T> F;
    Floats a[F::PARTS], b[F::PARTS], c[F::PARTS], s[F::PARTS];
    F::split(load<typename F::Bits>(x), a);
    F::split(load<typename F::Bits>(partner), b);
    F::split(load<typename F::Bits>(cos), c);
    F::split(load<typename F::Bits>(sin), s);
    each<F::PARTS>([&](auto p) ACT_INLINE {
        const Floats straight = a[p] * c[p], crossed = b[p] * sign * s[p];
        a[p] = ROUND_ONCE ? straight + crossed : F::round(straight) + F::round(crossed);
    });
    store(out, F::join(a));
}

// One head of one row.
template <class T, bool INTERLEAVED, bool ROUND_ONCE>
static void turn(const T* x, const T* cos, const T* sin, int64_t turned, int64_t width, T* out) {
    if (INTERLEAVED) {
        for (int64_t i = 0; i < turned; i += 2) {
            const float even = widen(x[i]), odd = widen(x[i + 1]);
            turn_value<T, ROUND_ONCE>(even, -odd, cos[i], sin[i], out[i]);
            turn_value<T, ROUND_ONCE>(odd, even, cos[i + 1], sin[i + 1], out[i + 1]);
        }
    } else {
        constexpr int GROUP = Format<T>::PARTS * LANES;
        const int64_t half = turned / 2, whole = half / GROUP * GROUP;
        for (int64_t i = 0; i < whole; i += GROUP) {
            const int64_t j = i + half;
            turn_vector<T, ROUND_ONCE>(x + i, x + j, -1, cos + i, sin + i, out + i);
            turn_vector<T, ROUND_ONCE>(x + j, x + i, 1, cos + j, sin + j, out + j);
        }
        for (int64_t i = whole; i < half; ++i) {
            const int64_t j = i + half;
            const float low = widen(x[i]), high = widen(x[j]);
            turn_value<T, ROUND_ONCE>(low, -high, cos[i], sin[i], out[i]);
            turn_value<T, ROUND_ONCE>(high, low, cos[j], sin[j], out[j]);
        }
    }
    if (turned < width) std::memcpy(static_cast<void*>(out + turned), x + turned, sizeof(T) * (width - turned));
}

template <class T>
using Turn = void (*)(const T* x, const T* cos, const T* sin, int64_t turned, int64_t width, T* out);

template <class T>
static Turn<T> turn_by(bool interleaved, bool round_once) {
    if (interleaved) return round_once ? turn<T, true, true> : turn<T, true, false>;
    return round_once ? turn<T, false, true> : turn<T, false, false>;
}

// Rows [begin, end) of a part.
template <class T>
static void turn_rows(const Rotary& op, const Part& part, Turn<T> turn, int64_t begin, int64_t end) {
    const Matrix& x = part.heads->x;
    for (int64_t row = begin; row < end; ++row) {
        const int64_t angle = (op.tables > 1 ? row : row % op.length) * op.turned;
        const T* const cos = static_cast<const T*>(op.cos) + angle;
        const T* const sin = static_cast<const T*>(op.sin) + angle;
        const T* const from = static_cast<const T*>(x.data) + row * x.row_stride + part.first;
        T* const to = static_cast<T*>(part.heads->out) + row * x.columns + part.first;
        for (int64_t c = 0; c < part.channels; c += op.width) turn(from + c, cos, sin, op.turned, op.width, to + c);
    }
}

template <class T>
static void run_part(const Rotary& op, const Part& part, const uint8_t* mask, Turn<T> turn) {
    const Matrix& x = part.heads->x;
    if (!part.heads->moments.data) return turn_rows(op, part, turn, 0, x.rows);
    Measured<T> measured(part.heads->moments, part.channels);
    const Matrix* const matrices[] = {&x};
    RowWalk walk(x.rows, mask);
    while (walk.row() < x.rows) {
        const int64_t before = walk.row();
        const int counted = walk.next(part.first, matrices, static_cast<Rows<T>*>(&measured.chunk));
        if (part.heads->out) turn_rows(op, part, turn, before, walk.row());
        for (int64_t channel = 0; channel < part.channels; channel += TILE)
            measured.add(counted, channel, part.channels - channel < TILE ? part.channels - channel : TILE);
        measured.sums.counted += counted;
    }
    measured.finish(part.first, part.channels);
}

// Channels that stay together: whole heads, and whole tiles where a panel holds both, so that threads change no bits.
static inline int64_t unit(int64_t width) {
    int64_t both = width;
    while (both % TILE) both += width;
    return both <= PANEL ? both : width;
}

template <class T>
static void run(const Rotary& op, const uint8_t* mask, int threads) {
    const Rotary::Heads* const all[] = {&op.q, &op.k, &op.v};
    int64_t values = 0, counts[3], widths[3];
    for (int m = 0; m < 3; ++m) {
        const Matrix& x = all[m]->x;
        values += x.data ? x.rows * x.columns : 0;
    }
    threads = useful_threads(values, threads);
    for (int m = 0; m < 3; ++m) {
        const Matrix& x = all[m]->x;
        const int64_t head = unit(all[m]->out ? op.width : TILE);
        const int64_t heads = (x.columns + head - 1) / head, fitting = PANEL / head > 1 ? PANEL / head : 1;
        const int64_t share = (heads + threads - 1) / threads;
        widths[m] = (share < fitting ? share : fitting) * head;
        counts[m] = x.data ? (x.columns + widths[m] - 1) / widths[m] : 0;
    }
    const Turn<T> turn = turn_by<T>(op.interleaved, op.round_once);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t p = 0; p < counts[0] + counts[1] + counts[2]; ++p) {
        int64_t index = p;
        int m = 0;
        while (index >= counts[m]) index -= counts[m++];
        const int64_t first = index * widths[m], rest = all[m]->x.columns - first;
        run_part<T>(op, {all[m], first, rest < widths[m] ? rest : widths[m]}, mask, turn);
    }
}

void rotary(DType dtype, const Rotary& op, const uint8_t* mask, int threads) {
    switch (dtype) {
        case DType::float32: return run<float>(op, mask, threads);
        case DType::bfloat16: return run<bfloat16>(op, mask, threads);
        case DType::float16: return run<float16>(op, mask, threads);
    }
}

}  // namespace ACT_ISA
}  // namespace act
