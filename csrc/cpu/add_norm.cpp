// residual + x and its norm, row by row, and the statistics of x and of the norm while a few rows are in cache.
#include <cstdlib>
#include <new>

#include "moments.h"

namespace act {
namespace ACT_ISA {

constexpr int64_t BLOCK = 256;       // rows whose sums are merged as one; fixed, so that threads do not change bits
constexpr int64_t MAX_BLOCKS = 16;   // bounds the memory of their sums
constexpr int64_t CACHED = 2 << 20;  // bytes of rows that are in cache when their statistics are summed
constexpr int SEGMENT = 16;          // tiles of squares summed in float32

template <class T>
using Sums = PanelSums<Rows<T>>;

// Where a row goes: to `cached`, which is read again soon, and past the caches to `streamed` if there is one.
template <class T>
struct Target {
    T* cached;
    T* streamed;
};

// body(operands) for each vector of a row; an incomplete last one comes from padded copies.
template <class T, int OPERANDS, class Body>
static inline void map_row(Target<T> to, const T* const (&from)[OPERANDS], int64_t columns, const Body& body) {
    typedef Format<T> F;
    constexpr int GROUP = F::PARTS * LANES;
    const auto compute = [&](const T* const (&at)[OPERANDS], int64_t channel) ACT_INLINE {
        Floats parts[OPERANDS][F::PARTS];
        each<OPERANDS>([&](auto o) ACT_INLINE { F::split(load<typename F::Bits>(at[o] + channel), parts[o]); });
        Floats result[F::PARTS];
        each<F::PARTS>([&](auto p) ACT_INLINE {
            Floats values[OPERANDS];
            each<OPERANDS>([&](auto o) ACT_INLINE { values[o] = parts[o][p]; });
            result[p] = body(values);
        });
        return F::join(result);
    };
    const int64_t whole = columns / GROUP * GROUP;
    if (to.streamed) {
        for (int64_t channel = 0; channel < whole; channel += GROUP) {
            const auto bits = compute(from, channel);
            store(to.cached + channel, bits);
            stream(to.streamed + channel, bits);
        }
    } else {
        for (int64_t channel = 0; channel < whole; channel += GROUP) store(to.cached + channel, compute(from, channel));
    }
    if (whole < columns) {  // never streamed
        const int64_t rest = sizeof(T) * (columns - whole);
        T padded[OPERANDS][GROUP] = {};
        const T* at[OPERANDS];
        for (int o = 0; o < OPERANDS; ++o) {
            std::memcpy(static_cast<void*>(padded[o]), from[o] + whole, rest);
            at[o] = padded[o];
        }
        const auto last = compute(at, 0);
        std::memcpy(static_cast<void*>(to.cached + whole), &last, rest);
    }
}

// Sums of term(x) over a row: float32 over a segment, float64 over segments.
template <class T, class Term>
static inline double sum_row(const T* row, int64_t columns, const Term& term) {
    typedef Format<T> F;
    constexpr int GROUP = F::PARTS * LANES, VECTORS = TILE / LANES;
    alignas(64) double lanes[LANES] = {};
    const int64_t whole = columns / TILE * TILE;
    for (int64_t first = 0; first < whole; first += SEGMENT * TILE) {
        const int64_t last = first + SEGMENT * TILE < whole ? first + SEGMENT * TILE : whole;
        Floats sums[VECTORS] = {};
        for (int64_t channel = first; channel < last; channel += TILE) {
            Floats x[VECTORS];
            each<TILE / GROUP>([&](auto g) ACT_INLINE {
                F::split(load<typename F::Bits>(row + channel + g * GROUP), x + g * F::PARTS);
            });
            each<VECTORS>([&](auto v) ACT_INLINE { sums[v] = term(x[v], sums[v]); });
        }
        each<VECTORS>([&](auto v) ACT_INLINE { accumulate(lanes, sums[v]); });
    }
    double result = 0;
    for (int lane = 0; lane < LANES; ++lane) result += lanes[lane];
    for (int64_t channel = whole; channel < columns; ++channel)
        result += term(all(widen(row[channel])), Floats{})[0];
    return result;
}

// The sum of squares of a row in the order in which PyTorch's CPU kernel sums a row of float32: eight lanes, four
// vectors side by side, partial sums handed up four levels. So an RMS norm gives the stock bits, not just close ones.
template <class T>
static inline float sum_of_squares(const T* row, int64_t columns) {
    typedef Format<T> F;
    constexpr int WIDTH = 8, SIDE = 4, SPAN = WIDTH * SIDE, LEVELS = 4;
    constexpr int GROUP = F::PARTS * LANES, VECTORS = SPAN / LANES;
    const auto square = [&](int64_t channel) ACT_INLINE { return widen(row[channel]) * widen(row[channel]); };
    if (columns < WIDTH) {  // too short for a vector: four scalars side by side
        float sums[SIDE] = {};
        const int64_t whole = columns / SIDE * SIDE;
        for (int64_t c = 0; c < columns; ++c) sums[c < whole ? c % SIDE : 0] += square(c);
        return sums[0] + sums[1] + sums[2] + sums[3];
    }
    const int64_t vectors = columns / WIDTH, spans = vectors / SIDE;
    int64_t power = 0;
    while ((int64_t(1) << power) < spans) ++power;
    power = power / LEVELS > 4 ? power / LEVELS : 4;
    const int64_t step = int64_t(1) << power;
    Floats sums[LEVELS][VECTORS] = {};
    const auto add = [&](int64_t span) ACT_INLINE {
        Floats x[VECTORS];
        each<SPAN / GROUP>([&](auto g) ACT_INLINE {
            F::split(load<typename F::Bits>(row + span * SPAN + g * GROUP), x + g * F::PARTS);
        });
        each<VECTORS>([&](auto v) ACT_INLINE { sums[0][v] += x[v] * x[v]; });
    };
    int64_t done = 0;
    while (done + step <= spans) {
        for (const int64_t end = done + step; done < end; ++done) add(done);
        for (int level = 1; level < LEVELS; ++level) {
            for (int v = 0; v < VECTORS; ++v) {
                sums[level][v] += sums[level - 1][v];
                sums[level - 1][v] = Floats{};
            }
            if (done & ((step - 1) << (level * power))) break;
        }
    }
    for (; done < spans; ++done) add(done);
    for (int level = 1; level < LEVELS; ++level)
        for (int v = 0; v < VECTORS; ++v) sums[0][v] += sums[level][v];
    float lanes[SPAN];
    for (int c = 0; c < SPAN; ++c) {
        const int slot = c / GROUP * GROUP + F::slot(c % GROUP);
        lanes[c] = sums[0][slot / LANES][slot % LANES];
    }
    for (int64_t c = spans * SPAN; c < vectors * WIDTH; ++c) lanes[c % WIDTH] += square(c);
    for (int c = WIDTH; c < SPAN; ++c) lanes[c % WIDTH] += lanes[c];
    float result = 0;
    for (int64_t c = vectors * WIDTH; c < columns; ++c) result += square(c);
    for (int lane = 0; lane < WIDTH; ++lane) result += lanes[lane];
    return result;
}

static inline float reciprocal_root(double mean_square, float eps) {
    return 1 / __builtin_sqrtf(float(mean_square) + eps);
}

template <class T, NormStyle STYLE>
static void normalise(const AddNorm& op, const T* total, Target<T> norm) {
    const int64_t columns = op.x.columns;
    const T* const weight = static_cast<const T*>(op.weight);
    if constexpr (STYLE == NormStyle::layer) {
        const float mean =
            float(sum_row(total, columns, [](Floats x, Floats sum) ACT_INLINE { return sum + x; }) / double(columns));
        const double m2 = sum_row(total, columns, [=](Floats x, Floats sum) ACT_INLINE {
            return fused(x - mean, x - mean, sum);
        });
        const float scale = reciprocal_root(m2 / double(columns), op.eps);
        if (op.bias) {
            map_row<T, 3>(norm, {total, weight, static_cast<const T*>(op.bias)}, columns, [=](const Floats* v) ACT_INLINE {
                return (v[0] - mean) * scale * v[1] + v[2];
            });
        } else {
            map_row<T, 2>(norm, {total, weight}, columns,
                          [=](const Floats* v) ACT_INLINE { return (v[0] - mean) * scale * v[1]; });
        }
    } else {
        const float scale = 1 / __builtin_sqrtf(sum_of_squares(total, columns) / float(columns) + op.eps);
        map_row<T, 2>(norm, {total, weight}, columns, [=](const Floats* v) ACT_INLINE {
            if constexpr (STYLE == NormStyle::rms) return Format<T>::round(v[0] * scale) * v[1];
            else if constexpr (STYLE == NormStyle::rms_float) return v[0] * scale * v[1];
            else return v[0] * scale * (v[1] + 1);
        });
    }
}

template <class T>
using Normalise = void (*)(const AddNorm&, const T* total, Target<T> norm);

template <class T>
static Normalise<T> normalise_by(NormStyle style) {
    switch (style) {
        case NormStyle::rms: return normalise<T, NormStyle::rms>;
        case NormStyle::rms_float: return normalise<T, NormStyle::rms_float>;
        case NormStyle::rms_one_plus: return normalise<T, NormStyle::rms_one_plus>;
        case NormStyle::layer: return normalise<T, NormStyle::layer>;
    }
    return nullptr;
}

// Memory of one thread for rows that are streamed to their place, since a streamed row is not in cache to be read.
template <class T>
struct Scratch {
    T* total = nullptr;
    T* norm = nullptr;

