// What a training step keeps account of on the device, so that the host need not ask after each.
//
// tally: what the step adds to the figures of an epoch.
//
//     loss_n = log sum_k exp(x_nk) - x_n,label(n)      plain cross-entropy, whatever was trained on
//     right_n = [label(n) = argmax_k x_nk]             the first of equal ones
//     sums[0] += sum_n loss_n;  counts[RIGHT] += sum_n right_n;  IMAGES, CURSOR += N
//
// find: whether any gradient is not finite. decide, one thread, after find:
//
//     control[0] = 1 / scale          what the optimiser multiplies gradients by
//     control[1] = BAD or BROKEN      it then changes nothing: weights and momentum stay
//
// Without loss scaling (interval 0), a gradient that is not finite is BROKEN for good: nothing is
// changed from there on, and the host finds the weights as they were before that step. With it, an
// overflow halves the scale, `interval` good steps in a row double it, and only a scale below
// `smallest` is BROKEN. A loss that is not finite is BROKEN in both cases: no scale cures it.
#include "types.cuh"

enum Counts { CURSOR, IMAGES, RIGHT, STEPS, BROKEN, BROKEN_AT, SKIPPED, GOOD, BAD };
enum Cause { LOSS = 1, GRADIENT = 2 };

// One block, a warp per row: the sums are taken in the same order every time.
extern "C" __global__ void __launch_bounds__(1024)
tally(const T* __restrict__ x, const long long* __restrict__ labels, double* __restrict__ sums,
      long long* __restrict__ counts, long long rows, int K) {
    __shared__ double losses[32];
    __shared__ int rights[32];
    const unsigned all = 0xffffffffu;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    double loss = 0;
    int right = 0;
    for (long long n = warp; n < rows; n += warps) {
        const T* row = x + n * K;
        Sum<T> maximum = -infinity();
        int best = K;
        for (int k = lane; k < K; k += 32) {
            Sum<T> value = wide(row[k]);
            if (best == K || value > maximum) {
                maximum = value;
                best = k;
            }
        }
        for (int step = 16; step; step /= 2) {
            Sum<T> other = __shfl_xor_sync(all, maximum, step);
            int at = __shfl_xor_sync(all, best, step);
            if (at < K && (best == K || other > maximum || (other == maximum && at < best))) {
                maximum = other;
                best = at;
            }
        }
        double sum = 0;
        for (int k = lane; k < K; k += 32) sum += exp(double(wide(row[k]) - maximum));
        for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(all, sum, step);
        long long label = labels[n];
        bool known = label >= 0 && label < K;
        loss += known ? log(sum) - double(wide(row[label]) - maximum) : double(not_a_number());
        right += best == label;
    }
    if (lane == 0) {
        losses[warp] = loss;
        rights[warp] = right;
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    double total = 0;
    for (int i = 0; i < warps; ++i) {
        total += losses[i];
        counts[RIGHT] += rights[i];
    }
    sums[0] += total;
    counts[IMAGES] += rows;
    counts[CURSOR] += rows;
    if (!(total - total == 0) && counts[BROKEN] == 0) counts[BROKEN] = LOSS;
}

template <int V>
__device__ __forceinline__ bool finite(const T* g, long long i) {
    Some<T, V> given = load<V>(g + i);
    bool all = true;
#pragma unroll
    for (int k = 0; k < V; ++k) {
        Sum<T> value = wide(given.at[k]);
        all = all && value - value == 0;
    }
    return all;
}

// The gradients are cut into chunks; chunk i belongs to tensor owner[i] and begins at start[i].
extern "C" __global__ void __launch_bounds__(256, 2)
find(const T* const* __restrict__ gradients, const long long* __restrict__ sizes,
     const int* __restrict__ owner, const long long* __restrict__ start, long long chunk,
     long long* __restrict__ counts) {
    int tensor = owner[blockIdx.x];
    long long begin = start[blockIdx.x];
    long long count = min(chunk, sizes[tensor] - begin);
    const T* g = gradients[tensor] + begin;
    long long packs = (size_t)g % 16 == 0 ? count / PACK<T> : 0;
    bool all = true;
    for (long long i = threadIdx.x; i < packs; i += blockDim.x)
        all = finite<PACK<T>>(g, i * PACK<T>) && all;
    for (long long i = packs * PACK<T> + threadIdx.x; i < count; i += blockDim.x)
        all = finite<1>(g, i) && all;
    if (!all) counts[BAD] = 1;  // whoever writes it, writes the same
}

extern "C" __global__ void decide(long long* __restrict__ counts, float* __restrict__ scale,
                                  float* __restrict__ control, long long interval,
                                  float smallest) {
    bool bad = counts[BAD] != 0, scaled = interval > 0;
    float used = scale[0];
    counts[BAD] = 0;
    counts[STEPS] += 1;
    if (counts[BROKEN] == 0) {
        if (bad && scaled) {
            counts[SKIPPED] += 1;
            counts[GOOD] = 0;
            scale[0] = used / 2;
        } else if (scaled && ++counts[GOOD] == interval) {
            counts[GOOD] = 0;
            scale[0] = used * 2;
        }
        if (bad && (!scaled || scale[0] < smallest)) counts[BROKEN] = GRADIENT;
    }
    bool broken = counts[BROKEN] != 0;
    if (broken && counts[BROKEN_AT] == 0) counts[BROKEN_AT] = counts[STEPS];
    control[0] = 1 / used;
    control[1] = bad || broken ? 1 : 0;
}
