// Statistics of every channel of one activation matrix.
#include "moments.h"

namespace act {
namespace ACT_ISA {

template <class T>
static void panel(const Matrix& x, const uint8_t* mask, Moments moments, int64_t first, int64_t channels) {
    PanelSums<Rows<T>> sums(channels);
    RowWalk walk(x.rows, mask);
    const Matrix* const matrices[] = {&x};
    const int64_t whole = channels / TILE * TILE;
    Rows<T> chunk;
    T padded[CHUNK * TILE];
    while (const int rows = walk.next(first, matrices, &chunk)) {
        for (int64_t channel = 0; channel < whole; channel += TILE) sums.add_tile(chunk, rows, channel);
        if (whole < channels) {
            chunk.pad(rows, whole, channels - whole, padded);
            sums.add_tile(chunk, rows, whole);
        }
        sums.counted += rows;
    }
    sums.merge_into(moments, first, channels);
}

template <class T>
static void run(const Matrix& x, const uint8_t* mask, Moments moments, int threads) {
    threads = useful_threads(x.rows * x.columns, threads);
    const Panels panels(x.columns, threads);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t p = 0; p < panels.count; ++p) {
        const int64_t first = p * panels.width, rest = x.columns - first;
        panel<T>(x, mask, moments, first, rest < panels.width ? rest : panels.width);
    }
}

void column_moments(const Matrix& x, const uint8_t* mask, Moments moments, int threads) {
    with_format(x.dtype, [&](auto format) { run<decltype(format)>(x, mask, moments, threads); });
}

}  // namespace ACT_ISA
}  // namespace act
