// Stochastic gradient descent with momentum over all parameters in one launch.
//
//     d = g + weight_decay * p
//     v = momentum * v + (1 - dampening) * d          the first time, v = d
//     p = p - lr * v                                  with nesterov: p - lr * (d + momentum * v)
//
// Parameters lie all over memory. They are cut into chunks; chunk i belongs to tensor owner[i] and
// begins at start[i]. A block takes a chunk. The addresses of tensors come from tables, and the
// settings from memory, {lr, momentum, dampening, weight_decay}, so that a captured graph can be
// replayed with another learning rate. control, if there is one, is {a factor of all gradients,
// whether to change nothing}: written on the device by step.cu.
//
// Bound by memory: reads p, g, v and writes p, v. A chunk begins at a multiple of 16 bytes of its
// tensor, so 16 bytes are moved at a time where the tensors' own addresses allow it.
#include "types.cuh"

using A = Sum<T>;

struct Settings {
    A lr, momentum, dampening, weight_decay, factor;
    int nesterov, first;
};

template <int V>
__device__ __forceinline__ void update(T* p, const T* g, T* v, long long i, const Settings& s) {
    Some<T, V> parameter = load<V>(p + i), gradient = load<V>(g + i), buffer;
    if (s.momentum != 0 && !s.first) buffer = load<V>(v + i);
#pragma unroll
    for (int k = 0; k < V; ++k) {
        A value = wide(parameter.at[k]);
        A d = s.factor * wide(gradient.at[k]) + s.weight_decay * value;
        A step = d;
        if (s.momentum != 0) {
            A moved = s.first ? d : s.momentum * wide(buffer.at[k]) + (1 - s.dampening) * d;
            narrow(buffer.at[k], moved);
            step = s.nesterov ? d + s.momentum * moved : moved;
        }
        narrow(parameter.at[k], value - s.lr * step);
    }
    if (s.momentum != 0) store<V>(v + i, buffer);
    store<V>(p + i, parameter);
}

extern "C" __global__ void __launch_bounds__(256, 2)
sgd(T* const* __restrict__ parameters, const T* const* __restrict__ gradients,
    T* const* __restrict__ buffers, const long long* __restrict__ sizes,
    const int* __restrict__ owner, const long long* __restrict__ start, long long chunk,
    const A* __restrict__ settings, const float* __restrict__ control, int nesterov, int first) {
    if (control && control[1] != 0) return;
    int tensor = owner[blockIdx.x];
    long long begin = start[blockIdx.x];
    long long count = min(chunk, sizes[tensor] - begin);
    T* p = parameters[tensor] + begin;
    const T* g = gradients[tensor] + begin;
    T* v = buffers ? buffers[tensor] + begin : nullptr;
    Settings s = {settings[0], settings[1], settings[2], settings[3],
                  control ? A(control[0]) : A(1), nesterov, first};
    bool aligned = ((size_t)p | (size_t)g | (size_t)v) % 16 == 0;
    long long packs = aligned ? count / PACK<T> : 0;
    for (long long i = threadIdx.x; i < packs; i += blockDim.x)
        update<PACK<T>>(p, g, v, i * PACK<T>, s);
    for (long long i = packs * PACK<T> + threadIdx.x; i < count; i += blockDim.x)
        update<1>(p, g, v, i, s);
}
