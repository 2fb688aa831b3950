// y = the sum of `count` arrays of `size` numbers that lie one behind the other,
// + bias[i % columns] if given: the second step of a sum split over blocks. Fixed order, no
// atomics: the same bits every time.
//
// A block is blockDim.x packs of 16 bytes wide and blockDim.y parts high: long sums of few numbers
// (a weight gradient's) have their parts read side by side, and joined in shared memory.
#include "types.cuh"

using A = Sum<T>;
constexpr int V = PACKED ? 16 / sizeof(A) : 1;

extern "C" __global__ void __launch_bounds__(256, 2)
sum_parts(const A* __restrict__ parts, const T* __restrict__ bias, T* __restrict__ y,
          long long size, int count, int columns) {
    __shared__ Some<A, V> shared[256];
    Some<A, V>* own = shared + threadIdx.y * blockDim.x + threadIdx.x;
    long long step = (long long)gridDim.x * blockDim.x * V;
    for (long long first = (long long)blockIdx.x * blockDim.x * V; first < size; first += step) {
        long long i = first + threadIdx.x * V;
        Some<A, V> sum = {};
        if (i < size)
#pragma unroll 4
            for (int k = threadIdx.y; k < count; k += blockDim.y) {
                Some<A, V> part = load<V>(parts + k * size + i);
#pragma unroll
                for (int v = 0; v < V; ++v) sum.at[v] += part.at[v];
            }
        *own = sum;
        __syncthreads();
        if (threadIdx.y == 0 && i < size) {
            for (int k = 1; k < blockDim.y; ++k) {
                Some<A, V> part = own[k * blockDim.x];
#pragma unroll
                for (int v = 0; v < V; ++v) sum.at[v] += part.at[v];
            }
            Some<T, V> result;
#pragma unroll
            for (int v = 0; v < V; ++v)
                narrow(result.at[v], bias ? sum.at[v] + wide(bias[(i + v) % columns]) : sum.at[v]);
            store<V>(y + i, result);
        }
        __syncthreads();
    }
}
