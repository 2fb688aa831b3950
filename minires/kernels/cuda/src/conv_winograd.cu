// 3x3 convolutions, stride 1, by Winograd's minimal filtering: F(TILE x TILE, 3x3), TILE 2 or 4.
//
//     forward          Y  = A^T [ sum_c (G g G^T) * (B^T d B) ] A          "*" elementwise
//     input gradient   the same of gy, with the weight turned by 180 degrees
//     weight gradient  dg = G^T [ sum_t (A dY A^T) * (B^T d B) ] G         the transforms' adjoints
//
// (Lavin & Gray, 2016). A tile of TILE x TILE outputs comes from SIDE x SIDE inputs, SIDE = TILE+2.
// The elementwise product over all tiles and channels is, for each of the SIDE^2 places p, a matrix
// product, which product.cu does:
//
//     M[p][t, o] = sum_c V[p][t, c] * U[p][o, c]      dU[p][o, c] = sum_t M[p][t, o] * V[p][t, c]
//
// It takes 16 multiplications for 4 outputs instead of 36, or 36 for 16 instead of 144; the
// transforms here move more memory for it, and cost digits. F(4x4) interpolates at 0, +-3/4, +-3/2
// and infinity: with +-1 and +-2 rounding errors are some three times as large (Barabasz et al.,
// 2018).
//
// Here: V from x, U from the weight, y from M, M from gy, dW from dU. A thread per tile (or weight)
// and 16 bytes of channels, which lie side by side: every access is 16 bytes, neighbours touch. All
// of a tile's numbers are in flight at once. The matrices are constants: products with 0 vanish.
#include "types.cuh"

constexpr int SIDE = TILE + 2, PLACES = SIDE * SIDE, V = PACK<T>;

#if TILE == 2
#define B_T {{1, 0, -1, 0}, {0, 1, 1, 0}, {0, -1, 1, 0}, {0, 1, 0, -1}}
#define G_M {{1, 0, 0}, {T(0.5), T(0.5), T(0.5)}, {T(0.5), T(-0.5), T(0.5)}, {0, 0, 1}}
#define A_T {{1, 1, 1, 0}, {0, 1, -1, -1}}
#else
constexpr T a = 0.75, b = 1.5, aa = a * a, bb = b * b;  // the points; the rows follow from them
constexpr T ga = 1 / (2 * aa * (aa - bb)), gb = 1 / (2 * bb * (bb - aa));
#define B_T                                                                                \
    {{aa * bb, 0, -aa - bb, 0, 1, 0}, {0, -a * bb, -bb, a, 1, 0}, {0, a * bb, -bb, -a, 1, 0}, \
     {0, -b * aa, -aa, b, 1, 0}, {0, b * aa, -aa, -b, 1, 0}, {0, aa * bb, 0, -aa - bb, 0, 1}}
#define G_M                                                                           \
    {{1 / (aa * bb), 0, 0}, {ga, ga * a, ga * aa}, {ga, -ga * a, ga * aa},            \
     {gb, gb * b, gb * bb}, {gb, -gb * b, gb * bb}, {0, 0, 1}}
#define A_T                                                                           \
    {{1, 1, 1, 1, 1, 0}, {0, a, -a, b, -b, 0}, {0, aa, aa, bb, bb, 0},                \
     {0, a * aa, -a * aa, b * bb, -b * bb, 1}}
#endif

using Pack = Some<T, V>;

// to[i] = sum_k ENTRY(i, k) * from[k], for numbers `step` apart.
#define TRANSFORM(NAME, MATRIX, HEIGHT, WIDTH, ROWS, COLUMNS, ENTRY)                         \
    __device__ __forceinline__ void NAME(const Pack* from, int from_step, Pack* to, int step) { \
        constexpr T matrix[HEIGHT][WIDTH] = MATRIX;                                          \
        Pack sums[ROWS] = {};                                                                \
        _Pragma("unroll") for (int i = 0; i < ROWS; ++i)                                     \
            _Pragma("unroll") for (int k = 0; k < COLUMNS; ++k)                              \
                if (ENTRY != 0)                                                              \
                    _Pragma("unroll") for (int v = 0; v < V; ++v)                            \
                        sums[i].at[v] += ENTRY * from[k * from_step].at[v];                  \
        _Pragma("unroll") for (int i = 0; i < ROWS; ++i) to[i * step] = sums[i];             \
    }
