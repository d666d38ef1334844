// residual + x and its norm, row by row, and the statistics of x and of the norm while a few rows are in cache.
#include <new>

#include "moments.h"

namespace act {
namespace ACT_ISA {

constexpr int64_t BLOCK = 256;       // rows whose sums are merged as one; fixed, so that threads do not change bits
constexpr int64_t MAX_BLOCKS = 32;   // bounds the memory of their sums
constexpr int64_t CACHED = 1 << 19;  // bytes of rows that stay in cache between the norm and the statistics
constexpr int SEGMENT = 16;          // tiles of squares summed in float32

template <class T>
using Sums = PanelSums<LoadedRows<T>>;

// body(channel, parts of the operands) for each vector of a row; an incomplete last one comes from padded copies.
template <class T, int OPERANDS, class Body>
static inline void map_row(T* to, const T* const (&from)[OPERANDS], int64_t columns, const Body& body) {
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
    for (int64_t channel = 0; channel < whole; channel += GROUP) store(to + channel, compute(from, channel));
    if (whole < columns) {
        const int64_t rest = sizeof(T) * (columns - whole);
        T padded[OPERANDS][GROUP] = {};
        const T* at[OPERANDS];
        for (int o = 0; o < OPERANDS; ++o) {
            std::memcpy(static_cast<void*>(padded[o]), from[o] + whole, rest);
            at[o] = padded[o];
        }
        const auto last = compute(at, 0);
        std::memcpy(static_cast<void*>(to + whole), &last, rest);
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

static inline float reciprocal_root(double mean_square, float eps) {
    return 1 / __builtin_sqrtf(float(mean_square) + eps);
}

template <class T, NormStyle STYLE>
static void normalise(const AddNorm& op, const T* total, T* norm) {
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
        const double squares =
            sum_row(total, columns, [](Floats x, Floats sum) ACT_INLINE { return fused(x, x, sum); });
        const float scale = reciprocal_root(squares / double(columns), op.eps);
        map_row<T, 2>(norm, {total, weight}, columns, [=](const Floats* v) ACT_INLINE {
            if constexpr (STYLE == NormStyle::rms) return Format<T>::round(v[0] * scale) * v[1];
            else if constexpr (STYLE == NormStyle::rms_float) return v[0] * scale * v[1];
            else return v[0] * scale * (v[1] + 1);
        });
    }
}

template <class T>
using Normalise = void (*)(const AddNorm&, const T* total, T* norm);

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

template <class T>
static void row(const AddNorm& op, Normalise<T> normalise, int64_t r) {
    const T* total = static_cast<const T*>(op.x.data) + r * op.x.row_stride;
    if (op.residual.data) {
        T* const sum = static_cast<T*>(op.total) + r * op.x.columns;
        map_row<T, 2>(sum, {static_cast<const T*>(op.residual.data) + r * op.residual.row_stride, total},
                      op.x.columns, [](const Floats* v) ACT_INLINE { return v[0] + v[1]; });
        total = sum;
    }
    normalise(op, total, static_cast<T*>(op.norm) + r * op.x.columns);
}

// Adds the counted ones of some rows of a matrix to the sums of its panels.
template <class T>
static void measure(const Matrix& x, const int64_t* counted, int count, Sums<T>* sums) {
    LoadedRows<T> chunk;
    T padded[CHUNK * TILE];
    for (int64_t first = 0; first < x.columns; first += PANEL, ++sums) {
        const int64_t channels = x.columns - first < PANEL ? x.columns - first : PANEL, whole = channels / TILE * TILE;
        for (int i = 0; i < count; ++i) chunk.at[i] = static_cast<const T*>(x.data) + counted[i] * x.row_stride + first;
        for (int64_t channel = 0; channel < whole; channel += TILE) sums->add_tile(chunk, count, channel);
        if (whole < channels) {
            chunk.pad(count, whole, channels - whole, padded);
            sums->add_tile(chunk, count, whole);
        }
        sums->counted += count;
    }
}

// The sums of every panel of every block, for one matrix whose moments are asked for.
template <class T>
class Workspace {
public:
    Workspace(Matrix x, Moments moments, int64_t blocks)
        : x_(x), moments_(moments), panels_((x.columns + PANEL - 1) / PANEL), blocks_(blocks) {
        if (!moments.data) return;
        sums_ = static_cast<Sums<T>*>(::operator new(sizeof(Sums<T>) * panels_ * blocks, std::align_val_t(64)));
    }
    ~Workspace() { ::operator delete(sums_, std::align_val_t(64)); }
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;

    void start(int64_t block) {
        for (int64_t p = 0; sums_ && p < panels_; ++p) sums_[block * panels_ + p].reset(channels(p));
    }
    void add(int64_t block, const int64_t* counted, int count) {
        if (sums_ && count) measure(x_, counted, count, sums_ + block * panels_);
    }
    void finish(int64_t panel) {
        for (int64_t block = 1; sums_ && block < blocks_; ++block)
            sums_[panel].add(sums_[block * panels_ + panel], channels(panel));
        if (sums_) sums_[panel].merge_into(moments_, panel * PANEL, channels(panel));
    }
    int64_t panels() const { return panels_; }

private:
    int64_t channels(int64_t panel) const {
        const int64_t rest = x_.columns - panel * PANEL;
        return rest < PANEL ? rest : PANEL;
    }

    const Matrix x_;
    const Moments moments_;
    const int64_t panels_, blocks_;
    Sums<T>* sums_ = nullptr;
};

template <class T>
static void run(const AddNorm& op, const uint8_t* mask, int threads) {
    const bool measured = op.x_moments.data || op.norm_moments.data;
    const int64_t rows = op.x.rows, columns = op.x.columns;
    int64_t blocks = (rows + BLOCK - 1) / BLOCK;
    if (blocks > MAX_BLOCKS) blocks = MAX_BLOCKS;
    int64_t together = CACHED / (columns * int64_t(sizeof(T))) / 8 * 8;  // rows
    together = together < 16 ? 16 : together > CHUNK ? CHUNK : together;
    const Normalise<T> normalise = normalise_by<T>(op.style);
    Workspace<T> x_sums(op.x, op.x_moments, blocks);
    Workspace<T> norm_sums({op.norm, rows, columns, columns}, op.norm_moments, blocks);
    threads = useful_threads(2 * rows * columns, threads);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t block = 0; block < blocks; ++block) {
        x_sums.start(block);
        norm_sums.start(block);
        int64_t r = rows * block / blocks;
        const int64_t end = rows * (block + 1) / blocks;
        while (r < end) {
            int64_t counted[CHUNK];
            int count = 0;
            for (int64_t last = r + together < end ? r + together : end; r < last; ++r) {
                row<T>(op, normalise, r);
                if (!mask || mask[r]) counted[count++] = r;
            }
            x_sums.add(block, counted, count);
            norm_sums.add(block, counted, count);
        }
    }
    if (!measured) return;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t panel = 0; panel < x_sums.panels(); ++panel) {
        x_sums.finish(panel);
        norm_sums.finish(panel);
    }
}

void add_norm(DType dtype, const AddNorm& op, const uint8_t* mask, int threads) {
    switch (dtype) {
        case DType::float32: return run<float>(op, mask, threads);
        case DType::bfloat16: return run<bfloat16>(op, mask, threads);
        case DType::float16: return run<float16>(op, mask, threads);
    }
}

}  // namespace ACT_ISA
}  // namespace act
