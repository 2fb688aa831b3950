// The weight gradient on Hopper's tensor cores (wgmma, sm_90a), in f16 or bf16; sums in float32.
//
//     dW[o, k] = sum_m dY[m, o] * X[m, k]      m = (n,i,j), k = (u,v,c)
//
// As conv_wgmma.cu, but the sum runs over pixels, along which neither factor is laid out. Tensor
// cores can read 16-bit factors that lie the other way (M-major and N-major), so both are copied as
// they are: a row of 128 bytes is 64 channels of one pixel. A block makes the transpose, 128 of k
// by BN of o, because k is long in every layer and o is 16 in some. It adds up a part of the
// pixels; parts (splits, O, KH*KW*C/G) are added up in order by sum_parts.cu.
#include "types.cuh"
#include "geometry.cuh"
#include "ptx.cuh"
#include "ptx_hopper.cuh"
#include "pipeline.cuh"

constexpr int BM = 128, STEP = 64, ROW = 128, V = PACK<T>;  // STEP: pixels
constexpr int SLAB = STEP * ROW, SLABS = (BN + 63) / 64;    // 64 channels of every pixel of a step
constexpr int STAGE = (BM / 64 + SLABS) * SLAB;
// Chunks of a pixel, and pixels that the producers copy at once: of dY, and of X.
constexpr int CHUNKS = BN / V, ROWS = WARPGROUP / CHUNKS;
constexpr int WINDOW_CHUNKS = BM / V, WINDOW_ROWS = WARPGROUP / WINDOW_CHUNKS;
constexpr int BLOCKS = BN > 64 ? 1 : 2;  // on a multiprocessor, as registers allow

// Chunk q of pixel `row` in its slab of a stage.
__device__ __forceinline__ unsigned char* chunk(unsigned char* slabs, int row, int q) {
    return slabs + q / 8 * SLAB + row * ROW + (q % 8 ^ row % 8) * 16;
}

// A pixel of y: its image in x, and where its window begins.
struct Pixel {
    long long base;
    int top, left;
};

// grid: (pieces of K, pieces of O/G, G * splits)
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
grad_weight(const T* __restrict__ x, const T* __restrict__ gy, float* __restrict__ parts,
            long long pixels_per_part, GEOMETRY) {
    SWIZZLED_SHARED(shared);
    auto table = reinterpret_cast<Pixel*>(shared + STAGES * STAGE);
    auto barriers = reinterpret_cast<Barrier*>(table + 2 * STEP);
    Pipeline pipeline = {barriers, barriers + STAGES};
    int S = C / G, D = O / G, K = KH * KW * S;
    int part = blockIdx.z / G, group = blockIdx.z % G;
    int k0 = blockIdx.x * BM, o0 = blockIdx.y * BN;
    long long pixels = (long long)N * OH * OW, begin = part * pixels_per_part;
    long long end = begin + pixels_per_part < pixels ? begin + pixels_per_part : pixels;
    int steps = int((end - begin + STEP - 1) / STEP);

    if (threadIdx.x == 0) begin_pipeline(pipeline, 0);
    __syncthreads();

    if (threadIdx.x < WARPGROUP) {
        // Of X: one tap and chunk of channels of every WINDOW_ROWS-th pixel.
        int q = threadIdx.x % WINDOW_CHUNKS, first = threadIdx.x / WINDOW_CHUNKS;
        int k = k0 + q * V, tap = k / S, c = group * S + k % S;
        int dy = tap / KW * dh - ph, dx = tap % KW * dw - pw;
        int q_y = threadIdx.x % CHUNKS, first_y = threadIdx.x / CHUNKS, o = o0 + q_y * V;
        produce(pipeline, steps, [&](int step, int stage) {
            unsigned char* windows = shared + stage * STAGE;
            unsigned char* grads = windows + BM / 64 * SLAB;
            Pixel* now = table + step % 2 * STEP;
            long long m0 = begin + (long long)step * STEP;
            if (threadIdx.x < STEP) {
                long long m = m0 + threadIdx.x;
                int j = m % OW, i = m / OW % OH;
                now[threadIdx.x] = {m / OW / OH * H * W * C, m < end ? i * sh : -(1 << 30), j * sw};
            }
            meet(2, WARPGROUP);  // two tables in turn: the other one may still be read
#pragma unroll
            for (int l = 0; l < STEP / WINDOW_ROWS; ++l) {
                int row = first + l * WINDOW_ROWS;
                Pixel p = now[row];
                int h = p.top + dy, w = p.left + dx;
                bool inside = k < K && h >= 0 && h < H && w >= 0 && w < W;
                long long from = inside ? p.base + ((long long)h * W + w) * C + c : 0;
                copy_async_16(chunk(windows, row, q), x + from, inside);
            }
#pragma unroll
            for (int l = 0; l < STEP / ROWS; ++l) {
                int row = first_y + l * ROWS;
                bool inside = m0 + row < end && o < D;
                long long from = inside ? (m0 + row) * O + group * D + o : 0;
                copy_async_16(chunk(grads, row, q_y), gy + from, inside);
            }
        });
        return;
    }

    int lane = threadIdx.x % 32, warp = threadIdx.x / 32 - WARPGROUP / 32;
    float sums[BN / 2] = {};
    unsigned long long a = describe(shared + warp / 4 * SLAB, SLAB, 8 * ROW);
    unsigned long long b = describe(shared + BM / 64 * SLAB, SLAB, 8 * ROW);
    consume<1>(pipeline, steps, sums, [&](int, int stage) {
        fence_registers();
#pragma unroll
        for (int row = 0; row < STEP; row += 16)
            multiply_later<T, true>(sums, a + (stage * STAGE + row * ROW) / 16,
                                    b + (stage * STAGE + row * ROW) / 16);
    });

    // Eight lanes write 8 neighbouring k: whole sectors of 32 bytes.
#pragma unroll
    for (int i = 0; i < BN / 2; ++i) {
        int k = k0 + warp * 16 + lane / 4 + i % 4 / 2 * 8;
        int o = o0 + i / 4 * 8 + lane % 4 * 2 + i % 2;
        if (k < K && o < D) parts[((long long)part * O + group * D + o) * K + k] = sums[i];
    }
}
