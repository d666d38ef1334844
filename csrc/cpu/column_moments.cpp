// Statistics of every channel of one activation matrix.
#include "moments.h"

namespace act {
namespace ACT_ISA {

template <class T>
static void run(const Matrix& x, const uint8_t* mask, Moments moments, int threads) {
    threads = useful_threads(x.rows * x.columns, threads);
    const Panels panels(x.columns, threads);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t p = 0; p < panels.count; ++p) {
        const int64_t first = p * panels.width, rest = x.columns - first;
        measure<T>(x, mask, moments, first, rest < panels.width ? rest : panels.width);
    }
}

void column_moments(const Matrix& x, const uint8_t* mask, Moments moments, int threads) {
    with_format(x.dtype, [&](auto format) { run<decltype(format)>(x, mask, moments, threads); });
}

}  // namespace ACT_ISA
}  // namespace act