TRANSFORM(times_b, B_T, SIDE, SIDE, SIDE, SIDE, matrix[i][k])
TRANSFORM(times_g, G_M, SIDE, 3, SIDE, 3, matrix[i][k])
TRANSFORM(times_g_turned, G_M, SIDE, 3, 3, SIDE, matrix[k][i])
TRANSFORM(times_a, A_T, TILE, SIDE, TILE, SIDE, matrix[i][k])
TRANSFORM(times_a_turned, A_T, TILE, SIDE, SIDE, TILE, matrix[k][i])

// Which tile and channels this thread makes.
struct Own {
    unsigned tile;
    int c, left, top;
    long long n;
    bool inside;
    __device__ __forceinline__ Own(int N, int C, int rows, int columns) {
        unsigned i = blockIdx.x * blockDim.x + threadIdx.x, packs = C / V;
        tile = i / packs;
        c = i % packs * V;
        left = tile % columns * TILE;
        top = tile / columns % rows * TILE;
        n = tile / columns / rows;
        inside = n < N;
    }
};

__device__ __forceinline__ Pack read(const T* image, long long n, int h, int w, int c, int H, int W,
                                     int C) {
    if (h < 0 || h >= H || w < 0 || w >= W) return {};
    return load<V>(image + ((n * H + h) * W + w) * C + c);
}

// v (PLACES, N * rows * columns, C) from x (N, H, W, C); rows and columns of tiles.
extern "C" __global__ void __launch_bounds__(256)
transform_input(const T* __restrict__ x, T* __restrict__ v, int N, int C, int H, int W, int ph,
                int pw, int rows, int columns) {
    Own own(N, C, rows, columns);
    if (!own.inside) return;
    Pack d[PLACES];
#pragma unroll
    for (int i = 0; i < SIDE; ++i)
#pragma unroll
        for (int j = 0; j < SIDE; ++j)
            d[i * SIDE + j] = read(x, own.n, own.top - ph + i, own.left - pw + j, own.c, H, W, C);
#pragma unroll
    for (int j = 0; j < SIDE; ++j) times_b(d + j, SIDE, d + j, SIDE);
    long long place = (long long)N * rows * columns * C;
    T* to = v + (long long)own.tile * C + own.c;
#pragma unroll
    for (int i = 0; i < SIDE; ++i) {
        times_b(d + i * SIDE, 1, d + i * SIDE, 1);
#pragma unroll
        for (int j = 0; j < SIDE; ++j) store<V>(to + (i * SIDE + j) * place, d[i * SIDE + j]);
    }
}

// m (PLACES, N * rows * columns, O) from gy (N, OH, OW, O): the adjoint of transform_output.
extern "C" __global__ void __launch_bounds__(256)
transform_grad(const T* __restrict__ gy, T* __restrict__ m, int N, int O, int OH, int OW, int rows,
               int columns) {
    Own own(N, O, rows, columns);
    if (!own.inside) return;
    Pack d[TILE * TILE], half[SIDE * TILE], line[SIDE];
#pragma unroll
    for (int i = 0; i < TILE; ++i)
#pragma unroll
        for (int j = 0; j < TILE; ++j)
            d[i * TILE + j] = read(gy, own.n, own.top + i, own.left + j, own.c, OH, OW, O);
#pragma unroll
    for (int j = 0; j < TILE; ++j) times_a_turned(d + j, TILE, half + j, TILE);
    long long place = (long long)N * rows * columns * O;
    T* to = m + (long long)own.tile * O + own.c;
#pragma unroll
    for (int i = 0; i < SIDE; ++i) {
        times_a_turned(half + i * TILE, 1, line, 1);
#pragma unroll
        for (int j = 0; j < SIDE; ++j) store<V>(to + (i * SIDE + j) * place, line[j]);
    }
}

