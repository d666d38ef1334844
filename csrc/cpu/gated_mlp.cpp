// activation(gate) * up, and the statistics of gate, up and the product while their tiles are in cache.
#include "activations.h"
#include "moments.h"

namespace act {
namespace ACT_ISA {

constexpr int WIDE = 4 * LANES;  // channels computed side by side

// Rows of gate, up and product that start at the same channel.
template <class T>
struct Span {
    const T* gate;
    const T* up;
    T* product;
    int64_t gate_stride, up_stride, product_stride;
    bool streamed;  // whether whole vectors of the product bypass the caches
};

// WIDE channels of one row, stored by `put`.
template <class T, class Activation, class Put>
static inline void multiply(const T* gate, const T* up, const Put& put) {
    typedef Format<T> F;
    constexpr int GROUP = F::PARTS * LANES, VECTORS = WIDE / LANES;
    Floats g[VECTORS], u[VECTORS];
    each<WIDE / GROUP>([&](auto i) ACT_INLINE {
        F::split(load<typename F::Bits>(gate + i * GROUP), g + i * F::PARTS);
        F::split(load<typename F::Bits>(up + i * GROUP), u + i * F::PARTS);
    });
    Activation::template apply<VECTORS>(g);
    each<VECTORS>([&](auto i) ACT_INLINE { g[i] = F::round(g[i]); });
    each<VECTORS>([&](auto i) ACT_INLINE { g[i] *= u[i]; });
    each<WIDE / GROUP>([&](auto i) ACT_INLINE { put(i * GROUP, F::join(g + i * F::PARTS)); });
}

template <class T, class Activation>
static void product(Span<T> span, int64_t rows, int64_t channels) {
    const int64_t whole = channels / WIDE * WIDE, rest = sizeof(T) * (channels - whole);
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t c = 0; c < whole; c += WIDE) {
            for (int64_t line = c; line < c + WIDE; line += LINE / int(sizeof(T))) {  // a panel is too narrow to be foreseen
                __builtin_prefetch(span.gate + span.gate_stride + line);
                __builtin_prefetch(span.up + span.up_stride + line);
            }
            T* const to = span.product + c;
            if (span.streamed)
                multiply<T, Activation>(span.gate + c, span.up + c, [=](int i, auto bits) { stream(to + i, bits); });
            else multiply<T, Activation>(span.gate + c, span.up + c, [=](int i, auto bits) { store(to + i, bits); });
        }
        if (rest) {
            T gate[WIDE] = {}, up[WIDE] = {}, last[WIDE];
            std::memcpy(static_cast<void*>(gate), span.gate + whole, rest);
            std::memcpy(static_cast<void*>(up), span.up + whole, rest);
            multiply<T, Activation>(gate, up, [&](int i, auto bits) { store(last + i, bits); });
            std::memcpy(static_cast<void*>(span.product + whole), last, rest);
        }
        span.gate += span.gate_stride;
        span.up += span.up_stride;
        span.product += span.product_stride;
    }
}

template <class T>
using Multiplication = void (*)(Span<T>, int64_t rows, int64_t channels);

template <class T>
static Multiplication<T> product_by(Activation activation) {
    switch (activation) {
        case Activation::silu: return product<T, Silu>;
        case Activation::gelu: return product<T, Gelu>;
        case Activation::gelu_tanh: return product<T, GeluTanh>;
        case Activation::relu: return product<T, Relu>;
        case Activation::relu2: return product<T, Relu2>;
    }
    return nullptr;
}

// The sums of one of the matrices, or none if its moments are not asked for.
template <class T>
struct Measured {
    const Moments moments;
    PanelSums<Rows<T>> sums;
    Rows<T> chunk;

    Measured(Moments moments, int64_t channels) : moments(moments), sums(moments.data ? channels : 0) {}

    void add(int rows, int64_t channels) {
        if (moments.data && rows) sums.add_chunk(chunk, rows, channels);
    }
    void finish(int64_t first, int64_t channels) {
        if (moments.data) sums.merge_into(moments, first, channels);
    }
};

template <class T>
static void panel(const GatedMlp& op, const uint8_t* mask, Multiplication<T> product, bool streamed, int64_t first,
                  int64_t channels) {
    Span<T> span{static_cast<const T*>(op.gate.data) + first,
                 static_cast<const T*>(op.up.data) + first,
                 static_cast<T*>(op.product) + first,
                 op.gate.row_stride,
                 op.up.row_stride,
                 op.gate.columns,
                 streamed};
    if (!op.gate_moments.data && !op.up_moments.data && !op.product_moments.data)
        return product(span, op.gate.rows, channels);
    Measured<T> gate(op.gate_moments, channels), up(op.up_moments, channels), out(op.product_moments, channels);
    Measured<T>* const all[] = {&gate, &up, &out};
    const Matrix product_matrix{op.product, op.gate.rows, op.gate.columns, op.gate.columns, 1, op.gate.dtype};
    const Matrix* const matrices[] = {&op.gate, &op.up, &product_matrix};
    RowWalk walk(op.gate.rows, mask);
    while (walk.row() < op.gate.rows) {
        const int64_t before = walk.row();
        const int counted = walk.next(first, matrices, &gate.chunk, &up.chunk, &out.chunk);
        const int64_t rows = walk.row() - before;
        product(span, rows, channels);
        for (Measured<T>* measured : all) measured->add(counted, channels);
        span.gate += rows * span.gate_stride;
        span.up += rows * span.up_stride;
        span.product += rows * span.product_stride;
    }
    for (Measured<T>* measured : all) measured->finish(first, channels);
}

template <class T>
static void run(const GatedMlp& op, const uint8_t* mask, int threads) {
    const int64_t values = op.gate.rows * op.gate.columns;
    threads = useful_threads(2 * values, threads);
    const bool measured = op.gate_moments.data || op.up_moments.data || op.product_moments.data;
    const Panels panels(op.gate.columns, threads, WIDE, measured ? PANEL : INT64_MAX);
    const Multiplication<T> product = product_by<T>(op.activation);
    const bool streamed = worth_streaming<T>(op.product, op.gate.rows, op.gate.columns, WIDE) && !op.product_moments.data;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t p = 0; p < panels.count; ++p) {
        const int64_t first = p * panels.width, rest = op.gate.columns - first;
        panel<T>(op, mask, product, streamed, first, rest < panels.width ? rest : panels.width);
        if (streamed) finish_streams();
    }
}

void gated_mlp(const GatedMlp& op, const uint8_t* mask, int threads) {
    with_format(op.gate.dtype, [&](auto format) { run<decltype(format)>(op, mask, threads); });
}

}  // namespace ACT_ISA
}  // namespace act
