// CUDA C++ on one CPU thread: enough of the language to run this project's kernels where there is
// no GPU. Every thread of a block is a fiber with a stack of its own; blocks run one after another.
//
// A fiber runs until it meets a barrier, a warp exchange, or its end; then the next one runs. So a
// missing __syncthreads() is not hidden: run the threads upwards once and downwards once, and
// whoever reads what a later thread should have written reads the wrong thing in one of them.
// Asynchronous copies happen as late as their wait allows when threads run upwards, which shows a
// missing wait, and at once when they run downwards, which shows what is overwritten too early.
// What only sm_90a has is in hopper_on_cpu.h.
#pragma once

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__x86_64__) && !defined(MINIRES_UCONTEXT)
#define SHIM_OWN_SWITCH 1  // some nanoseconds; the system's swapcontext takes a system call
#else
#include <ucontext.h>
#endif

#define MINIRES_ON_CPU 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
// One block runs at a time, so a block's shared arrays are static; their section is filled with
// NaN before each block. In functions that are templates use dynamic shared memory instead.
#define __shared__ static __attribute__((section("block_shared")))

struct dim3 {
    unsigned x, y, z;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) double2 {
    double x, y;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

namespace shim {

// AT_LAST: until nobody else can go on; AT_PHASE: for a phase of an mbarrier.
enum State { READY, AT_BARRIER, AT_EXCHANGE, AT_NAMED, AT_PHASE, AT_LAST, DONE };

struct Copy {
    void* to;
    const void* from;
    int bytes, valid;
    void make() const {
        memcpy(to, from, valid);
        memset(static_cast<char*>(to) + valid, 0, bytes - valid);
    }
};

struct Fiber {
    void* stack_pointer;
    dim3 thread;
    int lane, warp;
    State state;
    unsigned mask;      // of the exchange that it waits for
    int barrier, expected;  // number of the named barrier, and how many threads meet there
    int exchanges;      // parity chooses the slots: a lane is at most one exchange ahead
    int first_copy, last_copy, group_end[16], groups, copied;
    Copy copies[1024];  // asynchronous copies not yet made, oldest first
};

constexpr int MAX_THREADS = 1024, SLOT_BYTES = 64;
constexpr size_t STACK = 256 << 10, SHARED_LIMIT = 232448, GUARD = 4096;

static Fiber* fibers;
static char* stacks;
static Fiber* current;
static void* scheduler_stack;
alignas(16) static unsigned char slots[MAX_THREADS / 32][2][32][SLOT_BYTES];
alignas(4096) static unsigned char dynamic_memory[GUARD + SHARED_LIMIT + GUARD];
static dim3 block_index, block_size, grid_size;
static char error[256];
static bool eager;  // asynchronous copies happen at once
static void (*body)(void*);
static void* body_arguments;

// Of hopper_on_cpu.h.
static void begin_asynchronous(size_t shared_bytes);
static bool end_phases();
static void note_copied(const Copy& copy);
static bool finished();

extern "C" char __start_block_shared[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_block_shared[] __attribute__((weak, visibility("hidden")));

#ifdef SHIM_OWN_SWITCH
// Saves what a call must preserve, changes stacks, and returns on the other one.
extern "C" void shim_switch(void** save, void* load);
asm(R"(
.text
.local shim_switch
.type shim_switch, @function
shim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size shim_switch, .-shim_switch
)");
static void start_fiber();
inline void prepare(Fiber& f, char* stack) {
    // As after a call: the stack is 8 off a multiple of 16 when start_fiber begins.
    void** top = reinterpret_cast<void**>(stack + STACK) - 2;
    *top = reinterpret_cast<void*>(start_fiber);
    f.stack_pointer = top - 6;
}
inline void enter(Fiber& f) { shim_switch(&scheduler_stack, f.stack_pointer); }
inline void leave(Fiber& f) { shim_switch(&f.stack_pointer, scheduler_stack); }
#else
static ucontext_t scheduler_context, contexts[MAX_THREADS];
static void start_fiber();
inline void prepare(Fiber& f, char* stack) {
    ucontext_t& c = contexts[&f - fibers];
    getcontext(&c);
    c.uc_stack.ss_sp = stack;
    c.uc_stack.ss_size = STACK;
    c.uc_link = nullptr;
    makecontext(&c, start_fiber, 0);
}
inline void enter(Fiber& f) { swapcontext(&scheduler_context, &contexts[&f - fibers]); }
inline void leave(Fiber& f) { swapcontext(&contexts[&f - fibers], &scheduler_context); }
#endif

static __noinline__ void fail(const char* what) {
    if (!error[0])
        snprintf(error, sizeof error, "%s (block %u %u %u, thread %u %u %u)", what, block_index.x,
                 block_index.y, block_index.z, current->thread.x, current->thread.y,
                 current->thread.z);
}

static void make_copies(int keep_groups) {
    Fiber& f = *current;
    int done = f.groups - keep_groups;
    if (done <= 0) return;
    for (; f.first_copy < f.group_end[done - 1]; ++f.first_copy) {
        const Copy& c = f.copies[f.first_copy];
        if (!eager) c.make();
        note_copied(c);
    }
    for (int i = done; i < f.groups; ++i) f.group_end[i - done] = f.group_end[i];
    f.groups -= done;
    if (f.first_copy == f.last_copy) {
        f.first_copy = f.last_copy = 0;
        for (int i = 0; i < f.groups; ++i) f.group_end[i] = 0;
    }
}

inline void copy_later(void* to, const void* from, int bytes, int valid) {
    Fiber& f = *current;
    if (f.last_copy == 1024) return fail("more than 1024 asynchronous copies under way");
    if (reinterpret_cast<uintptr_t>(to) % bytes || reinterpret_cast<uintptr_t>(from) % bytes)
        fail("an asynchronous copy is not aligned");
    f.copies[f.last_copy++] = {to, from, bytes, valid};
    if (bytes == 16) count_copy(f.warp, f.lane, f.copied++, to);
    if (eager) f.copies[f.last_copy - 1].make();
}

inline void close_group() {
    Fiber& f = *current;
    if (f.groups == 16) return fail("more than 16 groups of asynchronous copies under way");
    f.group_end[f.groups++] = f.last_copy;
}

static void start_fiber() {
    body(body_arguments);
    if (current->first_copy != current->last_copy || !finished())
        fail("a thread ended before its asynchronous copies or products did");
    current->state = DONE;
    leave(*current);
}

inline void wait(State state) {
    current->state = state;
    leave(*current);
}

// All lanes in `mask` write a value into their slots and go on when each of them has.
template <class V>
inline unsigned char (*exchange(unsigned mask, const V& value))[SLOT_BYTES] {
    static_assert(sizeof(V) <= SLOT_BYTES, "too much for an exchange");
    auto slot = slots[current->warp][current->exchanges++ & 1];
    memcpy(slot[current->lane], &value, sizeof(V));
    current->mask = mask;
    if (!(mask >> current->lane & 1)) fail("a lane is not in the mask of its own exchange");
    wait(AT_EXCHANGE);
    return slot;
}

template <class V>
inline V taken(unsigned char (*slot)[SLOT_BYTES], int lane) {
    V value;
    memcpy(&value, slot[lane & 31], sizeof(V));
    return value;
}

// The rows of 16 bytes that the lanes give to a matrix load.
inline unsigned char (*exchange_rows(const void* row))[SLOT_BYTES] {
    if (reinterpret_cast<uintptr_t>(row) % 16) fail("a matrix row is not aligned");
    auto slot = exchange(0xffffffffu, row);
    if (current->lane == 0)
        for (int i = 0; i < 32; i += 8) {
            const void* rows[8];
            for (int j = 0; j < 8; ++j) rows[j] = taken<const void*>(slot, i + j);
            count_turns(rows);
        }
    return slot;
}

// Lets the lanes whose exchange is complete go on; false if none could.
inline bool release(int first, int last) {
    bool any = false;
    for (int i = first; i < last; ++i) {
        if (fibers[i].state != AT_EXCHANGE) continue;
        unsigned mask = fibers[i].mask, here = 0;
        for (int j = first; j < last; ++j)
            if (fibers[j].state == AT_EXCHANGE && fibers[j].mask == mask) here |= 1u << (j - first);
        if ((here & mask) != mask) continue;
        for (int j = first; j < last; ++j)
            if (mask >> (j - first) & 1) fibers[j].state = READY;
        any = true;
    }
    return any;
}

// Lets those at a named barrier go on if all of them are there.
inline bool meet(int threads) {
    int here[16] = {};
    for (int i = 0; i < threads; ++i)
        if (fibers[i].state == AT_NAMED) ++here[fibers[i].barrier];
    bool any = false;
    for (int i = 0; i < threads; ++i)
        if (fibers[i].state == AT_NAMED && here[fibers[i].barrier] == fibers[i].expected)
            fibers[i].state = READY, any = true;
    return any;
}

// Lets a warp go on whose threads wait until nobody else can.
inline bool wake_last(int threads, bool downwards) {
    int warp = -1;
    for (int i = 0; i < threads; ++i)
        if (fibers[i].state == AT_LAST && (warp < 0 || downwards)) warp = fibers[i].warp;
    for (int i = 0; i < threads; ++i)
        if (fibers[i].state == AT_LAST && fibers[i].warp == warp) fibers[i].state = READY;
    return warp >= 0;
}

inline void run_block(int threads, bool downwards) {
    int warps = (threads + 31) / 32;
    for (;;) {
        for (int k = 0; k < warps; ++k) {
            int first = (downwards ? warps - 1 - k : k) * 32;
            int last = first + 32 < threads ? first + 32 : threads;
            do {
                for (int i = first; i < last; ++i) {
                    Fiber& f = fibers[downwards ? first + last - 1 - i : i];
                    if (f.state != READY) continue;
                    current = &f;
                    enter(f);
                }
            } while (release(first, last));
        }
        int waiting = 0, done = 0;
        for (int i = 0; i < threads; ++i) {
            waiting += fibers[i].state == AT_BARRIER;
            done += fibers[i].state == DONE;
        }
        if (done == threads || error[0]) return;
        if (waiting + done == threads) {
            for (int i = 0; i < threads; ++i)
                if (fibers[i].state == AT_BARRIER) fibers[i].state = READY;
        } else if (!meet(threads) && !end_phases() && !wake_last(threads, downwards)) {
            return fail("deadlock: some threads wait for what others never do");
        }
    }
}

// Runs every block; an error text, or nullptr.
inline const char* launch(void (*f)(void*), void* arguments, const unsigned* sizes,
                          unsigned shared_bytes, int downwards) {
    if (!fibers) {
        fibers = static_cast<Fiber*>(calloc(MAX_THREADS, sizeof(Fiber)));
        stacks = static_cast<char*>(mmap(nullptr, STACK * MAX_THREADS, PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    }
    body = f;
    body_arguments = arguments;
    grid_size = {sizes[0], sizes[1], sizes[2]};
    block_size = {sizes[3], sizes[4], sizes[5]};
    int threads = int(block_size.x * block_size.y * block_size.z);
    unsigned char* end = dynamic_memory + GUARD + shared_bytes;
    error[0] = 0;
    turns_needed = turns_taken = 0;
    eager = downwards;
    current = fibers;
    size_t blocks = size_t(grid_size.x) * grid_size.y * grid_size.z;
    for (size_t b = 0; b < blocks && !error[0]; ++b) {
        size_t k = downwards ? blocks - 1 - b : b;
        block_index = {unsigned(k % grid_size.x), unsigned(k / grid_size.x % grid_size.y),
                       unsigned(k / grid_size.x / grid_size.y)};
        if (__start_block_shared)
            memset(__start_block_shared, 0xff, __stop_block_shared - __start_block_shared);
        memset(dynamic_memory, 0xff, 2 * GUARD + shared_bytes);
        begin_asynchronous(shared_bytes);
        begin_turns();
        for (int i = 0; i < threads; ++i) {
            Fiber& fiber = fibers[i];
            fiber.thread = {i % block_size.x, i / block_size.x % block_size.y,
                            i / block_size.x / block_size.y};
            fiber.lane = i % 32;
            fiber.warp = i / 32;
            fiber.state = READY;
            fiber.exchanges = fiber.first_copy = fiber.last_copy = fiber.groups = 0;
            fiber.copied = 0;
            prepare(fiber, stacks + STACK * i);
        }
        run_block(threads, downwards);
        for (size_t i = 0; i < GUARD; ++i)
            if (dynamic_memory[i] != 0xff || end[i] != 0xff)
                return fail("wrote outside of dynamic shared memory"), error;
    }
    return error[0] ? error : nullptr;
}

// Unpacks a launch's list of arguments.
template <size_t... I>
struct Indices {};
template <size_t N, size_t... I>
struct UpTo : UpTo<N - 1, N - 1, I...> {};
template <size_t... I>
struct UpTo<0, I...> : Indices<I...> {};

template <class... A>
struct Call {
    void (*kernel)(A...);
    void** arguments;
    template <size_t... I>
    void unpack(Indices<I...>) {
        kernel(*static_cast<A*>(arguments[I])...);
    }
    static void run(void* self) { static_cast<Call*>(self)->unpack(UpTo<sizeof...(A)>{}); }
};

// Launches after comparing the sizes of the arguments with the host's.
template <class... A>
const char* launch_kernel(void (*kernel)(A...), void** arguments, const int* bytes, int count,
                          const unsigned* sizes, unsigned shared_bytes, int downwards) {
    const int expected[] = {int(sizeof(A))..., 0};
    if (count != int(sizeof...(A))) {
        snprintf(error, sizeof error, "takes %d arguments, got %d", int(sizeof...(A)), count);
        return error;
    }
    for (int i = 0; i < count; ++i)
        if (bytes[i] != expected[i]) {
            snprintf(error, sizeof error, "argument %d has %d bytes, got %d", i, expected[i],
                     bytes[i]);
            return error;
        }
    Call<A...> call{kernel, arguments};
    return launch(Call<A...>::run, &call, sizes, shared_bytes, downwards);
}

}  // namespace shim

#define threadIdx (shim::current->thread)
#define blockIdx (shim::block_index)
#define blockDim (shim::block_size)
#define gridDim (shim::grid_size)
#define DYNAMIC_SHARED(type, name) \
    type* name = reinterpret_cast<type*>(shim::dynamic_memory + shim::GUARD)

inline void __syncthreads() { shim::wait(shim::AT_BARRIER); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { shim::exchange(mask, 0); }

template <class V>
inline V __shfl_sync(unsigned mask, V value, int lane, int width = 32) {
    auto slot = shim::exchange(mask, value);
    return shim::taken<V>(slot, (shim::current->lane & ~(width - 1)) | (lane & (width - 1)));
}
template <class V>
inline V __shfl_xor_sync(unsigned mask, V value, int other, int = 32) {
    return shim::taken<V>(shim::exchange(mask, value), shim::current->lane ^ other);
}
template <class V>
inline V __shfl_down_sync(unsigned mask, V value, int distance, int width = 32) {
    int lane = shim::current->lane, from = lane + distance;
    auto slot = shim::exchange(mask, value);
    return shim::taken<V>(slot, lane / width == from / width ? from : lane);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
    auto slot = shim::exchange(mask, predicate);
    unsigned votes = 0;
    for (int i = 0; i < 32; ++i)
        if (mask >> i & 1) votes |= unsigned(shim::taken<int>(slot, i) != 0) << i;
    return votes;
}
inline int atomicAdd(int* address, int value) {
    int old = *address;
    *address += value;
    return old;
}

template <class V>
inline V __ldg(const V* p) {
    return *p;
}
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float __uint_as_float(unsigned bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
inline unsigned __float_as_uint(float value) {
    unsigned bits;
    memcpy(&bits, &value, 4);
    return bits;
}
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline long long min(long long a, long long b) { return a < b ? a : b; }
inline long long max(long long a, long long b) { return a > b ? a : b; }
