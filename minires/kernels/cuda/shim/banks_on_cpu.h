// Turns that shared memory takes: it serves 128 bytes a turn, 4 from each of 32 banks. What a warp
// copies or loads in rows of 16 bytes goes 8 rows at a time, one turn if they lie in 8 different
// places of 128 bytes. Counted for asynchronous copies and matrix loads.
#pragma once

#include <stdint.h>
#include <string.h>

extern "C" {
unsigned long long turns_needed, turns_taken;  // of a launch
}

namespace shim {

// Of 8 rows of 16 bytes at once; a row that is asked for twice is served once.
inline void count_turns(const void* const* rows) {
    int most = 0;
    for (int i = 0; i < 8; ++i) {
        int same = 1;
        for (int j = 0; j < i; ++j)
            same += rows[i] != rows[j] &&
                    reinterpret_cast<uintptr_t>(rows[i]) / 16 % 8 ==
                        reinterpret_cast<uintptr_t>(rows[j]) / 16 % 8;
        most = same > most ? same : most;
    }
    turns_needed += 1;
    turns_taken += most;
}

// A warp's copies, the first of every lane together, then the second, and so on.
constexpr int COPIES_COUNTED = 64;
struct Rows {
    const void* of[32];
    int lanes;
};
static Rows copied[32][COPIES_COUNTED];

inline void count_copy(int warp, int lane, int number, const void* to) {
    Rows& rows = copied[warp][number % COPIES_COUNTED];
    rows.of[lane] = to;
    if (++rows.lanes < 32) return;
    rows.lanes = 0;
    for (int i = 0; i < 32; i += 8) count_turns(rows.of + i);
}

inline void begin_turns() { memset(copied, 0, sizeof copied); }

}  // namespace shim
