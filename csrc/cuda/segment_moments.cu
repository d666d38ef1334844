// Statistics of every channel of every segment of rows of one matrix, read once.
#include "measure_run.h"

namespace act {
namespace cuda {

namespace {

// A block sums one run of one segment, or finds that no run has its number.
template <class T>
__global__ void __launch_bounds__(THREADS, 4)
    segment_moments_kernel(View<T> x, int64_t channels, const uint8_t* mask, Partials partials, SegmentRuns runs,
                           int64_t channel_blocks) {
    Tile tile(blockIdx.x, channel_blocks, CHANNELS<T>, runs.rows, runs.run);
    int last = -1;  // of the segments whose runs begin no later
    for (int first = 0; first < runs.segments; first += THREADS) {
        const int segment = first + int(threadIdx.x);
        last += __syncthreads_count(segment < runs.segments && runs.first(segment) <= tile.split);
    }
    if (last < 0) return;
    const int start = runs.offset(last) + int(tile.split - runs.first(last)) * runs.run;
    tile.start = start;
    tile.length = min(runs.offset(last + 1) - start, runs.run);
    if (tile.length <= 0) return;
    measure_run(x, channels, mask, partials, tile);
}

template <class T>
void run(const Segments& op, const uint8_t* mask, float* workspace, Place place) {
    const Matrix& x = op.x;
    const int64_t blocks = channel_blocks(Name<T>::type, x.columns);
    const SegmentRuns runs{op.offsets, int(op.count), int(x.rows), int(plan_runs(Name<T>::type, x.rows, blocks).run)};
    const Partials partials{workspace, x.columns};
    launch("segment_moments", segment_moments_kernel<T>, blocks * runs.most(), THREADS, place,
           view<T>(x.data, x.row_stride), x.columns, mask, partials, runs, blocks);
    Parts parts;
    parts.add(partials, op.moments, x.data, x.row_stride, x.columns);
    merge_segments("segment_moments", Name<T>::type, parts.part[0], op.segment_stride, mask, runs, place);
}

}  // namespace

int64_t segment_moments_workspace(DType dtype, int64_t rows, int64_t columns, int64_t segments) {
    const int64_t run = plan_runs(dtype, rows, channel_blocks(dtype, columns)).run;
    return (rows / run + segments) * SUMS * columns;
}

void segment_moments(const Segments& op, const uint8_t* mask, float* workspace, Place place) {
    const OnDevice on("segment_moments", place.device);
    with_format(op.x.dtype, [&](auto format) { run<decltype(format)>(op, mask, workspace, place); });
}

}  // namespace cuda
}  // namespace act
