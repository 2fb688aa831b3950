// The weight gradient on tensor cores, in f16, bf16, or float rounded to tf32; sums in float32.
//
//     dW[o, k] = sum_m dY[m, o] * X[m, k]      m = (n,i,j), k = (u,v,c)
//
// As conv_tensor.cu, but the sum runs over pixels, along which neither factor is laid out: a chunk
// of 16 bytes is several channels of one pixel. 16-bit factors are transposed as they are loaded
// from shared memory (ldmatrix.trans); tf32 is loaded number by number. The sum is split over
// blocks, parts (splits, O, KH*KW*C/G), which sum_parts.cu adds up in order.
//
// Shared memory: a row per pixel, its chunk q at place q ^ swizzle(row), so that the 8 rows (or 4,
// with two chunks each, for tf32) that one load reads at the same q lie in different banks.
#include "types.cuh"
#include "geometry.cuh"
#include "ptx.cuh"

constexpr int WARPS_M = BM / WM, WARPS_N = BN / WN, THREADS = WARPS_M * WARPS_N * 32;
constexpr int V = PACK<T>, STEP = 64 / sizeof(T), STAGE = (BM + BN) * 64;  // pixels; bytes
constexpr int CHUNKS_M = BM / V, CHUNKS_N = BN / V;
constexpr int COPIES_M = (STEP * CHUNKS_M + THREADS - 1) / THREADS;
constexpr int COPIES_N = (STEP * CHUNKS_N + THREADS - 1) / THREADS;
constexpr int TILES_M = WM / 16, TILES_N = WN / 8;
static_assert(WM % 16 == 0 && WN % 16 == 0, "a warp loads 16 columns of each factor at once");
static_assert(THREADS % CHUNKS_N == 0, "a thread copies the same k of several pixels");

template <int CHUNKS>
__device__ __forceinline__ unsigned char* chunk(unsigned char* rows, int row, int q) {
    constexpr int SPAN = CHUNKS < 8 ? CHUNKS : 8;  // chunks in which the 8 rows must differ
    int swizzle = sizeof(T) == 4 ? 2 * (row % 4) % SPAN : row / (8 / SPAN) % SPAN;
    return rows + (row * CHUNKS + (q ^ swizzle)) * 16;
}

// Number `column` of pixel `row`, as tf32.
template <int CHUNKS>
__device__ __forceinline__ unsigned number(unsigned char* rows, int row, int column) {
    unsigned char* at = chunk<CHUNKS>(rows, row, column / 4) + column % 4 * 4;
    return to_tf32(*reinterpret_cast<const float*>(at));
}

// 16 columns and 32 bytes' worth of pixels of a factor, transposed: for the first factor in the
// order (columns 0-7 | 8-15) within (pixels low | high), for the second the other way round.
template <int CHUNKS, bool FIRST>
__device__ __forceinline__ void load_turned(unsigned (&into)[4], unsigned char* rows, int row,
                                            int column, int lane) {
    if (sizeof(T) == 2) {
        int matrix = lane / 8, high = FIRST ? matrix / 2 : matrix % 2;
        int right = FIRST ? matrix % 2 : matrix / 2;
        unsigned char* at = chunk<CHUNKS>(rows, row + high * 8 + lane % 8, column / 8 + right);
        load_matrices_transposed(into, at);
    } else {
#pragma unroll
        for (int matrix = 0; matrix < 4; ++matrix) {
            int high = FIRST ? matrix / 2 : matrix % 2, right = FIRST ? matrix % 2 : matrix / 2;
            into[matrix] = number<CHUNKS>(rows, row + high * 4 + lane % 4,
                                          column + right * 8 + lane / 4);
        }
    }
}

