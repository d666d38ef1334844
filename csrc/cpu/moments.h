// Streaming statistics of a panel of channels: float32 over a chunk of rows, float64 over chunks, Chan's merge at the
// end. Shared by the ops that measure; a Source says what the value at (row of the chunk, channel) is.
#pragma once

#include "../kernels.h"
#include "vectors.h"

namespace act {
namespace ACT_ISA {

constexpr int CHUNK = 128;  // rows that are summed around one shift, or again if that turns out to be far from their mean
constexpr int RUN = 32;     // added one by one: sums of equal or few-bit terms round with a bias that grows with the sum
constexpr int TILE = (VECTOR_BYTES == 64 ? 4 : 2) * LANES;  // channels whose sums stay in registers
constexpr int PANEL = 1024;     // channels whose float64 sums stay in cache
constexpr int LINE = 64;        // bytes that one prefetch brings
constexpr int64_t STREAMED = 4 << 20;  // bytes of output that caches would not keep for its reader
constexpr float TINY = 1e-10f;  // squares of differences of smaller values could underflow float32
constexpr float NEVER = __builtin_inff();
constexpr int FIRST = 48;       // rows that give the first shift

static_assert(PANEL % TILE == 0, "a panel holds whole tiles");

// The rows of one chunk of a matrix, each at the first channel of the panel. A Source of values for PanelSums:
// `load` gives PARTS float vectors and their BITS integer vectors; `expand` turns such bits into the float vectors. From
// a sum of squares of SURE on, none that counts has underflowed.
template <class T>
struct Rows {
    typedef typename Format<T>::Bits Bits;
    static constexpr int PARTS = Format<T>::PARTS, BITS = 1, PRECISION = Format<T>::PRECISION;
    static constexpr float SURE = NEVER;

    const T* at[CHUNK];

    void load(int row, int64_t channel, Floats parts[PARTS], Bits bits[BITS]) const {
        bits[0] = ACT_ISA::load<Bits>(at[row] + channel);
        expand(bits, parts);
    }
    static void expand(const Bits bits[BITS], Floats parts[PARTS]) { Format<T>::split(bits[0], parts); }
    // Into the second cache: rows of many widths lie where the first has no room for the lines of a whole chunk. Inlined
    // at once: GCC drops calls of a function that does nothing but prefetch.
    __attribute__((always_inline)) void prefetch(int row, int64_t channel) const {
        for (int i = 0; i < TILE; i += LINE / int(sizeof(T))) __builtin_prefetch(at[row] + channel + i, 0, 2);
    }
    static int slot(int channel) { return Format<T>::slot(channel); }
    static int bits_slot(int channel) { return PARTS == 1 ? channel : even_odd_slot(channel); }

    // Replaces the last, incomplete tile by a copy padded with zeros.
    void pad(int rows, int64_t first, int64_t channels, T* buffer) {
        std::memset(static_cast<void*>(buffer), 0, sizeof(T) * CHUNK * TILE);
        for (int row = 0; row < rows; ++row, buffer += TILE) {
            std::memcpy(static_cast<void*>(buffer), at[row] + first, sizeof(T) * channels);
            at[row] = buffer - first;
        }
    }
};

// What sources of values formed in float32 have in common.
template <class T>
struct Formed {
    typedef Ints Bits;
    static constexpr int PARTS = Format<T>::PARTS, BITS = PARTS;

    static void expand(const Bits bits[BITS], Floats parts[PARTS]) {
        for (int p = 0; p < PARTS; ++p) parts[p] = (Floats)bits[p];
    }
    static int slot(int channel) { return Format<T>::slot(channel); }
    static int bits_slot(int channel) { return Format<T>::slot(channel); }
};

// one - other. AHEAD: brings `one`, which no other source reads before, into the cache.
template <class T, bool AHEAD = false>
struct Difference : Formed<T> {
    using typename Formed<T>::Bits;
    using Formed<T>::PARTS, Formed<T>::BITS;
    static constexpr int PRECISION = Format<T>::PRECISION;
    static constexpr float SURE = NEVER;

    const Rows<T>& one;
    const Rows<T>& other;

