// Stage 2 of every op that measures, and what all launches share; see partials.h.
#include "partials.h"

namespace act {
namespace cuda {

namespace {

// Moments of the values seen so far, of one channel.
struct Merged {
    double count = 0, mean = 0, m2 = 0, absolute = 0, largest = 0, positive = 0, nonfinite = 0;

    // Those of other values, by the formula of act_kernels/statistics.py.
    __device__ void add(const Merged& other) {
        const double both = count + other.count;
        if (other.count > 0) {
            const double weight = other.count / both, delta = other.mean - mean;
            m2 += other.m2 + delta * delta * count * weight;
            // From the nearer end, so that merging into an empty block copies the mean.
            mean = weight < 0.5 ? mean + delta * weight : other.mean - delta * (1 - weight);
        }
        count = both;
        absolute += other.absolute;
        largest = fmax(largest, other.largest);
        positive += other.positive;
        nonfinite += other.nonfinite;
    }
};

template <class T>
__device__ void add_value(Merged& merged, const Part& part, int64_t row, int64_t channel) {
    const auto at = [&](const void* x, int64_t row_stride) {
        return widen(static_cast<const T*>(x)[row * row_stride + channel]);
    };
    float value = at(part.x, part.row_stride);
    if (part.subtrahend) {
        const float less = at(part.subtrahend, part.subtrahend_row_stride);
        value -= less;
        if (part.factor) value *= at(part.factor, part.factor_row_stride) - less;
    }
    Merged one;
    if (fabsf(value) < as_float(0x7f800000)) {
        one.count = 1;
        one.mean = value;
        one.absolute = one.largest = fabsf(value);
        one.positive = value > 0;
    } else {
        one.nonfinite = 1;
    }
    merged.add(one);
}

// WARP channels x MERGE_LANES runs at a time: a thread merges every MERGE_LANES-th run of its channel.
template <class T>
__device__ void merge_runs(const Part& part, const uint8_t* mask, int64_t rows, int64_t run, int64_t splits,
                           int64_t channel_block) {
    __shared__ bool suspects[MERGE_LANES][WARP];
    __shared__ double meeting[SUMS][MERGE_LANES][WARP];
    const int x = threadIdx.x, y = threadIdx.y;
    const int64_t channel = channel_block * WARP + x;
    const bool inside = channel < part.channels;
    const int64_t plane = part.partials.plane;
    Merged merged;
    for (int64_t first = 0; first < splits; first += MERGE_LANES) {
        const int64_t split = first + y;
        bool suspect = false;
        if (inside && split < splits) {
            const float* const from = part.partials.data + split * SUMS * plane + channel;
            const float count = from[0], shift = from[plane], total = from[2 * plane], square = from[3 * plane];
            const float absolute = from[4 * plane], largest = from[5 * plane], positive = from[6 * plane];
            // NaN, infinite and overflowing values make a sum NaN or infinite; squares of tiny ones may have underflowed.
            suspect = !(square + absolute < as_float(0x7f800000));
            // Products of small differences are tiny while their squares are sums as any other.
            suspect = suspect || (largest > 0 && largest < TINY && !(part.factor && square >= SURE));
            // More than NEAR of the squares would cancel in the variance; small values are lost beside the largest.
            suspect = suspect || total * total > NEAR * count * square || largest * count > DOMINANT * absolute;
            if (!suspect && count > 0) {
                const double offset = double(total) / double(count), m2 = double(square) - double(total) * offset;
                Merged one;
                one.count = count;
                one.mean = double(shift) + offset;
                one.m2 = m2 > 0 ? m2 : 0;
                one.absolute = absolute;
                one.largest = largest;
                one.positive = positive;
                merged.add(one);
            }
        }
        if (!__syncthreads_or(suspect)) continue;
        suspects[y][x] = suspect;
        __syncthreads();
        for (int s = 0; s < MERGE_LANES; ++s) {
            if (!suspects[s][x]) continue;  // then all lanes of this channel read that run again, in turns
            const int64_t begin = (first + s) * run, end = begin + run < rows ? begin + run : rows;
            for (int64_t row = begin + y; row < end; row += MERGE_LANES)
                if (!mask || mask[row]) add_value<T>(merged, part, row, channel);
        }
        __syncthreads();
    }
    for (int half = MERGE_LANES / 2; half; half /= 2) {  // lanes half .. 2 half - 1 hand over to the lower ones
        if (y >= half && y < 2 * half) {
            meeting[COUNT][y][x] = merged.count;
            meeting[MEAN][y][x] = merged.mean;
            meeting[M2][y][x] = merged.m2;
            meeting[SUM_ABS][y][x] = merged.absolute;
            meeting[MAX_ABS][y][x] = merged.largest;
            meeting[POSITIVE][y][x] = merged.positive;
            meeting[NONFINITE][y][x] = merged.nonfinite;
        }
        __syncthreads();
        if (y < half) {
            Merged other;
            other.count = meeting[COUNT][y + half][x];
            other.mean = meeting[MEAN][y + half][x];
            other.m2 = meeting[M2][y + half][x];
            other.absolute = meeting[SUM_ABS][y + half][x];
            other.largest = meeting[MAX_ABS][y + half][x];
            other.positive = meeting[POSITIVE][y + half][x];
            other.nonfinite = meeting[NONFINITE][y + half][x];
            merged.add(other);
        }
    }
    if (y || !inside) return;
    double* const to = part.moments.data + channel;
    const int64_t stride = part.moments.stride;
    Merged all;
    all.count = to[COUNT * stride];
    all.mean = to[MEAN * stride];
    all.m2 = to[M2 * stride];
    all.absolute = to[SUM_ABS * stride];
    all.largest = to[MAX_ABS * stride];
    all.positive = to[POSITIVE * stride];
    all.nonfinite = to[NONFINITE * stride];
    all.add(merged);
    to[COUNT * stride] = all.count;
    to[MEAN * stride] = all.mean;
    to[M2 * stride] = all.m2;
    to[SUM_ABS * stride] = all.absolute;
    to[MAX_ABS * stride] = all.largest;
    to[POSITIVE * stride] = all.positive;
    to[NONFINITE * stride] = all.nonfinite;
}

template <class T>
__global__ void __launch_bounds__(WARP* MERGE_LANES, 1)
    merge_partials_kernel(Parts parts, const uint8_t* mask, int64_t rows, int64_t run, int64_t splits,
                          int64_t channel_blocks) {
    const Part part = parts.part[blockIdx.x / channel_blocks];
    merge_runs<T>(part, mask, rows, run, splits, blockIdx.x % channel_blocks);
}

template <class T>
__global__ void __launch_bounds__(WARP* MERGE_LANES, 1)
    merge_segments_kernel(Part part, int64_t segment_stride, const uint8_t* mask, SegmentRuns runs, int64_t channel_blocks) {
    const int segment = int(blockIdx.x / channel_blocks), begin = runs.offset(segment);
    const int rows = runs.offset(segment + 1) - begin;
    if (rows <= 0) return;
    part.partials.data += int64_t(runs.first(segment)) * SUMS * part.partials.plane;
    part.moments.data += segment * segment_stride;
    part.x = static_cast<const T*>(part.x) + int64_t(begin) * part.row_stride;
    merge_runs<T>(part, mask ? mask + begin : nullptr, rows, runs.run, ceil_div(rows, runs.run), blockIdx.x % channel_blocks);
}

template <class T>
void merge(const char* op, const Parts& parts, const uint8_t* mask, int64_t rows, Plan plan, Place place) {
    const int64_t channel_blocks = ceil_div(parts.widest, WARP);
    launch(op, merge_partials_kernel<T>, channel_blocks * parts.count, dim3(WARP, MERGE_LANES), place, parts, mask, rows,
           plan.run, plan.splits, channel_blocks);
}

}  // namespace

void merge_partials(const char* op, DType dtype, const Parts& parts, const uint8_t* mask, int64_t rows, Plan plan,
                    Place place) {
    if (!parts.count) return;
    with_format(dtype, [&](auto format) { merge<decltype(format)>(op, parts, mask, rows, plan, place); });
}

void merge_segments(const char* op, DType dtype, const Part& part, int64_t segment_stride, const uint8_t* mask,
                    SegmentRuns runs, Place place) {
    const int64_t channel_blocks = ceil_div(part.channels, WARP);
    with_format(dtype, [&](auto format) {
        launch(op, merge_segments_kernel<decltype(format)>, channel_blocks * runs.segments, dim3(WARP, MERGE_LANES), place,
               part, segment_stride, mask, runs, channel_blocks);
    });
}

void check(const char* op, cudaError_t status) {
    if (status != cudaSuccess)
        throw std::runtime_error(std::string(op) + " on the GPU: " + cudaGetErrorString(status) + " (" +
                                 cudaGetErrorName(status) + ")");
}

OnDevice::OnDevice(const char* op, int device) {
    check(op, cudaGetDevice(&before_));
    if (device == before_) return;
    check(op, cudaSetDevice(device));
    changed_ = true;
}

OnDevice::~OnDevice() {
    if (changed_) cudaSetDevice(before_);
}

std::string refusal(int device) {
    int driver = 0, devices = 0;
    const auto version = [](int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); };
    if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) return "no NVIDIA driver was found";
    if (driver / 1000 < CUDART_VERSION / 1000)
        return "the driver runs CUDA up to " + version(driver) + ", the extension was built with CUDA " +
               version(CUDART_VERSION) + "; update the driver, or build with an older toolkit: CUDA_HOME=...";
    cudaError_t status = cudaGetDeviceCount(&devices);
    if (status == cudaSuccess && device >= devices)
        return "there is no device " + std::to_string(device) + " among " + std::to_string(devices);
    int before = 0;
    if (status == cudaSuccess) status = cudaGetDevice(&before);
    if (status == cudaSuccess) status = cudaSetDevice(device);
    cudaFuncAttributes attributes;
    if (status == cudaSuccess) {
        status = cudaFuncGetAttributes(&attributes, merge_partials_kernel<float>);
        cudaSetDevice(before);
    }
    cudaGetLastError();  // or the next launch would report it
    return status == cudaSuccess ? "" : cudaGetErrorString(status);
}

}  // namespace cuda
}  // namespace act
