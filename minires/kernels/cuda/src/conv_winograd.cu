// 3x3 convolutions, stride 1, by Winograd's minimal filtering: F(TILE x TILE, 3x3), TILE 2 or 4.
//
//     Y = A^T [ (G g G^T) * (B^T d B) ] A      elementwise product, summed over input channels
//
// (Lavin & Gray, 2016). A tile of TILE x TILE outputs comes from SIDE x SIDE inputs, SIDE = TILE+2.
// The elementwise product over all tiles and channels is, for each of the SIDE^2 places p, a matrix
// product: M[tile, p, o] = sum_c V[tile, p, c] * U[p, o, c]. That is a 1x1 convolution with SIDE^2
// groups, and conv_implicit.cu does it. It takes 16 multiplications for 4 outputs instead of 36, or
// 36 for 16 instead of 144; the transforms here move more memory for it, and cost digits.
//
// Here: V from x, U from the weight, y from M. A thread per tile (or weight) and channel; channels
// lie side by side. The matrices are constants, so that products with 0 and 1 vanish.
#include "types.cuh"

using A = Sum<T>;
constexpr int SIDE = TILE + 2, PLACES = SIDE * SIDE;

#if TILE == 2
#define B_T {{1, 0, -1, 0}, {0, 1, 1, 0}, {0, -1, 1, 0}, {0, 1, 0, -1}}
#define G_M {{1, 0, 0}, {A(0.5), A(0.5), A(0.5)}, {A(0.5), A(-0.5), A(0.5)}, {0, 0, 1}}
#define A_T {{1, 1, 1, 0}, {0, 1, -1, -1}}
#else
#define B_T                                                                                    \
    {{4, 0, -5, 0, 1, 0}, {0, -4, -4, 1, 1, 0}, {0, 4, -4, -1, 1, 0}, {0, -2, -1, 2, 1, 0},    \
     {0, 2, -1, -2, 1, 0}, {0, 4, 0, -5, 0, 1}}
#define G_M                                                                                    \
    {{A(0.25), 0, 0}, {A(-1. / 6), A(-1. / 6), A(-1. / 6)}, {A(-1. / 6), A(1. / 6), A(-1. / 6)}, \
     {A(1. / 24), A(1. / 12), A(1. / 6)}, {A(1. / 24), A(-1. / 12), A(1. / 6)}, {0, 0, 1}}
#define A_T                                                                                    \
    {{1, 1, 1, 1, 1, 0}, {0, 1, -1, 2, -2, 0}, {0, 1, 1, 4, 4, 0}, {0, 1, -1, 8, -8, 1}}
#endif

// to[i] = sum_k MATRIX[i][k] * from[k], for lines `step` apart.
#define TRANSFORM(NAME, MATRIX, ROWS, COLUMNS)                                                 \
    __device__ __forceinline__ void NAME(const A* from, int from_step, A* to, int to_step) {   \
        constexpr A matrix[ROWS][COLUMNS] = MATRIX;                                            \
        _Pragma("unroll") for (int i = 0; i < ROWS; ++i) {                                     \
            A sum = 0;                                                                         \
            _Pragma("unroll") for (int k = 0; k < COLUMNS; ++k)                                \
                if (matrix[i][k] != 0) sum += matrix[i][k] * from[k * from_step];              \
            to[i * to_step] = sum;                                                             \
        }                                                                                      \
    }
TRANSFORM(times_b, B_T, SIDE, SIDE)
TRANSFORM(times_g, G_M, SIDE, 3)
TRANSFORM(times_a, A_T, TILE, SIDE)

// v (N * rows * columns, PLACES, C) from x (N, H, W, C); rows and columns of tiles.
extern "C" __global__ void __launch_bounds__(256)
transform_input(const T* __restrict__ x, T* __restrict__ v, int N, int C, int H, int W, int ph,
                int pw, int rows, int columns) {
    long long total = (long long)N * rows * columns * C, step = (long long)gridDim.x * blockDim.x;
    for (long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x; k < total; k += step) {
        int c = k % C, left = k / C % columns * TILE - pw, top = k / C / columns % rows * TILE - ph;
        long long tile = k / C, n = tile / columns / rows;
        A d[PLACES], half[PLACES];
#pragma unroll
        for (int i = 0; i < SIDE; ++i)
#pragma unroll
            for (int j = 0; j < SIDE; ++j) {
                int h = top + i, w = left + j;
                bool inside = h >= 0 && h < H && w >= 0 && w < W;
                d[i * SIDE + j] = inside ? wide(x[((n * H + h) * W + w) * C + c]) : A(0);
            }
#pragma unroll
        for (int j = 0; j < SIDE; ++j) times_b(d + j, SIDE, half + j, SIDE);
#pragma unroll
        for (int i = 0; i < SIDE; ++i) times_b(half + i * SIDE, 1, d + i * SIDE, 1);
#pragma unroll
        for (int p = 0; p < PLACES; ++p) narrow(v[(tile * PLACES + p) * C + c], d[p]);
    }
}

// u (PLACES, O, C) from the weight (O, 3, 3, C), turned by 180 degrees for the input gradient.
extern "C" __global__ void __launch_bounds__(256)
transform_weight(const T* __restrict__ weight, T* __restrict__ u, int O, int C, int turn) {
    long long total = (long long)O * C, step = (long long)gridDim.x * blockDim.x;
    for (long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x; k < total; k += step) {
        long long o = k / C, c = k % C;
        A g[9], half[SIDE * 3], full[PLACES];
#pragma unroll
        for (int i = 0; i < 9; ++i) g[i] = wide(weight[(o * 9 + (turn ? 8 - i : i)) * C + c]);
#pragma unroll
        for (int j = 0; j < 3; ++j) times_g(g + j, 3, half + j, 3);
#pragma unroll
        for (int i = 0; i < SIDE; ++i) times_g(half + i * 3, 1, full + i * SIDE, 1);
#pragma unroll
        for (int p = 0; p < PLACES; ++p) narrow(u[p * total + k], full[p]);
    }
}

// y (N, OH, OW, O) from m (N * rows * columns, PLACES, O).
extern "C" __global__ void __launch_bounds__(256)
transform_output(const T* __restrict__ m, T* __restrict__ y, int N, int O, int OH, int OW, int rows,
                 int columns) {
    long long total = (long long)N * rows * columns * O, step = (long long)gridDim.x * blockDim.x;
    for (long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x; k < total; k += step) {
        int o = k % O, left = k / O % columns * TILE, top = k / O / columns % rows * TILE;
        long long tile = k / O, n = tile / columns / rows;
        A full[PLACES], half[TILE * SIDE], result[TILE * TILE];
#pragma unroll
        for (int p = 0; p < PLACES; ++p) full[p] = wide(m[(tile * PLACES + p) * O + o]);
#pragma unroll
        for (int j = 0; j < SIDE; ++j) times_a(full + j, SIDE, half + j, SIDE);
#pragma unroll
        for (int i = 0; i < TILE; ++i) times_a(half + i * SIDE, 1, result + i * TILE, 1);
#pragma unroll
        for (int i = 0; i < TILE; ++i)
#pragma unroll
            for (int j = 0; j < TILE; ++j)
                if (top + i < OH && left + j < OW)
                    narrow(y[((n * OH + top + i) * OW + left + j) * O + o], result[i * TILE + j]);
    }
}