// y (N, OH, OW, O) from m (PLACES, N * rows * columns, O).
extern "C" __global__ void __launch_bounds__(256)
transform_output(const T* __restrict__ m, T* __restrict__ y, int N, int O, int OH, int OW, int rows,
                 int columns) {
    Own own(N, O, rows, columns);
    if (!own.inside) return;
    long long place = (long long)N * rows * columns * O;
    const T* from = m + (long long)own.tile * O + own.c;
    Pack full[PLACES], half[TILE * SIDE], line[TILE];
#pragma unroll
    for (int p = 0; p < PLACES; ++p) full[p] = load<V>(from + p * place);
#pragma unroll
    for (int j = 0; j < SIDE; ++j) times_a(full + j, SIDE, half + j, SIDE);
#pragma unroll
    for (int i = 0; i < TILE; ++i) {
        times_a(half + i * SIDE, 1, line, 1);
        if (own.top + i >= OH) continue;
        T* to = y + ((own.n * OH + own.top + i) * OW + own.left) * O + own.c;
#pragma unroll
        for (int j = 0; j < TILE; ++j)
            if (own.left + j < OW) store<V>(to + (long long)j * O, line[j]);
    }
}

// u (PLACES, O, C) from the weight (O, 3, 3, C); if `turn`, u (PLACES, C, O) from the weight turned
// by 180 degrees, for the input gradient. Neighbouring threads write side by side in both.
extern "C" __global__ void __launch_bounds__(256)
transform_weight(const T* __restrict__ weight, T* __restrict__ u, int O, int C, int turn) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x, packs = C / V;
    int o = turn ? i % O : i / packs, c = (turn ? i / O : i % packs) * V;
    if (i >= O * packs) return;
    Pack g[9], half[SIDE * 3], line[SIDE];
#pragma unroll
    for (int k = 0; k < 9; ++k)
        g[k] = load<V>(weight + ((long long)o * 9 + (turn ? 8 - k : k)) * C + c);
#pragma unroll
    for (int k = 0; k < 3; ++k) times_g(g + k, 3, half + k, 3);
    long long place = (long long)O * C;
#pragma unroll
    for (int k = 0; k < SIDE; ++k) {
        times_g(half + k * 3, 1, line, 1);
#pragma unroll
        for (int j = 0; j < SIDE; ++j) {
            T* to = u + (k * SIDE + j) * place;
            if (!turn) store<V>(to + (long long)o * C + c, line[j]);
            else
                for (int v = 0; v < V; ++v) to[(long long)(c + v) * O + o] = line[j].at[v];
        }
    }
}

// gw (O, 3, 3, C) from du (splits, PLACES, O, C), whose parts are added up in order.
extern "C" __global__ void __launch_bounds__(256)
transform_weight_grad(const T* __restrict__ du, T* __restrict__ gw, int O, int C, int splits) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x, packs = C / V;
    if (i >= O * packs) return;
    long long place = (long long)O * C, at = (long long)i * V;
    Pack full[PLACES], half[3 * SIDE], line[3];
#pragma unroll
    for (int p = 0; p < PLACES; ++p) full[p] = load<V>(du + p * place + at);
    for (int s = 1; s < splits; ++s)
#pragma unroll
        for (int p = 0; p < PLACES; ++p) {
            Pack part = load<V>(du + (s * PLACES + p) * place + at);
            for (int v = 0; v < V; ++v) full[p].at[v] += part.at[v];
        }
#pragma unroll
    for (int j = 0; j < SIDE; ++j) times_g_turned(full + j, SIDE, half + j, SIDE);
#pragma unroll
    for (int k = 0; k < 3; ++k) {
        times_g_turned(half + k * SIDE, 1, line, 1);
#pragma unroll
        for (int j = 0; j < 3; ++j)
            store<V>(gw + ((i / packs * 9LL + k * 3 + j) * packs + i % packs) * V, line[j]);
    }
}