    Difference(const Rows<T>& one, const Rows<T>& other) : one(one), other(other) {}
    void load(int row, int64_t channel, Floats parts[PARTS], Bits bits[BITS]) const {
        Floats less[PARTS];
        typename Rows<T>::Bits unused[1];
        one.load(row, channel, parts, unused);
        other.load(row, channel, less, unused);
        for (int p = 0; p < PARTS; ++p) {
            parts[p] -= less[p];
            bits[p] = (Ints)parts[p];
        }
    }
    __attribute__((always_inline)) void prefetch(int row, int64_t channel) const {
        if constexpr (AHEAD) one.prefetch(row, channel);
    }
};

// Of two differences. Small ones have tiny products, which are sums as any other while their squares do not vanish.
template <class T>
struct Product : Formed<T> {
    using typename Formed<T>::Bits;
    using Formed<T>::PARTS, Formed<T>::BITS;
    static constexpr int PRECISION = -1;
    static constexpr float SURE = 1e-27f;

    const Difference<T>& one;
    const Difference<T, true>& other;

    Product(const Difference<T>& one, const Difference<T, true>& other) : one(one), other(other) {}
    void load(int row, int64_t channel, Floats parts[PARTS], Bits bits[BITS]) const {
        Floats factor[PARTS];
        Bits unused[BITS];
        one.load(row, channel, parts, unused);
        other.load(row, channel, factor, unused);
        for (int p = 0; p < PARTS; ++p) {
            parts[p] *= factor[p];
            bits[p] = (Ints)parts[p];
        }
    }
    void prefetch(int, int64_t) const {}
};

// Up to CHUNK counted rows, found by walking the mask once.
class RowWalk {
public:
    RowWalk(int64_t rows, const uint8_t* mask) : rows_(rows), mask_(mask) {}

    template <class... T>
    int next(int64_t first_channel, const Matrix* const matrices[], Rows<T>*... chunks) {
        int found = 0;
        for (; row_ < rows_ && found < CHUNK; ++row_) {
            if (mask_ && !mask_[row_]) continue;
            int which = 0;
            ((chunks->at[found] = static_cast<const T*>(matrices[which]->data) +
                                  row_ * matrices[which]->row_stride + first_channel, ++which), ...);
            ++found;
        }
        return found;
    }

    int64_t row() const { return row_; }  // the first row not yet walked

private:
    int64_t rows_, row_ = 0;
    const uint8_t* mask_;
};

// Sums of one panel around a shift per channel. `positive` is indexed by Source::bits_slot, the rest by Source::slot.
template <class Source>
struct PanelSums {
    typedef typename Source::Bits Bits;
    static constexpr int PARTS = Source::PARTS, BITS = Source::BITS;
    static constexpr int GROUP = PARTS * LANES, GROUPS = TILE / GROUP;
    static constexpr int VECTORS = GROUPS * PARTS, COUNTERS = GROUPS * BITS;  // of one tile
    // Share of the squares that may cancel in the variance before its rows are summed again. 16-bit values of which there
    // are few have exact sums, and a mean that is no nearer to the shift than half a step.
    static constexpr float NEAR = Source::PRECISION == -1 ? 0.4f : 0.6f;

    alignas(64) double sum[PANEL], square[PANEL], absolute[PANEL];
    alignas(64) float shift[PANEL], largest[PANEL];
    alignas(64) int32_t positive[PANEL], nonfinite[PANEL];
    int64_t counted;

    PanelSums() = default;
    explicit PanelSums(int64_t channels) { reset(channels); }

    void reset(int64_t channels) {
        const int64_t padded = (channels + TILE - 1) / TILE * TILE;
        counted = 0;
        clear(sum, padded);
        clear(square, padded);
        clear(absolute, padded);
        clear(largest, padded);
        clear(positive, padded);
        clear(nonfinite, padded);
    }

    // Adds N neighbouring tiles of one chunk. The caller adds `rows` to `counted` once per chunk.
    template <int N = 1>
    void add_tile(const Source& source, int rows, int64_t channel) {
        Tile tiles[N];
        each<N>([&](auto n) ACT_INLINE {
            if (counted == 0) set_shift(source, rows, channel + n * TILE);
            each<VECTORS>([&](auto v) ACT_INLINE {
                tiles[n].center[v] = load<Floats>(shift + channel + n * TILE + v * LANES);
            });
        });
        for (int first = 0; first < rows; first += RUN) {
            const int last = first + RUN < rows ? first + RUN : rows;
            each<N>([&](auto n) ACT_INLINE { add_run<n == 0>(source, first, last, channel + n * TILE, N, tiles[n]); });
        }
        each<N>([&](auto n) ACT_INLINE { add_sums(source, rows, channel + n * TILE, tiles[n]); });
    }

