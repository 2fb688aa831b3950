// How fast a device multiplies with the matrix instruction of a warp (ptx.cuh), d = d + a @ b for
// 16x8 results, all operands in registers: TILES products that do not wait for each other.
#include "types.cuh"
#include "ptx.cuh"

constexpr int TILES = 8;

extern "C" __global__ void __launch_bounds__(256)
matrix_products(float* __restrict__ y, int bits, int repeats) {
    unsigned own = unsigned(bits), a[4] = {own, own, own, own}, b[2] = {own, own};
    float d[TILES][4], sum = 0;
    for (int i = 0; i < TILES; ++i)
        for (int j = 0; j < 4; ++j) d[i][j] = float(i + j);
    for (int k = 0; k < repeats; ++k) {
#pragma unroll
        for (int i = 0; i < TILES; ++i) multiply_matrices<T>(d[i], a, b);
    }
    for (int i = 0; i < TILES; ++i)
        for (int j = 0; j < 4; ++j) sum += d[i][j];
    y[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
