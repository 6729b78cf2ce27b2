/* Ranks that share cores badly. Those that yield to each other never sleep, so the scheduler sees busy threads only and
 * leaves them where they are, for seconds.
 *
 * With a core for each rank, two may take turns on one, at twenty times the cost of a call (measured: 4.7 us, not 0.25).
 * A thread that wakes up is put on a free core, so the higher rank takes a short nap.
 *
 * While two share one all the same (something else may want the other core), looking longer is of no use: whoever is
 * waited for needs this core (measured, 2 ranks beside a busy process: a call of 1 KB 3.4 times its quiet time, 2.3 since).
 *
 * With fewer cores than ranks none is free, but one may have more ranks than another, and all wait for those. The
 * highest of the fullest core asks for the emptiest, and then again for all that it was allowed (measured through torch,
 * 8 ranks on 2 cores, 1 KB: 24 us with four on each, 32 with five on one, 42 with six). */
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

/* The next look, rarer if the last was no use: a rank may not be movable, or have moved without a word; or the scheduler
 * undoes the moves, since something else wants the core too. */
static void rest(Context *c, int useful) {
    int64_t gap = useful ? c->gap / 2 : c->gap * 2;
    c->gap = gap < FIRST_GAP_NS ? FIRST_GAP_NS : gap > LONGEST_GAP_NS ? LONGEST_GAP_NS : gap;
    c->next_move = now_ns() + (uint64_t)c->gap;
}

static void nap(Context *c, uint32_t core) {
    for (int p = 0; p < c->rank; p++) {
        if (load_relaxed32(c->segments[p] + CORE) != core) continue;
        struct timespec time = {0, NAP_NS};
        nanosleep(&time, NULL);
        return rest(c, this_core() != core);
    }
}

#ifdef __linux__
/* Ranks on each core, by their own words; 0 if a higher rank than this one is on its core. */
static int count_ranks(const Context *c, uint32_t core, uint16_t *on) {
    for (int p = 0; p < c->ranks; p++) {
        uint32_t its = load_relaxed32(c->segments[p] + CORE);
        if (its == core && p > c->rank) return 0;
        if (its <= CPU_SETSIZE) on[its]++;
    }
    return 1;
}

/* The emptiest core that this thread may use, if moving there makes the ranks more even; else this one. */
static uint32_t better_core(const Context *c, uint32_t core, const cpu_set_t *allowed) {
    uint16_t on[CPU_SETSIZE + 1] = {0};
    if (core > CPU_SETSIZE || !count_ranks(c, core, on)) return core;
    uint32_t emptiest = core;
    for (uint32_t other = 1; other <= CPU_SETSIZE; other++)
        if (CPU_ISSET(other - 1, allowed) && on[other] < on[emptiest]) emptiest = other;
    return on[core] < on[emptiest] + 2 ? core : emptiest;
}

static void shift(Context *c, uint32_t core) {
    cpu_set_t allowed, one;
    if (sched_getaffinity(0, sizeof allowed, &allowed)) return rest(c, 0); /* there are more than CPU_SETSIZE */
    uint32_t better = better_core(c, core, &allowed);
    rest(c, better == core);
    if (better == core) return;
    CPU_ZERO(&one);
    CPU_SET(better - 1, &one);
    if (sched_setaffinity(0, sizeof one, &one)) return; /* forbidden here */
    sched_setaffinity(0, sizeof allowed, &allowed);
    store_relaxed32(c->segments[c->rank] + CORE, this_core());
}
#else
static void shift(Context *c, uint32_t core) {
    (void)core;
    rest(c, 0);
}
#endif

static int shares(const Context *c, uint32_t core) {
    int others = 0;
    for (int p = 0; p < c->ranks; p++) others += p != c->rank && load_relaxed32(c->segments[p] + CORE) == core;
    return others > 0;
}

void leave_shared_core(Context *c) {
    uint32_t core = this_core();
    if (!core) return;
    store_relaxed32(c->segments[c->rank] + CORE, core);
    c->shares = c->roomy && shares(c, core);
    if (now_ns() < c->next_move) return;
    if (c->roomy) nap(c, core);
    else shift(c, core);
}
