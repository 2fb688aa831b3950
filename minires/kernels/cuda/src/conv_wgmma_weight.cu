// The weight gradient on Hopper's tensor cores (wgmma, sm_90a), in f16, bf16, or float rounded to
// tf32; sums in float32.
//
//     dW[o, k] = sum_m dY[m, o] * X[m, k]      m = (n,i,j), k = (u,v,c)
//
// As conv_wgmma.cu, but the sum runs over pixels, along which neither factor is laid out. A block
// makes the transpose, 128 of k by BN of o, because k is long in every layer and o is 16 in some. It
// adds up a part of the pixels; parts (splits, O, KH*KW*C/G) are added up in order by sum_parts.cu.
//
// 16 bits: tensor cores can read factors that lie the other way (M-major and N-major), so both are
// copied as they are: a row of 128 bytes is 64 channels of one pixel.
//
// tf32: they can not. X comes to the tensor cores through registers, number by number, and is
// rounded there; dY is transposed, rounded, and packed before, as the weights are for `gather`.
#include "types.cuh"
#include "geometry.cuh"
#include "ptx.cuh"
#include "ptx_hopper.cuh"
#include "pipeline.cuh"

constexpr bool TURNED = sizeof(T) == 4;  // tf32: dY is transposed
constexpr int BM = 128, ROW = 128, V = PACK<T>, STEP = ROW / sizeof(T);  // STEP: pixels
constexpr int SLAB = 64 * ROW, SLABS = (BN + 63) / 64;  // 64 channels of every pixel, or 64 of o
constexpr int STAGE = (BM / 64 + SLABS) * SLAB;
// Chunks of a pixel, and pixels that the producers copy at once: of dY, and of X.
constexpr int CHUNKS = BN / V, ROWS = WARPGROUP / CHUNKS;
constexpr int WINDOW_CHUNKS = BM / V, WINDOW_ROWS = WARPGROUP / WINDOW_CHUNKS;
constexpr int TURNS = sizeof(T) / 2;  // sets of X's fragments, if they are held in registers
constexpr int BLOCKS = BN > 64 || TURNED ? 1 : 2;  // on a multiprocessor, as registers allow

// Chunk q of pixel `row` of a factor that lies as it is in memory: in its slab, or, for fragments
// that are loaded from 4 pixels and two chunks at once, in the pixel's row of 32 chunks.
__device__ __forceinline__ unsigned char* chunk(unsigned char* stage, int row, int q) {
    if (TURNED) return stage + (row * BM / V + (q ^ row % 4 * 2)) * 16;
    return stage + q / 8 * SLAB + row * ROW + (q % 8 ^ row % 8) * 16;
}

// packed[group, piece of O/G, step]: BN rows of 32 pixels, swizzled. A thread per 16 bytes; a warp
// reads and writes whole sectors of 32 bytes. For tf32.
extern "C" __global__ void __launch_bounds__(256)
pack_grad(const T* __restrict__ gy, T* __restrict__ packed, long long pixels, long long steps,
          int pieces, int O, int G) {
    long long count = (long long)G * pieces * steps * BN * 8, D = O / G;
    long long stride = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        int row = i / 64 % (BN / 8) * 8 + i % 8, q = i / 8 % 8;
        long long tile = i / (8 * BN), step = tile % steps, m = step * STEP + q * V;
        int piece = tile / steps % pieces, group = int(tile / steps / pieces);
        int o = piece * BN + row;
        Some<T, V> chunk = {};
        for (int e = 0; e < V; ++e)
            if (o < D && m + e < pixels) chunk.at[e] = rounded(gy[(m + e) * O + group * D + o]);
        store<V>(packed + tile * BN * STEP + row * STEP + (q ^ row % 8) * V, chunk);
    }
}

// A pixel of y: its image in x, and where its window begins.
struct Pixel {
    long long base;
    int top, left;
};

// grid: (pieces of K, pieces of O/G, G * splits); gy is packed if TURNED
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
    int steps = int((end - begin + STEP * TURNS - 1) / (STEP * TURNS)) * TURNS;

    if (threadIdx.x == 0) begin_pipeline(pipeline, TURNED);
    __syncthreads();

    if (threadIdx.x < WARPGROUP) {
        // Of X: one tap and chunk of channels of every WINDOW_ROWS-th pixel.
        int q = threadIdx.x % WINDOW_CHUNKS, first = threadIdx.x / WINDOW_CHUNKS;
        int k = k0 + q * V, tap = k / S, c = group * S + k % S;
        int dy = tap / KW * dh - ph, dx = tap % KW * dw - pw;
        int q_y = threadIdx.x % CHUNKS, first_y = threadIdx.x / CHUNKS, o = o0 + q_y * V;
        long long all_steps = pixels_per_part / STEP * (gridDim.z / G);
        const T* turned = gy + ((group * gridDim.y + blockIdx.y) * all_steps + begin / STEP) *
                                   (BN * STEP);
        produce(pipeline, steps, [&](int step, int stage) {
            unsigned char* windows = shared + stage * STAGE;
            unsigned char* grads = windows + BM / 64 * SLAB;
            if (TURNED && threadIdx.x == 0) {
                arrive_expecting(pipeline.full + stage, BN * ROW);
                copy_bulk(grads, turned + (long long)step * BN * STEP, BN * ROW,
                          pipeline.full + stage);
            }
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
            for (int l = 0; l < STEP / ROWS && !TURNED; ++l) {
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
    if constexpr (!TURNED) {
        unsigned long long a = describe(shared + warp / 4 * SLAB, SLAB, 8 * ROW);
        unsigned long long b = describe(shared + BM / 64 * SLAB, SLAB, 8 * ROW);
        consume<1>(pipeline, steps, sums, [&](int, int stage) {
            fence_registers();
#pragma unroll
            for (int row = 0; row < STEP; row += 16)
                multiply_later<T, true>(sums, a + (stage * STAGE + row * ROW) / 16,
                                        b + (stage * STAGE + row * ROW) / 16);
        });
    } else {
        unsigned a[2][4][4];
        unsigned long long b = describe(shared + BM / 64 * SLAB, 16, 8 * ROW);
        int column = warp * 16 + lane / 4;
        auto multiply = [&](unsigned (&now)[4][4], int stage) {
#pragma unroll
            for (int i = 0; i < 16; ++i) {  // k and k + 8, of pixels t and t + 4 of 8
                int k = column + i % 2 * 8, row = i / 4 * 8 + i % 4 / 2 * 4 + lane % 4;
                auto from = chunk(shared + stage * STAGE, row, k / V) + k % V * sizeof(T);
                now[i / 4][i % 4] = to_tf32(*reinterpret_cast<const float*>(from));
            }
            fence_registers(now);
#pragma unroll
            for (int k = 0; k < 4; ++k)
                multiply_later(sums, now[k], b + (stage * STAGE + k * 32) / 16);
        };
        consume<TURNS>(pipeline, steps, sums,
                       [&](int turn, int stage) { multiply(a[turn], stage); });
    }

    // Eight lanes write 8 neighbouring k: whole sectors of 32 bytes.
#pragma unroll
    for (int i = 0; i < BN / 2; ++i) {
        int k = k0 + warp * 16 + lane / 4 + i % 4 / 2 * 8;
        int o = o0 + i / 4 * 8 + lane % 4 * 2 + i % 2;
        if (k < K && o < D) parts[((long long)part * O + group * D + o) * K + k] = sums[i];
    }
}
