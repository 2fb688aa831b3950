// What only sm_90a has, on one CPU thread: mbarriers with transaction counts, bulk copies, the
// async proxy, and warpgroup-wide products (wgmma). Follows cuda_on_cpu.h in the same text.
//
// Written from the PTX ISA (sections are named below), not from the kernels: a descriptor is
// decoded bit by bit, and operands are read from shared memory where the decoded layout says.
//
// Asynchrony is as unkind as the hardware may be. A product reads its operands when its issuer
// waits for it, and only after every other thread has run as far as it can; so a stage that is
// given back too early is overwritten first. Products and bulk copies see a second copy of shared
// memory, the async proxy's, into which a thread's own writes come by its fence alone.
#pragma once

namespace shim {

constexpr unsigned SHARED_BASE = 1024;  // the system keeps the first KiB of shared memory
constexpr int MAX_BARRIERS = 64, MAX_PRODUCTS = 256;
enum Kind { KIND_F16, KIND_BF16, KIND_TF32 };

static unsigned char async_view[SHARED_LIMIT];
static size_t shared_size;

inline unsigned char* shared_memory() { return dynamic_memory + GUARD; }

// A position in dynamic shared memory.
inline size_t shared_place(const void* p, size_t bytes) {
    size_t place = static_cast<const unsigned char*>(p) - shared_memory();
    if (place + bytes > shared_size) fail("an address is not in dynamic shared memory"), place = 0;
    return place;
}

// -- mbarriers (PTX ISA 9.7.13.15) ----------------------------------------------------------------

struct BulkCopy {
    size_t to;
    const void* from;
    unsigned bytes;
};

struct Phases {
    unsigned long long* word;
    int count, pending, initialiser, copies;
    long long expected, arriving;  // bytes
    unsigned phase;
    bool fenced;
    BulkCopy copy[16];
};

static Phases phases[MAX_BARRIERS];
static int barriers;

inline unsigned long long mark(int i) { return 0xba771e5000000000ull + i; }

inline void begin_phases(unsigned long long* word, unsigned count) {
    if (reinterpret_cast<uintptr_t>(word) % 8) fail("an mbarrier is not aligned");
    shared_place(word, 8);
    if (barriers == MAX_BARRIERS) return fail("more than 64 mbarriers");
    phases[barriers] = {word, int(count), int(count), int(current - fibers), 0, 0, 0, 0, false, {}};
    *word = mark(barriers++);
}

inline Phases& phases_of(unsigned long long* word) {
    for (int i = 0; i < barriers; ++i)
        if (phases[i].word == word && *word == mark(i)) return phases[i];
    fail("not an mbarrier: not initialised, or written over");
    static Phases none;
    return none = {word, 1, 1, 0, 0, 0, 0, 0, true, {}};
}

inline void arrive_bulk(const BulkCopy& c) {
    memcpy(shared_memory() + c.to, c.from, c.bytes);
    memcpy(async_view + c.to, c.from, c.bytes);
}

// Ends the phase if everybody and every byte has arrived.
inline bool end_phase(Phases& b) {
    if (b.pending || b.arriving < b.expected) return false;
    if (b.arriving > b.expected) return fail("more bytes arrive than an mbarrier expects"), false;
    for (int i = 0; i < b.copies && !eager; ++i) arrive_bulk(b.copy[i]);
    b.pending = b.count;
    b.expected = b.arriving = b.copies = 0;
    ++b.phase;
    return true;
}

inline void arrive(unsigned long long* word, unsigned bytes) {
    Phases& b = phases_of(word);
    if (!b.pending && !end_phase(b)) return fail("more threads arrive than an mbarrier counts");
    --b.pending;
    b.expected += bytes;
}

inline void copy_bulk(void* to, const void* from, unsigned bytes, unsigned long long* word) {
    Phases& b = phases_of(word);
    if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from) | bytes) % 16)
        fail("a bulk copy is not aligned");
    if (!b.fenced) fail("a bulk copy may not see its mbarrier: no fence after initialising it");
    if (b.copies == 16) return fail("more than 16 bulk copies in a phase");
    b.copy[b.copies++] = {shared_place(to, bytes), from, bytes};
    b.arriving += bytes;
    if (eager) arrive_bulk(b.copy[b.copies - 1]);
}

// -- the async proxy (PTX ISA 8.6, 9.7.13.4) -------------------------------------------------------

struct Written {
    size_t place;
    int bytes;
};

