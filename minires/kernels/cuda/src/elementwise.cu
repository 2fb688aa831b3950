// Elementwise operations on arrays that lie in memory alike.
//
//     relu       y  = max(x, 0)                 NaN stays NaN
//     relu_grad  gx = gy where y > 0, else 0
//     add        y  = a + b                     two gradients that meet
//     add_relu   y  = max(a + b, 0)             the end of a residual block
//
// Bound by memory: each element is read and written once. A thread moves 16 bytes at a time, in a
// loop over the grid; the first `packs` packs so, and what is left, or everything if an address is
// not a multiple of 16, element by element.
#include "types.cuh"

struct Relu {
    __device__ static Sum<T> apply(Sum<T> x, Sum<T>) { return x <= 0 ? 0 : x; }
};
struct ReluGrad {
    __device__ static Sum<T> apply(Sum<T> gy, Sum<T> y) { return y > 0 ? gy : 0; }
};
struct Add {
    __device__ static Sum<T> apply(Sum<T> a, Sum<T> b) { return a + b; }
};
struct AddRelu {
    __device__ static Sum<T> apply(Sum<T> a, Sum<T> b) { return Relu::apply(a + b, 0); }
};

template <class Function, int V>
__device__ __forceinline__ void apply(const T* a, const T* b, T* y, long long i) {
    Some<T, V> left = load<V>(a + i), right = load<V>(b + i), result;
#pragma unroll
    for (int k = 0; k < V; ++k)
        narrow(result.at[k], Function::apply(wide(left.at[k]), wide(right.at[k])));
    store<V>(y + i, result);
}

template <class Function>
__device__ __forceinline__ void over_all(const T* a, const T* b, T* y, long long size,
                                         long long packs) {
    long long step = (long long)gridDim.x * blockDim.x;
    long long first = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    for (long long i = first; i < packs; i += step)
        apply<Function, PACK<T>>(a, b, y, i * PACK<T>);
    for (long long i = packs * PACK<T> + first; i < size; i += step)
        apply<Function, 1>(a, b, y, i);
}

extern "C" __global__ void __launch_bounds__(256)
relu(const T* __restrict__ x, T* __restrict__ y, long long size, long long packs) {
    over_all<Relu>(x, x, y, size, packs);
}

extern "C" __global__ void __launch_bounds__(256)
relu_grad(const T* __restrict__ gy, const T* __restrict__ y, T* __restrict__ gx, long long size,
          long long packs) {
    over_all<ReluGrad>(gy, y, gx, size, packs);
}

extern "C" __global__ void __launch_bounds__(256)
add(const T* __restrict__ a, const T* __restrict__ b, T* __restrict__ y, long long size,
    long long packs) {
    over_all<Add>(a, b, y, size, packs);
}

extern "C" __global__ void __launch_bounds__(256)
add_relu(const T* __restrict__ a, const T* __restrict__ b, T* __restrict__ y, long long size,
         long long packs) {
    over_all<AddRelu>(a, b, y, size, packs);
}
