// How fast a device multiplies and adds with all operands in registers: every thread has CHAINS sums
// d = d * a + b, which do not wait for each other: as many as hide the latency of one, so that the
// arithmetic units are always busy.
#include "types.cuh"

constexpr int CHAINS = 16;

extern "C" __global__ void __launch_bounds__(256)
multiply_adds(T* __restrict__ y, T a, T b, int repeats) {
    T d[CHAINS], sum = 0;
    for (int i = 0; i < CHAINS; ++i) d[i] = T(threadIdx.x + i);
    for (int k = 0; k < repeats; ++k) {
#pragma unroll
        for (int i = 0; i < CHAINS; ++i) d[i] = d[i] * a + b;
    }
    for (int i = 0; i < CHAINS; ++i) sum += d[i];
    y[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