struct Product {
    Kind kind;
    int n;
    float* d;
    const unsigned* a_registers;  // or null
    uint64_t a, b;
    bool a_major_m, b_major_n;
};

struct Async {
    Written written[1024];  // by this thread, and not fenced
    int writes;
    unsigned long long* waits_for;
    unsigned parity;
    Product products[MAX_PRODUCTS];
    int first, last, group_end[16], groups, issued;
    bool fenced;  // registers, since the last wait
};

static Async* async_threads;
inline Async& own() { return async_threads[current - fibers]; }

static void note_copied(const Copy& c) {
    Async& t = own();
    size_t place = static_cast<unsigned char*>(c.to) - shared_memory();
    if (place + c.bytes > shared_size) return;  // a static array
    // Kernels that never fence write on and on; nothing reads their list.
    if (t.writes == 1024) t.writes = 0;
    t.written[t.writes++] = {place, c.bytes};
}

inline void fence_async() {
    Async& t = own();
    for (int i = 0; i < t.writes; ++i)
        memcpy(async_view + t.written[i].place, shared_memory() + t.written[i].place,
               t.written[i].bytes);
    t.writes = 0;
    for (int i = 0; i < barriers; ++i)
        if (phases[i].initialiser == current - fibers) phases[i].fenced = true;
}

inline void wait_phase(unsigned long long* word, unsigned parity) {
    if ((phases_of(word).phase & 1) != parity) return;
    own().waits_for = word;
    own().parity = parity;
    wait(AT_PHASE);
}

static bool end_phases() {
    bool any = false;
    for (int i = 0; i < barriers; ++i) any |= end_phase(phases[i]);
    int threads = int(block_size.x * block_size.y * block_size.z);
    for (int i = 0; i < threads; ++i) {
        Async& t = async_threads[i];
        if (fibers[i].state == AT_PHASE && (phases_of(t.waits_for).phase & 1) != t.parity)
            fibers[i].state = READY, any = true;
    }
    return any;
}

inline void named_barrier(int barrier, int threads) {
    current->barrier = barrier;
    current->expected = threads;
    wait(AT_NAMED);
}

// -- wgmma (PTX ISA 9.7.15) ------------------------------------------------------------------------

// Where element (mn, k) of an operand lies, by its descriptor (9.7.15.5.1.2): mn counts rows of A
// or columns of B. Offsets are in bytes; W chunks of 16 bytes make a row of the swizzle's pattern.
inline unsigned operand_address(uint64_t descriptor, bool major_mn, int mn, int k, int size) {
    unsigned start = (descriptor & 0x3fff) << 4, leading = (descriptor >> 16 & 0x3fff) << 4;
    unsigned stride = (descriptor >> 32 & 0x3fff) << 4, mode = descriptor >> 62;
    const unsigned chunks[] = {1, 8, 4, 2};
    unsigned W = chunks[mode], pattern = W * 128, per_chunk = 16 / size;
    if (descriptor >> 49 & 7) fail("the emulator knows no matrix base offset other than 0");
    if (descriptor & 0x3ff1c000c000c000ull) fail("a matrix descriptor has bits that mean nothing");
    if (mode && (start & (pattern - 1)) >= W * 16)
        fail("a matrix does not begin in the first row of its swizzle's pattern");
    unsigned offset;
    if (!major_mn) {
        unsigned chunk = k / per_chunk;
        offset = mn % 8 * W * 16 + mn / 8 * stride + chunk * (mode ? 16 : leading);
        offset += k % per_chunk * size;
    } else {
        unsigned chunk = mn / per_chunk, row = k % 8 * W * 16;
        offset = mode ? chunk % W * 16 + chunk / W * leading + row + k / 8 * stride
                      : chunk * stride + row + k / 8 * leading;
        offset += mn % per_chunk * size;
    }
    unsigned address = start + offset;
    return address ^ (address >> 7 & (W - 1)) << 4;
}