    // Adds a whole chunk, whose last tile may be incomplete, and counts its rows.
    template <class T>
    void add_chunk(Rows<T> chunk, int rows, int64_t channels) {
        // Tiles that share a line of the cache take turns, run by run: it would be gone when a whole chunk has passed.
        constexpr int SHARED = TILE * sizeof(T) < LINE ? LINE / int(TILE * sizeof(T)) : 1;
        const int64_t whole = channels / TILE * TILE;
        int64_t channel = 0;
        for (; channel + SHARED * TILE <= whole; channel += SHARED * TILE) add_tile<SHARED>(chunk, rows, channel);
        for (; channel < whole; channel += TILE) add_tile(chunk, rows, channel);
        if (whole < channels) {
            T padded[CHUNK * TILE];
            chunk.pad(rows, whole, channels - whole, padded);
            add_tile(chunk, rows, whole);
        }
        counted += rows;
    }

    // Adds sums of other rows of the same channels, around another shift.
    void add(const PanelSums& other, int64_t channels) {
        if (other.counted == 0) return;
        const int64_t padded = (channels + TILE - 1) / TILE * TILE;
        if (counted == 0) std::memcpy(shift, other.shift, sizeof(float) * padded);
        for (int64_t s = 0; s < padded; ++s) {
            const double step = double(other.shift[s]) - double(shift[s]);
            const double moved = double(int32_t(other.counted) - other.nonfinite[s]) * step;
            square[s] += other.square[s] + step * (2 * other.sum[s] + moved);
            sum[s] += other.sum[s] + moved;
            absolute[s] += other.absolute[s];
            largest[s] = largest[s] > other.largest[s] ? largest[s] : other.largest[s];
            positive[s] += other.positive[s];
            nonfinite[s] += other.nonfinite[s];
        }
        counted += other.counted;
    }

    // Chan's merge into the moments of `channels` channels.
    void merge_into(Moments moments, int64_t first, int64_t channels) const {
        double* to = moments.data + first;
        for (int64_t begin = 0; begin < channels; begin += GROUP, to += GROUP) {
            Summary group;
            for (int c = 0; c < GROUP; ++c) {
                const int64_t s = begin + Source::slot(c);
                group.count[c] = double(counted - nonfinite[s]);
                group.shift[c] = shift[s];
                group.sum[c] = sum[s];
                group.square[c] = square[s];
                group.absolute[c] = absolute[s];
                group.largest[c] = largest[s];
                group.positive[c] = positive[begin + Source::bits_slot(c)];
                group.nonfinite[c] = nonfinite[s];
            }
            const int width = channels - begin < GROUP ? int(channels - begin) : GROUP;
            int c = 0;
            for (; c + LANES / 2 <= width; c += LANES / 2) merge<Doubles>(group, c, to, moments.stride);
            for (; c < width; ++c) merge<double>(group, c, to, moments.stride);
        }
    }

private:
    // The sums of a group of channels, in the order of these.
    struct Summary {
        alignas(64) double count[GROUP], shift[GROUP], sum[GROUP], square[GROUP], absolute[GROUP], largest[GROUP];
        alignas(64) double positive[GROUP], nonfinite[GROUP];
    };

    // Merges a channel, or a vector of them.
    template <class Values>
    static void merge(const Summary& group, int c, double* to, int64_t stride) {
        const auto at = [&](int statistic) { return to + c + statistic * stride; };
        const auto add = [&](int statistic, const double* values) {
            store(at(statistic), load<Values>(at(statistic)) + load<Values>(values + c));
        };
        const Values none = {}, n = load<Values>(group.count + c), sum = load<Values>(group.sum + c);
        const Values before = load<Values>(at(COUNT)), mean = load<Values>(at(MEAN));
        const Values inverse = n > 0 ? 1 / n : none, spread = load<Values>(group.square + c) - sum * sum * inverse;
        const Values weight = n > 0 ? n / (before + n) : none;
        const Values center = n > 0 ? load<Values>(group.shift + c) + sum * inverse : none;
        const Values delta = n > 0 ? center - mean : none;
        const Values m2 = (spread > 0 ? spread : none) + delta * delta * before * weight;
        store(at(M2), load<Values>(at(M2)) + m2);
        store(at(MEAN), weight < 0.5 ? mean + delta * weight : center - delta * (1 - weight));  // from the nearer end
        const Values largest = load<Values>(group.largest + c), highest = load<Values>(at(MAX_ABS));
        store(at(MAX_ABS), largest > highest ? largest : highest);
        add(COUNT, group.count);
        add(SUM_ABS, group.absolute);
        add(POSITIVE, group.positive);
        add(NONFINITE, group.nonfinite);
    }

