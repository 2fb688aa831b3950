// Batched matrix products in registers, in float or double: Winograd's places, 1x1 convolutions.
//
//     by_rows      C[b][i, j] = sum_k A[b][i, k] * B[b][j, k]      k along the memory of both
//     by_columns   C[b][i, j] = sum_k A[b][k, i] * B[b][k, j]      i and j along it
//
//     for b, i, j, k: C[b][i, j] += A[b][i, k] * B[b][j, k]
//
// A block makes a BM x BN piece of one product, a thread TM x TN numbers of it in registers. STAGES
// steps of both factors are under way to shared memory at once, 16 bytes at a time, past the
// registers (cp.async). Neither form turns a factor around: by_rows reads 16 bytes along k of
// TM + TN rows and multiplies all of them, by_columns reads one k of TM + TN neighbours. Both read
// (TM + TN) * 16 bytes for 16 / sizeof(T) * TM * TN multiply-adds. A warp is 4 threads high and 8
// wide, so that the 8 threads that a load serves at once read one address, or 8 different banks.
//
// A long sum may be split: part s adds up its own k and writes its own result, parts
// (splits, batch, I, J), which are added up in order (sum_parts.cu). K, and for by_columns I and J,
// in whole packs of 16 bytes.
#include "types.cuh"
#include "ptx.cuh"

constexpr int V = PACK<T>, BK = 64 / sizeof(T), STAGES = 3;  // a step is 64 bytes of each row
constexpr int HIGH = BM / TM, WIDE = BN / TN, THREADS = HIGH * WIDE;
constexpr int BLOCKS = (sizeof(T) == 4 ? 512 : 256) / THREADS;  // that a multiprocessor holds
static_assert(HIGH % 4 == 0 && WIDE % 8 == 0, "a warp is 4 threads high and 8 wide");

// This thread's place in the block: threads (tm, tn) of HIGH x WIDE.
struct Own {
    int tm, tn;
    __device__ __forceinline__ Own() {
        int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        tm = warp / (WIDE / 8) * 4 + lane / 8;
        tn = warp % (WIDE / 8) * 8 + lane % 8;
    }
};

// The piece of this block, and its part of the sum. Pieces of one row of pieces follow each other,
// so that they read the same rows of A at the same time.
struct Piece {
    long long i0, batch, part, begin, end;
    int j0;
    __device__ __forceinline__ Piece(int J, long long K, long long k_per_part, int batches) {
        int across = (J + BN - 1) / BN;
        i0 = (long long)(blockIdx.x / across) * BM;
        j0 = blockIdx.x % across * BN;
        batch = blockIdx.y % batches;
        part = blockIdx.y / batches;
        begin = part * k_per_part;
        end = begin + k_per_part < K ? begin + k_per_part : K;
    }
};

// Runs `copy(stage, k)` STAGES - 1 steps ahead of `use(stage)`, for k = begin, begin + BK, ...
template <class Copy, class Use>
__device__ __forceinline__ void pipeline(long long begin, long long end, Copy copy, Use use) {
    int steps = int((end - begin + BK - 1) / BK);
#pragma unroll
    for (int s = 0; s < STAGES - 1; ++s) {
        if (s < steps) copy(s, begin + s * BK);
        commit_copies();
    }
    for (int s = 0; s < steps; ++s) {
        wait_copies<STAGES - 2>();
        __syncthreads();
        int ahead = s + STAGES - 1;
        if (ahead < steps) copy(ahead % STAGES, begin + ahead * BK);
        commit_copies();
        use(s % STAGES);
    }
    wait_copies<0>();
}

// a (batch, I, K), b (batch, J, K), c (splits, batch, I, J), added to what is there if `add`.
// grid: (pieces, batch * splits)
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
by_rows(const T* __restrict__ a, const T* __restrict__ b, T* __restrict__ c, long long I, int J,
        long long K, long long k_per_part, int batches, int add) {
    // Place q of row r, 16 bytes, lies at q ^ (r / 2 % 4): what 8 threads read or write at once, of
    // 8 rows or of 2, is in different banks. A thread's rows are multiples of 8 apart.
    constexpr int ROW = BK, STAGE = (BM + BN) * ROW, ROWS = THREADS / 4;
    static_assert(BM % ROWS == 0 && BN % ROWS == 0, "every thread copies as many rows");
    static_assert(HIGH % 8 == 0 && ROWS % 8 == 0, "and all of its rows turn places alike");
    DYNAMIC_SHARED(T, shared);
    Own own;
    Piece piece(J, K, k_per_part, batches);

    // What this thread copies: 16 bytes at place q of rows row_own + l * ROWS, those inside.
    int q = threadIdx.x % 4 * V, row_own = threadIdx.x / 4;
    long long i_left = I - piece.i0 - row_own;
    int j_left = J - piece.j0 - row_own;
    a += (piece.batch * I + piece.i0 + row_own) * K + q;
    b += (piece.batch * J + piece.j0 + row_own) * K + q;
    auto copy = [&](int stage, long long k) {
        T* to = shared + stage * STAGE + row_own * ROW + (q ^ (row_own / 2 % 4 * V));
        bool any = k + q < piece.end;
#pragma unroll
        for (int l = 0; l < BM / ROWS; ++l) {
            bool inside = any && l * ROWS < i_left;
            copy_async_16(to + l * ROWS * ROW, a + (inside ? l * ROWS * K + k : 0), inside);
        }
#pragma unroll
        for (int l = 0; l < BN / ROWS; ++l) {
            bool inside = any && l * ROWS < j_left;
            copy_async_16(to + (BM + l * ROWS) * ROW, b + (inside ? l * ROWS * K + k : 0), inside);
        }
    };
    T sums[TM][TN] = {};
    auto use = [&](int stage) {
        const T* rows = shared + stage * STAGE + own.tm * ROW;
        const T* columns = shared + stage * STAGE + (BM + own.tn) * ROW;
        // Not unrolled: the loads of two steps of V would not fit into 128 registers.
#pragma unroll 1
        for (int k = 0; k < BK; k += V) {
            Some<T, V> left[TM];
#pragma unroll
            for (int i = 0; i < TM; ++i)
                left[i] = load<V>(rows + i * HIGH * ROW + (k ^ (own.tm / 2 % 4 * V)));
#pragma unroll
            for (int j = 0; j < TN; ++j) {
                Some<T, V> right =
                    load<V>(columns + j * WIDE * ROW + (k ^ (own.tn / 2 % 4 * V)));
#pragma unroll
                for (int v = 0; v < V; ++v)
#pragma unroll
                    for (int i = 0; i < TM; ++i) sums[i][j] += left[i].at[v] * right.at[v];
            }
        }
    };
    pipeline(piece.begin, piece.end, copy, use);

    c += (piece.part * batches + piece.batch) * I * J;
#pragma unroll
    for (int i = 0; i < TM; ++i) {
        long long row = piece.i0 + own.tm + i * HIGH;
        if (row >= I) continue;
#pragma unroll
        for (int j = 0; j < TN; ++j) {
            int column = piece.j0 + own.tn + j * WIDE;
            if (column >= J) continue;
            T* to = c + row * J + column;
            *to = add ? *to + sums[i][j] : sums[i][j];
        }
    }
}

