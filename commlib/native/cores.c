/* Two ranks on one core, though there is one for each.
 *
 * They take turns by yielding, each turn brings what the other waits for, and so neither ever sleeps: the scheduler sees
 * two busy threads and may leave them there for seconds, at twenty times the cost of a call (measured: 4.7 us, not
 * 0.25). A thread that wakes up is put on a free core, so the higher rank takes a short nap. */
#define _GNU_SOURCE
#include "run.h"

#include <sched.h>

enum { NAP_NS = 50000, FIRST_GAP_NS = 1000000, LONGEST_GAP_NS = 1000000000 };

static uint32_t this_core(void) {
#ifdef __linux__
    return (uint32_t)(sched_getcpu() + 1); /* 0: not known */
#else
    return 0;
#endif
}

/* Naps that did not help become rare: the other rank may have moved without a word, or may not be movable. */
static void nap(Context *c, uint32_t core) {
    if (now_ns() < c->next_nap) return;
    struct timespec time = {0, NAP_NS};
    nanosleep(&time, NULL);
    int moved = this_core() != core;
    c->nap_gap = moved || !c->nap_gap ? FIRST_GAP_NS : c->nap_gap * 2 < LONGEST_GAP_NS ? c->nap_gap * 2 : LONGEST_GAP_NS;
    c->next_nap = now_ns() + (uint64_t)c->nap_gap;
}

void leave_shared_core(Context *c) {
    uint32_t core = c->roomy ? this_core() : 0;
    if (!core) return;
    store_relaxed32(c->segments[c->rank] + CORE, core);
    for (int p = 0; p < c->rank; p++)
        if (load_relaxed32(c->segments[p] + CORE) == core) return nap(c, core);
}