    // The sums of one tile over one chunk.
    struct Tile {
        Floats center[VECTORS], sums[VECTORS] = {}, squares[VECTORS] = {}, sizes[VECTORS] = {};
        Bits above[COUNTERS] = {}, top[COUNTERS] = {};
    };

    // Adds rows one by one; `ahead`: while those of the next tile, `step` tiles on, are on their way.
    template <bool ahead>
    static __attribute__((always_inline)) void add_run(const Source& source, int first, int last, int64_t channel, int step,
                                                       Tile& tile) {
        Floats d1[VECTORS] = {}, d2[VECTORS] = {}, a[VECTORS] = {};
        int row = first;
        for (; row + 1 < last; row += 2) {
            if constexpr (ahead) {
                source.prefetch(row, channel + step * TILE);
                source.prefetch(row + 1, channel + step * TILE);
            }
            add_rows<2>(source, row, channel, tile.center, d1, d2, a, tile.above, tile.top);
        }
        if (row < last) add_rows<1>(source, row, channel, tile.center, d1, d2, a, tile.above, tile.top);
        each<VECTORS>([&](auto v) ACT_INLINE {
            tile.sums[v] += d1[v];
            tile.squares[v] += d2[v];
            tile.sizes[v] += a[v];
        });
    }

    // Adds the sums of one tile; `moved`: those around its own means.
    template <bool moved = false>
    void add_sums(const Source& source, int rows, int64_t channel, const Tile& tile) {
        Floats highest[VECTORS];
        each<GROUPS>([&](auto g) ACT_INLINE { Source::expand(tile.top + g * BITS, highest + g * PARTS); });
        Ints beyond = {}, far = {};
        each<VECTORS>([&](auto v) ACT_INLINE {
            beyond |= ((highest[v] < TINY) & (highest[v] > 0) & (tile.squares[v] < Source::SURE)) | infinite(highest[v]);
            beyond |= infinite(tile.squares[v]) | infinite(tile.sizes[v]);
            far |= tile.sums[v] * tile.sums[v] > tile.squares[v] * (NEAR * float(rows));
        });
        if (any(moved ? beyond | far : beyond)) return add_exactly(source, rows, channel);
        if constexpr (!moved) {
            if (any(far)) return add_moved(source, rows, channel, tile);
        }
        each<VECTORS>([&](auto v) ACT_INLINE {
            const int64_t slot = channel + v * LANES;
            accumulate(sum + slot, tile.sums[v]);
            accumulate(square + slot, tile.squares[v]);
            accumulate(absolute + slot, tile.sizes[v]);
            store(largest + slot, larger((Ints)highest[v], load<Ints>(largest + slot)));
        });
        each<COUNTERS>([&](auto c) ACT_INLINE {
            accumulate(positive + channel + c * (TILE / COUNTERS), tile.above[c]);
        });
    }

    static int64_t slot(int64_t channel) { return channel / GROUP * GROUP + Source::slot(int(channel % GROUP)); }
    static int64_t bits_slot(int64_t channel) {
        return channel / GROUP * GROUP + Source::bits_slot(int(channel % GROUP));
    }

    // Cut to the precision of T, so that deviations of 16-bit values and most of their sums are exact in float32.
    template <class Whole>
    static Whole cut(Whole bits) {
        return (bits + ((~Source::PRECISION + 1) >> 1)) & Source::PRECISION;
    }

    // The median of the means of three groups of the first rows: close to the mean of the call, if they are like the
    // others, but for a few outliers.
    void set_shift(const Source& source, int rows, int64_t channel) {
        if (rows > FIRST) rows = FIRST;
        Floats mean[3][VECTORS];
        for (int third = 0; third < 3; ++third) {
            const int first = third * rows / 3, next = (third + 1) * rows / 3, last = next > first ? next : first + 1;
            Ints suspect = {};
            mean_of<false>(source, first, last, channel, mean[third]);
            each<VECTORS>([&](auto v) ACT_INLINE { suspect |= infinite(mean[third][v]); });
            if (any(suspect)) mean_of<true>(source, first, last, channel, mean[third]);
        }
        each<VECTORS>([&](auto v) ACT_INLINE {
            const Floats a = mean[0][v], b = mean[1][v], c = mean[2][v];
            const Floats low = a < b ? a : b, high = a < b ? b : a, upper = high < c ? high : c;
            const Ints middle = cut((Ints)(low < upper ? upper : low));
            store(shift + channel + v * LANES, middle & ~infinite((Floats)middle));
        });
    }

