// Batch norm's running statistics on their way towards those of a batch, both in one launch.
//
//     mean <- (1 - momentum) mean + momentum batch_mean
//     var  <- (1 - momentum) var  + momentum unbiased batch_var       unbiased = m / (m - 1)
//
// A thread per channel. Written out as array operations it takes six launches for each batch norm of a
// step, more than everything else together.
#include "types.cuh"

extern "C" __global__ void __launch_bounds__(256)
move_statistics(T* __restrict__ mean, T* __restrict__ var, const T* __restrict__ batch_mean,
                const T* __restrict__ batch_var, double momentum, double unbiased, int C) {
    int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= C) return;
    T keep = T(1 - momentum);
    mean[c] = keep * mean[c] + T(momentum) * batch_mean[c];
    var[c] = keep * var[c] + T(momentum * unbiased) * batch_var[c];
}
