// Statistics of every channel of one matrix, read once.
#include "measure_run.h"

namespace act {
namespace cuda {

namespace {

template <class T>
__global__ void __launch_bounds__(THREADS)
    column_moments_kernel(View<T> x, int64_t channels, const uint8_t* mask, Partials partials, int64_t rows, int64_t run,
                          int64_t channel_blocks) {
    measure_run(x, channels, mask, partials, Tile(blockIdx.x, channel_blocks, CHANNELS<T>, rows, run));
}

template <class T>
void run(const Matrix& x, const uint8_t* mask, Moments moments, float* workspace, Place place) {
    const int64_t blocks = channel_blocks(Name<T>::type, x.columns);
    const Plan plan = plan_runs(Name<T>::type, x.rows, blocks);
    const Partials partials{workspace, x.columns};
    launch("column_moments", column_moments_kernel<T>, blocks * plan.splits, THREADS, place,
           view<T>(x.data, x.row_stride), x.columns, mask, partials, x.rows, plan.run, blocks);
    Parts parts;
    parts.add(partials, moments, x.data, x.row_stride, x.columns);
    merge_partials("column_moments", Name<T>::type, parts, mask, x.rows, plan, place);
}

}  // namespace

int64_t column_moments_workspace(DType dtype, int64_t rows, int64_t columns) {
    return plan_runs(dtype, rows, channel_blocks(dtype, columns)).splits * SUMS * columns;
}

void column_moments(const Matrix& x, const uint8_t* mask, Moments moments, float* workspace, Place place) {
    const OnDevice on("column_moments", place.device);
    with_format(x.dtype, [&](auto format) { run<decltype(format)>(x, mask, moments, workspace, place); });
}

}  // namespace cuda
}  // namespace act