    // The mean of some rows; `checked`: of their finite values. It is the same if all are finite, and so are their sums.
    template <bool checked>
    static __attribute__((always_inline)) void mean_of(const Source& source, int first, int last, int64_t channel,
                                                       Floats mean[VECTORS]) {
        Floats sums[VECTORS] = {}, finite[VECTORS] = {};
        for (int row = first; row < last; ++row) {
            each<GROUPS>([&](auto g) ACT_INLINE {
                Floats x[PARTS];
                Bits unused[BITS];
                source.load(row, channel + g * GROUP, x, unused);
                each<PARTS>([&](auto p) ACT_INLINE {
                    const Ints wanted = checked ? ~infinite(x[p]) : ~Ints{};
                    sums[g * PARTS + p] += (Floats)((Ints)x[p] & wanted);
                    finite[g * PARTS + p] += (Floats)(wanted & 0x3f800000);  // 1.0f
                });
            });
        }
        each<VECTORS>([&](auto v) ACT_INLINE { mean[v] = sums[v] / (checked ? finite[v] : all(float(last - first))); });
    }

    // Adds one row, or the sum of two: half as many additions to what has become large.
    template <int ROWS>
    static __attribute__((always_inline)) void add_rows(const Source& source, int row, int64_t channel,
                                                        const Floats* center, Floats* d1, Floats* d2, Floats* a,
                                                        Bits* above, Bits* top) {
        each<GROUPS>([&](auto g) ACT_INLINE {
            Floats x[ROWS][PARTS];
            Bits bits[ROWS][BITS];
            each<ROWS>([&](auto r) ACT_INLINE {
                source.load(row + r, channel + g * GROUP, x[r], bits[r]);
                each<BITS>([&](auto b) ACT_INLINE {
                    constexpr int c = g * BITS + b;
                    count_positive(above[c], bits[r][b]);
                    top[c] = larger(magnitude(bits[r][b]), top[c]);
                });
            });
            each<PARTS>([&](auto p) ACT_INLINE {
                constexpr int v = g * PARTS + p;
                Floats d = x[0][p] - center[v], size = (Floats)magnitude((Ints)x[0][p]);
                d2[v] = fused(d, d, d2[v]);
                if constexpr (ROWS == 2) {
                    const Floats other = x[1][p] - center[v];
                    d2[v] = fused(other, other, d2[v]);
                    d += other;
                    size += (Floats)magnitude((Ints)x[1][p]);
                }
                d1[v] += d;
                a[v] += size;
            });
        });
    }

    // The finite ones of a row's values in float64, the others as 0, in the order of slots.
    static void widen_row(const Source& source, int row, int64_t channel, double* values, double* finite) {
        alignas(64) float narrow[TILE];
        each<GROUPS>([&](auto g) ACT_INLINE {
            Floats x[PARTS];
            Bits unused[BITS];
            source.load(row, channel + g * GROUP, x, unused);
            each<PARTS>([&](auto p) ACT_INLINE { store(narrow + (g * PARTS + p) * LANES, x[p]); });
        });
        for (int i = 0; i < TILE; ++i) {
            finite[i] = narrow[i] - narrow[i] == 0 ? 1 : 0;
            values[i] = narrow[i] - narrow[i] == 0 ? double(narrow[i]) : 0;
        }
    }

    // The same tile around its own means, which become the shift: where values have moved away from the old one.
    void add_moved(const Source& source, int rows, int64_t channel, const Tile& tile) {
        Tile again;
        each<VECTORS>([&](auto v) ACT_INLINE {
            again.center[v] = (Floats)cut((Ints)(tile.center[v] + tile.sums[v] / float(rows)));
            for (int i = 0; i < LANES; ++i) move(channel + v * LANES + i, again.center[v][i]);
        });
        for (int first = 0; first < rows; first += RUN) {
            add_run<false>(source, first, first + RUN < rows ? first + RUN : rows, channel, 0, again);
        }
        add_sums<true>(source, rows, channel, again);
    }

