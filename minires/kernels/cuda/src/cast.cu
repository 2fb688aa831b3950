// y = x in another type, S to T: rounded to nearest, ties to even.
//
// Bound by memory. A thread takes four elements at a time: 16 bytes of the wider type.
#include "types.cuh"

using S = SOURCE_ELEMENT;

template <int V>
__device__ __forceinline__ void convert(const S* x, T* y, long long i) {
    Some<S, V> given = load<V>(x + i);
    Some<T, V> result;
#pragma unroll
    for (int k = 0; k < V; ++k) narrow(result.at[k], Sum<T>(wide(given.at[k])));
    store<V>(y + i, result);
}

extern "C" __global__ void __launch_bounds__(256)
cast(const S* __restrict__ x, T* __restrict__ y, long long size, long long packs) {
    long long step = (long long)gridDim.x * blockDim.x;
    long long first = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    constexpr int V = 16 / (sizeof(S) > sizeof(T) ? sizeof(S) : sizeof(T));
    for (long long i = first; i < packs; i += step) convert<V>(x, y, i * V);
    for (long long i = packs * V + first; i < size; i += step) convert<1>(x, y, i);
}

// Many arrays in one launch: the weights of a network before its pass in 16 bits, their gradients
// after it. They are cut into chunks; chunk i belongs to array owner[i] and begins at start[i].
extern "C" __global__ void __launch_bounds__(256, 2)
cast_many(const S* const* __restrict__ sources, T* const* __restrict__ targets,
          const long long* __restrict__ sizes, const int* __restrict__ owner,
          const long long* __restrict__ start, long long chunk) {
    constexpr int V = 16 / (sizeof(S) > sizeof(T) ? sizeof(S) : sizeof(T));
    int tensor = owner[blockIdx.x];
    long long begin = start[blockIdx.x];
    long long count = min(chunk, sizes[tensor] - begin);
    const S* x = sources[tensor] + begin;
    T* y = targets[tensor] + begin;
    long long packs = ((size_t)x | (size_t)y) % 16 == 0 ? count / V : 0;
    for (long long i = threadIdx.x; i < packs; i += blockDim.x) convert<V>(x, y, i * V);
    for (long long i = packs * V + threadIdx.x; i < count; i += blockDim.x) convert<1>(x, y, i);
}
