// Drives a Verilated ConnectionTable: fills it, with a look-up in every cycle.
//
//   table DIGESTS INDEX_BITS DIGEST_BITS FLOWS CHURN LATENCY
//
// DIGESTS holds 16 bytes per key. Keys are inserted until the first refusal; the cycles of an insertion
// are counted up to FLOWS entries and for CHURN more after as many deletions. LATENCY: cycles of a look-up. Prints numbers as JSON.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "Vtable.h"
#include "verilated.h"

using Key = unsigned __int128;

static Vtable* top;
static int index_bits, digest_bits, row_bits;
static std::vector<Key> keys;
static std::vector<uint32_t> present;  // numbers of keys that are surely in the table
static std::vector<int64_t> index_of;  // key -> index, -1: not surely there
static uint64_t cycles, lookups, wrong;
static uint64_t state = 88172645463325252ull;

static uint64_t random64() {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

template <typename Wide>
static void put(Wide& wide, int at, Key value, int bits) {
    for (int i = 0; i < bits; ++i) {
        uint32_t mask = 1u << ((at + i) & 31);
        if (value >> i & 1) wide[(at + i) >> 5] |= mask;
        else wide[(at + i) >> 5] &= ~mask;
    }
}

struct Expected {
    bool valid;
    int64_t index;  // -1: not found
};
static Expected pipeline[8];
static int latency;

// One cycle; a look-up goes in and one comes out.
static void cycle() {
    static int at = 0;
    Expected& slot = pipeline[at];
    if (slot.valid) {
        ++lookups;
        uint32_t got = top->o;  // hit, kind, index
        int64_t index = got & 1 ? int64_t(got >> 3) : -1;
        if (!top->o_valid || index != slot.index) ++wrong;
    }
    slot = {false, 0};
    top->i_valid = top->ready;
    if (top->ready) {  // while the table is empty, of a key that is not there
        uint32_t key = present.empty() ? keys.size() - 1 : present[random64() % present.size()];
        put(top->i_digest, 0, keys[key], digest_bits);
        slot = {true, index_of[key]};
    }
    at = (at + 1) % latency;
    top->clk = 0;
    top->eval();
    top->clk = 1;
    top->eval();
    ++cycles;
}

static int insert(uint32_t key, uint32_t index, uint64_t& took) {
    uint64_t start = cycles;
    put(top->port___05Finsert___05Fpayload, 0, keys[key], digest_bits);
    put(top->port___05Finsert___05Fpayload, digest_bits, 0, 2);
    put(top->port___05Finsert___05Fpayload, digest_bits + 2, index, index_bits);
    top->port___05Finsert___05Fvalid = 1;
    do { top->clk = 0; top->eval(); if (top->port___05Finsert___05Fready) break; cycle(); } while (cycles - start < 100000);
    cycle();
    top->port___05Finsert___05Fvalid = 0;
    top->port___05Finserted___05Fready = 1;
    while (true) {
        top->clk = 0;
        top->eval();
        if (top->port___05Finserted___05Fvalid || cycles - start > 100000) break;
        cycle();
    }
    int status = top->port___05Finserted___05Fpayload;
    cycle();
    top->port___05Finserted___05Fready = 0;
    took = cycles - start;
    if (status == 0) {
        index_of[key] = index;
        present.push_back(key);
    }
    return status;
}

static void remove_at(size_t place) {
    uint32_t key = present[place];
    present[place] = present.back();
    present.pop_back();
    for (int i = 0; i < latency + 1; ++i) cycle();  // look-ups of it have come out
    Key rows = keys[key] & ((Key(1) << 2 * row_bits) - 1);
    uint64_t payload = uint64_t(rows) | uint64_t(index_of[key]) << (2 * row_bits + 2);
    top->port___05Fdelete___05Fpayload = payload;
    top->port___05Fdelete___05Fvalid = 1;
    do { top->clk = 0; top->eval(); if (top->port___05Fdelete___05Fready) break; cycle(); } while (true);
    cycle();
    top->port___05Fdelete___05Fvalid = 0;
    top->port___05Fdeleted___05Fready = 1;
    while (true) { top->clk = 0; top->eval(); if (top->port___05Fdeleted___05Fvalid) break; cycle(); }
    cycle();
    top->port___05Fdeleted___05Fready = 0;
}

int main(int argc, char** argv) {
    if (argc != 7) return 2;
    FILE* file = fopen(argv[1], "rb");
    index_bits = atoi(argv[2]);
    digest_bits = atoi(argv[3]);
    size_t flows = atoll(argv[4]), churn = atoll(argv[5]);
    latency = atoi(argv[6]);
    row_bits = index_bits - 4;
    Key key;
    while (fread(&key, sizeof key, 1, file) == 1) keys.push_back(key);
    fclose(file);
    index_of.assign(keys.size(), -1);
    top = new Vtable;
    top->rst = 1;
    cycle();
    top->rst = 0;
    do { cycle(); top->clk = 0; top->eval(); } while (!top->ready);
    for (int i = 0; i < latency; ++i) cycle();
    cycles = lookups = wrong = 0;

    std::vector<uint32_t> took;
    uint64_t now, refused_at = 0;
    size_t next = 0;
    for (; next < std::min(flows, keys.size()); ++next) {
        if (insert(next, next, now)) { refused_at = next; break; }
        took.push_back(now);
    }
    if (!refused_at)
        for (size_t i = 0; i < churn && next < keys.size(); ++i, ++next) {
            size_t place = random64() % present.size();
            uint32_t freed = index_of[present[place]];
            remove_at(place);
            if (insert(next, freed, now)) { refused_at = present.size(); break; }
            took.push_back(now);
        }
    // On to the first refusal; indices are used twice from here on.
    if (!refused_at)
        for (; next < keys.size(); ++next)
            if (insert(next, next & ((1u << index_bits) - 1), now)) { refused_at = present.size(); break; }
    std::sort(took.begin(), took.end());
    printf("{\"refused_at\": %llu, \"inserted\": %zu, \"p50\": %u, \"p99\": %u, \"max\": %u, \"cycles\": %llu, \"lookups\": %llu, \"wrong\": %llu}\n",
           (unsigned long long)refused_at, present.size(), took[took.size() / 2], took[took.size() * 99 / 100], took.back(),
           (unsigned long long)cycles, (unsigned long long)lookups, (unsigned long long)wrong);
    return 0;
}