    // The same tile in float64: where that does not help, or some values are NaN, infinite, or too large or small for
    // their squares.
    void add_exactly(const Source& source, int rows, int64_t channel) {
        alignas(64) double x[TILE], finite[TILE], n[TILE] = {}, mean[TILE] = {};
        for (int row = 0; row < rows; ++row) {
            widen_row(source, row, channel, x, finite);
            for (int i = 0; i < TILE; ++i) {
                n[i] += finite[i];
                mean[i] += x[i];
            }
        }
        for (int i = 0; i < TILE; ++i) mean[i] = n[i] > 0 ? mean[i] / n[i] : shift[channel + i];
        alignas(64) double d1[TILE] = {}, d2[TILE] = {}, a[TILE] = {}, top[TILE] = {}, above[TILE] = {};
        for (int row = 0; row < rows; ++row) {
            widen_row(source, row, channel, x, finite);
            for (int i = 0; i < TILE; ++i) {
                const double d = (x[i] - mean[i]) * finite[i], size = x[i] < 0 ? -x[i] : x[i];
                d1[i] += d;
                d2[i] += d * d;
                a[i] += size;
                top[i] = size > top[i] ? size : top[i];
                above[i] += x[i] > 0 ? 1 : 0;
            }
        }
        for (int i = 0; i < TILE; ++i) {
            const int64_t s = channel + i;
            const float center = bit_cast<float>(cut(bit_cast<int32_t>(float(mean[i]))));
            move(s, center - center == 0 ? center : 0);
            const double offset = mean[i] - shift[s];
            sum[s] += d1[i] + n[i] * offset;
            square[s] += d2[i] + offset * (2 * d1[i] + n[i] * offset);
            absolute[s] += a[i];
            largest[s] = top[i] > largest[s] ? float(top[i]) : largest[s];
            nonfinite[s] += rows - int(n[i]);
        }
        for (int64_t c = channel; c < channel + TILE; ++c) positive[bits_slot(c)] += int32_t(above[slot(c) - channel]);
    }

    // Lets the sums of slot `s` so far be around another shift.
    void move(int64_t s, float to) {
        const double step = double(shift[s]) - double(to), moved = double(counted - nonfinite[s]) * step;
        square[s] += step * (2 * sum[s] + moved);
        sum[s] += moved;
        shift[s] = to;
    }

    template <class Value>
    static void clear(Value* values, int64_t count) { std::memset(values, 0, sizeof(Value) * count); }
};

// Statistics of one panel of one matrix.
template <class T>
static void measure(const Matrix& x, const uint8_t* mask, Moments moments, int64_t first, int64_t channels) {
    PanelSums<Rows<T>> sums(channels);
    RowWalk walk(x.rows, mask);
    const Matrix* const matrices[] = {&x};
    Rows<T> chunk;
    while (const int rows = walk.next(first, matrices, &chunk)) sums.add_chunk(chunk, rows, channels);
    sums.merge_into(moments, first, channels);
}

// Channels split into panels of whole units, as even as possible over the threads. A unit that is not made of whole
// tiles is a panel of its own, so that the tiles, and with them the bits, do not depend on the threads.
struct Panels {
    int64_t width, count;

    // `limit` bounds the channels of a panel of several units.
    Panels(int64_t channels, int threads, int64_t unit = TILE, int64_t limit = PANEL) {
        const int64_t units = (channels + unit - 1) / unit;
        const int64_t most = unit % TILE || unit > limit ? 1 : limit / unit;
        int64_t panels = (units + most - 1) / most;
        panels = (panels + threads - 1) / threads * threads;
        const int64_t each = panels ? (units + panels - 1) / panels : 1;
        width = (each < most ? each : most) * unit;
        count = (channels + width - 1) / width;
    }
};

// Whether a contiguous output, written so many channels at once, is too large for the caches and consists of whole
// aligned lines.
template <class T>
static inline bool worth_streaming(const void* output, int64_t rows, int64_t columns, int64_t together = TILE) {
    const int64_t row_bytes = columns * int64_t(sizeof(T));
    return rows * row_bytes >= STREAMED && (uintptr_t(output) | uintptr_t(row_bytes) | together * sizeof(T)) % LINE == 0;
}

// Fewer values than this per thread are not worth waking it.
static inline int useful_threads(int64_t values, int threads) {
    const int64_t useful = values / 32768 + 1;
    return useful < threads ? int(useful) : threads;
}

}  // namespace ACT_ISA
}  // namespace act