    Scratch(bool wanted, int64_t rows, int64_t columns) {
        const int64_t bytes = (columns * int64_t(sizeof(T)) + LINE - 1) / LINE * LINE;
        if (wanted) total = static_cast<T*>(std::aligned_alloc(LINE, (rows + 1) * bytes));
        if (total) norm = total + columns;
    }
    ~Scratch() { std::free(total); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
};

// Row `r`, the `i`th of those in cache.
template <class T>
static void row(const AddNorm& op, Normalise<T> normalise, const Scratch<T>& scratch, int64_t r, int64_t i) {
    const int64_t columns = op.x.columns;
    T* const sum = static_cast<T*>(op.total) + r * columns;
    T* const norm = static_cast<T*>(op.norm) + r * columns;
    const T* total = static_cast<const T*>(op.x.data) + r * op.x.row_stride;
    if (op.residual.data) {
        const T* const residual = static_cast<const T*>(op.residual.data) + r * op.residual.row_stride;
        const Target<T> to = scratch.total ? Target<T>{scratch.total, sum} : Target<T>{sum, nullptr};
        map_row<T, 2>(to, {residual, total}, columns, [](const Floats* v) ACT_INLINE { return v[0] + v[1]; });
        total = to.cached;
    }
    normalise(op, total, scratch.total ? Target<T>{scratch.norm + i * columns, norm} : Target<T>{norm, nullptr});
}

// Adds the counted ones of some rows to the sums of the panels.
template <class T>
static void measure(const Matrix& x, const int64_t* counted, int count, Sums<T>* sums) {
    Rows<T> chunk;
    for (int64_t first = 0; first < x.columns; first += PANEL, ++sums) {
        for (int i = 0; i < count; ++i)
            chunk.at[i] = static_cast<const T*>(x.data) + counted[i] * x.row_stride + first;
        sums->add_chunk(chunk, count, x.columns - first < PANEL ? x.columns - first : PANEL);
    }
}

// The sums of every panel of every block, for one matrix whose moments are asked for.
template <class T>
class Workspace {
public:
    Workspace(int64_t columns, Moments moments, int64_t blocks)
        : columns_(columns), moments_(moments), panels_((columns + PANEL - 1) / PANEL), blocks_(blocks) {
        if (!moments.data) return;
        sums_ = static_cast<Sums<T>*>(::operator new(sizeof(Sums<T>) * panels_ * blocks, std::align_val_t(64)));
    }
    ~Workspace() { ::operator delete(sums_, std::align_val_t(64)); }
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;

