// The part of CUDA that csrc/cuda/ uses, on a CPU: every kernel compiles unchanged and runs block by block.
//
// The threads of a block are fibers that take turns wherever they meet: at a barrier, a vote or an exchange. Between two
// meetings they run one after the other, from the first to the last or, if `act_emulator_reversed`, from the last to the
// first: a race between them shows as different bits. A read of memory that CUDA would leave undefined is made visible:
// a block that does not meet together stops with an error, and the caller's buffers are those of the test.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(...)

#define CUDART_VERSION 13000
#define ACT_EMULATED 1

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct uint2 { uint32_t x, y; };
struct uint4 { uint32_t x, y, z, w; };
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline int min(int a, int b) { return a < b ? a : b; }

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidDevice = 101 };
typedef void* cudaStream_t;
struct cudaFuncAttributes {};
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
};

// One device, of ordinal 0.
inline const char* cudaGetErrorString(cudaError_t error) { return error ? "invalid device ordinal" : "no error"; }
inline const char* cudaGetErrorName(cudaError_t error) { return error ? "cudaErrorInvalidDevice" : "cudaSuccess"; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) { return device ? cudaErrorInvalidDevice : cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel) { return cudaSuccess; }

namespace emulator {

constexpr size_t STACK = 256 << 10;

struct Fiber {
    void* stack_pointer;
    std::vector<uint64_t> stack;
    dim3 index;
    unsigned number;
    bool done;
    int meetings;
};

inline std::vector<Fiber> fibers;
inline Fiber* current = nullptr;
inline void* scheduler = nullptr;
inline dim3 block, grid_block;
inline void (*body)(void*) = nullptr;
inline void* body_argument = nullptr;
inline uint64_t given[1024];  // what threads bring to a meeting
inline unsigned present = 0;  // threads of this block

extern "C" void act_emulator_switch(void** save, void* load);

inline void meet() {
    ++current->meetings;
    act_emulator_switch(&current->stack_pointer, scheduler);
}

[[noreturn]] inline void start() {
    body(body_argument);
    current->done = true;
    act_emulator_switch(&current->stack_pointer, scheduler);
    std::abort();
}

inline void prepare(Fiber& fiber) {
    fiber.stack.resize(STACK / 8);
    uint64_t* top = fiber.stack.data() + fiber.stack.size();
    top = reinterpret_cast<uint64_t*>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t(15));
    *--top = 0;                                     // the return address of `start`, which never returns
    *--top = reinterpret_cast<uint64_t>(&start);    // where the first switch returns to
    for (int i = 0; i < 6; ++i) *--top = 0;         // callee-saved registers
    fiber.stack_pointer = top;
    fiber.done = false;
    fiber.meetings = 0;
}

extern "C" int act_emulator_reversed;

inline void run_block(dim3 threads, void (*function)(void*), void* argument) {
    body = function;
    body_argument = argument;
    present = threads.x * threads.y * threads.z;
    if (fibers.size() < present) fibers.resize(present);
    for (unsigned i = 0; i < present; ++i) {
        prepare(fibers[i]);
        fibers[i].number = i;
        fibers[i].index = dim3(i % threads.x, i / threads.x % threads.y, i / threads.x / threads.y);
    }
    for (bool running = true; running;) {
        running = false;
        for (unsigned i = 0; i < present; ++i) {
            current = &fibers[act_emulator_reversed ? present - 1 - i : i];
            if (current->done) continue;
            act_emulator_switch(&scheduler, current->stack_pointer);
            running = true;
        }
        // All threads of a block meet as often, but for warps that have left.
        for (unsigned i = 0; i < present; ++i) {
            const Fiber &one = fibers[i], &first = fibers[i / 32 * 32];
            if (one.done != first.done || one.meetings != first.meetings) {
                std::fprintf(stderr, "emulated CUDA: threads of one warp went different ways at a meeting\n");
                std::abort();
            }
        }
    }
}

template <class T>
T exchange(T value, unsigned from) {
    given[current->number] = 0;
    std::memcpy(&given[current->number], &value, sizeof value);
    meet();
    T result;
    std::memcpy(&result, &given[from], sizeof result);
    meet();
    return result;
}

}  // namespace emulator

#define threadIdx (emulator::current->index)
#define blockIdx (emulator::block)

inline void __syncthreads() { emulator::meet(); }

inline int __syncthreads_count(bool vote) {
    emulator::given[emulator::current->number] = vote;
    emulator::meet();
    int count = 0;
    for (unsigned i = 0; i < emulator::present; ++i) count += emulator::given[i] != 0;
    emulator::meet();
    return count;
}

inline int __syncthreads_or(bool vote) { return __syncthreads_count(vote) > 0; }

inline unsigned __ballot_sync(unsigned, bool vote) {
    const unsigned first = emulator::current->number / 32 * 32;
    emulator::given[emulator::current->number] = vote;
    emulator::meet();
    unsigned votes = 0;
    for (unsigned lane = 0; lane < 32; ++lane) votes |= unsigned(emulator::given[first + lane] != 0) << lane;
    emulator::meet();
    return votes;
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int distance) {
    return emulator::exchange(value, emulator::current->number ^ unsigned(distance));
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments... arguments) {
    auto call = [&] { kernel(arguments...); };
    for (unsigned x = 0; x < config->gridDim.x; ++x) {
        emulator::block = dim3(x, 0, 0);
        emulator::run_block(config->blockDim, [](void* it) { (*static_cast<decltype(call)*>(it))(); }, &call);
    }
    return cudaSuccess;
}
