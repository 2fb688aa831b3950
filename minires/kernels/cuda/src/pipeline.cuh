// Producers and consumers within a block, for sm_90a. Shared memory holds STAGES pieces of the
// factors. The first warpgroup fills them, up to STAGES ahead; the other warpgroups have tensor
// cores multiply what is filled. Two barriers a stage say when it is `full` and when it is `empty`.
#pragma once

constexpr int WARPGROUP = 128, CONSUMERS = 2 * WARPGROUP, THREADS = WARPGROUP + CONSUMERS;

struct Pipeline {
    Barrier *full, *empty;
};

// One thread; the block meets afterwards. `also`: what arrives at `full` besides every producer.
__device__ __forceinline__ void begin_pipeline(Pipeline p, int also) {
    for (int s = 0; s < STAGES; ++s) {
        begin_phases(p.full + s, WARPGROUP + also);
        begin_phases(p.empty + s, CONSUMERS / 32);
    }
    fence_async();
}

// fill(step, stage) starts this thread's copies of a step. Tensor cores see them after the thread
// has waited for them, fenced, and arrived, which it does AHEAD steps later. Another step less than
// there are stages: consumers give a stage back only when they have begun the next.
template <class Fill>
__device__ __forceinline__ void produce(Pipeline p, int steps, Fill fill) {
    constexpr int AHEAD = STAGES - 2;
    int stage = 0, oldest = 0, parity = 1;
    for (int step = 0; step < steps + AHEAD; ++step) {
        if (step < steps) {
            wait_phase(p.empty + stage, parity);  // the first time round, parity 1 is over already
            fill(step, stage);
            if (++stage == STAGES) stage = 0, parity ^= 1;
        }
        commit_copies();
        if (step >= AHEAD) {
            wait_copies<AHEAD>();
            fence_async();
            arrive(p.full + oldest);
            if (++oldest == STAGES) oldest = 0;
        }
    }
}

// multiply(turn, stage) issues a step's products; `turn` counts 0 to TURNS - 1 over and over, and
// `steps` is a multiple of TURNS. A step's products are issued before the last step's are waited
// for; then that one's stage is given back, once by every warp.
template <int TURNS, int COUNT, class Multiply>
__device__ __forceinline__ void consume(Pipeline p, int steps, float (&sums)[COUNT],
                                        Multiply multiply) {
    hold(sums);  // or the compiler sets them to zero where products are under way
    int stage = 0, parity = 0, last = -1;
    for (int step = 0; step < steps; step += TURNS)
#pragma unroll
        for (int turn = 0; turn < TURNS; ++turn) {
            wait_phase(p.full + stage, parity);
            multiply(turn, stage);
            commit_products();
            wait_products<1>(sums);
            __syncwarp();
            if (last >= 0 && threadIdx.x % 32 == 0) arrive(p.empty + last);
            last = stage;
            if (++stage == STAGES) stage = 0, parity ^= 1;
        }
    wait_products<0>(sums);
}
