/* Bells wake ranks that sleep. Counters are written with release only; before the core looks whether their readers
 * sleep there is one full fence for all of them, taken when this rank has nothing else to do or has done. */
#include "core.h"

void remember_bell(Context *c, int peer) {
    if (c->rings[peer]) return;
    c->rings[peer] = 1;
    c->to_ring[c->ringing++] = peer;
}

void ring_if_asleep(char *segment) {
    if (!load_relaxed32(segment + BELL_SLEEPERS)) return;
    add32(segment + BELL, 1);
    futex_wake(segment + BELL);
}

void ring_bells(Context *c) {
    if (!c->ringing) return;
    fence();
    for (int i = 0; i < c->ringing; i++) {
        ring_if_asleep(c->segments[c->to_ring[i]]);
        c->rings[c->to_ring[i]] = 0;
    }
    c->ringing = 0;
}