    void start(int64_t block) {
        for (int64_t p = 0; sums_ && p < panels_; ++p) sums_[block * panels_ + p].reset(channels(p));
    }
    void add(int64_t block, const Matrix& x, const int64_t* counted, int count) {
        if (sums_ && count) measure(x, counted, count, sums_ + block * panels_);
    }
    void finish(int64_t panel) {
        for (int64_t block = 1; sums_ && block < blocks_; ++block)
            sums_[panel].add(sums_[block * panels_ + panel], channels(panel));
        if (sums_) sums_[panel].merge_into(moments_, panel * PANEL, channels(panel));
    }
    int64_t panels() const { return panels_; }

private:
    int64_t channels(int64_t panel) const {
        const int64_t rest = columns_ - panel * PANEL;
        return rest < PANEL ? rest : PANEL;
    }

    const int64_t columns_;
    const Moments moments_;
    const int64_t panels_, blocks_;
    Sums<T>* sums_ = nullptr;
};

template <class T>
static Matrix from_row(const Matrix& x, int64_t row) {
    Matrix rest = x;
    rest.data = static_cast<T*>(x.data) + row * x.row_stride;
    rest.rows -= row;
    return rest;
}

template <class T>
static void run(const AddNorm& op, const uint8_t* mask, int threads) {
    const bool measured = op.x_moments.data || op.norm_moments.data;
    const int64_t rows = op.x.rows, columns = op.x.columns;
    const int64_t block_rows = measured ? BLOCK : RUN;
    int64_t blocks = (rows + block_rows - 1) / block_rows;
    if (measured && blocks > MAX_BLOCKS) blocks = MAX_BLOCKS;
    int64_t together = CACHED / (columns * int64_t(sizeof(T)));  // rows
    together = together < RUN ? RUN : together > CHUNK ? CHUNK : together;
    const Normalise<T> normalise = normalise_by<T>(op.style);
    Workspace<T> x_sums(columns, op.x_moments, blocks);
    const Matrix norms{op.norm, rows, columns, columns, 1, op.x.dtype};
    Workspace<T> norm_sums(columns, op.norm_moments, blocks);
    threads = useful_threads(2 * rows * columns, threads);
    const bool streamed = worth_streaming<T>(op.norm, rows, columns) && worth_streaming<T>(op.total, rows, columns);
#pragma omp parallel num_threads(threads)
    {
        const Scratch<T> scratch(streamed, op.norm_moments.data ? together : 1, columns);
#pragma omp for schedule(static)
        for (int64_t block = 0; block < blocks; ++block) {
            x_sums.start(block);
            norm_sums.start(block);
            const int64_t end = rows * (block + 1) / blocks;
            for (int64_t first = rows * block / blocks; first < end; first += together) {
                const int64_t count = end - first < together ? end - first : together;
                int64_t counted[CHUNK];
                int found = 0;
                for (int64_t i = 0; i < count; ++i) {
                    row<T>(op, normalise, scratch, first + i, op.norm_moments.data ? i : 0);
                    if (!mask || mask[first + i]) counted[found++] = i;
                }
                const Matrix normed{scratch.norm, count, columns, columns, 1, op.x.dtype};
                x_sums.add(block, from_row<T>(op.x, first), counted, found);
                norm_sums.add(block, scratch.norm ? normed : from_row<T>(norms, first), counted, found);
            }
        }
        if (streamed) finish_streams();
    }
    if (!measured) return;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t panel = 0; panel < x_sums.panels(); ++panel) {
        x_sums.finish(panel);
        norm_sums.finish(panel);
    }
}

void add_norm(const AddNorm& op, const uint8_t* mask, int threads) {
    with_format(op.x.dtype, [&](auto format) { run<decltype(format)>(op, mask, threads); });
}

}  // namespace ACT_ISA
}  // namespace act