// a (batch, K, I), b (batch, K, J), c (splits, batch, I, J), added to what is there if `add`.
// grid: (pieces, batch * splits)
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
by_columns(const T* __restrict__ a, const T* __restrict__ b, T* __restrict__ c, long long I, int J,
           long long K, long long k_per_part, int batches, int add) {
    constexpr int STAGE = (BM + BN) * BK, CHUNKS_M = BM / V, CHUNKS_N = BN / V;
    static_assert(THREADS % CHUNKS_M == 0 && THREADS % CHUNKS_N == 0, "whole rows at a time");
    constexpr int ROWS_M = THREADS / CHUNKS_M, ROWS_N = THREADS / CHUNKS_N;
    constexpr int COPIES_M = (BK + ROWS_M - 1) / ROWS_M, COPIES_N = (BK + ROWS_N - 1) / ROWS_N;
    DYNAMIC_SHARED(T, shared);
    Own own;
    Piece piece(J, K, k_per_part, batches);
    int i = threadIdx.x % CHUNKS_M * V, row_m = threadIdx.x / CHUNKS_M;
    int j = threadIdx.x % CHUNKS_N * V, row_n = threadIdx.x / CHUNKS_N;
    a += piece.batch * K * I + piece.i0 + i;
    b += piece.batch * K * J + piece.j0 + j;
    auto copy = [&](int stage, long long k) {
        T* to = shared + stage * STAGE;
#pragma unroll
        for (int l = 0; l < COPIES_M; ++l) {
            int row = row_m + l * ROWS_M;
            bool inside = k + row < piece.end && piece.i0 + i < I;
            if (BK % ROWS_M == 0 || row < BK)
                copy_async_16(to + row * BM + i, a + (inside ? (k + row) * I : 0), inside);
        }
#pragma unroll
        for (int l = 0; l < COPIES_N; ++l) {
            int row = row_n + l * ROWS_N;
            bool inside = k + row < piece.end && piece.j0 + j < J;
            if (BK % ROWS_N == 0 || row < BK)
                copy_async_16(to + BK * BM + row * BN + j, b + (inside ? (k + row) * J : 0),
                              inside);
        }
    };
    T sums[TM][TN] = {};
    auto use = [&](int stage) {
        const T* rows = shared + stage * STAGE + own.tm * V;
        const T* columns = shared + stage * STAGE + BK * BM + own.tn * V;
#pragma unroll 2  // more would not fit into 128 registers
        for (int k = 0; k < BK; ++k) {
            Some<T, V> left[TM / V], right[TN / V];
#pragma unroll
            for (int m = 0; m < TM / V; ++m) left[m] = load<V>(rows + k * BM + m * HIGH * V);
#pragma unroll
            for (int n = 0; n < TN / V; ++n) right[n] = load<V>(columns + k * BN + n * WIDE * V);
#pragma unroll
            for (int m = 0; m < TM; ++m)
#pragma unroll
                for (int n = 0; n < TN; ++n)
                    sums[m][n] += left[m / V].at[m % V] * right[n / V].at[n % V];
        }
    };
    pipeline(piece.begin, piece.end, copy, use);

    c += (piece.part * batches + piece.batch) * I * J;
#pragma unroll
    for (int m = 0; m < TM; ++m) {
        long long row = piece.i0 + (m / V * HIGH + own.tm) * V + m % V;
        if (row >= I) continue;
#pragma unroll
        for (int n = 0; n < TN; n += V) {
            int column = piece.j0 + (n / V * WIDE + own.tn) * V;
            if (column >= J) continue;
            T* to = c + row * J + column;
            Some<T, V> values = {};
            if (add) values = load<V>(to);
#pragma unroll
            for (int v = 0; v < V; ++v) values.at[v] += sums[m][n + v];
            store<V>(to, values);
        }
    }
}
