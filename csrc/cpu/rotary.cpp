// Rotary embedding of q and k, and the statistics of q, k and v as they came, while a few rows of some heads are in cache.
#include "moments.h"

namespace act {
namespace ACT_ISA {

// x * cos + rotated * sin, each product rounded to T first unless it is rounded once.
template <class T, bool ONCE>
static inline Floats turned(Floats x, Floats cos, Floats rotated, Floats sin) {
    if constexpr (ONCE) return x * cos + rotated * sin;
    else return Format<T>::round(x * cos) + Format<T>::round(rotated * sin);
}

// The vectors of a row in order, the last one padded; body(load, store) moves vectors at an offset.
template <class T, bool STREAMED, class Body>
static inline void each_vector(int64_t values, const Body& body) {
    typedef typename Format<T>::Bits Bits;
    constexpr int GROUP = Format<T>::PARTS * LANES;
    int64_t i = 0;
    for (; i + GROUP <= values; i += GROUP) {
        body([=](const T* from) ACT_INLINE { return load<Bits>(from + i); },
             [=](T* to, Bits bits) ACT_INLINE {
                 if constexpr (STREAMED) stream(to + i, bits);
                 else store(to + i, bits);
             });
    }
    if (const int64_t rest = sizeof(T) * (values - i)) {
        body(
            [=](const T* from) ACT_INLINE {
                Bits bits = {};
                std::memcpy(&bits, from + i, rest);
                return bits;
            },
            [=](T* to, Bits bits) ACT_INLINE { std::memcpy(static_cast<void*>(to + i), &bits, rest); });
    }
}

// Values i and i + half turn together.
template <class T, bool ONCE, bool STREAMED>
static inline void turn_halves(const T* x, const T* cos, const T* sin, T* out, int64_t half) {
    typedef Format<T> F;
    each_vector<T, STREAMED>(half, [=](const auto& at, const auto& put) ACT_INLINE {
        Floats a[F::PARTS], b[F::PARTS], cos_a[F::PARTS], cos_b[F::PARTS], sin_a[F::PARTS], sin_b[F::PARTS];
        F::split(at(x), a);
        F::split(at(x + half), b);
        F::split(at(cos), cos_a);
        F::split(at(cos + half), cos_b);
        F::split(at(sin), sin_a);
        F::split(at(sin + half), sin_b);
        each<F::PARTS>([&](auto p) ACT_INLINE {
            const Floats first = turned<T, ONCE>(a[p], cos_a[p], -b[p], sin_a[p]);
            b[p] = turned<T, ONCE>(b[p], cos_b[p], a[p], sin_b[p]);
            a[p] = first;
        });
        put(out, F::join(a));
        put(out + half, F::join(b));
    });
}

// (a, b) -> (-b, a) for each pair of neighbouring lanes.
static inline Floats rotated_pairs(Floats x) {
    const Longs pairs = (Longs)x;
    return (Floats)(((pairs << 32) | (pairs >> 32)) ^ 0x80000000);
}

// Values 2i and 2i + 1 turn together.
template <class T, bool ONCE, bool STREAMED>
static inline void turn_pairs(const T* x, const T* cos, const T* sin, T* out, int64_t width) {
    typedef Format<T> F;
    each_vector<T, STREAMED>(width, [=](const auto& at, const auto& put) ACT_INLINE {
        Floats v[F::PARTS], c[F::PARTS], s[F::PARTS], rotated[F::PARTS];
        F::split(at(x), v);
        F::split(at(cos), c);
        F::split(at(sin), s);
        if constexpr (F::EVEN_ODD) {
            rotated[0] = -v[1];
            rotated[1] = v[0];
        } else {
            each<F::PARTS>([&](auto p) ACT_INLINE { rotated[p] = rotated_pairs(v[p]); });
        }
        each<F::PARTS>([&](auto p) ACT_INLINE { v[p] = turned<T, ONCE>(v[p], c[p], rotated[p], s[p]); });
        put(out, F::join(v));
    });
}

// Turns the heads of `channels` channels of one row.
template <class T, bool ONCE, bool STREAMED>
static void turn_row(const Rotary& op, const T* x, int64_t row, T* out, int64_t channels) {
    const int64_t table = (op.tables == 1 ? row % op.length : row) * op.turned;
    const T* const cos = static_cast<const T*>(op.cos) + table;
    const T* const sin = static_cast<const T*>(op.sin) + table;
    for (int64_t head = 0; head < channels; head += op.width, x += op.width, out += op.width) {
        if (op.interleaved) turn_pairs<T, ONCE, STREAMED>(x, cos, sin, out, op.turned);
        else turn_halves<T, ONCE, STREAMED>(x, cos, sin, out, op.turned / 2);
        if (op.turned < op.width)
            std::memcpy(static_cast<void*>(out + op.turned), x + op.turned, sizeof(T) * (op.width - op.turned));
    }
}

template <class T>
using RotateRow = void (*)(const Rotary&, const T* x, int64_t row, T* out, int64_t channels);

template <class T>
static RotateRow<T> turn_by(const Rotary& op, const Rotary::Heads& heads) {
    const int64_t vectors = (op.interleaved ? op.turned : op.turned / 2) * int64_t(sizeof(T));
    const bool whole_lines = (vectors | op.width * int64_t(sizeof(T))) % LINE == 0;
    if (whole_lines && worth_streaming<T>(heads.out, heads.x.rows, heads.x.columns))
        return op.round_once ? turn_row<T, true, true> : turn_row<T, false, true>;
    return op.round_once ? turn_row<T, true, false> : turn_row<T, false, false>;
}

template <class T>
static void panel(const Rotary& op, const Rotary::Heads& heads, bool measured, const uint8_t* mask, int64_t first,
                  int64_t channels) {
    PanelSums<Rows<T>> sums(measured ? channels : 0);
    RowWalk walk(heads.x.rows, mask);
    const Matrix* const matrices[] = {&heads.x};
    Rows<T> chunk;
    const auto turn = turn_by<T>(op, heads);
    while (walk.row() < heads.x.rows) {
        int64_t row = walk.row();
        const int counted = walk.next(first, matrices, &chunk);
        if (measured && counted) sums.add_chunk(chunk, counted, channels);
        for (; heads.out && row < walk.row(); ++row) {
            turn(op, static_cast<const T*>(heads.x.data) + row * heads.x.row_stride + first, row,
                 static_cast<T*>(heads.out) + row * heads.x.columns + first, channels);
        }
    }
    finish_streams();
    if (measured) sums.merge_into(heads.moments, first, channels);
}

// Channels that a panel keeps together: whole heads, and whole tiles too where both fit.
static int64_t panel_unit(int64_t width) {
    int64_t unit = width;
    while (unit % TILE && unit <= PANEL) unit += width;
    return unit <= PANEL ? unit : width;
}

template <class T>
static void run(const Rotary& op, const uint8_t* mask, int threads) {
    const Rotary::Heads* const all[] = {&op.q, &op.k, &op.v};
    threads = useful_threads(op.q.x.rows * (op.q.x.columns + op.k.x.columns + op.v.x.columns), threads);
    const int64_t unit = panel_unit(op.width);
    const auto panels_of = [=](const Rotary::Heads& heads) {
        return Panels(heads.x.columns, threads, unit, heads.moments.data ? PANEL : INT64_MAX);
    };
    const Panels panels[] = {panels_of(op.q), panels_of(op.k), {op.v.x.columns, threads}};
    const int64_t counts[] = {panels[0].count, panels[0].count + panels[1].count,
                              panels[0].count + panels[1].count + panels[2].count};
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t i = 0; i < counts[2]; ++i) {
        const int which = (i >= counts[0]) + (i >= counts[1]);
        const Rotary::Heads& heads = *all[which];
        const int64_t width = panels[which].width, first = (i - (which ? counts[which - 1] : 0)) * width;
        const int64_t rest = heads.x.columns - first;
        panel<T>(op, heads, heads.moments.data && width <= PANEL, mask, first, rest < width ? rest : width);
    }
}

void rotary(const Rotary& op, const uint8_t* mask, int threads) {
    const Rotary::Heads* const turned[] = {&op.q, &op.k};
    for (const Rotary::Heads* heads : turned) {
        if (heads->moments.data && op.width > PANEL)  // too wide for the sums of a panel
            column_moments(heads->x, mask, heads->moments, threads);
    }
    with_format(op.q.x.dtype, [&](auto format) { run<decltype(format)>(op, mask, threads); });
}

}  // namespace ACT_ISA
}  // namespace act