// grid: (pieces of O/G, pieces of K, G * splits)
extern "C" __global__ void __launch_bounds__(THREADS)
grad_weight(const T* __restrict__ x, const T* __restrict__ gy, float* __restrict__ parts,
            long long pixels_per_part, GEOMETRY) {
    DYNAMIC_SHARED(unsigned char, shared);
    int S = C / G, D = O / G, K = KH * KW * S;
    int part = blockIdx.z / G, group = blockIdx.z % G;
    int o0 = blockIdx.x * BM, k0 = blockIdx.y * BN;
    long long pixels = (long long)N * OH * OW, begin = part * pixels_per_part;
    long long end = begin + pixels_per_part < pixels ? begin + pixels_per_part : pixels;
    int steps = int((end - begin + STEP - 1) / STEP);

    // What this thread copies of x: one tap and chunk of channels of several pixels, which move on
    // by STEP pixels each time.
    int k = k0 + threadIdx.x % CHUNKS_N * V, tap = k / S, c = group * S + k % S;
    int dy = tap / KW * dh - ph, dx = tap % KW * dw - pw;
    int i[COPIES_N], j[COPIES_N];
    long long image[COPIES_N], m_next = begin;
#pragma unroll
    for (int l = 0; l < COPIES_N; ++l) {
        long long m = begin + (threadIdx.x + l * THREADS) / CHUNKS_N;
        j[l] = m % OW, i[l] = m / OW % OH;
        image[l] = m / OW / OH * H * W * C;
    }
    auto copy = [&](int stage) {
        unsigned char* grads_to = shared + stage * STAGE;
        unsigned char* images_to = grads_to + BM * 64;
#pragma unroll
        for (int l = 0; l < COPIES_M; ++l) {
            int at = threadIdx.x + l * THREADS, row = at / CHUNKS_M, q = at % CHUNKS_M;
            long long m = m_next + row;
            bool inside = m < end && o0 + q * V < D;
            if (STEP * CHUNKS_M % THREADS == 0 || row < STEP)
                copy_async_16(chunk<CHUNKS_M>(grads_to, row, q),
                              gy + (inside ? m * O + group * D + o0 + q * V : 0), inside);
        }
#pragma unroll
        for (int l = 0; l < COPIES_N; ++l) {
            int at = threadIdx.x + l * THREADS, row = at / CHUNKS_N;
            int h = i[l] * sh + dy, w = j[l] * sw + dx;
            bool inside = m_next + row < end && k < K && h >= 0 && h < H && w >= 0 && w < W;
            long long from = inside ? image[l] + ((long long)h * W + w) * C + c : 0;
            if (STEP * CHUNKS_N % THREADS == 0 || row < STEP)
                copy_async_16(chunk<CHUNKS_N>(images_to, row, at % CHUNKS_N), x + from, inside);
            j[l] += STEP;
            while (j[l] >= OW) {
                j[l] -= OW;
                if (++i[l] == OH) i[l] = 0, image[l] += (long long)H * W * C;
            }
        }
        m_next += STEP;
    };

    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int warp_m = warp % WARPS_M * WM, warp_n = warp / WARPS_M * WN;
    float sums[TILES_M][TILES_N][4] = {};
#pragma unroll
    for (int s = 0; s < STAGES - 1; ++s) {
        if (s < steps) copy(s);
        commit_copies();
    }
    for (int s = 0; s < steps; ++s) {
        wait_copies<STAGES - 2>();
        __syncthreads();
        int ahead = s + STAGES - 1;
        if (ahead < steps) copy(ahead % STAGES);
        commit_copies();
        unsigned char* grads_in = shared + s % STAGES * STAGE;
        unsigned char* images_in = grads_in + BM * 64;
#pragma unroll
        for (int row = 0; row < STEP; row += STEP / 2) {
            unsigned a[TILES_M][4], b[TILES_N / 2][4];
#pragma unroll
            for (int t = 0; t < TILES_M; ++t)
                load_turned<CHUNKS_M, true>(a[t], grads_in, row, warp_m + t * 16, lane);
#pragma unroll
            for (int t = 0; t < TILES_N / 2; ++t)
                load_turned<CHUNKS_N, false>(b[t], images_in, row, warp_n + t * 16, lane);
#pragma unroll
            for (int t = 0; t < TILES_M; ++t)
#pragma unroll
                for (int n = 0; n < TILES_N; ++n) {
                    unsigned columns[2] = {b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]};
                    multiply_matrices<T>(sums[t][n], a[t], columns);
                }
        }
    }
    wait_copies<0>();

#pragma unroll
    for (int t = 0; t < TILES_M; ++t)
#pragma unroll
        for (int v = 0; v < 4; ++v) {
            int row = o0 + warp_m + t * 16 + v / 2 * 8 + lane / 4;
            if (row >= D) continue;
            float* to = parts + ((long long)part * O + group * D + row) * K;
#pragma unroll
            for (int n = 0; n < TILES_N; ++n) {
                int column = k0 + warp_n + n * 8 + lane % 4 * 2 + v % 2;
                if (column < K) to[column] = sums[t][n][v];
            }
        }
}
