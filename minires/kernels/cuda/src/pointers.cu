// A table of addresses, written from a launch's own arguments: table[first + i] = p_i, i < count.
//
// A thread per address. The arguments are part of the launch, so a captured graph writes the same
// addresses each time it is replayed.
typedef unsigned long long Address;

extern "C" __global__ void __launch_bounds__(16)
write_pointers(Address* __restrict__ table, long long first, int count, Address p0, Address p1,
               Address p2, Address p3, Address p4, Address p5, Address p6, Address p7, Address p8,
               Address p9, Address p10, Address p11, Address p12, Address p13, Address p14,
               Address p15) {
    const Address p[16] = {p0, p1, p2,  p3,  p4,  p5,  p6,  p7,
                           p8, p9, p10, p11, p12, p13, p14, p15};
    int thread = threadIdx.x;
#pragma unroll
    for (int i = 0; i < 16; ++i)
        if (i == thread && i < count) table[first + i] = p[i];
}