inline float operand_value(const void* bytes, Kind kind) {
    if (kind == KIND_TF32) {
        unsigned bits;
        memcpy(&bits, bytes, 4);
        float value;
        memcpy(&value, &bits, 4);
        if (bits & 0x1fff && value == value) fail("a factor was not rounded to tf32");
        return value;
    }
    unsigned short half;
    memcpy(&half, bytes, 2);
    if (kind == KIND_F16) {
        _Float16 value;
        memcpy(&value, &half, 2);
        return float(value);
    }
    unsigned bits = unsigned(half) << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

inline float operand(uint64_t descriptor, bool major_mn, int mn, int k, Kind kind) {
    int size = kind == KIND_TF32 ? 4 : 2;
    unsigned address = operand_address(descriptor, major_mn, mn, k, size);
    if (address < SHARED_BASE || address - SHARED_BASE + size > shared_size) {
        fail("a matrix lies outside of shared memory");
        return 0;
    }
    const unsigned char* at = async_view + address - SHARED_BASE;
    if (memcmp(at, shared_memory() + address - SHARED_BASE, size))
        fail("a factor was written and not fenced: tensor cores may see either value");
    return operand_value(at, kind);
}

// A thread's part of d += a @ b, 64 x n (fragments: figures of 9.7.15.5.1.1).
static void multiply(const Product& p) {
    int lane = current->lane, quad = lane % 4, size = p.kind == KIND_TF32 ? 4 : 2, K = 32 / size;
    float a[2][16];
    if (p.a_registers) {
        struct Four {
            unsigned at[4];
        } four;
        memcpy(&four, p.a_registers, sizeof four);
        auto slot = exchange(0xffffffffu, four);
        for (int low = 0; low < 2; ++low)
            for (int k = 0; k < K; ++k) {
                int within = k % (K / 2) * size;
                auto from = slot[lane / 4 * 4 + within / 4];
                a[low][k] = operand_value(from + 4 * (low + k / (K / 2) * 2) + within % 4, p.kind);
            }
    } else {
        int row = current->warp % 4 * 16 + lane / 4;
        for (int low = 0; low < 2; ++low)
            for (int k = 0; k < K; ++k)
                a[low][k] = operand(p.a, p.a_major_m, row + 8 * low, k, p.kind);
    }
    for (int n = quad * 2; n < p.n; n += n % 2 ? 7 : 1)
        for (int k = 0; k < K; ++k) {
            float b = operand(p.b, p.b_major_n, n, k, p.kind);
            for (int low = 0; low < 2; ++low) p.d[n / 8 * 4 + low * 2 + n % 2] += a[low][k] * b;
        }
}

// What every warp of a warpgroup must issue alike.
struct Issued {
    int number, n;
    uint64_t a, b;
};
static Issued issued_last[MAX_THREADS / 128][MAX_PRODUCTS];

inline void multiply_later(const Product& p) {
    Async& t = own();
    if (!t.fenced) fail("wgmma without wgmma.fence after registers were used");
    if (t.last == MAX_PRODUCTS) return fail("more than 256 products under way");
    Issued& e = issued_last[current->warp / 4][t.issued % MAX_PRODUCTS];
    if (e.number != t.issued)
        e = {t.issued, p.n, p.a, p.b};
    else if (e.n != p.n || e.a != p.a || e.b != p.b)
        fail("the warps of a warpgroup issue different products");
    ++t.issued;
    t.products[t.last++] = p;
}

inline void fence_registers() { own().fenced = true; }

inline void close_products() {
    Async& t = own();
    if (t.groups == 16) return fail("more than 16 groups of products under way");
    t.group_end[t.groups++] = t.last;
}

static void make_products(int under_way) {
    Async& t = own();
    t.fenced = false;
    int done = t.groups - under_way;
    if (done <= 0) return;
    wait(AT_LAST);
    for (; t.first < t.group_end[done - 1]; ++t.first) multiply(t.products[t.first]);
    for (int i = done; i < t.groups; ++i) t.group_end[i - done] = t.group_end[i] - t.first;
    t.groups -= done;
    memmove(t.products, t.products + t.first, (t.last - t.first) * sizeof(Product));
    t.last -= t.first;
    t.first = 0;
}

static bool finished() { return own().first == own().last; }

static void begin_asynchronous(size_t shared_bytes) {
    if (!async_threads) async_threads = static_cast<Async*>(calloc(MAX_THREADS, sizeof(Async)));
    shared_size = shared_bytes;
    barriers = 0;
    memset(async_view, 0xff, shared_bytes);
    memset(issued_last, 0xff, sizeof issued_last);
    int threads = int(block_size.x * block_size.y * block_size.z);
    for (int i = 0; i < threads; ++i) {
        Async& t = async_threads[i];
        t.writes = t.first = t.last = t.groups = t.issued = 0;
        t.fenced = false;
    }
}

}  // namespace shim
