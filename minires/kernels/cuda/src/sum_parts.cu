// y = the sum of `count` arrays of `size` numbers that lie one behind the other, in their order:
// the second step of a sum split over blocks. Fixed order, no atomics: the same bits every time.
#include "types.cuh"

using A = Sum<T>;

extern "C" __global__ void __launch_bounds__(256)
sum_parts(const A* __restrict__ parts, T* __restrict__ y, long long size, int count) {
    long long step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < size; i += step) {
        A sum = 0;
        for (int k = 0; k < count; ++k) sum += parts[k * size + i];
        narrow(y[i], sum);
    }
}
